"""Films at another size, as PyTorch's `interpolate` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def resize_corners(films_BxHxWxC: jax.Array, side: int) -> jax.Array:
    """Bilinear, the corner pixels on each other (align_corners=True).

    `jax.image.resize` lays the edges of the corner pixels on each other instead.

    Args:
      films_BxHxWxC: float [B, H, W, C].
      side: of the square that is made.

    Returns:
      The same dtype, [B, side, side, C].
    """
    _, height, width, _ = films_BxHxWxC.shape
    if (height, width) == (side, side):
        return films_BxHxWxC
    return jnp.einsum(
        "ih,bhwc,jw->bijc",
        _weights(height, side).astype(films_BxHxWxC.dtype),
        films_BxHxWxC,
        _weights(width, side).astype(films_BxHxWxC.dtype),
        precision=lax.Precision.HIGHEST,
    )


def _weights(before: int, after: int) -> np.ndarray:
    """[after, before]: what of each pixel goes into each new one."""
    source = np.arange(after) * ((before - 1) / max(after - 1, 1))
    low = np.minimum(source.astype(int), max(before - 2, 0))
    share = (source - low).astype(np.float32)
    weights = np.zeros((after, before), np.float32)
    rows = np.arange(after)
    weights[rows, low] = 1 - share
    weights[rows, np.minimum(low + 1, before - 1)] += share
    return weights
