"""Dropout and stochastic depth drawn per example.

Each example carries its own PRNG key; a layer folds its own number into it. What an
example draws depends on nothing else, so a micro-batch draws what the whole batch
would, on any number of devices.
"""

import math

import jax
import jax.numpy as jnp

_LEVELS = 1 << 16


def active_keys(
    train: bool, keys_B: jax.Array | None, *rates: float
) -> jax.Array | None:
    """The keys to drop with, or None when nothing is to be dropped.

    Args:
      train: whether the forward pass is one of training.
      keys_B: typed PRNG keys [B], or None.
      *rates: every drop rate of the encoder, each in [0, 1).

    Raises:
      ValueError: training with a positive rate but without keys, or a rate outside.
    """
    for rate in rates:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a drop rate must lie in [0, 1), found {rate}")
    if not train or not any(rates):
        return None
    if keys_B is None:
        raise ValueError(
            "training with a drop rate above 0 needs one PRNG key an example: pass "
            "keys_B, or set the encoder's drop rates to 0"
        )
    return keys_B


def _keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """bool `shape`, True with probability 1 - round(rate * 65536) / 65536.

    Two draws of 16 bits come out of each 32-bit word: half the hashing of a uniform
    float, which is a large part of a training step where there is no hardware RNG.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:size]
    return (halves >= round(rate * _LEVELS)).reshape(shape)


def _keep_probability(rate: float) -> float:
    return 1.0 - round(rate * _LEVELS) / _LEVELS


def dropout(
    x: jax.Array, rate: float, keys_B: jax.Array | None, layer: int | jax.Array
) -> jax.Array:
    """Zeroes entries of each example and scales the rest up.

    Args:
      x: any array whose first axis is the batch.
      rate: share that is dropped, in [0, 1).
      keys_B: typed PRNG keys [B]; None drops nothing.
      layer: a number no other dropout site of the encoder has.

    Returns:
      An array like x.
    """
    if keys_B is None or rate == 0.0:
        return x

    def one(key: jax.Array, example: jax.Array) -> jax.Array:
        keep = _keep_mask(jax.random.fold_in(key, layer), example.shape, rate)
        scale = jnp.asarray(1.0 / _keep_probability(rate), example.dtype)
        return jnp.where(keep, example * scale, jnp.zeros((), example.dtype))

    return jax.vmap(one)(keys_B, x)


def drop_path(
    x: jax.Array, rate: float, keys_B: jax.Array | None, layer: int | jax.Array
) -> jax.Array:
    """Zeroes a whole residual branch of an example, or scales it up.

    Args, Returns: as `dropout`.
    Reference: Huang et al. 2016, Deep Networks with Stochastic Depth.
    """
    if keys_B is None or rate == 0.0:
        return x
    folded_B = jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys_B)
    keep_B = jax.vmap(lambda key: _keep_mask(key, (1,), rate)[0])(folded_B)
    factor_B = keep_B.astype(x.dtype) / jnp.asarray(_keep_probability(rate), x.dtype)
    return x * factor_B.reshape((-1,) + (1,) * (x.ndim - 1))
