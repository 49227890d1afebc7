"""Any film file -> 8-bit gray JPEG of the stored size.

Polarity convention: air is dark, bone bright. EXIF orientation is ignored on purpose:
the published sets carry none that is meant, and boxes refer to the pixels as stored.
"""

import dataclasses
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

QUALITY = 95
MAX_PIXELS = 120_000_000  # the largest detectors give about 20 million
MIN_SIDE = 32
MIN_LEVELS = 5
ASPECT = (0.4, 2.5)  # width / height
BRIGHT_BORDER = 60.0  # gray levels by which a border may exceed the middle


class BadFilm(Exception):
    """A film that cannot be used: `reason` in a few words, `detail` for the reader."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


UNREADABLE = "unreadable file"
BAD_PIXELS = "bad pixels"


@dataclasses.dataclass(frozen=True)
class StoredFilm:
    """A film as it goes into a record."""

    jpeg: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    bit_depth: int
    inverted: bool
    bright_border: bool


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A decoded film: 8-bit gray, perhaps already reduced by DCT scaling."""

    gray_HxW: np.ndarray
    original_height: int
    original_width: int
    bit_depth: int = 8
    inverted: bool = False
    source_is_gray_jpeg: bool = False


def convert(data: bytes, short_side: int) -> StoredFilm:
    """Converts the bytes of a film file.

    Args:
      data: a JPEG, PNG, DICOM or other file that Pillow reads.
      short_side: the stored short side, px; a smaller film is never enlarged.

    Returns:
      The film. A gray 8-bit JPEG that is small enough keeps its very bytes.

    Raises:
      BadFilm: cannot be decoded in full, or fails a quality check.
    """
    pixels = decode(data, short_side)
    gray_HxW = pixels.gray_HxW
    _check(pixels)
    height, width = target_size(
        pixels.original_height, pixels.original_width, short_side
    )
    same = (height, width) == (pixels.original_height, pixels.original_width)
    if same and pixels.source_is_gray_jpeg:
        jpeg = data
    else:
        if gray_HxW.shape != (height, width):
            image = Image.fromarray(gray_HxW)
            # Pillow widens the filter's support when it reduces: no aliasing.
            gray_HxW = np.asarray(
                image.resize((width, height), Image.Resampling.BICUBIC)
            )
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(gray_HxW[..., None]),
            quality=QUALITY,
            colorspace="GRAY",
            colorsubsampling="Gray",
        )
    return StoredFilm(
        jpeg=jpeg,
        height=height,
        width=width,
        original_height=pixels.original_height,
        original_width=pixels.original_width,
        bit_depth=pixels.bit_depth,
        inverted=pixels.inverted,
        bright_border=has_bright_border(gray_HxW),
    )


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The stored size: short side reduced to `short_side`, aspect kept."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    scale = short_side / short
    return max(1, round(height * scale)), max(1, round(width * scale))


def decode(data: bytes, short_side: int) -> Pixels:
    """Decodes a film to 8-bit gray, using DCT scaling for large JPEGs.

    Args:
      data: the file's bytes.
      short_side: a JPEG may be decoded smaller, but not below this short side, px.

    Raises:
      BadFilm: the file cannot be decoded in full.
    """
    if data[:2] == b"\xff\xd8":
        return _decode_jpeg(data, short_side)
    if data[128:132] == b"DICM":
        from data_pipelines.images import dicom

        return dicom.decode_dicom(data)
    return _decode_other(data)


def check_size(height: int, width: int) -> None:
    """Raises BadFilm for more pixels than any detector has."""
    if height * width > MAX_PIXELS:
        raise BadFilm(
            BAD_PIXELS, f"{width} x {height} is more than {MAX_PIXELS:,} pixels"
        )


def _decode_jpeg(data: bytes, short_side: int) -> Pixels:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadFilm(UNREADABLE, f"JPEG: {error}") from None
    check_size(height, width)
    small_height, small_width = target_size(height, width, short_side)
    try:
        gray_HxWx1 = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY",
            min_height=small_height,
            min_width=small_width,
            min_factor=1,
        )
    except ValueError as error:
        raise BadFilm(UNREADABLE, f"JPEG: {error}") from None
    return Pixels(
        gray_HxWx1[..., 0],
        height,
        width,
        source_is_gray_jpeg=colorspace.upper() == "GRAY",
    )


def _decode_other(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            check_size(image.height, image.width)
            image.load()
    except BadFilm:
        raise
    except Image.DecompressionBombError as error:
        raise BadFilm(BAD_PIXELS, str(error)) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises many types for bad bytes
        kind = (
            "not an image"
            if isinstance(error, Image.UnidentifiedImageError)
            else (f"{type(error).__name__} while decoding")
        )
        raise BadFilm(UNREADABLE, kind) from None
    height, width = image.height, image.width
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        return Pixels(scale_by_range(values), height, width, bit_depth=16)
    if image.mode in ("P", "RGBA", "PA"):
        image = image.convert("RGBA").convert("RGB")  # the alpha is dropped
    return Pixels(np.asarray(image.convert("L")), height, width)


def scale_by_range(values_HxW: np.ndarray) -> np.ndarray:
    """Maps the range of the values to 0..255, as uint8; a constant gives 0."""
    values_HxW = values_HxW.astype(np.float32)
    low, high = float(values_HxW.min()), float(values_HxW.max())
    if not np.isfinite(high - low):
        raise BadFilm(BAD_PIXELS, "values that are not finite")
    if high <= low:
        return np.zeros(values_HxW.shape, np.uint8)
    return np.round((values_HxW - low) * (255.0 / (high - low))).astype(np.uint8)


def _check(pixels: Pixels) -> None:
    height, width = pixels.original_height, pixels.original_width
    if min(height, width) < MIN_SIDE:
        raise BadFilm(BAD_PIXELS, f"{width} x {height}: a side below {MIN_SIDE} px")
    if not ASPECT[0] <= width / height <= ASPECT[1]:
        raise BadFilm(
            BAD_PIXELS,
            f"{width} x {height}: width / height outside {ASPECT[0]} to {ASPECT[1]}",
        )
    levels = int(np.count_nonzero(np.bincount(pixels.gray_HxW.ravel(), minlength=256)))
    if levels == 1:
        raise BadFilm(BAD_PIXELS, "constant image")
    if levels < MIN_LEVELS:
        raise BadFilm(BAD_PIXELS, f"{levels} gray levels, fewer than {MIN_LEVELS}")


def has_bright_border(gray_HxW: np.ndarray) -> bool:
    """Tells a film that may have inverted polarity. A heuristic, for a warning only.

    White collimation masks and tight crops raise it too.
    """
    height, width = gray_HxW.shape
    h, w = max(1, height // 16), max(1, width // 16)
    border = np.concatenate(
        [gray_HxW[:h].ravel(), gray_HxW[:, :w].ravel(), gray_HxW[:, -w:].ravel()]
    )
    middle = gray_HxW[height // 4 : -height // 4, 3 * width // 8 : 5 * width // 8]
    return float(border.mean()) - float(middle.mean()) > BRIGHT_BORDER
