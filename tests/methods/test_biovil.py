"""BioViL, BioViL-L and BioViL-T: heads, losses, switches, and the film before."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medclip_jax import config_flags
from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.interface import (
    ExampleKeys,
    Features,
    ImageEmbedding,
    NamedWords,
    Spec,
    TextEmbedding,
)
from medclip_jax.models.features import ImageFeatures
from medclip_jax.models.heads import PatchMLP
from medclip_jax.runtime import step
from tests.methods.test_methods import BERT, LENGTH, RESNET, SIZE, a_batch

HYBRID = {**RESNET, "name": "hybrid", "dim": 8, "blocks": 1, "heads": 2}


@functools.cache
def make(name, *options):
    config = config_flags.load_config(name, options)
    config.model.image = ConfigDict(HYBRID if "_t" in name else RESNET)
    config.model.text = ConfigDict({**BERT, "pooler": False})
    config.model.embed_dim = 16
    method = registry.build(config)
    init = jax.jit(method.init, static_argnums=1)
    return method, nn.meta.unbox(init(jax.random.key(0), Spec(SIZE, LENGTH)))


def keys_of(batch, seed=0):
    n = len(batch["image_weight_N"])
    images, texts = jax.random.split(jax.random.key(seed), (2, n))
    return ExampleKeys(images, texts)


def unit(rows):
    rows = np.array(rows, np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


IMAGES = unit([[0.2, 1.0, -0.5, 0.3], [1.0, 0.1, 0.4, -0.2], [-0.3, 0.6, 1.2, 0.0]])
TEXTS = unit([[0.1, 0.9, -0.4, 0.5], [0.8, -0.2, 0.1, 0.0], [0.0, 0.4, 0.7, -0.6]])
WEIGHTS = {"image_weight_N": np.ones(3), "text_weight_M": np.array([1.0, 1.0, 1.0])}
NAMED = NamedWords(
    jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 6.0, 0.0]]),
    jnp.array([[True, False, False], [False] * 3, [False] * 3]),
    jnp.array([[True, True, False], [False] * 3, [False, True, False]]),
)


def test_half_of_both_directions_and_the_hidden_words():
    """Temperature 0.5: both directions' sum is 0.627807; three pieces are named."""
    method, variables = make("biovil.py:demo")
    features = Features(
        ImageEmbedding(jnp.zeros((3, 1)), IMAGES), TextEmbedding(TEXTS), named=NAMED
    )

    def run(method, **weights):
        batch = {**WEIGHTS, **weights}
        return method.objective(variables, features, batch, None, jnp.int32(0))[:2]

    loss, metrics = run(method)
    np.testing.assert_allclose(metrics["loss_global"], 0.627807, atol=1e-5)
    np.testing.assert_allclose(metrics["loss_mlm"], 3.0, atol=1e-6)
    np.testing.assert_allclose(metrics["mlm_accuracy"], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(loss, 0.5 * 0.627807 + 3.0, atol=1e-5)
    lighter = dataclasses.replace(method, global_weight=1.0, mlm_weight=0.1)
    np.testing.assert_allclose(run(lighter)[0], 0.627807 + 0.3, atol=1e-5)
    _, metrics = run(method, text_weight_M=np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(metrics["loss_mlm"], 1.5, atol=1e-6)
    np.testing.assert_allclose(
        method.score(variables, features.images, features.texts),
        2 * np.asarray(IMAGES @ TEXTS.T),
        atol=1e-5,
    )


# Two films of four patches, texts of two and three words; cosines are of unit vectors.
PATCHES = np.array(
    [
        [[1, 0], [0.6, 0.8], [0, 1], [-1, 0.5]],
        [[0.5, 0.5], [-0.2, 1], [1, 1], [0.3, -0.9]],
    ],
    np.float32,
)
WORDS = np.array(
    [[[1, 0.2], [0, 1], [0, 0]], [[0.4, 0.4], [-1, 0.3], [0.2, -1]]], np.float32
)
HAS_WORD = np.array([[1, 1, 0], [1, 1, 1]], bool)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        (
            {"attention": "words_then_regions", "aggregate": "sum", "unit": False},
            2.143743,
        ),
        (
            {"attention": "words_then_regions", "aggregate": "mean", "unit": False},
            3.775648,
        ),
        ({"attention": "regions", "aggregate": "sum", "unit": True}, 0.477883),
    ],
)
def test_words_and_patches(switches, expected):
    """BioViL-L's loss in GLoRIA's forms."""
    method, variables = make("biovil.py:demo_local")
    assert method.local_weight == 0.1 and method.local_scale == 10
    words = dataclasses.replace(method.words, **switches)
    method = dataclasses.replace(method, words=words, masked_words=None)
    features = Features(
        ImageEmbedding(jnp.zeros((2, 1)), IMAGES[:2], None, jnp.asarray(PATCHES)),
        TextEmbedding(TEXTS[:2], None, None, jnp.asarray(WORDS), jnp.asarray(HAS_WORD)),
    )
    batch = {"image_weight_N": np.ones(2), "text_weight_M": np.ones(2)}
    loss, metrics, _ = method.objective(variables, features, batch, None, jnp.int32(0))
    np.testing.assert_allclose(metrics["loss_local"], expected, atol=1e-5)
    np.testing.assert_allclose(
        loss, 0.5 * metrics["loss_global"] + 0.1 * expected, atol=1e-5
    )


def test_a_film_is_the_mean_of_its_patches():
    """Projected, not yet of length 1; with batch norm over all patches."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 4, 6)).astype(np.float32)
    features = ImageFeatures(jnp.zeros((3, 6)), jnp.asarray(patches), (2, 2))
    head = PatchMLP(5)
    variables = nn.meta.unbox(head.init(jax.random.key(0), features, train=False))
    made, changed = head.apply(variables, features, train=True, mutable=["batch_stats"])
    params = jax.tree.map(np.asarray, variables["params"])
    hidden = patches.reshape(12, 6) @ params["hidden"]["kernel"]
    normed = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    out = np.maximum(normed, 0) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(made.local_BxLxD.reshape(12, 5), out, atol=1e-5)
    np.testing.assert_allclose(made.joint_BxD, out.reshape(3, 4, 5).mean(1), atol=1e-5)
    moved = changed["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * hidden.mean(0), atol=1e-5)
    assert "bias" not in params["hidden"] and made.grid == (2, 2)


def test_words_have_no_place_where_no_loss_reads_them():
    for name, has in (("biovil.py:demo", False), ("biovil.py:demo_local", True)):
        method, variables = make(name)
        texts = method.embed_texts(variables, a_batch()["texts"])
        assert (texts.local_BxWxD is not None) == has
        assert variables["params"]["text"]["projection"].keys() == {
            "hidden", "norm", "out",
        }  # fmt: skip


def test_hidden_words_are_drawn_by_example():
    method, variables = make("biovil.py:demo")
    batch = a_batch()
    named = [
        method.encode(variables, batch, keys, True)[0].named
        for keys in (keys_of(batch), keys_of(batch), keys_of(batch, 1))
    ]
    np.testing.assert_array_equal(named[0].losses_BxT, named[1].losses_BxT)
    assert (named[0].named_BxT != named[2].named_BxT).any()
    pieces = batch["texts"]["word_ids_BxT"] >= 0
    assert not np.asarray(named[0].named_BxT)[~pieces].any()
    none, _ = make("biovil.py:demo", "biovil.mlm_weight=0")
    assert none.masked_words is None
    params = {k: v for k, v in variables["params"].items() if k != "masked_words"}
    features, _ = none.encode({**variables, "params": params}, batch, None, False)
    assert features.named is None


def with_prior(batch, seed=1):
    films = batch["films"]["current_BxHxWx3"]
    prior = np.random.default_rng(seed).normal(size=films.shape).astype(np.float32)
    has = np.arange(len(films)) % 2 == 0
    films = {**batch["films"], "prior_BxHxWx3": prior, "has_prior_B": has}
    return {**batch, "films": films}


def test_the_film_before_counts_where_there_is_one():
    method, variables = make("biovil_t.py:demo")
    batch = with_prior(a_batch())
    both = method.embed_images(variables, batch["films"])
    current = {"current_BxHxWx3": batch["films"]["current_BxHxWx3"]}
    alone = method.embed_images(variables, current)
    same = np.isclose(both.joint_BxD, alone.joint_BxD, atol=1e-5).all(axis=1)
    assert same.tolist() == [False, True, False, True]
    assert both.trunk_BxF.shape == (4, 16) and both.local_BxPxD.shape[2] == 16
    assert method.view == "with_prior" and method.reads_prior
    assert not getattr(make("biovil.py:demo")[0], "reads_prior", False)


@pytest.mark.parametrize("reads", [True, False])
def test_hidden_words_are_named_with_the_film_s_help(reads):
    method, variables = make(
        "biovil_t.py:demo", f"biovil_t.mlm_reads_film={str(reads).lower()}"
    )
    assert bool(method.masked_words.head.patch_heads) == reads
    batch, other = with_prior(a_batch()), with_prior(a_batch(), seed=2)
    keys = keys_of(batch)

    def losses(batch):
        return np.asarray(
            method.encode(variables, batch, keys, True)[0].named.losses_BxT
        )

    assert (np.abs(losses(batch) - losses(other)).max() > 0) == reads


def test_refusals():
    with pytest.raises(UserError, match="must not be negative; found -1.0"):
        make("biovil.py:demo", "biovil.local_weight=-1")
    with pytest.raises(UserError, match=r"mlm.rate must be in \(0, 1\); found 1.0"):
        make("biovil.py:demo", "mlm.rate=1")
    with pytest.raises(UserError, match="mlm.mask_id=99 is none of the 50 ids"):
        make("biovil.py:demo", "mlm.mask_id=99")
    config = config_flags.load_config("biovil_t.py:demo")
    config.model.image = ConfigDict(RESNET)
    with pytest.raises(
        UserError, match="model.image.name must be hybrid; found resnet"
    ):
        registry.build(config)


def test_both_films_are_augmented_alike():
    """What differs between them is to be what changed."""
    films = {
        f"{name}_BxHxWx1": jnp.zeros((3, 4, 4, 1)) for name in ("current", "prior")
    }
    keys = step.film_keys({**films, "has_prior_B": jnp.ones(3)}, jax.random.key(0))
    assert sorted(keys) == ["current_BxHxWx1", "prior_BxHxWx1"]
    current, prior = (jax.random.key_data(keys[name]) for name in sorted(keys))
    np.testing.assert_array_equal(current, prior)
    second = {"current_BxHxWx1": films["prior_BxHxWx1"]}
    second["second_BxHxWx1"] = films["prior_BxHxWx1"]
    keys = step.film_keys(second, jax.random.key(0))
    current, second = (jax.random.key_data(keys[name]) for name in sorted(keys))
    assert (current != second).any(axis=1).all()
