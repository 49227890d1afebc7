"""Layers that the encoders share, with their logical axis names.

Parameters are float32 and boxed with names; a table in `runtime` maps names to mesh
axes. Matrices are [in, out]; a projection to heads keeps heads and head width joined
in one axis named "heads".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any


def named(init, *names: str | None):
    """An initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, names)


def normal(std: float):
    """The truncation-free normal of the published transformers."""
    return nn.initializers.normal(std)


def dense(
    dim: int,
    axes: tuple[str | None, str | None],
    name: str,
    *,
    dtype: Dtype,
    std: float = 0.02,
    bias: bool = True,
) -> nn.Dense:
    """A linear layer; `axes` names the input and the output axis of its kernel."""
    return nn.Dense(
        dim,
        use_bias=bias,
        dtype=dtype,
        kernel_init=named(normal(std), *axes),
        bias_init=named(nn.initializers.zeros_init(), axes[1]),
        name=name,
    )


def layer_norm(name: str, *, epsilon: float, dtype: Dtype) -> nn.LayerNorm:
    """LayerNorm with float32 statistics by two passes, whatever the dtype."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=named(nn.initializers.ones_init(), "norm"),
        bias_init=named(nn.initializers.zeros_init(), "norm"),
        name=name,
    )


def split_heads(x_BxTxC: jax.Array, heads: int) -> jax.Array:
    """[..., T, heads * K] -> [..., T, heads, K]."""
    return x_BxTxC.reshape(*x_BxTxC.shape[:-1], heads, x_BxTxC.shape[-1] // heads)


def attention_weights(
    query: jax.Array, key: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Softmax attention, float32 inside.

    Args:
      query, key: compute dtype [..., T, L, K], heads L of width K.
      bias: float32, broadcastable to [..., L, T, T], added to the scaled products.

    Returns:
      [..., L, T, T] in the compute dtype; rows sum to 1.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "...qlk,...tlk->...lqt", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * scale
    if bias is not None:
        logits = logits + bias
    return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


def attend(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[..., L, T, T] and [..., T, L, K] -> [..., T, L * K]."""
    out = jnp.einsum("...lqt,...tlk->...qlk", weights, value)
    return out.reshape(*out.shape[:-2], -1)


def check_films(films_BxHxWx3: jax.Array) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
      ValueError: not [B, H, W, 3].
    """
    if films_BxHxWx3.ndim != 4 or films_BxHxWx3.shape[-1] != 3:
        raise ValueError(f"expected films [B, H, W, 3], found {films_BxHxWx3.shape}")
    return films_BxHxWx3.shape[1], films_BxHxWx3.shape[2]


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """One number for a square, or (height, width)."""
    if isinstance(image_size, int):
        return image_size, image_size
    return image_size
