"""What each figure was computed from, kept beside the report, to compare two of them.

`samples.npz` holds, for every figure with an interval, its statistic as arrays and
the patient and the id of each unit. It holds ids and scores, and no text.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax import storage
from medclip_jax.errors import UserError
from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.rows import Row, Sample

FILE = "samples.npz"
INDEX = "figures"

Key = tuple[str, str, str]
"""Protocol, data set, metric."""


@dataclass(frozen=True)
class Kept:
    """A figure read back: the fingerprint of its data, and its sample."""

    data: str
    sample: Sample


def write(rows: Sequence[Row], folder: Path) -> None:
    """Writes the samples of the rows that have one."""
    arrays: dict[str, np.ndarray] = {}
    places: dict[bytes, int] = {}
    index: list[dict[str, Any]] = []

    def place(ids: np.ndarray) -> int:
        ids = np.asarray(ids, np.str_)
        key = f"{ids.dtype}".encode() + ids.tobytes()
        if key not in places:
            places[key] = len(places)
            arrays[f"ids/{places[key]}"] = ids
        return places[key]

    for row in rows:
        if row.sample is None:
            continue
        arrays |= metrics.to_arrays(row.sample.statistic, f"{len(index)}/")
        index.append(
            {
                "key": [row.protocol, row.dataset, row.metric],
                "data": row.data,
                "patients": place(row.sample.patients),
                "units": place(row.sample.units),
            }
        )
    arrays[INDEX] = np.array(json.dumps(index))
    with storage.writing(folder / FILE) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read(report: Path) -> dict[Key, Kept]:
    """The samples of a report.

    Args:
      report: the folder that `medclip-jax evaluate --out` was given.

    Raises:
      UserError: no report is there, or its samples cannot be read.
    """
    path = report / FILE
    if not path.is_file():
        raise UserError(
            f"expected the folder of a report with {FILE}, found none at {report}; "
            "make it with `medclip-jax evaluate --out`"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        index: list[Mapping[str, Any]] = json.loads(str(arrays[INDEX]))
        return {
            (entry["key"][0], entry["key"][1], entry["key"][2]): Kept(
                entry["data"],
                Sample(
                    metrics.from_arrays(arrays, f"{number}/"),
                    arrays[f"ids/{entry['patients']}"],
                    arrays[f"ids/{entry['units']}"],
                ),
            )
            for number, entry in enumerate(index)
        }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); evaluate again"
        ) from None
