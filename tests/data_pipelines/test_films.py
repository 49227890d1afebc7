"""Films of every kind -> 8-bit gray JPEG."""

import io

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
    for data in (b"", b"<html>login</html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n"):
        with pytest.raises(BadFilm, match="unreadable file"):
            convert(data, 256)


def test_quality_checks_name_what_is_wrong():
    wide = raw.film(0, 60, 200)
    levels = (raw.film(0, 100, 90) // 100 * 100).astype(np.uint8)
    for pixels, words in (
        (np.full((100, 90), 77, np.uint8), "constant image"),
        (wide, "width / height"),
        (raw.film(0, 31, 31), "below 32"),
        (levels, "gray levels"),
    ):
        with pytest.raises(BadFilm, match=words):
            convert(png(Image.fromarray(pixels)), 512)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 100
    data = bytearray(raw.jpeg(raw.film(0)))
    at = data.index(b"\xff\xc0") + 5  # height and width of the frame header
    data[at : at + 4] = side.to_bytes(2, "big") * 2
    with pytest.raises(BadFilm, match="more than"):
        convert(bytes(data), 512)
    with pytest.raises(BadFilm, match="bad pixels"):
        convert(png(Image.new("1", (side, side))), 512)


def test_bright_border_is_told():
    pixels = raw.film(7, 120, 100)
    assert not convert(raw.jpeg(pixels), 512).bright_border
    assert convert(raw.jpeg(255 - pixels), 512).bright_border


def dicom(**tags) -> bytes:
    """A 16-bit MONOCHROME2 film; tags are added or, when None, removed."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
    )

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = raw.film(8, 90, 80).astype(np.uint16) * 8 + 500
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def test_dicom_rescale_then_window_then_inversion():
    film = raw.film(8, 90, 80).astype(float)
    plain = convert(dicom(), 512)
    assert (plain.bit_depth, plain.inverted) == (12, False)
    by_range = (film - film.min()) * (255 / np.ptp(film))
    assert np.abs(pixels_of(plain) - by_range).mean() < 2.5
    turned = convert(dicom(PhotometricInterpretation="MONOCHROME1"), 512)
    assert turned.inverted
    assert np.abs(pixels_of(turned) - (255 - by_range)).mean() < 2.5
    # The window is in rescaled units and clips; the first of two windows counts.
    window = {"WindowCenter": [1600, 9], "WindowWidth": [800, 9]}
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}
    windowed = pixels_of(convert(dicom(**window, **rescale), 512))
    wanted = np.clip((film * 16 - 1600 + 0.5) / 799 + 0.5, 0, 1) * 255
    assert np.abs(windowed - wanted).mean() < 3
    assert (wanted == 0).mean() > 0.1 and (wanted == 255).mean() > 0.05


def test_dicom_that_cannot_be_used():
    with pytest.raises(BadFilm, match="unreadable file"):
        convert(dicom()[:-400], 512)
    with pytest.raises(BadFilm, match="2 frames"):
        convert(dicom(NumberOfFrames=2), 512)
