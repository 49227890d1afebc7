"""DICOM radiographs -> 8-bit gray, in the order that the standard asks for.

Decode -> modality LUT or rescale -> VOI LUT or the first window -> 8 bits by range ->
inversion (MONOCHROME1, or PresentationLUTShape INVERSE). MIMIC-CXR-JPG was made in
another way (no window, histogram equalised): do not mix its films with those of
MIMIC-CXR's DICOM files. `dicom_codecs` tells which transfer syntaxes can be decoded.

Reference: DICOM PS3.3, C.11; pydicom, src/pydicom/pixels/processing.py.
"""

import io
import re
import warnings
from typing import Any

import numpy as np

from data_pipelines.images.bad_film import BAD_PIXELS, UNREADABLE, BadFilm
from data_pipelines.images.dicom_codecs import decode_values
from data_pipelines.images.film import Pixels, check_size
from data_pipelines.images.lookup import gray_by_range

GRAY = ("MONOCHROME1", "MONOCHROME2")
NEEDED = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
MAX_PADDING = 1024  # bytes after the pixels, or a row of pixels where that is more
# An element of group 2 or 8 as a file without preamble begins with: its number, then
# two letters (explicit VR) or a length below 256 (implicit VR).
BARE_START = re.compile(
    rb"[\x02\x08]\x00[\x00-\x18]\x00([A-Z]{2}|.\x00\x00\x00)", re.DOTALL
)


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM, with its preamble of 128 bytes or without."""
    return data[128:132] == b"DICM" or bool(BARE_START.match(data))


def decode_dicom(data: bytes) -> Pixels:
    """Decodes the one frame of a DICOM file.

    Args:
      data: the file's bytes, with the preamble or without.

    Returns:
      8-bit gray pixels, air dark; `inverted` tells that they were turned over.

    Raises:
      BadFilm: no pixels, several frames, a transfer syntax without a decoder, a file
        cut off, or pixel data of another length than the tags say.
    """
    try:
        # pydicom's warnings quote the header, which may name the patient.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data)
    except BadFilm:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom parses a tag when it is read
        raise BadFilm(
            UNREADABLE,
            f"DICOM of {len(data):,} bytes: expected tags as the standard has them, "
            f"found one that cannot be read ({type(error).__name__}); look at it with "
            "a DICOM viewer, or export the file again",
        ) from None


def _decode(data: bytes) -> Pixels:
    dataset = _read(data)
    _check_tags(dataset, len(data))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(rows, columns)
    _check_length(dataset)
    values = decode_values(dataset)
    samples = int(dataset.SamplesPerPixel)
    flat = samples == 1 or dataset.PhotometricInterpretation in GRAY
    expected = (rows, columns) if flat else (rows, columns, samples)
    if values.shape != expected:
        raise BadFilm(
            UNREADABLE,
            f"DICOM: expected pixels of shape {expected} by its tags, found "
            f"{values.shape}; export the file again",
        )
    try:
        gray_HxW, inverted = _present(dataset, values)
    except BadFilm:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises many types
        raise BadFilm(
            UNREADABLE,
            "DICOM: the pixels decode, but what the header says of their display cannot "
            f"be applied ({type(error).__name__}): expected WindowWidth of 1 or more "
            "and look-up tables of 8 or 10 to 16 bits; correct or remove WindowCenter "
            "and WindowWidth, VOILUTSequence, ModalityLUTSequence",
        ) from None
    return Pixels(
        gray_HxW, rows, columns, bit_depth=int(dataset.BitsStored), inverted=inverted
    )


def _read(data: bytes) -> Any:
    """The dataset, its transfer syntax known."""
    try:
        import pydicom
    except ImportError:
        raise BadFilm(
            UNREADABLE,
            "DICOM needs pydicom, found none: pip install pydicom",
        ) from None
    from pydicom import uid

    # Without preamble pydicom has to be forced, and then reads anything without an
    # error; what it finds is checked afterwards in either case.
    bare = data[128:132] != b"DICM"
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=bare)
        if bare and "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit else syntax
            )
    except Exception as error:  # noqa: BLE001 - pydicom raises many types
        raise BadFilm(
            UNREADABLE,
            f"DICOM of {len(data):,} bytes: expected a header that can be read, found "
            f"one that is cut off or damaged ({type(error).__name__}); copy it again",
        ) from None
    return dataset


def _check_tags(dataset: Any, size: int) -> None:
    """Refuses what has no pixels or does not tell how they are laid out."""
    found = f"DICOM of {size:,} bytes: "
    if "SOPClassUID" not in dataset and "Rows" not in dataset:
        # pydicom gives what it read before the end of the file, and no error.
        raise BadFilm(
            UNREADABLE,
            f"{found}expected tags and pixels, found neither a SOP class nor Rows: it "
            "was cut off (copy it again) or is no film (leave it out)",
        )
    if "PixelData" not in dataset:
        kind = dataset.get("SOPClassUID")
        raise BadFilm(
            UNREADABLE,
            f"{found}expected PixelData, found none: it was cut off (copy it again), "
            "its pixels were removed, or it is no film (SOP class: "
            f"{kind.name if kind else 'not given'}; leave it out)",
        )
    missing = [name for name in NEEDED if dataset.get(name) is None]
    if missing:
        raise BadFilm(
            UNREADABLE,
            f"{found}expected the tags of a film, found no {', '.join(missing)}; "
            "export the file again",
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        raise BadFilm(
            UNREADABLE,
            f"{found}expected a TransferSyntaxUID in its file meta group, found none; "
            "export the file again",
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadFilm(
            BAD_PIXELS,
            f"{frames} frames, expected one; export the frame that is the film",
        )


def _check_length(dataset: Any) -> None:
    """Compares the length of PixelData with the tags, where it is not compressed."""
    from pydicom.pixels.utils import get_expected_length

    uid = dataset.file_meta.TransferSyntaxUID
    undefined = bool(dataset["PixelData"].is_undefined_length)
    compressed = not uid.is_transfer_syntax or uid.is_encapsulated
    if undefined and not compressed:
        # A compressed file without file meta too: nobody can know its codec.
        raise BadFilm(
            UNREADABLE,
            f"DICOM: expected plain pixels by its transfer syntax {uid.name} ({uid}), "
            "found compressed ones; export the file again, with its file meta group",
        )
    if compressed:
        return
    expected, found = get_expected_length(dataset), len(dataset.PixelData)
    row = -(-expected // max(1, int(dataset.Rows)))
    # Some writers pad the end; more than a row of it means that a tag is wrong.
    if expected <= found <= expected + max(row, MAX_PADDING):
        return
    raise BadFilm(
        UNREADABLE,
        f"DICOM: expected {expected:,} bytes of pixels (Rows {dataset.Rows} x Columns "
        f"{dataset.Columns} x {dataset.SamplesPerPixel} samples of "
        f"{dataset.BitsAllocated} bits), found {found:,}: "
        + (
            "the file was cut off; copy it again"
            if found < expected
            else "a tag is wrong; export the file again"
        ),
    )


def _present(dataset: Any, values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Stored values -> 8-bit gray, and whether it was turned over."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    if dataset.PhotometricInterpretation not in GRAY:
        if values.ndim == 2:  # PALETTE COLOR
            values = apply_color_lut(values, dataset)
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return gray_by_range(values[..., :3].astype(np.float32) @ weights), False
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or dataset.get("PresentationLUTShape", "") == "INVERSE"
    )

    def show(values: np.ndarray) -> np.ndarray:
        return apply_voi_lut(apply_modality_lut(values, dataset), dataset, index=0)

    return gray_by_range(values, show, inverted), inverted
