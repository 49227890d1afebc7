"""What the headers of DICOM films tell, where a release has no table for it."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from medclip_jax.errors import UserError

READERS = 16  # threads: most of the time is the disk's


def read_headers(
    paths: Sequence[Path], tags: Sequence[str]
) -> Iterator[dict[str, str] | None]:
    """Reads some tags of many files, without their pixels.

    Args:
      paths: of DICOM files.
      tags: keywords as pydicom has them, for example ViewPosition.

    Yields:
      For each file in order, the tags as stripped text, "" for one that is absent; None
      for a file that is missing or cannot be read, which conversion rejects.

    Raises:
      UserError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError(
            "DICOM headers need pydicom, which is not installed: pip install pydicom"
        ) from None

    def read(path: Path) -> dict[str, str] | None:
        try:
            found = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=list(tags)
            )
            return {tag: _text(found.get(tag)) for tag in tags}
        except Exception:  # noqa: BLE001 - pydicom parses a tag when it is read
            return None

    # pydicom's warnings quote the header, which may name the patient.
    with warnings.catch_warnings(), ThreadPoolExecutor(READERS) as pool:
        warnings.simplefilter("ignore")
        found = pool.map(read, paths)
        yield from tqdm(
            found, "  headers", total=len(paths), unit=" files", mininterval=1
        )


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
