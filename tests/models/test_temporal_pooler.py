"""BioViL-T's pooler and its positions against worked figures."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.models.temporal_pooler import TemporalPooler, sine_positions

SMALL = TemporalPooler(
    blocks=1, heads=2, dropout=0.0, attention_dropout=0.0, drop_path=0.0
)


def test_positions():
    table = sine_positions(14, 14, 256)
    assert table.shape == (196, 256)
    np.testing.assert_allclose(table.astype(np.float64).sum(), 24737.197, atol=2e-2)
    np.testing.assert_allclose(
        (table.astype(np.float64) ** 2).sum(), 196 * 128, atol=1e-2
    )
    for token, values in {
        0: {0: 0.433884, 1: 0.900969, 2: 0.378934, 3: 0.925424, 126: 0.000052,
            127: 1.0, 128: 0.433884, 129: 0.900969},
        1: {0: 0.433884, 1: 0.900969, 128: 0.781831, 129: 0.623490, 130: 0.701349,
            131: 0.712818},
        14: {0: 0.781831, 1: 0.623490, 2: 0.701349, 3: 0.712818, 128: 0.433884,
             129: 0.900969},
        195: {0: 0.0, 1: 1.0, 2: -0.746091, 3: 0.665844, 128: 0.0, 130: -0.746091},
    }.items():  # fmt: skip
        for index, value in values.items():
            assert table[token, index] == pytest.approx(value, abs=1e-6), (token, index)


def worked_weights():
    """Parameter n, at flat place k of torch's layout, is 0.2 sin(0.7 k + n)."""

    def values(n, shape, base=0.0):
        flat = base + 0.2 * np.sin(0.7 * np.arange(np.prod(shape)) + n)
        return flat.reshape(shape)

    def linear(n, bias=None):
        made = {"kernel": values(n, (8, 8)).T}
        return made if bias is None else {**made, "bias": values(bias, (8,))}

    def norm(n):
        return {"scale": values(n, (8,), 1.0), "bias": values(n + 1, (8,))}

    block = {
        "attention_norm": norm(2),
        "query": linear(4),
        "key": linear(5),
        "value": linear(6),
        "attention_out": linear(7, 8),
        "mlp_norm": norm(9),
        "mlp_in": linear(11, 12),
        "mlp_out": linear(13, 14),
    }
    made = {"type_embedding": values(1, (2, 8)), "block_0": block, "norm": norm(15)}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), made)


def maps():
    flat = np.arange(32)
    return tuple(
        jnp.asarray(of.reshape(8, 2, 2).transpose(1, 2, 0)[None], jnp.float32)
        for of in (np.sin(0.5 * flat), np.cos(0.3 * flat))
    )


def run(pooler, current, previous):
    given = {"params": worked_weights()}
    made = jax.eval_shape(
        lambda: nn.meta.unbox(
            pooler.init(jax.random.key(0), current, previous, train=False)
        )
    )
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, given)
    return np.asarray(pooler.apply(given, current, previous, train=False))[0]


def test_a_small_pooler():
    found_HxWxC = run(SMALL, *maps())
    np.testing.assert_allclose(
        found_HxWxC[0, 0],
        [0.151178, 1.368081, -0.828155, -0.415591, 0.817379, -1.039738, -1.175532,
         1.209737],
        atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        found_HxWxC[..., 0], [[0.151178, 0.853689], [1.406370, 1.704154]], atol=1e-5
    )
    np.testing.assert_allclose(found_HxWxC.sum(), 0.599774, atol=1e-4)
    np.testing.assert_allclose((found_HxWxC**2).sum(), 28.584063, atol=1e-4)


def test_positions_kept_out_of_the_values():
    found_HxWxC = run(dataclasses.replace(SMALL, positions_in_values=False), *maps())
    np.testing.assert_allclose(
        found_HxWxC[0, 0],
        [0.064876, 1.360245, -0.808964, -0.363503, 0.885947, -1.022321, -1.217426,
         1.133331],
        atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(found_HxWxC.sum(), 0.389026, atol=1e-4)


def test_the_same_film_twice_is_not_nothing():
    current, _ = maps()
    np.testing.assert_allclose(
        run(SMALL, current, current)[0, 0],
        [0.051199, 1.264899, -0.986193, -0.486591, 0.880899, -0.956910, -1.041208,
         1.408750],
        atol=1e-5,
    )  # fmt: skip


def test_order_matters_and_the_batch_does_not():
    current, previous = maps()
    assert (
        np.abs(run(SMALL, current, previous) - run(SMALL, previous, current)).max()
        > 0.1
    )
    both = jnp.concatenate([current, previous]), jnp.concatenate([previous, current])
    made = SMALL.apply({"params": worked_weights()}, *both, train=False)
    np.testing.assert_allclose(made[0], run(SMALL, current, previous), atol=1e-5)


def test_draws_by_example_and_refuses_other_shapes():
    pooler = dataclasses.replace(SMALL, drop_path=0.5, dropout=0.5)
    current, previous = (jnp.repeat(of, 4, axis=0) for of in maps())
    keys = jax.random.split(jax.random.key(0), 4)
    given = {"params": worked_weights()}
    whole = pooler.apply(given, current, previous, train=True, keys_B=keys)
    part = pooler.apply(
        given, current[1:3], previous[1:3], train=True, keys_B=keys[1:3]
    )
    np.testing.assert_allclose(whole[1:3], part, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    with pytest.raises(ValueError, match="expected maps of one shape"):
        SMALL.apply(given, current, previous[:, :1], train=False)
