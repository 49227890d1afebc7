"""SimCLR and MoCo: two crops, the momentum encoder, the queue, groups of statistics."""

import dataclasses
import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medclip_jax.errors import UserError
from medclip_jax.losses import Queue, nt_xent_loss, queue_loss
from medclip_jax.methods import registry
from medclip_jax.methods.interface import ExampleKeys, Spec
from tests.methods.test_methods import RESNET, SIZE, SWIN

N = 8


def config_of(name, image=RESNET):
    config = importlib.import_module(f"configs.{name}").get_config("demo")
    config.model.image = ConfigDict(image)
    config.train.batch_size = N
    if name == "moco":
        config.moco.queue = 2 * N
    return config


@functools.cache
def make(name):
    method = registry.build(config_of(name))
    variables = jax.jit(method.init, static_argnums=1)(jax.random.key(0), Spec(SIZE, 8))
    return method, nn.meta.unbox(variables)


def a_batch():
    rng = np.random.default_rng(0)
    films = rng.normal(size=(2, N, SIZE, SIZE, 3)).astype(np.float32)
    return {
        "films": {"current_BxHxWx3": films[0], "second_BxHxWx3": films[1]},
        "image_weight_N": np.ones(N, np.float32),
    }


def keys_of(seed=3):
    keys = jax.random.split(jax.random.key(seed), N)
    return ExampleKeys(keys, keys)


def one_step(method, variables, keys, batch=None):
    batch = a_batch() if batch is None else batch
    features, changed = jax.jit(method.encode, static_argnums=3)(
        variables, batch, keys, True
    )
    loss, _, more = method.objective(
        {**variables, **changed}, features, batch, None, jnp.int32(0)
    )
    return loss, features, {**variables, **changed, **more}


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_every_parameter_learns(name):
    method, variables = make(name)

    @jax.jit
    @jax.grad
    def gradient(params):
        given = {**variables, "params": params}
        features, changed = method.encode(given, a_batch(), keys_of(), True)
        return method.objective(
            {**given, **changed}, features, a_batch(), None, jnp.int32(0)
        )[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(
        gradient(variables["params"])
    ):
        assert np.abs(leaf).max() > 1e-12, path


def test_simclr_sees_both_crops_in_one_batch():
    method, variables = make("simclr")
    batch, films = a_batch(), a_batch()["films"]
    loss, features, after = one_step(method, variables, keys_of())
    both = np.concatenate([films["current_BxHxWx3"], films["second_BxHxWx3"]])
    images, state = method.embed(variables, both, None, True)
    np.testing.assert_allclose(
        np.concatenate([features.images.joint_BxD, features.second.joint_BxD]),
        images.joint_BxD,
        atol=1e-5,
    )
    for found, expected in zip(
        jax.tree.leaves(after["batch_stats"]), jax.tree.leaves(state["batch_stats"])
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    expected = nt_xent_loss(images.joint_BxD[:N], images.joint_BxD[N:], 10.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    doubled = dataclasses.replace(method, sum_of_views=True)
    twice = doubled.objective(variables, features, batch, None, jnp.int32(0))[0]
    np.testing.assert_allclose(twice, 2 * loss, rtol=1e-6)


def test_each_crop_draws_for_itself():
    method = registry.build(config_of("simclr", SWIN))
    variables = nn.meta.unbox(
        jax.jit(method.init, static_argnums=1)(jax.random.key(0), Spec(SIZE, 8))
    )
    batch = a_batch()
    batch["films"]["second_BxHxWx3"] = batch["films"]["current_BxHxWx3"]
    _, features, _ = one_step(method, variables, keys_of(), batch)
    apart = features.images.trunk_BxF - features.second.trunk_BxF
    assert np.abs(apart).max() > 1e-3  # drop path


@pytest.mark.parametrize("batch_norm", [True, False])
def test_heads(batch_norm):
    config = config_of("simclr")
    config.simclr.batch_norm, config.simclr.layers = batch_norm, 3
    method = registry.build(config)
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(method.init(jax.random.key(0), Spec(SIZE, 8)))
    )
    head = shapes["params"]["image"]["projection"]
    assert [head[f"layer_{n}"]["kernel"].shape[1] for n in range(3)] == [128, 128, 128]
    assert ("bias" in head["layer_0"]) != batch_norm
    assert ("norm_2" in head) == batch_norm
    if batch_norm:
        assert "bias" in head["norm_1"] and "bias" not in head["norm_2"]


def test_moco_follows_before_it_makes_keys():
    """In the order of the official code, and parameters alone."""
    method, variables = make("moco")
    params = jax.tree.map(lambda a: a + 1.0, variables["params"])
    variables = {**variables, "params": params}
    method = dataclasses.replace(method, momentum=0.9, groups=1, shuffle=False)
    _, features, after = one_step(method, variables, keys_of())
    followed = jax.tree.map(
        lambda key, query: 0.9 * key + 0.1 * query,
        variables["momentum"]["params"],
        params,
    )
    for found, expected in zip(
        jax.tree.leaves(after["momentum"]["params"]), jax.tree.leaves(followed)
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    images, state = method.embed(
        {**variables["momentum"], "params": followed},
        a_batch()["films"]["second_BxHxWx3"],
        None,
        True,
    )
    np.testing.assert_allclose(features.second.joint_BxD, images.joint_BxD, atol=1e-5)
    for found, expected in zip(
        jax.tree.leaves(after["momentum"]["batch_stats"]),
        jax.tree.leaves(state["batch_stats"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_moco_asks_the_old_queue_and_then_adds():
    method, variables = make("moco")
    loss, features, after = one_step(method, variables, keys_of())
    old = Queue(**variables["queue"])
    expected = queue_loss(
        features.images.joint_BxD, features.second.joint_BxD, old, 5.0, jnp.ones(N)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(
        after["queue"]["keys_KxD"][:N], features.second.joint_BxD, atol=1e-6
    )
    np.testing.assert_array_equal(after["queue"]["keys_KxD"][N:], old.keys_KxD[N:])
    assert int(after["queue"]["pointer"]) == N


def test_momentum_is_the_papers_sum():
    method = dataclasses.replace(make("moco")[0], momentum=0.999)
    found = method.followed(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(found, [1.002, -1.998], rtol=1e-6)


def test_groups_have_statistics_of_their_own():
    method, variables = make("moco")
    films = a_batch()["films"]["current_BxHxWx3"]
    two = dataclasses.replace(method, groups=2)
    images, state = two._in_groups(variables, films, None, True)
    first, kept = method.embed(variables, films[: N // 2], None, True)
    second, _ = method.embed(variables, films[N // 2 :], None, True)
    np.testing.assert_allclose(
        images.joint_BxD,
        np.concatenate([first.joint_BxD, second.joint_BxD]),
        atol=1e-5,
    )
    for found, expected in zip(
        jax.tree.leaves(state["batch_stats"]), jax.tree.leaves(kept["batch_stats"])
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    whole, _ = dataclasses.replace(method, groups=1)._in_groups(
        variables, films, None, True
    )
    assert np.abs(whole.joint_BxD - images.joint_BxD).max() > 1e-4


def test_keys_come_back_in_their_own_order():
    """Shuffled, a key has other neighbours; without statistics it is the same key."""
    method = registry.build(config_of("moco", {**SWIN, "drop_path": 0.0}))
    variables = nn.meta.unbox(
        jax.jit(method.init, static_argnums=1)(jax.random.key(0), Spec(SIZE, 8))
    )
    _, shuffled, _ = one_step(method, variables, keys_of())
    plain = dataclasses.replace(method, shuffle=False)
    _, straight, _ = one_step(plain, variables, keys_of())
    np.testing.assert_allclose(
        shuffled.second.joint_BxD, straight.second.joint_BxD, atol=1e-5
    )
    method, variables = make("moco")
    plain = dataclasses.replace(method, shuffle=False)
    _, shuffled, _ = one_step(method, variables, keys_of())
    _, straight, _ = one_step(plain, variables, keys_of())
    apart = shuffled.second.joint_BxD - straight.second.joint_BxD
    assert np.abs(apart).max() > 1e-4


def test_what_a_batch_does_not_divide_is_refused():
    config = config_of("moco")
    config.moco.queue = N + 1
    with pytest.raises(UserError, match=f"moco.queue={N + 1} does not go with"):
        registry.build(config)
    config = config_of("moco")
    config.moco.groups = 3
    with pytest.raises(UserError, match="moco.groups=3 does not go with"):
        registry.build(config)


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_inference_gives_the_trunk(name):
    method, variables = make(name)
    images = jax.jit(method.embed_images)(variables, a_batch()["films"])
    assert images.joint_BxD is None
    assert images.trunk_BxF.shape == (N, method.image_encoder.feature_dim)
    assert method.loss_flops(Spec(SIZE, 8), N) > 0 < method.forward_flops(Spec(SIZE, 8))
