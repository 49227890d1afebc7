"""Maps of similarity laid over films, and how well they find an annotated region.

A map is float64 [h, w], the cosines of one film's patches with one phrase. `Frame` says
where in the original film the map lies: films of this project are padded to a centred
square (`padded`), those of BioViL's inference cropped to one (`cropped`).

Reference: microsoft/hi-ml, hi-ml-multimodal/src/health_multimodal/vlp/
inference_engine.py (smoothing, crop, upsampling, NaN outside); Boecking et al. (BioViL,
ECCV 2022), section 4.2 (contrast-to-noise ratio, mIoU).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

SIGMA = 1.5
"""Of the Gaussian filter, in cells of the map."""

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""On the cosine itself; nothing is scaled between 0 and 1."""


@dataclass(frozen=True)
class Frame:
    """The rectangle of the film that a map covers, in the film's pixels.

    Attributes:
      top, left: of its first pixel; negative where padding lies outside of the film.
      height, width: its size.
    """

    top: float
    left: float
    height: float
    width: float


def cropped(height: int, width: int, side: int, resize: int | None = 512) -> Frame:
    """Where a centre crop lies in a film.

    Args:
      height, width: of the original film, pixels.
      side: of the crop, in pixels after resizing.
      resize: pixels of the shorter side before cropping; None: not resized.
    """
    side = side if resize is None else int(side * min(height, width) / resize)
    return Frame((height - side) // 2, (width - side) // 2, side, side)


def padded(
    height: int, width: int, stored_height: int, stored_width: int, least: int
) -> Frame:
    """Where a film that was padded to a centred square lies in it.

    Args:
      height, width: of the original film, pixels.
      stored_height, stored_width: of the stored film, which was padded.
      least: pixels that the square has at least (`inputs.images.evaluation_film`).

    Returns:
      The square in pixels of the original film, into which the film's own lie.
    """
    side = max(least, stored_height, stored_width)
    down, across = height / stored_height, width / stored_width
    top, left = (side - stored_height) // 2, (side - stored_width) // 2
    return Frame(-top * down, -left * across, side * down, side * across)


def smooth(map_hxw: np.ndarray) -> np.ndarray:
    """Gaussian filter of SIGMA cells, mirrored at the border, cut off at 4 sigma."""
    return gaussian_filter(
        np.asarray(map_hxw, np.float64), SIGMA, mode="reflect", truncate=4.0
    )


def place(
    map_hxw: np.ndarray,
    frame: Frame,
    rows: np.ndarray,
    columns: np.ndarray,
    upsampling: str = "bilinear",
) -> np.ndarray:
    """The map at pixels of the film.

    Args:
      map_hxw: float.
      frame: where it lies.
      rows, columns: int [R], [C], the pixels wanted.
      upsampling: "bilinear" (corners not aligned) or "nearest", as PyTorch does them.

    Returns:
      float64 [R, C], NaN outside of the frame.
    """
    high, wide = map_hxw.shape
    down_Rxh = _axis(rows, frame.top, frame.height, high, upsampling)
    across_Cxw = _axis(columns, frame.left, frame.width, wide, upsampling)
    return down_Rxh @ np.asarray(map_hxw, np.float64) @ across_Cxw.T


def _axis(
    pixels: np.ndarray, start: float, length: float, cells: int, upsampling: str
) -> np.ndarray:
    """Weight of each cell for each pixel [R, cells]; NaN for pixels outside."""
    place_R = (np.asarray(pixels) - start) * cells / length
    centre_R = place_R + 0.5 * cells / length
    if upsampling == "nearest":
        low = np.floor(place_R)
        share = np.zeros(len(low))
    elif upsampling == "bilinear":
        at = np.maximum(centre_R - 0.5, 0)
        low = np.floor(at)
        share = at - low
    else:
        raise ValueError(f"upsampling is nearest or bilinear, found {upsampling!r}")
    weights = np.zeros((len(place_R), cells))
    each = np.arange(len(place_R))
    for cell, part in ((low, 1 - share), (low + 1, share)):
        np.add.at(weights, (each, np.clip(cell, 0, cells - 1).astype(int)), part)
    weights[(centre_R < 0) | (centre_R > cells)] = np.nan
    return weights


def signed_cnr(map_HxW: np.ndarray, inside_HxW: np.ndarray) -> float:
    """Contrast-to-noise ratio: (mean in - mean out) / sqrt(variance in + out).

    The published figure is its absolute value, which an inverted map reaches too.

    Args:
      map_HxW: float; NaN is left out on both sides.
      inside_HxW: bool, the annotated pixels.

    Returns:
      0 for a flat map; NaN where no pixel lies inside, or none outside.
    """
    known = np.isfinite(map_HxW)
    inner, outer = map_HxW[known & inside_HxW], map_HxW[known & ~inside_HxW]
    if not inner.size or not outer.size:
        return float("nan")
    contrast = inner.mean() - outer.mean()
    spread = np.sqrt(inner.var() + outer.var())
    # Of a flat map both are rounding errors of numbers between -1 and 1.
    return float(contrast / spread) if max(abs(contrast), spread) > 1e-12 else 0.0


def sequential_cnr(map_HxW: np.ndarray, boxes: Sequence[np.ndarray]) -> float:
    """The mean absolute ratio over a phrase's boxes, one after another.

    A box that was done is no background of later ones, but later boxes are background
    of earlier ones. For comparison with others' figures alone; the union is the rule.

    Args:
      map_HxW: float.
      boxes: bool [H, W] each, in the order of the annotation.

    Reference: vios-s/ldm-phrase-grounding.
    """
    rest_HxW, ratios = np.array(map_HxW, np.float64), []
    for box in boxes:
        ratios.append(abs(signed_cnr(rest_HxW, box)))
        rest_HxW[box] = np.nan
    return float(np.mean(ratios))


def ious(
    map_HxW: np.ndarray,
    inside_HxW: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """Intersection over union of `map > threshold` with the annotation.

    NaN is not above any threshold; annotated pixels there are misses.

    Returns:
      float64, one a threshold.
    """
    size = np.count_nonzero(inside_HxW)
    inner = map_HxW[inside_HxW]
    made = []
    for threshold in thresholds:
        hits = np.count_nonzero(inner > threshold)
        union = np.count_nonzero(map_HxW > threshold) + size - hits
        made.append(hits / union if union else 0.0)
    return np.array(made)


def pointing(map_HxW: np.ndarray, inside_HxW: np.ndarray) -> float:
    """Whether the highest point lies inside: the share of those that are as high.

    No tolerance around the region is given.

    Reference: Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV
    2016, section 4.1.
    """
    return float(np.mean(inside_HxW[map_HxW == np.nanmax(map_HxW)]))
