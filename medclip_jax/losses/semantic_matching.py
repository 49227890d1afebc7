"""MedCLIP's semantic matching loss: soft targets from the similarity of labels.

Reference: Wang et al., "MedCLIP: Contrastive Learning from Unpaired Medical Images
and Text", EMNLP 2022, section 3.3; official code RyanWangZf/MedCLIP,
medclip/losses.py (ImageTextContrastiveLoss).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.losses import ring, tiles
from medclip_jax.losses.similarity import (
    check_shapes,
    masked_log_softmax,
    shares,
    similarity_logits,
    weighted_mean,
    weights_or_ones,
)

Target = Literal["cosine", "dot"]


def label_similarity(
    image_labels_NxK: jax.Array, text_labels_MxK: jax.Array, target: Target = "cosine"
) -> jax.Array:
    """How much the findings of each image and each text have in common.

    Args:
      image_labels_NxK: float, [N, K] label values, usually 0 or 1; -1 where an
        uncertain label is kept as such.
      text_labels_MxK: float, [M, K], the same.
      target: "cosine" is the paper's (section 3.3); "dot" is the official code's
        un-normalised product. A row without any label has similarity 0 to
        everything, under both.

    Returns:
      float32 [N, M].

    Raises:
      ValueError: unknown target, or the numbers of labels differ.
    """
    images, texts = target_rows(image_labels_NxK, text_labels_MxK, target)
    return jnp.matmul(images, texts.T, precision=lax.Precision.HIGHEST)


def target_rows(
    image_labels_NxK: jax.Array, text_labels_MxK: jax.Array, target: Target
) -> tuple[jax.Array, jax.Array]:
    """Float32 rows whose dot products are the similarity; see `label_similarity`."""
    if target not in ("cosine", "dot"):
        raise ValueError(f"target must be 'cosine' or 'dot'; found {target!r}")
    if image_labels_NxK.shape[-1] != text_labels_MxK.shape[-1]:
        raise ValueError(
            "image and text labels must have the same columns; found "
            f"{image_labels_NxK.shape[-1]} and {text_labels_MxK.shape[-1]}"
        )
    images = image_labels_NxK.astype(jnp.float32)
    texts = text_labels_MxK.astype(jnp.float32)
    if target == "cosine":
        images, texts = _unit_rows(images), _unit_rows(texts)
    return images, texts


def _unit_rows(rows: jax.Array) -> jax.Array:
    square = (rows * rows).sum(-1, keepdims=True)
    return rows * jnp.where(square > 0, lax.rsqrt(jnp.maximum(square, 1e-12)), 0.0)


def soft_cross_entropy(
    logits_NxM: jax.Array,
    similarity_NxM: jax.Array,
    row_weight_N: jax.Array,
    column_weight_M: jax.Array,
) -> jax.Array:
    """Mean over rows of the cross-entropy to softmax(similarity).

    Args:
      logits_NxM: float32, predictions.
      similarity_NxM: float32; its softmax over the kept columns is the target, at
        temperature 1 (section 3.3).
      row_weight_N: float32, weight of each row as an anchor.
      column_weight_M: float32, columns of weight 0 take no part.

    Returns:
      float32 scalar.
    """
    keep = column_weight_M > 0
    target = jnp.where(keep, jnp.exp(masked_log_softmax(similarity_NxM, keep)), 0.0)
    losses_N = -(target * masked_log_softmax(logits_NxM, keep)).sum(-1)
    return weighted_mean(losses_N, row_weight_N)


def semantic_matching_loss(
    images_NxD: jax.Array,
    texts_MxD: jax.Array,
    image_labels_NxK: jax.Array,
    text_labels_MxK: jax.Array,
    scale: jax.Array | float,
    *,
    target: Target = "cosine",
    image_weight_N: jax.Array | None = None,
    text_weight_M: jax.Array | None = None,
) -> jax.Array:
    """The mean of the image-to-text and text-to-image soft cross-entropies.

    N and M may differ: nothing pairs image i with text i.

    Args:
      images_NxD: L2-normalised image embeddings, float [N, D].
      texts_MxD: L2-normalised text embeddings, float [M, D].
      image_labels_NxK: float [N, K], see `label_similarity`.
      text_labels_MxK: float [M, K].
      scale: inverse temperature (exp of the learned logit scale).
      target: "cosine" (paper) or "dot" (official code).
      image_weight_N: float [N], 0 removes the image; ones when None.
      text_weight_M: float [M], 0 removes the text; ones when None.

    Returns:
      float32 scalar. Its floor is the mean entropy of the targets, not 0: near
      log(M) for a batch of mostly unrelated findings.

    Raises:
      ValueError: shapes do not fit.

    Reference:
      MedCLIP, section 3.3; medclip/losses.py.
    """
    check_shapes(images_NxD, texts_MxD)
    n, m = len(images_NxD), len(texts_MxD)
    if (len(image_labels_NxK), len(text_labels_MxK)) != (n, m):
        raise ValueError(
            f"labels of {len(image_labels_NxK)} images and {len(text_labels_MxK)} texts "
            f"were given with embeddings of {n} images and {m} texts"
        )
    rows = weights_or_ones(image_weight_N, n, "image_weight_N")
    columns = weights_or_ones(text_weight_M, m, "text_weight_M")
    if ring.goes_round(n, m):
        images_NxK, texts_MxK = target_rows(image_labels_NxK, text_labels_MxK, target)
        # Without anybody to compare with there is nothing to learn.
        to_text_N = shares(rows) * (columns > 0).any() / 2
        to_image_M = shares(columns) * (rows > 0).any() / 2
        return ring.rounds(
            tiles.Softmax(paired=False),
            ring.block(images_NxD, to_text_N, rows > 0, images_NxK),
            ring.block(texts_MxD, to_image_M, columns > 0, texts_MxK),
            scale,
        )
    logits_NxM = similarity_logits(images_NxD, texts_MxD, scale)
    similarity_NxM = label_similarity(image_labels_NxK, text_labels_MxK, target)
    image_loss = soft_cross_entropy(logits_NxM, similarity_NxM, rows, columns)
    text_loss = soft_cross_entropy(logits_NxM.T, similarity_NxM.T, columns, rows)
    return (image_loss + text_loss) / 2
