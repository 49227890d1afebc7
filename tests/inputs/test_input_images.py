import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from scipy import ndimage

from medclip_jax.inputs import augment, images

MEAN, STD = 0.5862785803043838, 0.27950088968644304


def pattern() -> np.ndarray:
    """The 300 x 200 pattern of the reference vectors."""
    i, j = np.mgrid[:300, :200]
    return ((7 * i + 13 * j + (i * j % 31)) % 256).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    pixels = np.ascontiguousarray(pixels)[..., None]
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY")


# Made with the official code (medclip/dataset.py) under transformers 4.24 and Pillow.
REFERENCE = {
    "bicubic": {
        (0, 0): -2.097591,
        (0, 112): -1.831009,
        (112, 112): -1.101417,
        (50, 100): -1.508305,
        (223, 150): 1.297817,
        (10, 200): -2.097591,
        "statistics": (-0.904432, 1.142581, -2.097591, 1.480215),
    },
    "bilinear": {
        (0, 0): -2.097591,
        (0, 112): -1.718764,
        (112, 112): -1.129479,
        (50, 100): -1.480244,
        (223, 150): 1.101389,
        (10, 200): -2.097591,
        "statistics": (-0.905523, 1.117047, -2.097591, 1.424093),
    },
}


@pytest.mark.parametrize("resampling", REFERENCE)
def test_evaluation_film_gives_the_official_pixels(resampling):
    film = images.evaluation_film(png(pattern()), 224, resampling)
    out = np.asarray(augment.normalize(film[None, :, :, None], MEAN, STD))
    assert out.shape == (1, 224, 224, 3) and out.dtype == np.float32
    np.testing.assert_array_equal(out[..., 0], out[..., 2])
    out = out[0, ..., 0]
    expected = dict(REFERENCE[resampling])
    statistics = expected.pop("statistics")
    for at, value in expected.items():
        assert out[at] == pytest.approx(value, abs=1e-4)
    got = (out.mean(), out.std(ddof=1), out.min(), out.max())
    # The reference's deviation may be of either kind: they differ by 1e-5 here.
    np.testing.assert_allclose(got, statistics, atol=1e-4)


def test_small_films_are_padded_up_and_not_enlarged():
    film = np.full((10, 7), 9, np.uint8)
    square = images.pad_to_square(film, 16)
    assert square.shape == (16, 16)
    np.testing.assert_array_equal(square[3:13, 4:11], film)
    assert square.sum() == film.sum(dtype=int)


def test_odd_padding_puts_the_spare_pixel_after():
    square = images.pad_to_square(np.ones((4, 7), np.uint8), 0)
    np.testing.assert_array_equal(square.any(axis=1), [0, 1, 1, 1, 1, 0, 0])


@pytest.mark.parametrize("shape", [(640, 512), (512, 640), (333, 1001)])
def test_scaled_decode_is_near_the_full_one(shape):
    i, j = np.mgrid[: shape[0], : shape[1]]
    smooth = (127 + 60 * np.sin(i / 80) + 60 * np.cos(j / 110)).astype(np.uint8)
    data = jpeg(smooth)
    scaled = images.decode_gray(data, least_long_side=128)
    assert 128 <= max(scaled.shape) < max(shape) / 1.9
    short = images.training_film(data, 96, 128).astype(float)
    full = images.resize_square(images.pad_to_square(smooth, 96), 128).astype(float)
    # The border of film and padding may lie a pixel apart.
    inside = ndimage.binary_erosion(full > 0, iterations=2)
    assert inside.sum() > 3000
    assert np.abs(short - full)[inside].max() < 6
    assert images.decode_gray(data).shape == shape


def test_scaled_decode_never_falls_below_what_is_asked():
    film = np.zeros((300, 200), np.uint8)
    for least in (75, 76, 149, 150, 151, 290, 300, 400):
        shape = images.decode_gray(jpeg(film), least_long_side=least).shape
        assert max(shape) >= min(least, 300)


def test_sixteen_bit_png_keeps_its_high_byte():
    pixels = np.array([[0, 256, 65535, 40000]], np.uint16)
    np.testing.assert_array_equal(images.decode_gray(png(pixels)), pixels >> 8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8 not a film",
        jpeg(np.zeros((64, 64), np.uint8) + 7)[:-40],
        png(np.zeros((4, 4, 3), np.uint8)),
        png(pattern())[:200],
    ],
    ids=["empty", "noise", "cut jpeg", "colour", "cut png"],
)
def test_bad_bytes_are_named_bad(data):
    with pytest.raises(images.BadFilm):
        images.decode_gray(data)
    with pytest.raises(images.BadFilm):
        images.decode_gray(data, least_long_side=32)


def test_crop_takes_every_place_and_no_other():
    film = np.arange(36, dtype=np.uint8).reshape(6, 6)
    draws = np.random.default_rng(0).random((500, 3))
    corners = {int(images.crop(film, 4, d)[0, 0]) for d in draws}
    assert corners == {row * 6 + column for row in range(3) for column in range(3)}
    for d in draws[:20]:
        out = images.crop(film, 4, d)
        assert out.shape == (4, 4) and (np.diff(out, axis=1) == 1).all()


def test_crop_of_the_whole_film_is_the_film():
    film = pattern()[:200]
    np.testing.assert_array_equal(images.crop(film, 200, np.full(3, 0.999)), film)


def test_crop_by_area_keeps_the_share_that_was_drawn():
    ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    # Half of [0.36, 1] is an area of 0.68, a side of 82 pixels.
    out = images.crop(ramp, 50, np.array([0.0, 0.0, 0.5]), area_min=0.36)
    assert out.shape == (50, 50)
    assert out[0, -1] - out[0, 0] == pytest.approx(82 * 49 / 50, abs=2)
