"""NT-Xent: two views of each film find each other among all views.

Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations" (SimCLR), arXiv 2002.05709, equation 1; google-research/simclr,
objective.py, whose loss is the sum of the two views' means, twice this one.
"""

import jax
import jax.numpy as jnp

from medclip_jax.losses import ring, tiles
from medclip_jax.losses.similarity import (
    FLOOR,
    check_shapes,
    shares,
    similarity_logits,
    weights_or_ones,
)


def nt_xent_loss(
    one_NxD: jax.Array,
    other_NxD: jax.Array,
    scale: jax.Array | float,
    *,
    weight_N: jax.Array | None = None,
) -> jax.Array:
    """Mean over the 2N views of the cross-entropy to the other view of the film.

    The classes of a view are all views but itself.

    Args:
      one_NxD: L2-normalised embeddings of a view of each film, float [N, D].
      other_NxD: of another view.
      scale: inverse temperature.
      weight_N: float [N], 0 removes the film; ones when None.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes do not fit.
    """
    check_shapes(one_NxD, other_NxD)
    n = len(one_NxD)
    if len(other_NxD) != n:
        raise ValueError(
            f"expected two views of each film; found {n} and {len(other_NxD)}"
        )
    weight_V = jnp.tile(weights_or_ones(weight_N, n, "weight_N"), 2)
    share_V, keep_V = shares(weight_V), weight_V > 0
    # Row i is a view, column i its partner: the pairs of the other losses.
    rows_VxD = jnp.concatenate([one_NxD, other_NxD])
    columns_VxD = jnp.concatenate([other_NxD, one_NxD])
    own_V = jnp.arange(2 * n)
    partner_V = (own_V + n) % (2 * n)
    if ring.goes_round(2 * n, 2 * n):
        return ring.rounds(
            tiles.Softmax(paired=True, apart=True),
            ring.block(rows_VxD, share_V, keep_V, _names(own_V)),
            ring.block(columns_VxD, jnp.zeros_like(share_V), keep_V, _names(partner_V)),
            scale,
        )
    logits_VxV = similarity_logits(rows_VxD, columns_VxD, scale)
    meets_VxV = keep_V & (own_V[:, None] != partner_V)
    log_p_VxV = jax.nn.log_softmax(jnp.where(meets_VxV, logits_VxV, FLOOR), axis=-1)
    return -(share_V * jnp.diagonal(log_p_VxV)).sum()


def _names(of_V: jax.Array) -> jax.Array:
    """Numbers of views as a block's labels: exact in float32 up to 16 million."""
    return of_V.astype(jnp.float32)[:, None]
