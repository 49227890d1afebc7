"""Films and reports that fall to the same prototypes.

Reference: Wang et al. (MGCA), arXiv 2210.06044, section 3.4; HKU-MedAI/MGCA,
mgca/models/mgca/mgca_module.py; the codes are those of Caron et al. (SwAV), arXiv
2006.09882. The official code balances the batch of one GPU alone; here it is the whole
batch of all devices.
"""

import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.losses.similarity import weighted_mean, weights_or_ones


def sinkhorn(
    scores_BxK: jax.Array,
    epsilon: float = 0.05,
    iterations: int = 3,
    weight_B: jax.Array | None = None,
) -> jax.Array:
    """Codes: shares of prototypes for each example, all prototypes used alike.

    Args:
      scores_BxK: float, products of examples and prototypes of length 1.
      epsilon: smaller is harder.
      iterations: how often rows and columns are brought to their sums in turn.
      weight_B: 0 for an example that takes no part: it gets no share.

    Returns:
      float32 [B, K], each row of sum 1 or of zeros, without a gradient.
    """
    scores_BxK = lax.stop_gradient(scores_BxK.astype(jnp.float32))
    keep_Bx1 = weights_or_ones(weight_B, len(scores_BxK), "weight_B")[:, None] > 0
    highest = jnp.where(keep_Bx1, scores_BxK, -jnp.inf).max()
    codes_BxK = jnp.where(keep_Bx1, jnp.exp((scores_BxK - highest) / epsilon), 0.0)
    for _ in range(iterations):
        codes_BxK = _share(codes_BxK, axis=0)
        codes_BxK = _share(codes_BxK, axis=1)
    return codes_BxK


def prototype_loss(
    image_scores_BxK: jax.Array,
    text_scores_BxK: jax.Array,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    weight_B: jax.Array | None = None,
) -> jax.Array:
    """Each side predicts the other's codes; the mean of both directions.

    Args:
      image_scores_BxK: products of films and prototypes, both of length 1.
      text_scores_BxK: of reports and the same prototypes.
      temperature: of the predictions.
      epsilon, iterations: of `sinkhorn`.
      weight_B: float [B], 0 removes a pair; ones when None.

    Returns:
      float32 scalar.
    """
    weight_B = weights_or_ones(weight_B, len(image_scores_BxK), "weight_B")
    total = jnp.zeros((), jnp.float32)
    for codes_of, predicted_by in (
        (image_scores_BxK, text_scores_BxK),
        (text_scores_BxK, image_scores_BxK),
    ):
        codes_BxK = sinkhorn(codes_of, epsilon, iterations, weight_B)
        log_p_BxK = jax.nn.log_softmax(
            predicted_by.astype(jnp.float32) / temperature, axis=1
        )
        total += weighted_mean(-(codes_BxK * log_p_BxK).sum(axis=1), weight_B) / 2
    return total


def _share(codes_BxK: jax.Array, axis: int) -> jax.Array:
    # To sum 1, where the official code has 1 / K and 1 / B: what follows divides by the
    # sums again, so that only the last division counts.
    total = codes_BxK.sum(axis=axis, keepdims=True)
    return codes_BxK / jnp.where(total > 0, total, 1.0)
