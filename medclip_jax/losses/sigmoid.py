"""The pairwise sigmoid loss.

Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP),
arXiv 2303.15343, algorithm 1.
"""

import jax
import jax.numpy as jnp

from medclip_jax.losses import ring, tiles
from medclip_jax.losses.similarity import (
    check_shapes,
    shares,
    similarity_logits,
    weights_or_ones,
)


def sigmoid_loss(
    images_NxD: jax.Array,
    texts_MxD: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    *,
    image_weight_N: jax.Array | None = None,
    text_weight_M: jax.Array | None = None,
    paired: bool = True,
) -> jax.Array:
    """Every image-text pair as a binary question, summed, divided by the images.

    Args:
      images_NxD: L2-normalised image embeddings, float [N, D].
      texts_MxD: L2-normalised text embeddings, float [M, D].
      scale: t = exp(logit scale); 10 at the start in the paper.
      bias: b; -10 at the start in the paper.
      image_weight_N: float [N], 0 removes the image; ones when None.
      text_weight_M: float [M], 0 removes the text; ones when None.
      paired: image i matches text i. False for a block whose texts belong to other
        images, so that the loss of a batch is the sum over its blocks.

    Returns:
      float32 scalar: the sum over pairs divided by the total image weight.

    Raises:
      ValueError: shapes do not fit.
    """
    check_shapes(images_NxD, texts_MxD)
    n, m = len(images_NxD), len(texts_MxD)
    rows = weights_or_ones(image_weight_N, n, "image_weight_N")
    columns = weights_or_ones(text_weight_M, m, "text_weight_M")
    if ring.goes_round(n, m):
        return ring.rounds(
            tiles.Sigmoid(paired),
            ring.block(images_NxD, shares(rows), rows > 0),
            ring.block(texts_MxD, columns, columns > 0),
            scale,
            bias,
        )
    logits_NxM = similarity_logits(images_NxD, texts_MxD, scale) + bias
    sign_NxM = 2 * jnp.eye(n, m, dtype=jnp.float32) - 1 if paired else -1.0
    losses_NxM = -jax.nn.log_sigmoid(sign_NxM * logits_NxM)
    total = rows.sum()
    weighted = (losses_NxM * rows[:, None] * columns[None, :]).sum()
    return weighted / jnp.where(total > 0, total, 1.0)
