"""Films on the host: decode, pad to a square, resize, crop; always uint8, one channel.

The evaluation way (`evaluation_film`) gives the pixels of the official MedCLIP
evaluation datasets. The training way stores the square at `crop_from` pixels and
crops `image_size` out of it; flip, jitter and affine follow on the device
(`augment.py`). The official code pads, flips, jitters and warps the whole film and
resizes and crops last; the crop here comes before the warp, so that a host moves one
byte a pixel of the final size. The difference is the border: where the warp looks
outside of the crop it finds 0, the official code what was cropped away.

Reference: RyanWangZf/MedCLIP, medclip/dataset.py (`_pad_img`) and
examples/run_medclip_pretrain.py; ConVIRT appendix A for the crop by area.
"""

import io
import math

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class BadFilm(Exception):
    """The bytes of a film cannot be decoded."""


def decode_gray(data: bytes, least_long_side: int = 0) -> np.ndarray:
    """Decodes a stored film.

    Args:
      data: a JPEG, or a PNG of 8 or 16 bits (whose high byte is kept).
      least_long_side: pixels; when positive, a JPEG is decoded at the smallest of
        the sizes 1/1, 1/2, 1/4, 1/8 (scaling in the DCT domain) whose longer side
        still has so many. 0 decodes in full.

    Returns:
      uint8 [H, W].

    Raises:
      BadFilm: not decodable. There is no second decoder to fall back to: a JPEG
        that libjpeg-turbo refuses was not written by `prepare`.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, least_long_side)
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except (ValueError, OSError, SyntaxError, UnidentifiedImageError) as error:
        raise BadFilm(f"cannot decode {len(data)} bytes: {error}") from error
    if pixels.ndim != 2 or pixels.size == 0:
        raise BadFilm(f"expected one channel, found an image of shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    return (np.clip(pixels, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)


def _decode_jpeg(data: bytes, least_long_side: int) -> np.ndarray:
    if least_long_side <= 0:
        return simplejpeg.decode_jpeg(data, colorspace="GRAY")[..., 0]
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    least = min(1.0, least_long_side / max(height, width))
    # min_factor 2: sizes between 1/1 and 1/2 take longer to decode than 1/1.
    pixels = simplejpeg.decode_jpeg(
        data,
        colorspace="GRAY",
        min_height=math.ceil(height * least),
        min_width=math.ceil(width * least),
        min_factor=2.0,
    )
    return pixels[..., 0]


def pad_to_square(film_HxW: np.ndarray, least: int) -> np.ndarray:
    """Pastes a film centred on a black square of max(least, H, W) pixels.

    A film smaller than `least` is padded up to it, not enlarged.

    Reference: RyanWangZf/MedCLIP, medclip/dataset.py (`_pad_img`, least = 224).
    """
    height, width = film_HxW.shape
    size = max(least, height, width)
    if height == size and width == size:
        return film_HxW
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = film_HxW
    return square


def resize_square(
    film_HxW: np.ndarray, size: int, resampling: str = "bilinear"
) -> np.ndarray:
    """Resizes to [size, size] with Pillow's antialiased filter; uint8."""
    if film_HxW.shape == (size, size):
        return film_HxW
    image = Image.fromarray(np.ascontiguousarray(film_HxW))
    return np.asarray(image.resize((size, size), RESAMPLING[resampling]))


def training_film(data: bytes, image_size: int, crop_from: int) -> np.ndarray:
    """Decodes (DCT-scaled), pads and resizes a film to [crop_from, crop_from] uint8.

    Raises:
      BadFilm: see `decode_gray`.
    """
    film = decode_gray(data, least_long_side=crop_from)
    return resize_square(pad_to_square(film, image_size), crop_from)


def evaluation_film(
    data: bytes, image_size: int, resampling: str = "bilinear"
) -> np.ndarray:
    """Decodes in full, pads and resizes a film to [image_size, image_size] uint8.

    Args:
      data: the stored bytes.
      image_size: pixels.
      resampling: "bilinear" (the official evaluation datasets) or "bicubic" (the
        official `MedCLIPProcessor`).

    Raises:
      BadFilm: see `decode_gray`.
    """
    film = decode_gray(data)
    return resize_square(pad_to_square(film, image_size), image_size, resampling)


def crop(
    film_HxW: np.ndarray, size: int, draws: np.ndarray, area_min: float = 1.0
) -> np.ndarray:
    """A random crop of a square film.

    Args:
      film_HxW: uint8 [C, C], C >= size.
      size: pixels of the result.
      draws: three numbers in [0, 1): top, left, area.
      area_min: 1 crops `size` pixels at a random place (MedCLIP). Below 1 a square
        of a share of the film's area drawn from [area_min, 1] is cut out and
        resized to `size` (ConVIRT's crop ratio 0.6 to 1.0).

    Returns:
      uint8 [size, size].
    """
    side = film_HxW.shape[0]
    window = size
    if area_min < 1.0:
        area = area_min + (1.0 - area_min) * draws[2]
        window = max(1, round(side * math.sqrt(area)))
    top, left = (int(draw * (side - window + 1)) for draw in draws[:2])
    cut = film_HxW[top : top + window, left : left + window]
    return resize_square(cut, size)
