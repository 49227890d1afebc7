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
import numpy as np

from medclip_jax.models.dropout import dropout

Dtype = Any

ATTENTION = ("plain", "cudnn", "xla")
"""Ways to compute attention: ours; fused, on an NVIDIA GPU in 16 bit; and the other
implementation of the same function in jax, which takes any device."""


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
        dot_general=_dot_general,
        name=name,
    )


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    return _linear(x, kernel)


@jax.custom_vjp
def _linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., I] times [I, O]."""
    return jnp.matmul(x, kernel)


def _linear_forward(x, kernel):
    return jnp.matmul(x, kernel), (x, kernel)


def _linear_back(saved, gradient):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))

    def whole(x, gradient):
        return jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))

    def by_rows(x, gradient):
        return x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])

    # XLA on a CPU transposes both sides in memory where a product sums over several
    # axes: a tenth of a step. A TPU stores rows in tiles, so joining them copies.
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=by_rows, default=whole)
    return jnp.matmul(gradient, kernel.T), of_kernel


_linear.defvjp(_linear_forward, _linear_back)


class PatchEmbedding(nn.Module):
    """A linear layer on patches that do not overlap, as their convolution.

    Written as a product of matrices, which the compilers do better than a convolution
    whose stride is its size.

    Attributes:
      dim: width D of the output.
      patch: side P of a patch in pixels.
      init_std: of the kernel, [P, P, channels, D].
    """

    dim: int
    patch: int
    init_std: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/P, W/P, D] in the compute dtype; rests are cut off."""
        batch, height, width, channels = x_BxHxWxC.shape
        size, rows, columns = self.patch, height // self.patch, width // self.patch
        kernel = self.param(
            "kernel",
            named(normal(self.init_std), None, None, None, "embed"),
            (size, size, channels, self.dim),
        )
        bias = self.param(
            "bias", named(nn.initializers.zeros_init(), "embed"), (self.dim,)
        )
        x = x_BxHxWxC[:, : rows * size, : columns * size].astype(self.dtype)
        x = x.reshape(batch, rows, size, columns, size, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
        flat = kernel.astype(self.dtype).reshape(-1, self.dim)
        return _linear(x, flat) + bias.astype(self.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, computed in float32, in the dtype of x.

    `jax.nn.gelu` takes erfc, which keeps digits that are lost here below -5, where the
    value is smaller than 1e-6; it costs two polynomials and an exponential more. The
    backward pass keeps x alone, in its dtype.
    """
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y)).astype(x.dtype)


def _normal_cdf(y: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(y * np.float32(0.5**0.5)))


def _gelu_back(x, gradient):
    y = x.astype(jnp.float32)
    density = np.float32((2 * np.pi) ** -0.5) * jnp.exp(-0.5 * y * y)
    return (
        ((_normal_cdf(y) + y * density) * gradient.astype(jnp.float32)).astype(x.dtype),
    )


gelu.defvjp(lambda x: (gelu(x), x), _gelu_back)


class LayerNorm(nn.Module):
    """Over the last axis, in float32 whatever the dtype, variance by a second pass.

    flax's own multiplies scale and deviation first, an array as large as the input that
    both passes then read.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> the same in the compute dtype."""
        dim = (x.shape[-1],)
        scale = self.param("scale", named(nn.initializers.ones_init(), "norm"), dim)
        bias = self.param("bias", named(nn.initializers.zeros_init(), "norm"), dim)
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(self.dtype)


def split_heads(x_BxTxC: jax.Array, heads: int) -> jax.Array:
    """[..., T, heads * K] -> [..., T, heads, K]."""
    return x_BxTxC.reshape(*x_BxTxC.shape[:-1], heads, x_BxTxC.shape[-1] // heads)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rate: float,
    keys_B: jax.Array | None,
    site: int | jax.Array,
    *,
    bias: jax.Array | None = None,
    mask_BxT: jax.Array | None = None,
    name: str = "plain",
) -> jax.Array:
    """Softmax attention of all heads, float32 inside.

    Args:
      query, key, value: compute dtype [..., T, L, K], heads L of width K; there may be
        fewer queries than keys.
      rate, keys_B, site: of the dropout of the weights; see `dropout`.
      bias: float32, broadcastable to [..., L, T, T], added to the scaled products.
      mask_BxT: int or bool, the keys that are attended to: some first ones of each
        row, as a tokenizer pads.
      name: of ATTENTION. The fused ones do not hold the weights, [B, L, T, T], in
        memory; they take [B, T, L, K] and no bias.

    Returns:
      [..., T, L * K] in the compute dtype.

    Raises:
      ValueError: what a fused one does not do.
    """
    if name == "plain":
        if mask_BxT is not None:
            lowest = jnp.finfo(jnp.float32).min
            bias = jnp.where(mask_BxT[:, None, None, :] > 0, 0.0, lowest)
        kept = None
        if rate and keys_B is not None:
            *lead, length, heads, _ = query.shape
            kept = jnp.ones((*lead, heads, length, key.shape[-3]), query.dtype)
            kept = dropout(kept, rate, keys_B, site)
        return _joined(_attention(query, key, value, bias, kept))
    if bias is not None or (rate and keys_B is not None):
        raise ValueError(
            f"attention {name!r} takes no bias and draws no dropout of its weights: "
            "set attention_dropout=0 or attention='plain'"
        )
    lengths_B = None
    if mask_BxT is not None:
        # A row without any key, of a text that is not there, would be NaN.
        lengths_B = jnp.maximum((mask_BxT > 0).sum(-1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(  # type: ignore[call-overload]
        query,
        key,
        value,
        key_value_seq_lengths=lengths_B,
        implementation=name,
    )
    return _joined(out)


def _joined(x: jax.Array) -> jax.Array:
    """[..., L, K] -> [..., L * K]."""
    return x.reshape(*x.shape[:-2], -1)


def _heads(x: jax.Array) -> jax.Array:
    """[..., T, L, K] -> [..., L, T, K], and back."""
    return jnp.swapaxes(x, -3, -2)


def _turned(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -2, -1)


@jax.custom_vjp
def _attention(query, key, value, bias, kept):
    """[..., T, L, K] thrice, bias and factors of the weights or None -> [..., T, L, K].

    By hand, because the sum over a row of weight times its gradient, which the softmax's
    derivative needs, is that of output times its gradient: one pass less over [T, T], and
    nothing else of that size is kept for it. See Dao et al., "FlashAttention", arXiv
    2205.14135, appendix B.2.
    """
    return _attention_forward(query, key, value, bias, kept)[0]


def _attention_forward(query, key, value, bias, kept):
    logits = jnp.matmul(
        _heads(query), _turned(_heads(key)), preferred_element_type=jnp.float32
    )
    logits = logits * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    exps = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = (exps * (1.0 / jnp.sum(exps, axis=-1, keepdims=True))).astype(query.dtype)
    drawn = weights if kept is None else weights * kept
    out = _heads(jnp.matmul(drawn, _heads(value)))
    return out, (query, key, value, bias, kept, weights, out)


def _attention_back(saved, gradient):
    query, key, value, bias, kept, weights, out = saved
    inner = _heads((gradient.astype(jnp.float32) * out).sum(-1, keepdims=True))
    query, key, value, gradient = (_heads(x) for x in (query, key, value, gradient))
    by_weight = jnp.matmul(gradient, _turned(value), preferred_element_type=jnp.float32)
    drawn = weights
    if kept is not None:
        by_weight, drawn = by_weight * kept, weights * kept
    by_logit = weights * (by_weight - inner)
    by_product = (by_logit * query.shape[-1] ** -0.5).astype(query.dtype)
    return (
        _heads(jnp.matmul(by_product, key)),
        _heads(jnp.matmul(_turned(by_product), query)),
        _heads(jnp.matmul(_turned(drawn), gradient)),
        None if bias is None else _summed_to(by_logit, bias.shape),
        None if kept is None else jnp.zeros_like(kept),  # drawn, not learned
    )


_attention.defvjp(_attention_forward, _attention_back)


def _summed_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Over the axes along which `shape` was broadcast."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    alike = zip(x.shape, shape, strict=True)
    return x.sum([axis for axis, (a, b) in enumerate(alike) if a != b], keepdims=True)


def layer_macs(tokens: int, dim: int, mlp: int, first_only: bool = False) -> int:
    """Multiply-adds of an attention layer with its MLP.

    Args:
      tokens: that are attended to.
      dim, mlp: widths.
      first_only: only the first token is asked for.
    """
    asked = 1 if first_only else tokens
    matrices = 2 * tokens * dim**2 + asked * (2 * dim**2 + 2 * dim * mlp)
    return matrices + 2 * asked * tokens * dim


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
