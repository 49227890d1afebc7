"""What the contrastive losses share: logits, weights, masked log-softmax."""

import jax
import jax.numpy as jnp
from jax import lax

FLOOR = -1e30
"""Minus infinity, but finite: a difference of two is no NaN, nor its gradient."""


def similarity_logits(
    images_NxD: jax.Array, texts_MxD: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """Scaled dot products of all images with all texts.

    Args:
      images_NxD: float, shape [N, D].
      texts_MxD: float, shape [M, D].
      scale: inverse temperature, scalar.

    Returns:
      logits_NxM, float32.

    Raises:
      ValueError: the widths differ, or an argument is not a matrix.
    """
    check_shapes(images_NxD, texts_MxD)
    return scale * product(
        images_NxD.astype(jnp.float32), texts_MxD.astype(jnp.float32).T
    )


def product(one: jax.Array, other: jax.Array) -> jax.Array:
    """Their matrix product; see the package for the precision."""
    return jnp.matmul(one, other, precision=lax.Precision.HIGHEST)


def check_shapes(images_NxD: jax.Array, texts_MxD: jax.Array) -> None:
    """Raises ValueError unless both are matrices of one width."""
    if images_NxD.ndim != 2 or texts_MxD.ndim != 2:
        raise ValueError(
            "expected image embeddings [N, D] and text embeddings [M, D]; found "
            f"shapes {images_NxD.shape} and {texts_MxD.shape}"
        )
    if images_NxD.shape[1] != texts_MxD.shape[1]:
        raise ValueError(
            "image and text embeddings must share their width D; found "
            f"{images_NxD.shape[1]} (images) and {texts_MxD.shape[1]} (texts)"
        )


def weights_or_ones(weight: jax.Array | None, size: int, name: str) -> jax.Array:
    """The given weights as float32, or ones; checks the length."""
    if weight is None:
        return jnp.ones(size, jnp.float32)
    if weight.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},); found {weight.shape}")
    return weight.astype(jnp.float32)


def masked_log_softmax(logits: jax.Array, keep: jax.Array) -> jax.Array:
    """Log-softmax over the last axis among the columns to keep.

    Args:
      logits: float32, [..., K].
      keep: bool, [K]. What is not kept gets 0 in the result, so that a product with
        a zero target is 0 and never 0 x -inf.
    """
    # Not -inf: with every column dropped, NaN would pass through `where` backward.
    log_p = jax.nn.log_softmax(jnp.where(keep, logits, FLOOR), axis=-1)
    return jnp.where(keep, log_p, 0.0)


def shares(weight: jax.Array) -> jax.Array:
    """The weights over their sum; all 0 when they sum to 0."""
    total = weight.sum()
    return weight / jnp.where(total > 0, total, 1.0)


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of `values` under `weight`; 0 when the weights sum to 0."""
    total = weight.sum()
    return (values * weight).sum() / jnp.where(total > 0, total, 1.0)
