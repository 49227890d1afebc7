"""Small DICOM files of every kind, for tests."""

import io

import numpy as np
import pytest
import raw_folders as raw

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

FILM = raw.film(8, 90, 80).astype(np.uint16) * 8 + 500


def dataset(pixels: np.ndarray = FILM, **tags) -> FileDataset:
    """A MONOCHROME2 film of 12 bits; tags are added or, when None, removed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = "1.2.3"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored, made.HighBit = 12, 11
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    if "PixelData" in made:
        made["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    made.HighBit = made.get("BitsStored", 12) - 1
    return made


def written(made: FileDataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def dicom(pixels: np.ndarray = FILM, **tags) -> bytes:
    """The bytes of `dataset`."""
    return written(dataset(pixels, **tags))


def lut(first: int, entries: np.ndarray, bits: int = 16) -> list[Dataset]:
    """A sequence with one look-up table, for VOILUTSequence or ModalityLUTSequence."""
    item = Dataset()
    item.add_new(
        "LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits]
    )
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    item.ModalityLUTType = "US"
    return [item]


def compressed(uid: UID, pixels: np.ndarray = FILM, **tags) -> bytes:
    """A film that pydicom's encoder compressed; skips where it has none."""
    made = dataset(pixels, **tags)
    try:
        made.compress(uid, generate_instance_uid=False)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no encoder for {uid.name}: {error}")
    return written(made)


def jpeg_lossless(folder) -> bytes:
    """A film in JPEG Lossless SV1, which only gdcm can write."""
    gdcm = pytest.importorskip("gdcm")
    plain, packed = str(folder / "plain.dcm"), str(folder / "packed.dcm")
    (folder / "plain.dcm").write_bytes(dicom())
    reader = gdcm.ImageReader()
    reader.SetFileName(plain)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(
        gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    )
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(packed)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "packed.dcm").read_bytes()
