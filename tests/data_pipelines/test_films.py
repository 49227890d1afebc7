"""Films of every kind -> 8-bit gray JPEG."""

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import raw_folders as raw
import simplejpeg
from PIL import Image

from data_pipelines.images.film import MAX_PIXELS, BadFilm, convert, target_size


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def pixels_of(stored) -> np.ndarray:
    assert simplejpeg.decode_jpeg_header(stored.jpeg)[2] == "Gray"
    return simplejpeg.decode_jpeg(stored.jpeg, "GRAY")[..., 0].astype(int)


def test_small_gray_jpeg_keeps_its_bytes():
    data = raw.jpeg(raw.film(0, 300, 256))
    stored = convert(data, 256)
    assert stored.jpeg == data
    assert (stored.height, stored.width, stored.bit_depth) == (300, 256, 8)
    assert not stored.inverted


@pytest.mark.parametrize(("height", "width"), [(1500, 1200), (1200, 1500), (640, 520)])
def test_large_jpeg_is_reduced_to_the_short_side_without_aliasing(height, width):
    pixels = raw.film(1, height, width)
    stored = convert(raw.jpeg(pixels, 98), 256)
    assert min(stored.height, stored.width) == 256
    assert (stored.height, stored.width) == target_size(height, width, 256)
    assert (stored.original_height, stored.original_width) == (height, width)
    size = (stored.width, stored.height)
    exact = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    assert np.abs(pixels_of(stored) - np.asarray(exact, int)).mean() < 2.0


def test_reduction_averages_instead_of_picking_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (600, 500)).astype(np.uint8)
    stored = convert(png(Image.fromarray(pixels)), 100)
    assert pixels_of(stored).std() < 30  # of single pixels: 74


def test_a_film_is_never_enlarged():
    assert target_size(100, 90, 512) == (100, 90)
    assert convert(raw.jpeg(raw.film(0, 100, 90)), 512).height == 100


def test_16_bit_png_is_scaled_by_its_range_not_clipped():
    pixels = raw.film(2, 120, 100).astype(np.uint16) * 16 + 30000
    stored = convert(png(Image.fromarray(pixels)), 512)
    wanted = (pixels - pixels.min()) * (255.0 / np.ptp(pixels))
    assert stored.bit_depth == 16
    assert np.abs(pixels_of(stored) - wanted).mean() < 2.5


def gray_alpha_16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit gray with alpha, which Pillow cannot write."""
    height, width = pixels.shape
    both = np.full((height, width, 2), 0xFFFF, ">u2")
    both[..., 0] = pixels
    rows = b"".join(b"\0" + row.tobytes() for row in both)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in chunks
    )


def test_a_16_bit_png_with_alpha_is_read_where_its_high_byte_holds_the_film():
    film = raw.film(2, 120, 100).astype(np.uint16)
    stored = convert(gray_alpha_16(film * 256), 512)
    assert np.abs(pixels_of(stored) - film).mean() < 2.5
    with pytest.raises(
        BadFilm, match="levels in the high byte; save it as 16-bit gray"
    ):
        convert(gray_alpha_16(film * 16), 512)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L"])
def test_png_modes_become_gray(mode):
    gray = Image.fromarray(raw.film(3, 120, 100))
    image = gray.convert(mode)
    if mode == "RGBA":
        image.putalpha(7)  # almost transparent: the alpha must not count
    stored = convert(png(image), 512)
    assert np.abs(pixels_of(stored) - np.asarray(gray, int)).mean() < 2.5


def test_colour_cmyk_and_progressive_jpeg_become_gray():
    gray = Image.fromarray(raw.film(4, 120, 100))
    for mode, options in (("RGB", {}), ("CMYK", {}), ("L", {"progressive": True})):
        file = io.BytesIO()
        gray.convert(mode).save(file, "JPEG", quality=95, **options)
        stored = convert(file.getvalue(), 512)
        assert np.abs(pixels_of(stored) - np.asarray(gray, int)).mean() < 3, mode


def test_colour_cmyk_is_converted_by_its_four_inks():
    planes = [Image.fromarray(raw.film(seed, 120, 100)) for seed in (1, 2, 3)]
    planes[0] = planes[0].point(lambda v: v // 3)
    image = Image.merge("RGB", planes)
    file = io.BytesIO()
    image.convert("CMYK").save(file, "JPEG", quality=98, subsampling=0)
    wanted = np.asarray(image.convert("L"), int)
    assert np.abs(pixels_of(convert(file.getvalue(), 512)) - wanted).mean() < 3


def odd_sampling_jpeg(pixels: np.ndarray) -> bytes:
    """A colour JPEG of gray content with luma sampled 3 x 1, a scan a component.

    Put together from gray JPEGs, which share the standard tables.
    """
    height, width = pixels.shape
    flat = np.full((height, -(-width // 3)), 128, np.uint8)
    luma, chroma = (raw.jpeg(plane, 95) for plane in (pixels, flat))
    frame, tables = luma.index(b"\xff\xc0"), luma.index(b"\xff\xc4")
    scan = [data[data.index(b"\xff\xda") :][:-2] for data in (luma, chroma, chroma)]
    components = b"\x03\x01\x31\x00\x02\x11\x00\x03\x11\x00"
    header = b"\xff\xc0\x00\x11" + luma[frame + 4 : frame + 9] + components
    huffman = luma[tables : luma.index(b"\xff\xda")]
    scans = b"".join(
        part[:5] + bytes([number]) + part[6:] for number, part in enumerate(scan, 1)
    )
    return luma[:frame] + header + huffman + scans + b"\xff\xd9"


def test_a_jpeg_that_simplejpeg_refuses_is_left_to_pillow():
    pixels = raw.film(9, 120, 96)
    data = odd_sampling_jpeg(pixels)
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg_header(data)
    stored = convert(data, 512)
    assert np.abs(pixels_of(stored) - pixels.astype(int)).mean() < 2.5
    with pytest.raises(BadFilm, match="cut off or damaged .* copy it again"):
        convert(data[: len(data) // 2], 512)


def test_exif_orientation_is_ignored():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(raw.film(5, 120, 90)).save(file, "JPEG", exif=exif)
    stored = convert(file.getvalue(), 512)
    assert (stored.height, stored.width) == (120, 90)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_truncated_files_are_unreadable(kept):
    pixels = raw.film(6, 400, 300)
    for data in (raw.jpeg(pixels), png(Image.fromarray(pixels))):
        with pytest.raises(BadFilm, match="unreadable file"):
            convert(data[: int(len(data) * kept)], 100)


def test_what_is_no_image_is_unreadable():
    start = b"\xff\xd8\xff\xe0"
    for data, words in (
        (b"", r"the file is empty \(0 bytes\); copy it again"),
        (
            b"<html>login</html>",
            "found a web page or XML: did the download need a login",
        ),
        (start, "start of a JPEG's header: it was cut off; copy it again"),
        (b"\x89PNG\r\n", "expected JPEG, PNG, TIFF or DICOM, found 6 bytes"),
        (gzip.compress(raw.jpeg(raw.film(0))), "an archive; unpack it first"),
    ):
        with pytest.raises(BadFilm, match=words) as caught:
            convert(data, 256)
        assert caught.value.reason == "unreadable file"


def test_what_is_wrong_with_a_jpeg_is_told():
    data = raw.jpeg(raw.film(6, 400, 300))
    deep = bytearray(data)
    deep[deep.index(b"\xff\xc0") + 4] = 12
    for bad, words in (
        (data[: len(data) // 2], "expected its end mark.* cut off; copy it again"),
        (data[:-2], "expected its end mark.* cut off; copy it again"),
        (bytes(deep), "expected 8 bits a pixel.* precision 12; save it as"),
    ):
        with pytest.raises(BadFilm, match=words):
            convert(bad, 100)
    # A stream that decodes in full, with rubbish in it, must not pass by Pillow.
    coding = bytearray(data)
    coding[coding.index(b"\xff\xc0") + 1] = 0xC9
    with pytest.raises(BadFilm, match="found damage"):
        convert(bytes(coding), 100)


def test_a_cut_png_tells_its_size():
    data = png(Image.fromarray(raw.film(6, 400, 300)))
    cut = data[: len(data) // 2]
    with pytest.raises(BadFilm, match=rf"whole image.* {len(cut):,} bytes\); copy it"):
        convert(cut, 100)


def test_quality_checks_name_what_is_wrong():
    wide = raw.film(0, 60, 200)
    levels = (raw.film(0, 100, 90) // 100 * 100).astype(np.uint8)
    for pixels, words in (
        (np.full((100, 90), 77, np.uint8), "constant image.*; look at the source"),
        (wide, "width / height"),
        (raw.film(0, 31, 31), "below 32"),
        (levels, "gray levels"),
    ):
        with pytest.raises(BadFilm, match=words):
            convert(png(Image.fromarray(pixels)), 512)


def test_few_levels_off_the_sampled_pixels_are_seen():
    pixels = np.zeros((100, 90), np.uint8)
    pixels[1, 1:5] = 50, 100, 150, 200  # on no eighth row: a sparse count misses them
    assert convert(png(Image.fromarray(pixels)), 512).height == 100
    pixels[1, 4] = 150
    with pytest.raises(BadFilm, match="at least 5 gray levels, found 4"):
        convert(png(Image.fromarray(pixels)), 512)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 100
    data = bytearray(raw.jpeg(raw.film(0)))
    at = data.index(b"\xff\xc0") + 5  # height and width of the frame header
    data[at : at + 4] = side.to_bytes(2, "big") * 2
    with pytest.raises(BadFilm, match="more than 120,000,000 pixels .* scale it down"):
        convert(bytes(data), 512)
    with pytest.raises(BadFilm, match="bad pixels"):
        convert(png(Image.new("1", (side, side))), 512)


def test_bright_border_is_told():
    pixels = raw.film(7, 120, 100)
    assert not convert(raw.jpeg(pixels), 512).bright_border
    assert convert(raw.jpeg(255 - pixels), 512).bright_border
