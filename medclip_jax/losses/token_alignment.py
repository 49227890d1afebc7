"""Tokens of one side find themselves in what they attend to on the other, pair by pair.

References: Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical
Visual Representation Learning" (MGCA), arXiv 2210.06044, section 3.3, and
HKU-MedAI/MGCA, mgca/models/mgca/mgca_module.py; Yang et al., "Unlocking the Power of
Spatial and Temporal Information in Medical Multimodal Pre-training" (Med-ST), arXiv
2405.19654, section 3.3, with SVT-Yang/MedST, medst/models/medst/medst_module.py.
"""

import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.losses.similarity import FLOOR, weighted_mean, weights_or_ones


def attended(
    tokens_BxLxD: jax.Array,
    others_BxRxD: jax.Array,
    temperature: float,
    other_mask_BxR: jax.Array | None = None,
) -> jax.Array:
    """What each token finds among the other side's tokens of its own pair.

    Args:
      tokens_BxLxD: L2-normalised, float [B, L, D].
      others_BxRxD: L2-normalised, float [B, R, D].
      temperature: of the softmax over the others.
      other_mask_BxR: 0 for an other that is padding; all take part when None.

    Returns:
      float32 [B, L, D], a mean of others, not of length 1.
    """
    scores_BxLxR = _product("bld,brd->blr", tokens_BxLxD, others_BxRxD) / temperature
    if other_mask_BxR is not None:
        scores_BxLxR = jnp.where(other_mask_BxR[:, None] > 0, scores_BxLxR, FLOOR)
    weights_BxLxR = jax.nn.softmax(scores_BxLxR, axis=-1)
    return _product("blr,brd->bld", weights_BxLxR, others_BxRxD)


def token_alignment_loss(
    tokens_BxLxD: jax.Array,
    found_BxLxD: jax.Array,
    token_weights_BxL: jax.Array,
    temperature: float,
    *,
    weight_B: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropies of tokens with what each token of the pair found, both ways.

    A token's classes are all L of its pair, padding too, as in the official codes; what
    is padding weighs nothing.

    Args:
      tokens_BxLxD: L2-normalised, float [B, L, D].
      found_BxLxD: of `attended`, of length 1 or not, as the method has it.
      token_weights_BxL: how much each token counts, of a pair together 1.
      temperature: of the softmax over tokens.
      weight_B: float [B], 0 removes a pair; ones when None.

    Returns:
      float32 scalar, the mean of both directions.
    """
    logits_BxLxL = _product("bld,bmd->blm", tokens_BxLxD, found_BxLxD) / temperature
    own_BxL = jnp.diagonal(logits_BxLxL, axis1=1, axis2=2)
    by_token_BxL = jax.nn.logsumexp(logits_BxLxL, axis=2) - own_BxL
    by_found_BxL = jax.nn.logsumexp(logits_BxLxL, axis=1) - own_BxL
    pair_B = (token_weights_BxL * (by_token_BxL + by_found_BxL)).sum(axis=1) / 2
    return weighted_mean(pair_B, weights_or_ones(weight_B, len(pair_B), "weight_B"))


def clipped_shares(attention_BxL: jax.Array, quantile: float = 0.1) -> jax.Array:
    """Attention as token weights: clipped to its own quantiles, then of sum 1.

    Args:
      attention_BxL: float, 0 for what is padding: it keeps 0 and does not count.
      quantile: from here to one minus this, interpolated as `numpy.quantile` does.

    Returns:
      float32 [B, L], without a gradient.

    Reference: MGCA, mgca_module.py (word and patch weights).
    """
    attention_BxL = lax.stop_gradient(attention_BxL.astype(jnp.float32))
    real_BxL = attention_BxL > 0
    ordered_BxL = jnp.sort(jnp.where(real_BxL, attention_BxL, jnp.inf), axis=1)
    last_Bx1 = jnp.maximum(real_BxL.sum(axis=1, keepdims=True) - 1, 0)

    def at(share: float) -> jax.Array:
        place = share * last_Bx1.astype(jnp.float32)
        low = jnp.floor(place).astype(jnp.int32)
        below = jnp.take_along_axis(ordered_BxL, low, axis=1)
        above = jnp.take_along_axis(ordered_BxL, jnp.minimum(low + 1, last_Bx1), axis=1)
        return below + (place - low) * (above - below)

    clipped_BxL = jnp.clip(attention_BxL, at(quantile), at(1 - quantile))
    clipped_BxL = jnp.where(real_BxL, clipped_BxL, 0.0)
    return clipped_BxL / jnp.maximum(clipped_BxL.sum(axis=1, keepdims=True), 1e-30)


def _product(form: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(
        form,
        one.astype(jnp.float32),
        other.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
