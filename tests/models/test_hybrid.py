"""BioViL-T's encoder: films with and without one before, in one batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.models.hybrid import Hybrid
from medclip_jax.models.registry import build_image_encoder

ENCODER = Hybrid(stage_sizes=(1, 1), width=4, block="basic", dim=8, blocks=1, heads=2)
rng = np.random.default_rng(0)
FILMS, PRIOR = (jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32) for _ in "ab")
HAS = jnp.array([True, False, True, False])


@pytest.fixture(scope="module")
def variables():
    import flax.linen as nn

    init = jax.jit(lambda key: ENCODER.init(key, FILMS, PRIOR, HAS, train=False))
    return nn.meta.unbox(init(jax.random.key(0)))


def encode(variables, *films, **more):
    return ENCODER.apply(variables, *films, train=False, **more)


def test_half_a_patch_is_what_changed(variables):
    made = encode(variables, FILMS, PRIOR, HAS)
    assert made.grid == (4, 4) and made.patches_BxPxC.shape == (4, 16, 16)
    assert ENCODER.feature_dim == 16
    alone = encode(variables, FILMS)
    np.testing.assert_allclose(
        made.patches_BxPxC[..., :8], alone.patches_BxPxC[..., :8], atol=1e-5
    )
    missing = variables["params"]["missing"]
    for row, has in enumerate(HAS):
        of = made.patches_BxPxC[row, :, 8:]
        assert bool(jnp.allclose(of, missing)) != bool(has)
    other = encode(variables, FILMS, -PRIOR, HAS)
    moved = np.abs(np.asarray(other.patches_BxPxC - made.patches_BxPxC)).max(axis=1)
    assert moved[:, :8].max() < 1e-5 and moved[~np.asarray(HAS)].max() < 1e-5
    assert (moved[np.asarray(HAS), 8:].max(axis=1) > 1e-3).all()
    np.testing.assert_allclose(
        made.trunk_BxF, np.asarray(made.patches_BxPxC).mean(1), atol=1e-5
    )


def test_without_a_film_before_the_transformer_is_not_asked(variables):
    params = variables["params"]
    other = {**params, "pooler": jax.tree.map(lambda a: a + 1, params["pooler"])}
    nowhere = jnp.zeros(4, bool)
    for films in ((FILMS,), (FILMS, PRIOR, nowhere)):
        one = encode(variables, *films).trunk_BxF
        np.testing.assert_array_equal(
            one, encode({**variables, "params": other}, *films).trunk_BxF
        )
    assert not np.allclose(
        encode(variables, FILMS, PRIOR, HAS).trunk_BxF,
        encode({**variables, "params": other}, FILMS, PRIOR, HAS).trunk_BxF,
    )


def test_order_matters_and_the_batch_does_not(variables):
    every = jnp.ones(4, bool)
    one = encode(variables, FILMS, PRIOR, every).trunk_BxF
    assert np.abs(one - encode(variables, PRIOR, FILMS, every).trunk_BxF).max() > 1e-2
    turned = encode(variables, FILMS[::-1], PRIOR[::-1], every).trunk_BxF
    np.testing.assert_allclose(one, turned[::-1], atol=1e-5)


def test_a_film_that_is_not_there_does_not_count(variables):
    """Neither in what comes out nor in the statistics of the batch."""
    noise = jnp.where(HAS[:, None, None, None], PRIOR, 1e3)
    keys = jax.random.split(jax.random.key(1), 4)
    made = [
        ENCODER.apply(
            variables,
            FILMS,
            prior,
            HAS,
            train=True,
            keys_B=keys,
            mutable=["batch_stats"],
        )
        for prior in (PRIOR, noise)
    ]
    for one, other in zip(jax.tree.leaves(made[0]), jax.tree.leaves(made[1])):
        np.testing.assert_array_equal(one, other)


def test_drops_by_example(variables):
    dropping = dataclasses.replace(ENCODER, drop_path=0.5)
    keys = jax.random.split(jax.random.key(1), 4)
    given = FILMS, PRIOR, jnp.ones(4, bool)

    def run(keys):
        made, _ = dropping.apply(
            variables, *given, train=True, keys_B=keys, mutable=["batch_stats"]
        )
        return np.asarray(made.trunk_BxF)

    whole, other = run(keys), run(keys.at[3].set(jax.random.key(7)))
    np.testing.assert_allclose(whole[:3], other[:3], atol=1e-5)
    assert np.abs(whole[3] - other[3]).max() > 1e-3


def test_operations_and_refusals():
    pair = ENCODER.forward_flops(32)
    resnet = ENCODER.clone(blocks=0).forward_flops(32)
    patches, tokens, dim = 16, 32, 8
    assert pair - resnet == 2 * (tokens * 6 * dim**2 + 2 * tokens**2 * dim)
    assert resnet > 2 * patches * dim
    with pytest.raises(ValueError, match="not divisible by 4 and by 3 heads"):
        Hybrid(dim=256, heads=3)
    assert isinstance(build_image_encoder({"name": "hybrid"}), Hybrid)
