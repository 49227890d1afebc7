"""Stored pixel values -> 8-bit gray by their range, through a table.

A film has millions of pixels but at most 65,536 values. What is done to each value
alone (rescale, window, LUT, scaling, inversion) is done to the values once, and one
look-up takes it to the pixels. The gray is equal to the bit to doing it pixel by pixel.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.images.bad_film import BAD_PIXELS, BadFilm

STRIP = 64  # rows looked up at once: their indices stay in the processor's cache


def gray_by_range(
    values_HxW: np.ndarray,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    inverted: bool = False,
) -> np.ndarray:
    """Maps the range of the values that are present to 0..255.

    Args:
      values_HxW: numbers of any type.
      transform: applied first; what it makes of a value must depend on that value
        alone.
      inverted: turn the gray over at the end.

    Returns:
      uint8 [H, W]; a constant film gives 0 (255 when inverted).

    Raises:
      BadFilm: the transformed range is not finite.
    """
    if not values_HxW.dtype.isnative:
        values_HxW = values_HxW.astype(values_HxW.dtype.newbyteorder("="))
    if values_HxW.dtype.kind not in "iu" or values_HxW.itemsize > 2:
        if transform is not None:
            values_HxW = transform(values_HxW)
        shown_HxW = values_HxW.astype(np.float32)
        return _scale(shown_HxW, shown_HxW, inverted)
    bits_HxW = values_HxW.view(f"u{values_HxW.itemsize}")
    low, high = int(values_HxW.min()), int(values_HxW.max())
    values_V = np.arange(low, high + 1).astype(values_HxW.dtype)
    shown_V = values_V if transform is None else transform(values_V)
    shown_V = shown_V.astype(np.float32)
    present_V = _ends(shown_V)
    if present_V is None:
        is_present = np.zeros(1 << (8 * values_HxW.itemsize), bool)
        is_present[bits_HxW] = True
        present_V = shown_V[is_present[values_V.view(bits_HxW.dtype)]]
    table = np.zeros(1 << (8 * values_HxW.itemsize), np.uint8)
    table[values_V.view(bits_HxW.dtype)] = _scale(shown_V, present_V, inverted)
    gray_HxW = np.empty(values_HxW.shape, np.uint8)
    for top in range(0, len(bits_HxW), STRIP):
        # No index is out of range; "clip" only spares numpy a copy of the result.
        rows = slice(top, top + STRIP)
        np.take(table, bits_HxW[rows], out=gray_HxW[rows], mode="clip")
    return gray_HxW


def _ends(shown_V: np.ndarray) -> np.ndarray | None:
    """First and last value when nothing lies outside them, else None.

    The lowest and highest stored values are present in the film; those between may
    not be, so their transformed values count only where the order tells.
    """
    with np.errstate(invalid="ignore"):
        steps = np.diff(shown_V)
    if np.all(steps >= 0) or np.all(steps <= 0):
        return shown_V[[0, -1]]
    return None


def _scale(shown: np.ndarray, present: np.ndarray, inverted: bool) -> np.ndarray:
    """Float32 values -> uint8, the range of `present` to 0..255."""
    low, high = float(present.min()), float(present.max())
    if not np.isfinite(high - low):
        raise BadFilm(
            BAD_PIXELS,
            "expected finite pixel values, found infinite ones or no numbers (NaN); "
            "save the film again from its source",
        )
    if high <= low:
        gray = np.zeros(shown.shape, np.uint8)
    else:
        with np.errstate(invalid="ignore"):  # of values that are not present
            gray = np.round((shown - low) * (255.0 / (high - low))).astype(np.uint8)
    return 255 - gray if inverted else gray
