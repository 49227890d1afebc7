"""Device augmentation of uint8 films, inside the jitted step; one key an example.

The order is MedCLIP's: horizontal flip, brightness and contrast, affine, normalise
(pad, resize and crop were done on the host, see `images.py`). Blur, which ConVIRT
uses, comes last. What the config sets to nothing is not computed at all.

A horizontal flip swaps left and right, and reports name sides: with `flip` above 0 a
film may stand beside a text that says the opposite side. The official code flips all
the same.

The warp is one gather of uint8 for each output pixel. The jitter is a function of
the pixel and of one mean, so with nearest sampling it gives the same when done after
the gather, and the flip is a change of the index.

Where a pixel looks is counted in integers, from tables made by NumPy. Nearest sampling
is not continuous: with floats, a last bit that differs between two compiled programs
(1 and 8 devices, say) would now and then pick the neighbouring pixel.

Reference: RyanWangZf/MedCLIP, examples/run_medclip_pretrain.py; torchvision
ColorJitter and RandomAffine; ConVIRT (arXiv 2010.00747) appendix A.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.inputs.options import Augment, DataOptions

N_DRAWS = 9
LEVELS = 4096  # values that an angle, a scale or a shift can take
FRACTION_BITS = 16  # of cosine and sine; Pillow counts in 16.16 too


class Draws(NamedTuple):
    """The random numbers of each example, [B] each."""

    flip: jax.Array  # bool
    brightness: jax.Array  # factor
    contrast: jax.Array  # factor
    contrast_first: jax.Array  # bool
    cos: jax.Array  # int32: cosine / scale in units of 2^-FRACTION_BITS
    sin: jax.Array  # int32: sine / scale likewise
    shift_x: jax.Array  # int32: whole pixels
    shift_y: jax.Array
    blur_sigma: jax.Array  # pixels


def normalize(films_BxHxWx1: jax.Array, mean: float, std: float) -> jax.Array:
    """Maps uint8 (or float) 0..255 to (x / 255 - mean) / std in three equal channels.

    Args:
      films_BxHxWx1: uint8 or float32 in 0..255.
      mean: of the films in 0..1.
      std: of the films in 0..1.

    Returns:
      float32 [B, H, W, 3].
    """
    films = (films_BxHxWx1.astype(jnp.float32) / 255.0 - mean) / std
    return jnp.broadcast_to(films, (*films.shape[:-1], 3))


def augment(films_BxHxWx1: jax.Array, keys_B: jax.Array, config: Any) -> jax.Array:
    """Augments and normalises films.

    Args:
      films_BxHxWx1: uint8.
      keys_B: typed PRNG keys, one an example; an example's result depends on its
        own key alone.
      config: `config.data` (a mapping or `DataOptions`): its `augment`, `mean`,
        `std`.

    Returns:
      float32 [B, H, W, 3], normalised.
    """
    options = DataOptions.of(config)
    aug = options.augment
    films = films_BxHxWx1[..., 0]
    if not _does_anything(aug):
        return normalize(films_BxHxWx1, options.mean, options.std)
    draws = draw_parameters(keys_B, aug, films.shape[1])
    films = warp(films, draws, aug) if _warps(aug) else _flip_only(films, draws, aug)
    if aug.blur_sigma_max > 0:
        films = blur(films, draws.blur_sigma)
    return normalize(films[..., None], options.mean, options.std)


def _warps(aug: Augment) -> bool:
    moves = aug.rotate_degrees > 0 or aug.translate > 0
    return moves or (aug.scale_min, aug.scale_max) != (1.0, 1.0)


def _jitters(aug: Augment) -> bool:
    return aug.brightness > 0 or aug.contrast > 0


def _does_anything(aug: Augment) -> bool:
    return _warps(aug) or _jitters(aug) or aug.flip > 0 or aug.blur_sigma_max > 0


def draw_parameters(keys_B: jax.Array, aug: Augment, size: int) -> Draws:
    """Draws all random numbers of each example from its key.

    Angle, scale and shifts take one of `LEVELS` values spread evenly over their range.

    Args:
      keys_B: typed PRNG keys.
      aug: the ranges.
      size: pixels of a side; shifts are whole pixels up to translate * size.

    Raises:
      UserError: the film is too large, or the scale too small, for int32 coordinates.
    """
    _check_int32(aug, size)
    u = jax.vmap(lambda key: jax.random.uniform(key, (N_DRAWS,)))(keys_B).T
    # Exact: u is a multiple of 2^-23 below 1, and LEVELS a power of two.
    level = (u * LEVELS).astype(jnp.int32)

    def between(row: jax.Array, low: float, high: float) -> jax.Array:
        return low + row * (high - low)

    cos, sin = fixed_point_rotation(
        level[4],
        level[7],
        np.deg2rad(_spread(-aug.rotate_degrees, aug.rotate_degrees)),
        _spread(aug.scale_min, aug.scale_max),
    )
    reach = aug.translate * size
    shifts = jnp.asarray(np.rint(_spread(-reach, reach)), jnp.int32)
    return Draws(
        flip=u[0] < aug.flip,
        brightness=between(u[1], 1 - aug.brightness, 1 + aug.brightness),
        contrast=between(u[2], 1 - aug.contrast, 1 + aug.contrast),
        contrast_first=u[3] < 0.5,
        cos=cos,
        sin=sin,
        shift_x=shifts[level[5]],
        shift_y=shifts[level[6]],
        blur_sigma=between(u[8], aug.blur_sigma_min, aug.blur_sigma_max),
    )


def _spread(low: float, high: float) -> np.ndarray:
    """The middles of `LEVELS` equal parts of a range: float64 [LEVELS]."""
    return low + (np.arange(LEVELS) + 0.5) / LEVELS * (high - low)


def _check_int32(aug: Augment, size: int) -> None:
    one = 2**FRACTION_BITS
    farthest = size + 2 * aug.translate * size  # from the centre, in half pixels
    coordinate = 2**0.5 * one / aug.scale_min * farthest + size * one
    product = one * (one / aug.scale_min) / 256  # see `fixed_point_rotation`
    if max(coordinate, product) + one >= 2**31:
        raise UserError(
            f"config.data: films of {size} px with augment.scale_min {aug.scale_min} "
            f"and translate {aug.translate} do not fit the warp's int32 coordinates; "
            "raise scale_min, or lower image_size or translate"
        )


def fixed_point_rotation(
    angle_level_B: jax.Array,
    scale_level_B: jax.Array,
    angles: np.ndarray,
    scales: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """Cosine / scale and sine / scale of the drawn levels, without float arithmetic.

    Args:
      angle_level_B: int32, which of the angles.
      scale_level_B: int32, which of the scales.
      angles: float64 [L], radians.
      scales: float64 [M], above 2^-7.

    Returns:
      (cos, sin), int32 [B] each, in units of 2^-FRACTION_BITS; off by at most
      1 / (2 scale) + 1.01 such units.
    """
    one = 2**FRACTION_BITS
    inverse_B = jnp.asarray(np.rint(one / scales), jnp.int32)[scale_level_B]

    def over_scale(values: np.ndarray) -> jax.Array:
        value_B = jnp.asarray(np.rint(one * values), jnp.int32)[angle_level_B]
        # (value * inverse) >> 16, rounded; in two parts, since it exceeds int32.
        high, low = inverse_B >> 8, inverse_B & 255
        rest_bits = FRACTION_BITS - 8
        total = value_B * high + ((value_B * low) >> 8)
        return (total + (1 << (rest_bits - 1))) >> rest_bits

    return over_scale(np.cos(angles)), over_scale(np.sin(angles))


def jitter(
    values_BxHxW: jax.Array, mean_B: jax.Array, bright_mean_B: jax.Array, draws: Draws
) -> jax.Array:
    """Brightness and contrast, in an order drawn for each example.

    Args:
      values_BxHxW: float32 in 0..255.
      mean_B: mean of the whole film: what contrast blends with when it comes first.
      bright_mean_B: mean after brightness: the same when contrast comes second.
      draws: `brightness`, `contrast`, `contrast_first`.

    Returns:
      float32 [B, H, W] in 0..255.

    Reference: torchvision ColorJitter (which orders its parts at random).
    """
    bright, contrast = draws.brightness[:, None, None], draws.contrast[:, None, None]
    mean, bright_mean = mean_B[:, None, None], bright_mean_B[:, None, None]
    first = jnp.clip(values_BxHxW * bright, 0, 255)
    first = jnp.clip(bright_mean + contrast * (first - bright_mean), 0, 255)
    second = jnp.clip(mean + contrast * (values_BxHxW - mean), 0, 255)
    second = jnp.clip(second * bright, 0, 255)
    return jnp.where(draws.contrast_first[:, None, None], second, first)


def _means(films_BxHxW: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
    values = films_BxHxW.astype(jnp.float32)
    bright = jnp.clip(values * draws.brightness[:, None, None], 0, 255)
    return values.mean(axis=(1, 2)), bright.mean(axis=(1, 2))


def _flip_only(films_BxHxW: jax.Array, draws: Draws, aug: Augment) -> jax.Array:
    if aug.flip > 0:
        flipped = films_BxHxW[:, :, ::-1]
        films_BxHxW = jnp.where(draws.flip[:, None, None], flipped, films_BxHxW)
    values = films_BxHxW.astype(jnp.float32)
    return (
        jitter(values, *_means(films_BxHxW, draws), draws) if _jitters(aug) else values
    )


def source_coordinates(draws: Draws, size: int) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel looks in the film, before the flip.

    The inverse of: rotate (clockwise) and scale about the centre, then shift.
    Coordinates count from the film's corner, so that the centre of pixel 0 is 0.5.

    Returns:
      (y, x), int32 [B, H, W] each, in units of 2^-(FRACTION_BITS + 1) pixels.

    Reference: torchvision.transforms.functional `_get_inverse_affine_matrix` and
    its use with Pillow (centre at half the size).
    """
    cos, sin = draws.cos[:, None, None], draws.sin[:, None, None]
    # In half pixels from the centre, which are whole numbers for any size.
    at = 2 * jnp.arange(size, dtype=jnp.int32) + 1 - size
    x = at[None, None, :] - 2 * draws.shift_x[:, None, None]
    y = at[None, :, None] - 2 * draws.shift_y[:, None, None]
    centre = size << FRACTION_BITS
    return cos * y - sin * x + centre, cos * x + sin * y + centre


def warp(films_BxHxW: jax.Array, draws: Draws, aug: Augment) -> jax.Array:
    """Flip, jitter and affine of square films, with 0 outside.

    With nearest sampling and no jitter every bit of the result is the same on any
    device and for any compiler; the jitter is float arithmetic.

    Args:
      films_BxHxW: uint8.
      draws: see `draw_parameters`.
      aug: says which of the parts there are, and the interpolation.

    Returns:
      float32 [B, H, W] in 0..255.
    """
    size = films_BxHxW.shape[1]
    y, x = source_coordinates(draws, size)
    means = _means(films_BxHxW, draws) if _jitters(aug) else None

    def look(row_BxHxW: jax.Array, column_BxHxW: jax.Array) -> jax.Array:
        inside = (row_BxHxW >= 0) & (row_BxHxW < size)
        inside &= (column_BxHxW >= 0) & (column_BxHxW < size)
        if aug.flip > 0:
            flipped = size - 1 - column_BxHxW
            column_BxHxW = jnp.where(draws.flip[:, None, None], flipped, column_BxHxW)
        at = jnp.where(inside, row_BxHxW * size + column_BxHxW, 0)
        # Batched along axis 0, so that a sharded batch stays where it is.
        flat = films_BxHxW.reshape(len(films_BxHxW), -1)
        values = jnp.take_along_axis(
            flat, at.reshape(len(at), -1), axis=1, mode="promise_in_bounds"
        )
        values = values.reshape(at.shape).astype(jnp.float32)
        if means is not None:
            values = jitter(values, *means, draws)
        return jnp.where(inside, values, 0)

    bits = FRACTION_BITS + 1
    if aug.interpolation == "nearest":
        return look(y >> bits, x >> bits)
    # From corners to centres; what is left below a pixel is exact in float32.
    y, x = y - (1 << FRACTION_BITS), x - (1 << FRACTION_BITS)
    top, left = y >> bits, x >> bits
    down, right = (
        (at & ((1 << bits) - 1)).astype(jnp.float32) / (1 << bits) for at in (y, x)
    )
    total = jnp.zeros(y.shape, jnp.float32)
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            total += row_weight * column_weight * look(row, column)
    return total


def blur(films_BxHxW: jax.Array, sigma_B: jax.Array) -> jax.Array:
    """Gaussian blur, each film with its own sigma; borders mirrored.

    Written as two products with a banded matrix, which keeps per-example kernels
    cheap on a matrix unit.

    Args:
      films_BxHxW: float32.
      sigma_B: pixels; 0 leaves the film as it is.

    Returns:
      float32 [B, H, W].
    """
    size = films_BxHxW.shape[1]
    at = jnp.arange(size, dtype=jnp.float32)
    sigma = jnp.maximum(sigma_B, 1e-3)[:, None, None]
    weights = jnp.zeros((len(sigma_B), size, size), jnp.float32)
    # Mirrored at the edge pixels, as torchvision's "reflect" does.
    for source in (at, -at, 2 * (size - 1) - at):
        distance = at[None, :, None] - source[None, None, :]
        weights += jnp.exp(-0.5 * (distance / sigma) ** 2)
    # The edge pixels stand for themselves only once.
    edge = (at == 0) | (at == size - 1)
    weights = jnp.where(edge[None, None, :], weights / 2, weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    high = jax.lax.Precision.HIGHEST
    films_BxHxW = jnp.einsum("byr,brx->byx", weights, films_BxHxW, precision=high)
    return jnp.einsum("bxc,byc->byx", weights, films_BxHxW, precision=high)
