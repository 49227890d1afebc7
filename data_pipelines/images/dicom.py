"""DICOM radiographs -> 8-bit gray, in the order that the standard asks for.

Decode -> modality LUT or rescale -> VOI LUT or the first window -> 8 bits by range ->
inversion (MONOCHROME1, or PresentationLUTShape INVERSE). MIMIC-CXR-JPG was made in
another way (no window, histogram equalised): do not mix its films with those of
MIMIC-CXR's DICOM files.

Reference: DICOM PS3.3, C.11; pydicom, src/pydicom/pixels/processing.py.
"""

import io

import numpy as np

from data_pipelines.images.film import (
    BAD_PIXELS,
    UNREADABLE,
    BadFilm,
    Pixels,
    check_size,
    scale_by_range,
)

GRAY = ("MONOCHROME1", "MONOCHROME2")


def decode_dicom(data: bytes) -> Pixels:
    """Decodes the one frame of a DICOM file.

    Args:
      data: the file's bytes, preamble included.

    Returns:
      8-bit gray pixels, air dark; `inverted` tells that they were turned over.

    Raises:
      BadFilm: no pixels, several frames, a transfer syntax without a decoder, or a
        truncated file.
    """
    try:
        import pydicom
    except ImportError:
        raise BadFilm(
            UNREADABLE, "DICOM needs pydicom: install medclip_jax[data]"
        ) from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
        check_size(rows, columns)
        if frames != 1:
            raise BadFilm(BAD_PIXELS, f"{frames} frames, expected one")
        values = dataset.pixel_array
        gray_HxW, inverted = _present(dataset, values)
    except BadFilm:
        raise
    except Exception as error:  # noqa: BLE001 - each decoder has its own types
        raise BadFilm(UNREADABLE, f"DICOM: {type(error).__name__}") from None
    return Pixels(
        gray_HxW,
        rows,
        columns,
        bit_depth=int(dataset.get("BitsStored", 8)),
        inverted=inverted,
    )


def _present(dataset, values: np.ndarray) -> tuple[np.ndarray, bool]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if dataset.PhotometricInterpretation not in GRAY:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return scale_by_range(values[..., :3].astype(np.float32) @ weights), False
    values = apply_modality_lut(values, dataset)
    values = apply_voi_lut(values, dataset, index=0)
    gray_HxW = scale_by_range(values)
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or dataset.get("PresentationLUTShape", "") == "INVERSE"
    )
    return (255 - gray_HxW if inverted else gray_HxW), inverted
