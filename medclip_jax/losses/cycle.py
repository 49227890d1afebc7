"""Two courses in time that map onto each other, there and back.

Reference: Yang et al. (Med-ST), arXiv 2405.19654, section 3.4; SVT-Yang/MedST,
medst/models/medst/temporal_alignment.py, which follows Dwibedi et al., "Temporal
Cycle-Consistency Learning", arXiv 1904.07846.
"""

import jax
import jax.numpy as jnp
from jax import lax

from medclip_jax.losses.similarity import weighted_mean, weights_or_ones

_TINY = 1e-7


def cycle_loss(
    one_SxTxD: jax.Array,
    other_SxTxD: jax.Array,
    temperature: float = 0.1,
    variance_weight: float = 0.001,
    delta: float = 2.0,
    *,
    weight_S: jax.Array | None = None,
) -> jax.Array:
    """Both directions of `one_way`, added up: cycles from either side.

    Args:
      one_SxTxD: L2-normalised, S sequences of T steps, such as films.
      other_SxTxD: the same of another kind, such as reports.
      temperature: of the softmax over steps.
      variance_weight: lambda, what a spread arrival costs.
      delta: an error above it counts linearly.
      weight_S: float [S], 0 removes a sequence; ones when None.

    Returns:
      float32 scalar; 0 without sequences.
    """
    weight_S = weights_or_ones(weight_S, len(one_SxTxD), "weight_S")
    total = jnp.zeros((), jnp.float32)
    for source, target in ((one_SxTxD, other_SxTxD), (other_SxTxD, one_SxTxD)):
        there, back = one_way(source, target, temperature, variance_weight, delta)
        total += weighted_mean((there + back).mean(axis=1), weight_S)
    return total


def one_way(
    source_SxTxD: jax.Array,
    target_SxTxD: jax.Array,
    temperature: float = 0.1,
    variance_weight: float = 0.001,
    delta: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """From each step of the source to the target and back.

    Returns:
      float32 [S, T] each. There: the cross-entropy of arriving at the own step of the
      target (forward mapping classification). Back: the squared error of the time at
      which what was found there comes back, under a Gaussian of its own variance
      (reverse mapping regression); it is negative where that variance is small.
    """
    steps = source_SxTxD.shape[1]
    there_SxTxT = -_distances(source_SxTxD, target_SxTxD) / temperature
    log_p_SxTxT = jax.nn.log_softmax(there_SxTxT, axis=-1)
    arrives_SxT = -jnp.diagonal(log_p_SxTxT, axis1=1, axis2=2)
    found_SxTxD = jnp.einsum(
        "sij,sjd->sid",
        jnp.exp(log_p_SxTxT),
        target_SxTxD.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    back_SxTxT = -_distances(found_SxTxD, source_SxTxD) / temperature
    share_SxTxT = jax.nn.softmax(back_SxTxT, axis=-1)
    time_T = jnp.arange(steps) / (steps + _TINY)
    mean_SxT = (share_SxTxT * time_T).sum(-1)
    spread_SxTxT = jnp.square(time_T - mean_SxT[..., None])
    log_variance_SxT = jnp.log((share_SxTxT * spread_SxTxT).sum(-1) + _TINY)
    error_SxT = jnp.abs(time_T - mean_SxT)
    gaussian_SxT = (
        jnp.square(error_SxT) * jnp.exp(-log_variance_SxT)
        + variance_weight * log_variance_SxT
    )
    linear_SxT = delta * (error_SxT - delta / 2)
    return arrives_SxT, jnp.where(error_SxT < delta, gaussian_SxT, linear_SxT)


def _distances(one_SxTxD: jax.Array, other_SxTxD: jax.Array) -> jax.Array:
    """Squared distances [S, T, T] of all steps."""
    one, other = one_SxTxD.astype(jnp.float32), other_SxTxD.astype(jnp.float32)
    return jnp.square(one[:, :, None] - other[:, None]).sum(-1)
