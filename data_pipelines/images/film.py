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

from data_pipelines.images.bad_film import BAD_PIXELS, UNREADABLE, BadFilm
from data_pipelines.images.lookup import gray_by_range

__all__ = ["BadFilm", "StoredFilm", "convert", "decode", "target_size"]

QUALITY = 95
MAX_PIXELS = 120_000_000  # the largest detectors give about 20 million
MIN_SIDE = 32
MIN_LEVELS = 5
ASPECT = (0.4, 2.5)  # width / height
HIGH_BYTE_RANGE = 128
ODD_SAMPLING = "subsampling"  # how simplejpeg refuses what Pillow can decode
BRIGHT_BORDER = 60.0  # gray levels by which a border may exceed the middle


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
    if not data:
        raise BadFilm(UNREADABLE, "the file is empty (0 bytes); copy it again")
    if data[:2] == b"\xff\xd8":
        return _decode_jpeg(data, short_side)
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00"):
        from data_pipelines.images import dicom

        if dicom.is_dicom(data):
            return dicom.decode_dicom(data)
    return _decode_other(data)


def check_size(height: int, width: int) -> None:
    """Raises BadFilm for more pixels than any detector has."""
    if height * width > MAX_PIXELS:
        raise BadFilm(
            BAD_PIXELS,
            f"{width} x {height} is more than {MAX_PIXELS:,} pixels (the largest "
            "detectors have about 20 million); if it is a film, scale it down, else "
            "leave it out",
        )


def _decode_jpeg(data: bytes, short_side: int) -> Pixels:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        check_size(height, width)
        small_height, small_width = target_size(height, width, short_side)
        gray_HxWx1 = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY",
            min_height=small_height,
            min_width=small_width,
            min_factor=1,
        )
    except ValueError as error:
        if ODD_SAMPLING in str(error):
            return _decode_other(data)
        raise BadFilm(UNREADABLE, _jpeg_fault(data, str(error))) from None
    return Pixels(
        gray_HxWx1[..., 0],
        height,
        width,
        source_is_gray_jpeg=colorspace.upper() == "GRAY",
    )


def _jpeg_fault(data: bytes, message: str) -> str:
    found = f"JPEG of {len(data):,} bytes: "
    if "Premature end" in message:
        return (
            f"{found}expected its end mark, found the end of the file: it was cut off; "
            "copy it again"
        )
    if "precision" in message or "lossless" in message:
        return (
            f"{found}expected 8 bits a pixel, baseline or progressive; found {message}; "
            "save it as 8-bit JPEG or as 16-bit gray PNG"
        )
    return f"{found}expected a sound stream, found damage ({message}); copy it again"


def _decode_other(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            check_size(image.height, image.width)
            image.load()
    except BadFilm:
        raise
    except Image.UnidentifiedImageError:
        raise BadFilm(UNREADABLE, _what_it_is(data)) from None
    except Image.DecompressionBombError as error:
        raise BadFilm(
            BAD_PIXELS, f"{error}; if it is a film, scale it down, else leave it out"
        ) from None
    except Exception as error:  # noqa: BLE001 - Pillow raises many types for bad bytes
        raise BadFilm(
            UNREADABLE,
            f"expected a whole image, found one that is cut off or damaged "
            f"({type(error).__name__} after its header, {len(data):,} bytes); "
            "copy it again",
        ) from None
    height, width = image.height, image.width
    if image.mode.startswith("I") or image.mode == "F":
        return Pixels(gray_by_range(np.asarray(image)), height, width, bit_depth=16)
    if image.mode in ("P", "RGBA", "PA"):
        image = image.convert("RGBA").convert("RGB")  # the alpha is dropped
    gray_HxW = np.asarray(image.convert("L"))
    if data[:4] == b"\x89PNG" and data[24] == 16 and np.ptp(gray_HxW) < HIGH_BYTE_RANGE:
        # Pillow keeps the high byte of 16-bit colour and of gray with alpha: 12-bit
        # values in it would leave 16 levels.
        raise BadFilm(
            UNREADABLE,
            f"16-bit PNG with colour or alpha: expected values over the whole range, "
            f"found {np.ptp(gray_HxW) + 1} levels in the high byte; save it as 16-bit "
            "gray without alpha",
        )
    return Pixels(gray_HxW, height, width)


def _what_it_is(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page or XML: did the download need a login?"
    elif start.startswith((b"pk\x03\x04", b"\x1f\x8b")):
        found = "an archive; unpack it first"
    elif data[:2] == b"\xff\xd8":
        found = "the start of a JPEG's header: it was cut off; copy it again"
    else:
        found = f"{len(data):,} bytes that are none of these; copy it again"
    return f"not an image: expected JPEG, PNG, TIFF or DICOM, found {found}"


def _check(pixels: Pixels) -> None:
    height, width = pixels.original_height, pixels.original_width
    if min(height, width) < MIN_SIDE:
        raise BadFilm(
            BAD_PIXELS,
            f"{width} x {height}: a side below {MIN_SIDE} px; a "
            "thumbnail? Copy the film itself",
        )
    if not ASPECT[0] <= width / height <= ASPECT[1]:
        raise BadFilm(
            BAD_PIXELS,
            f"{width} x {height}: width / height outside {ASPECT[0]} to {ASPECT[1]}; "
            "crop it to the chest or leave it out",
        )
    levels = _levels(pixels.gray_HxW)
    if levels == 1:
        raise BadFilm(
            BAD_PIXELS,
            "constant image: all pixels are equal; look at the source, and copy it "
            "again or leave it out",
        )
    if levels < MIN_LEVELS:
        raise BadFilm(
            BAD_PIXELS,
            f"expected at least {MIN_LEVELS} gray levels, found {levels}: a mask or a "
            "drawing? Leave it out",
        )


def _levels(gray_HxW: np.ndarray) -> int:
    """How many gray levels there are, or any number from MIN_LEVELS on."""
    sparse = gray_HxW[::8, ::8]  # it cannot have more than the film
    for part in (sparse, gray_HxW):
        levels = int(np.count_nonzero(np.bincount(part.ravel(), minlength=256)))
        if levels >= MIN_LEVELS:
            break
    return levels


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
