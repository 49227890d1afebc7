"""Writes simulated films as DICOM files, as the released sets have them."""

import io
import warnings
from typing import Any

import numpy as np
import simplejpeg

from medclip_jax.errors import UserError


def dicom(
    gray_HxW: np.ndarray,
    name: str,
    *,
    bits: int = 8,
    inverted: bool = False,
    compression: str = "",
    **tags: Any,
) -> bytes:
    """A film as the bytes of a DICOM file.

    Args:
      gray_HxW: uint8, bone bright.
      name: unique; the SOP instance UID is made from it where the tags have none.
      bits: stored, 8 to 16; gray goes to their whole range.
      inverted: MONOCHROME1, with the values turned over.
      compression: "" for none; "jpeg", the lossy baseline of 8 bits; "jpeg2000" or
        "rle", both lossless.
      **tags: more of the header, by pydicom's keywords; None leaves one out.

    Raises:
      UserError: pydicom, or its encoder of JPEG 2000, is not installed.
    """
    try:
        from pydicom import uid
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.encaps import encapsulate
    except ImportError:
        raise UserError(
            "--benchmarks needs pydicom for its DICOM films, which is not installed: "
            "pip install pydicom"
        ) from None
    stored_HxW = np.round(gray_HxW * ((2**bits - 1) / 255)).astype(
        np.uint8 if bits == 8 else np.uint16
    )
    if inverted:
        stored_HxW = (2**bits - 1) - stored_HxW
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID = uid.ComputedRadiographyImageStorage
    made.SOPInstanceUID = uid.generate_uid(entropy_srcs=[name])
    made.Modality = "CR"
    made.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    made.SamplesPerPixel, made.PixelRepresentation = 1, 0
    made.BitsAllocated = 8 * stored_HxW.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.Rows, made.Columns = stored_HxW.shape
    with warnings.catch_warnings():  # real headers have ages without their "Y" too
        warnings.simplefilter("ignore", UserWarning)
        for keyword, value in tags.items():
            if value is not None:
                setattr(made, keyword, value)
    meta.MediaStorageSOPClassUID = made.SOPClassUID
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    if compression == "jpeg":
        data = simplejpeg.encode_jpeg(stored_HxW[..., None], 95, "GRAY", "Gray")
        made.PixelData = encapsulate([data])
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    else:
        made.PixelData = stored_HxW.tobytes()
        made["PixelData"].VR = "OW" if bits > 8 else "OB"
        if compression:
            syntax = {"jpeg2000": uid.JPEG2000Lossless, "rle": uid.RLELossless}
            try:
                made.compress(syntax[compression], generate_instance_uid=False)
            except RuntimeError:
                raise UserError(
                    f"--benchmarks: no encoder for {syntax[compression].name}: "
                    "pip install pyjpegls pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle "
                    "python-gdcm"
                ) from None
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()
