"""Attention that is looked at from outside: whom a tower's first token attends to, and
tokens of one tower that attend to those of the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.models.layers import dense


def first_token_weights(
    query_BxTxLxK: jax.Array, key_BxTxLxK: jax.Array, mask_BxT: jax.Array | None = None
) -> jax.Array:
    """How much the first token attends to each token, the mean over heads.

    Args:
      query_BxTxLxK: compute dtype, heads L of width K; only the first token's is read.
      key_BxTxLxK: of all tokens.
      mask_BxT: 0 for a token that is not attended to; all are when None.

    Returns:
      float32 [B, T], of sum 1, without a gradient.
    """
    query_BxLxK, key_BxTxLxK = lax.stop_gradient((query_BxTxLxK[:, 0], key_BxTxLxK))
    logits_BxLxT = jnp.einsum(
        "blk,btlk->blt", query_BxLxK, key_BxTxLxK, preferred_element_type=jnp.float32
    )
    logits_BxLxT *= query_BxLxK.shape[-1] ** -0.5
    if mask_BxT is not None:
        lowest = jnp.finfo(jnp.float32).min
        logits_BxLxT = jnp.where(mask_BxT[:, None] > 0, logits_BxLxT, lowest)
    return jax.nn.softmax(logits_BxLxT, axis=-1).mean(axis=1)


class CrossAttention(nn.Module):
    """One head of attention from tokens to others, all in float32.

    torch.nn.MultiheadAttention of one head has the same function.
    """

    @nn.compact
    def __call__(
        self,
        tokens_BxLxD: jax.Array,
        others_BxRxD: jax.Array,
        mask_BxR: jax.Array | None = None,
    ) -> jax.Array:
        """What each token finds among the others.

        Args:
          tokens_BxLxD: float.
          others_BxRxD: float.
          mask_BxR: 0 for an other that is padding; all take part when None.

        Returns:
          float32 [B, L, D].
        """
        dim = tokens_BxLxD.shape[-1]

        def linear(name: str, x: jax.Array) -> jax.Array:
            return dense(
                dim, ("joint", "joint"), name, dtype=jnp.float32, std=dim**-0.5
            )(x)

        logits_BxLxR = dim**-0.5 * _product(
            "bld,brd->blr", linear("query", tokens_BxLxD), linear("key", others_BxRxD)
        )
        if mask_BxR is not None:
            lowest = jnp.finfo(jnp.float32).min
            logits_BxLxR = jnp.where(mask_BxR[:, None] > 0, logits_BxLxR, lowest)
        weights_BxLxR = jax.nn.softmax(logits_BxLxR, axis=-1)
        value_BxRxD = linear("value", others_BxRxD)
        return linear("out", _product("blr,brd->bld", weights_BxLxR, value_BxRxD))


def _product(form: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(form, one, other, precision=lax.Precision.HIGHEST)
