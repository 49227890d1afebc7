"""A query finds its key among the keys of earlier batches.

Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning"
(MoCo), arXiv 1911.05722, equation 1; facebookresearch/moco, moco/builder.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.losses.similarity import FLOOR, product, weighted_mean


class Queue(NamedTuple):
    """Attributes:
    keys_KxD: float32 unit vectors, the newest overwrite the oldest.
    valid_K: float32, 0 for the key of a film that could not be read.
    pointer: int32, where the next ones go.
    """

    keys_KxD: jax.Array
    valid_K: jax.Array
    pointer: jax.Array


def queue_loss(
    queries_NxD: jax.Array,
    keys_NxD: jax.Array,
    queue: Queue,
    scale: jax.Array | float,
    weight_N: jax.Array,
) -> jax.Array:
    """Cross-entropy of each query to its own key, among that and all of the queue.

    Args:
      queries_NxD: L2-normalised, float [N, D].
      keys_NxD: L2-normalised; no gradient flows into them.
      queue: of earlier steps.
      scale: inverse temperature.
      weight_N: float32 [N], 0 removes a film.

    Returns:
      float32 scalar, the weighted mean.
    """
    keys_NxD = lax.stop_gradient(keys_NxD)
    own_N = scale * (queries_NxD * keys_NxD).sum(axis=1)
    logits_NxK = scale * product(queries_NxD, queue.keys_KxD.T)
    logits_NxK = jnp.where(queue.valid_K > 0, logits_NxK, FLOOR)
    logits_NxK1 = jnp.concatenate([own_N[:, None], logits_NxK], axis=1)
    return weighted_mean(jax.nn.logsumexp(logits_NxK1, axis=1) - own_N, weight_N)


def enqueued(queue: Queue, keys_NxD: jax.Array, weight_N: jax.Array) -> Queue:
    """The queue with a batch's keys in place of the oldest.

    Args:
      queue: of K keys, a multiple of N, so that no batch goes over its end.
      keys_NxD: L2-normalised.
      weight_N: 0 for a film that could not be read.
    """
    size, count = len(queue.keys_KxD), len(keys_NxD)
    if size % count:
        raise ValueError(
            f"expected a queue of a multiple of the batch; found {size} keys and a "
            f"batch of {count}"
        )
    keys_NxD = lax.stop_gradient(keys_NxD)
    at = queue.pointer
    return Queue(
        lax.dynamic_update_slice(queue.keys_KxD, keys_NxD, (at, jnp.zeros_like(at))),
        lax.dynamic_update_slice(
            queue.valid_K, (weight_N > 0).astype(jnp.float32), (at,)
        ),
        (at + count) % size,
    )
