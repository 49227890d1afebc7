"""Layers that the encoders share, with their logical axis names.

Parameters are float32 and boxed with names; a table in `runtime` maps names to mesh
axes. Matrices are [in, out]; a projection to heads keeps heads and head width joined
in one axis named "heads".
"""

from collections.abc import Callable, Sequence
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


def run_layers(
    parent: nn.Module,
    makes: Sequence[Callable[..., nn.Module]],
    names: Sequence[str],
    first: int,
    x: jax.Array,
    *more: Any,
    scan: bool,
) -> tuple[jax.Array, list[jax.Array]]:
    """Applies layers of one form in turn, as a loop of the program if asked to.

    The loop is compiled once for all layers. The parameters are the same by either
    way, each under its layer's name; scanning stacks them first, which costs a copy.

    Args:
      parent: the module that the layers belong to.
      makes: makers of the layers that repeat, (name=..., parent=...) -> layer; one, or
        several that alternate. A layer is called with (x, its number, *more).
      names: of all layers; their count is a multiple of the makers'.
      first: number of the first layer.
      x: what goes through, of one shape throughout.
      *more: further arguments of every layer.
      scan: whether to use a loop.

    Returns:
      The last output, and that of each round of `makes`.
    """
    period = len(makes)
    rounds = len(names) // period
    outs = []
    if parent.is_initializing() or not scan or rounds < 2:
        for place, name in enumerate(names):
            x = makes[place % period](name=name)(x, first + place, *more)
            if place % period == period - 1:
                outs.append(x)
        return x, outs
    params = parent.variables["params"]
    stacks = [
        jax.tree.map(lambda *of: jnp.stack(of), *[params[n] for n in names[at::period]])
        for at in range(period)
    ]

    def step(x: Any, layer: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        params, number = layer
        for place, make in enumerate(makes):
            variables = {"params": params[place]}
            x = make(parent=None).apply(variables, x, number + place, *more)
        return x, x

    numbers = first + period * jnp.arange(rounds)
    x, outs_Rx = jax.lax.scan(step, x, (stacks, numbers))
    return x, list(outs_Rx)


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
