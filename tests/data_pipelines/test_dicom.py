"""DICOM films -> 8-bit gray: the table gives what pixel-by-pixel gave."""

import io
import warnings

import dicom_files as files
import numpy as np
import pytest
import simplejpeg
from dicom_files import FILM, compressed, dataset, dicom, lut, pydicom
from PIL import Image
from pydicom import uid
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder

from data_pipelines.images.dicom import decode_dicom, is_dicom
from data_pipelines.images.dicom_codecs import INSTALL, ROOT
from data_pipelines.images.film import BadFilm, convert

EXTRA = ("pylibjpeg", "openjpeg", "rle", "jpeg_ls", "gdcm")


def pixels_of(stored) -> np.ndarray:
    return simplejpeg.decode_jpeg(stored.jpeg, "GRAY")[..., 0].astype(int)


def by_pixel(data: bytes) -> np.ndarray:
    """Every step over every pixel, as pydicom's own functions do it."""
    made = pydicom.dcmread(io.BytesIO(data))
    values = apply_modality_lut(made.pixel_array, made)
    values = apply_voi_lut(values, made, index=0).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    gray = np.zeros(values.shape, np.uint8)
    if high > low:
        gray = np.round((values - low) * (255.0 / (high - low))).astype(np.uint8)
    turned = made.PhotometricInterpretation == "MONOCHROME1"
    turned |= made.get("PresentationLUTShape", "") == "INVERSE"
    return 255 - gray if turned else gray


def random_film(rng: np.random.Generator, bits: int, signed: bool) -> np.ndarray:
    """Every second value missing, so that a wrong range of a table shows."""
    low = -(1 << (bits - 1)) if signed else 0
    span = int(rng.integers(40, 1 << bits))
    start = low + int(rng.integers(0, (1 << bits) - span + 1))
    kind = ("i" if signed else "u") + ("1" if bits == 8 else "2")
    return (start + rng.integers(0, span // 2, (90, 80)) * 2).astype(kind)


def displays(rng: np.random.Generator, bits: int, signed: bool) -> dict[str, dict]:
    """One of each way in which a header can tell how values are shown."""
    low = -(1 << (bits - 1)) if signed else 0
    center = low + int(rng.integers(0, 1 << bits))
    width = int(rng.integers(2, 1 << bits))
    window = {"WindowCenter": center, "WindowWidth": width}
    zigzag = rng.integers(0, 1 << 16, 1 << min(bits, 10))
    slope = {"RescaleSlope": "1.37", "RescaleIntercept": "-212.5", "RescaleType": "US"}
    first = max(low, -1000)
    return {
        "plain": {},
        "rescale": slope,
        "falling": {**slope, "RescaleSlope": "-2"},
        "window": window,
        "windows": {"WindowCenter": [center, 9], "WindowWidth": [width, 9]},
        "exact": {**window, "VOILUTFunction": "LINEAR_EXACT"},
        "sigmoid": {**window, "VOILUTFunction": "SIGMOID"},
        "rescale and window": {**slope, **window},
        "voi lut": {"VOILUTSequence": lut(first, zigzag)},
        "voi lut of 8 bits": {"VOILUTSequence": lut(first, zigzag >> 8, 8)},
        "voi lut before window": {**window, "VOILUTSequence": lut(first, zigzag)},
        "modality lut": {"ModalityLUTSequence": lut(first, zigzag)},
        "modality lut, window": {**window, "ModalityLUTSequence": lut(first, zigzag)},
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_table_gives_the_bits_of_pixel_by_pixel(bits, signed):
    rng = np.random.default_rng([bits, signed])
    shapes = [{}, {"PresentationLUTShape": "INVERSE"}]
    for name, display in displays(rng, bits, signed).items():
        for photometric in ("MONOCHROME1", "MONOCHROME2"):
            for shape in shapes:
                data = dicom(
                    random_film(rng, bits, signed),
                    BitsStored=bits,
                    PhotometricInterpretation=photometric,
                    **display,
                    **shape,
                )
                try:
                    wanted = by_pixel(data)
                except OverflowError:  # pydicom: an 8-bit film under a longer table
                    assert bits == 8 and "lut" in name
                    with pytest.raises(BadFilm, match="look-up tables"):
                        decode_dicom(data)
                    continue
                found = decode_dicom(data)
                np.testing.assert_array_equal(found.gray_HxW, wanted, err_msg=name)
                assert found.inverted == (photometric == "MONOCHROME1" or bool(shape))
                assert found.bit_depth == bits


def test_values_that_no_pixel_has_do_not_count_for_the_range():
    pixels = np.where(FILM > FILM.mean(), 1000, 1200).astype(np.uint16)
    pixels[::3] = 1100
    table = np.zeros(300, int)
    table[[0, 50, 100, 150, 200]] = 300, 65535, 200, 0, 100
    data = dicom(pixels, VOILUTSequence=lut(1000, table))
    gray = decode_dicom(data).gray_HxW
    assert sorted(np.unique(gray)) == [0, 128, 255]
    np.testing.assert_array_equal(gray, by_pixel(data))


def test_rescale_then_window_then_inversion():
    film = (FILM.astype(float) - 500) / 8
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


def test_colour_and_palette_become_gray():
    gray = ((FILM - 500) // 8).astype(np.uint8)
    colour = {"BitsStored": 8, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    colour["PhotometricInterpretation"] = "RGB"
    rgb = np.repeat(gray[..., None], 3, axis=2)
    wanted = by_pixel(dicom(gray, BitsStored=8)).astype(int)
    found = decode_dicom(dicom(rgb, **colour)).gray_HxW.astype(int)
    assert np.abs(found - wanted).max() <= 1
    palette = {"BitsStored": 8, "PhotometricInterpretation": "PALETTE COLOR"}
    made = dataset(255 - gray, **palette)
    entries = (np.arange(255, -1, -1) * 257).astype("<u2").tobytes()
    for name in ("Red", "Green", "Blue"):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", entries)
    found = decode_dicom(files.written(made)).gray_HxW.astype(int)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize(
    "syntax",
    [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless],
    ids=lambda syntax: syntax.keyword,
)
def test_lossless_compression_changes_nothing(syntax):
    data = compressed(syntax)
    gray = decode_dicom(data).gray_HxW
    np.testing.assert_array_equal(gray, decode_dicom(dicom()).gray_HxW)
    made = pydicom.dcmread(io.BytesIO(data))
    stream = next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1))
    half = len(stream) // 4 * 2
    made.PixelData = pydicom.encaps.encapsulate([stream[:half]])
    made["PixelData"].VR = "OB"
    with pytest.raises(BadFilm) as caught:
        convert(files.written(made), 512)
    assert f"transfer syntax {syntax.name} ({syntax})" in caught.value.detail
    assert caught.value.detail.endswith("copy the file again")


def test_jpeg_lossless_changes_nothing(tmp_path):
    data = files.jpeg_lossless(tmp_path)
    made = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    assert made.file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1
    gray = decode_dicom(data).gray_HxW
    np.testing.assert_array_equal(gray, decode_dicom(dicom()).gray_HxW)


def test_jpeg_baseline_in_dicom():
    gray = ((FILM - 500) // 8).astype(np.uint8)
    made = dataset(gray, BitsStored=8)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "JPEG", quality=98)
    stream = file.getvalue()
    made.PixelData = pydicom.encaps.encapsulate([stream + b"\0" * (len(stream) % 2)])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    found = decode_dicom(files.written(made)).gray_HxW.astype(int)
    wanted = decode_dicom(dicom(gray, BitsStored=8)).gray_HxW
    assert np.abs(found - wanted).mean() < 3


DECODERS = {
    "": set(),
    ".1": set(),
    ".2": set(),
    ".1.99": set(),
    ".4.50": {"pillow", "gdcm"},
    ".4.51": {"pillow", "gdcm"},
    ".4.57": {"gdcm"},
    ".4.70": {"gdcm"},
    ".4.80": {"pyjpegls", "gdcm"},
    ".4.81": {"pyjpegls", "gdcm"},
    ".4.90": {"pylibjpeg", "gdcm", "pillow"},
    ".4.91": {"pylibjpeg", "gdcm", "pillow"},
    ".4.201": {"pylibjpeg"},
    ".4.202": {"pylibjpeg"},
    ".4.203": {"pylibjpeg"},
    ".5": {"pylibjpeg", "pydicom"},
}


@pytest.mark.parametrize("suffix", DECODERS)
def test_the_data_extra_decodes_what_the_table_says(suffix):
    for module in EXTRA:
        pytest.importorskip(module)
    decoder = get_decoder(uid.UID("1.2.840.10008.1.2" + suffix))
    assert decoder.is_available
    assert set(decoder.available_plugins) >= DECODERS[suffix]


@pytest.mark.parametrize("number", ["70", "80", "90", "201"])
def test_a_missing_decoder_is_named_with_what_to_install(number):
    syntax = uid.UID(ROOT + number)
    made = dataset()
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" * 100])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = syntax
    data = files.written(made)
    decoder = get_decoder(syntax)
    taken = dict(decoder._available)
    try:
        for plugin in taken:
            decoder.remove_plugin(plugin)
        with pytest.raises(BadFilm) as caught:
            convert(data, 512)
    finally:
        decoder._available.update(taken)
    detail = caught.value.detail
    assert f"expected a decoder for transfer syntax {syntax.name} ({syntax})" in detail
    assert "none installed: pip install" in detail and INSTALL[syntax] in detail


def test_a_syntax_that_is_no_still_film_is_named():
    made = dataset()
    made.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    with pytest.raises(BadFilm, match=r"MPEG2.*1\.2\.4\.100\).*gdcmconv --raw"):
        convert(files.written(made), 512)


def without_preamble(data: bytes, meta: bool) -> bytes:
    """The file from its first element on; or from the first one after group 2."""
    bare = data[132:]
    return bare if meta else bare[12 + int.from_bytes(bare[8:12], "little") :]


@pytest.mark.parametrize("meta", [True, False], ids=["file meta", "no file meta"])
def test_a_file_without_preamble_is_read_and_checked(meta):
    data = dicom(WindowCenter=1500, WindowWidth=900)
    bare = without_preamble(data, meta)
    assert is_dicom(bare)
    gray = decode_dicom(bare).gray_HxW
    np.testing.assert_array_equal(gray, decode_dicom(data).gray_HxW)
    assert convert(bare, 512).bit_depth == 12
    with pytest.raises(BadFilm, match="expected 14,400 bytes.*found 14,000: .*cut off"):
        convert(bare[:-400], 512)


def test_a_bare_file_with_compressed_pixels_needs_its_meta_group():
    data = compressed(uid.RLELossless)
    assert convert(without_preamble(data, True), 512).height == 90
    with pytest.raises(BadFilm, match="found compressed ones; export .* meta group"):
        convert(without_preamble(data, False), 512)


def test_other_files_are_not_taken_for_bare_dicom():
    for data in (
        b"\x08\x00",
        b"\x02\x00\x00\x00" + b"\xff" * 40,
        b"\x08\x00\x05\x00cs",
    ):
        assert not is_dicom(data)
        with pytest.raises(BadFilm, match="not an image"):
            convert(data, 512)


def bad_files() -> dict[str, tuple[bytes, str]]:
    data = dicom()
    rle = compressed(uid.RLELossless)
    return {
        "empty": (b"", r"the file is empty \(0 bytes\); copy it again"),
        "cut pixels": (
            data[:-400],
            r"expected 14,400 bytes .*Rows 90 x Columns 80 .*16 bits\), found 14,000: .* cut off; copy",
        ),
        "cut compressed pixels": (rle[: len(rle) // 2], "cut off .copy it again"),
        "cut header": (data[:180], "cut off"),
        "no pixels": (
            dicom(PixelData=None),
            "expected PixelData, found none: .*Digital X-Ray Image Storage",
        ),
        "no rows": (dicom(Rows=None), "expected the tags of a film, found no Rows;"),
        "rows too many": (dicom(Rows=91), "expected 14,560 bytes .* found 14,400"),
        "rows too few": (dicom(Rows=45), "found 14,400: a tag is wrong; export"),
        "frames": (dicom(NumberOfFrames=2), "2 frames, expected one; export"),
        "pixels": (
            dicom(Rows=20_000, Columns=20_000),
            "20000 x 20000 is more than 120,000,000 pixels",
        ),
        "window": (
            dicom(WindowCenter=10, WindowWidth=0),
            "expected WindowWidth of 1 or more .*; correct or remove WindowCenter",
        ),
        "samples": (
            dicom(np.repeat(FILM[..., None], 3, 2), SamplesPerPixel=3),
            "unreadable file",
        ),
    }


@pytest.mark.parametrize("name", bad_files())
def test_what_is_wrong_with_a_dicom_is_told(name):
    data, words = bad_files()[name]
    with pytest.raises(BadFilm, match=words):
        convert(data, 512)


def test_a_value_that_cannot_be_parsed_is_told_without_quoting_it():
    data = dicom(NumberOfFrames=1, PatientName="Secret^Name")
    at = data.index(b"\x28\x00\x08\x00IS") + 8
    with (
        warnings.catch_warnings(record=True) as told,
        pytest.raises(BadFilm, match="cannot be read .*export the file") as bad,
    ):
        convert(data[:at] + b"xy" + data[at + 2 :], 512)
    assert not told  # pydicom's warning quotes the value
    assert "xy" not in bad.value.detail and "Secret" not in bad.value.detail


def test_a_frame_more_than_the_header_tells_is_refused():
    made = pydicom.dcmread(io.BytesIO(compressed(uid.RLELossless)))
    stream = next(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=1))
    made.PixelData = pydicom.encaps.encapsulate([stream, stream])
    made["PixelData"].VR = "OB"
    with pytest.raises(BadFilm, match=r"expected pixels of shape \(90, 80\).* \(2, 90"):
        convert(files.written(made), 512)


def test_padding_after_the_pixels_is_allowed():
    made = dataset()
    plain = decode_dicom(files.written(made)).gray_HxW
    made.PixelData = made.PixelData + b"\0" * 128
    padded = decode_dicom(files.written(made)).gray_HxW
    np.testing.assert_array_equal(padded, plain)
