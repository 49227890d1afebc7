"""InfoNCE over image-text pairs, with ConVIRT's weight between the directions.

References: Zhang et al., "Contrastive Learning of Medical Visual Representations
from Paired Images and Text" (ConVIRT), arXiv 2010.00747, equations 2 to 4; Radford
et al., "Learning Transferable Visual Models From Natural Language Supervision"
(CLIP), arXiv 2103.00020, figure 3, which is the case of lambda = 1/2.
"""

import jax
import jax.numpy as jnp

from medclip_jax.losses import ring, tiles
from medclip_jax.losses.similarity import (
    check_shapes,
    masked_log_softmax,
    shares,
    similarity_logits,
    weighted_mean,
    weights_or_ones,
)


def infonce_loss(
    images_NxD: jax.Array,
    texts_MxD: jax.Array,
    scale: jax.Array | float,
    *,
    image_to_text: float = 0.5,
    image_weight_N: jax.Array | None = None,
    text_weight_M: jax.Array | None = None,
) -> jax.Array:
    """Weighted mean of the two directions' cross-entropies to the own partner.

    Image i pairs with text i. When N and M differ, what has no partner is a
    negative for the others and no anchor itself; the same holds for an example
    whose partner has weight 0.

    Args:
      images_NxD: L2-normalised image embeddings, float [N, D].
      texts_MxD: L2-normalised text embeddings, float [M, D].
      scale: inverse temperature: 1/0.1 in ConVIRT, exp(logit scale) in CLIP.
      image_to_text: ConVIRT's lambda, the weight of the image-to-text direction
        (softmax over texts), in [0, 1]; 0.75 in ConVIRT, 0.5 in CLIP.
      image_weight_N: float [N], 0 removes the image; ones when None.
      text_weight_M: float [M], 0 removes the text; ones when None.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes do not fit, or lambda is outside [0, 1].
    """
    if not 0 <= image_to_text <= 1:
        raise ValueError(f"image_to_text must lie in [0, 1]; found {image_to_text}")
    check_shapes(images_NxD, texts_MxD)
    n, m = len(images_NxD), len(texts_MxD)
    rows = weights_or_ones(image_weight_N, n, "image_weight_N")
    columns = weights_or_ones(text_weight_M, m, "text_weight_M")
    pairs = min(n, m)
    has_pair = ((rows[:pairs] > 0) & (columns[:pairs] > 0)).astype(jnp.float32)
    if ring.goes_round(n, m):
        to_text_N, to_image_M = (
            jnp.pad(share * shares(has_pair * weight[:pairs]), (0, len(weight) - pairs))
            for share, weight in ((image_to_text, rows), (1 - image_to_text, columns))
        )
        return ring.rounds(
            tiles.Softmax(paired=True),
            ring.block(images_NxD, to_text_N, rows > 0),
            ring.block(texts_MxD, to_image_M, columns > 0),
            scale,
        )
    logits_NxM = similarity_logits(images_NxD, texts_MxD, scale)
    to_text, to_image = paired_cross_entropies(logits_NxM, rows, columns)
    return image_to_text * to_text + (1 - image_to_text) * to_image


def paired_cross_entropies(
    logits_NxM: jax.Array, image_weight_N: jax.Array, text_weight_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted means of the two directions' cross-entropies, of any logits.

    Args:
      logits_NxM: float32; image i pairs with text i.
      image_weight_N: float32 [N], 0 removes the image.
      text_weight_M: float32 [M], 0 removes the text.

    Returns:
      Image to text (softmax over texts) and text to image, float32 scalars.
    """
    pairs = min(logits_NxM.shape)
    rows_P, columns_P = image_weight_N[:pairs], text_weight_M[:pairs]
    has_pair_P = ((rows_P > 0) & (columns_P > 0)).astype(jnp.float32)
    to_text_P = -jnp.diagonal(masked_log_softmax(logits_NxM, text_weight_M > 0))
    to_image_P = -jnp.diagonal(masked_log_softmax(logits_NxM.T, image_weight_N > 0))
    return (
        weighted_mean(to_text_P, has_pair_P * rows_P),
        weighted_mean(to_image_P, has_pair_P * columns_P),
    )
