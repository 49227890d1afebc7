"""What a dataset's adapter finds in a raw folder: films and reports still to convert.

An adapter's `scan` reads only tables and file names. The plan is then brought into
one order that depends on ids alone, so that neither the order of the source's rows
nor the number of workers changes what is written.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.findings import FINDINGS, NOT_GIVEN, SPLITS
from data_pipelines.rejected import Rejection

UNLABELLED: tuple[int, ...] = (NOT_GIVEN,) * len(FINDINGS)


@dataclasses.dataclass(frozen=True)
class FilmPlan:
    """A film to convert. `labels` None: to be taken from the study's report."""

    image_id: str
    patient_id: str
    study_id: str
    split: str
    path: str  # relative to the raw folder, with "/"
    view: str = "UNKNOWN"
    time: int = -1
    study_index: int = -1
    sex: str = ""
    age: float = -1.0
    labels: tuple[int, ...] | None = None
    label_source: str = "none"
    original_height: int = 0  # 0: that of the file
    original_width: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    box_findings: tuple[int, ...] = ()
    masks: tuple[str, ...] = ()
    license: str = ""
    credit: str = ""

    @property
    def key(self) -> str:
        return self.image_id


@dataclasses.dataclass(frozen=True)
class ReportPlan:
    """A report to take apart: in a file (`path`) or given as `text`."""

    study_id: str
    patient_id: str
    split: str
    path: str = ""
    text: str = dataclasses.field(default="", repr=False)
    time: int = -1
    study_index: int = -1
    license: str = ""
    credit: str = ""

    @property
    def key(self) -> str:
        return self.study_id


@dataclasses.dataclass
class Scan:
    """All that an adapter found."""

    films: list[FilmPlan] = dataclasses.field(default_factory=list)
    reports: list[ReportPlan] = dataclasses.field(default_factory=list)
    rejected: list[Rejection] = dataclasses.field(default_factory=list)
    warnings: list[Rejection] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    annotations: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    films_root: Path | None = None  # where film paths begin, if not the raw folder
    reports_root: Path | None = None

    def reject(self, reason: str, id: str, path: str = "", detail: str = "") -> None:
        self.rejected.append(Rejection(reason, id, path, detail))

    def warn(self, reason: str, id: str, path: str = "", detail: str = "") -> None:
        self.warnings.append(Rejection(reason, id, path, detail))

    def annotate(self, table: str, **row: Any) -> None:
        """Adds a row to a side table; see `annotations.SCHEMAS` for its columns."""
        self.annotations.setdefault(table, []).append(row)

    @property
    def total(self) -> int:
        rows = sum(len(rows) for rows in self.annotations.values())
        converted = len(self.films) + len(self.reports)
        return (converted or rows) + len(self.rejected)


def order_key(key: str) -> bytes:
    """The place of a record within its split: a hash of its id."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def split_of_patient(patient_id: str) -> str:
    """80/10/10 by a hash of the patient id, for sources without a split."""
    draw = int.from_bytes(order_key(f"split of {patient_id}")[:4], "big") % 10
    return "train" if draw < 8 else ("validate" if draw == 8 else "test")


def carve_validate(patient_id: str) -> str:
    """ "validate" for a tenth of the patients, by a hash, else "train".

    For sources that have a test split and no validation split of their own.
    """
    draw = int.from_bytes(order_key(f"validation of {patient_id}")[:4], "big") % 10
    return "train" if draw else "validate"


def stratified_splits(classes: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """70/10/20 of each class, for sources without a split and with one film a patient.

    Args:
      classes: class -> ids; the outcome does not depend on the order of either.

    Returns:
      id -> "train", "validate" or "test": within a class the ids in the order of a hash,
      the first fifth for test, the next tenth for validation.
    """
    made = {}
    for ids in classes.values():
        ordered = sorted(set(ids), key=order_key)
        for place, id in enumerate(ordered):
            share = place / len(ordered)
            made[id] = "test" if share < 0.2 else "validate" if share < 0.3 else "train"
    return made


def safe_path(root: str | Path, relative: str) -> Path | None:
    """Joins a path from a table with the raw folder, if it stays inside.

    Args:
      root: the raw folder.
      relative: a path as the source wrote it, "/" or "\\" between the parts.

    Returns:
      The path, or None when it is absolute or leads outside, by ".." or a link. A
      folder directly in the raw folder may itself be a link: that is how people put
      large films on another disk.
    """
    relative = relative.replace("\\", "/")
    parts = relative.split("/")
    if not relative or relative.startswith("/") or ":" in parts[0]:
        return None
    if "\0" in relative or ".." in parts:
        return None
    joined = os.path.realpath(os.path.join(root, relative))
    homes = [os.path.realpath(root)]
    if len(parts) > 1:
        homes.append(os.path.realpath(os.path.join(root, parts[0])))
    if not any(joined.startswith(home.rstrip(os.sep) + os.sep) for home in homes):
        return None
    return Path(root) / relative


def settle(scan: Scan) -> Scan:
    """Removes duplicate ids, studies of two patients, patients of two splits; sorts.

    The outcome depends on the set of rows alone, not on their order.
    """
    split_of: dict[str, set[str]] = collections.defaultdict(set)
    patients_of: dict[str, set[str]] = collections.defaultdict(set)
    everything: list[FilmPlan | ReportPlan] = [*scan.films, *scan.reports]
    for item in everything:
        if item.split not in SPLITS:
            raise AssertionError(f"split {item.split!r} of {item.key}")
        split_of[item.patient_id].add(item.split)
        patients_of[item.study_id].add(item.patient_id)
    for name in ("films", "reports"):
        kept = []
        for item in getattr(scan, name):
            splits = sorted(split_of[item.patient_id])
            patients = sorted(patients_of[item.study_id])
            if len(patients) > 1:
                detail = f"study {item.study_id} of patients {' and '.join(patients)}"
                scan.reject(rejected.BAD_VALUE, item.key, item.path, detail)
            elif len(splits) > 1:
                detail = f"patient {item.patient_id} in {' and '.join(splits)}"
                scan.reject(rejected.TWO_SPLITS, item.key, item.path, detail)
            else:
                kept.append(item)
        setattr(scan, name, _without_duplicates(scan, kept))
    return scan


def _without_duplicates(scan: Scan, items: Iterable) -> list:
    groups: dict[str, list] = collections.defaultdict(list)
    for item in items:
        groups[item.key].append(item)
    kept = []
    for key, group in groups.items():
        group.sort(key=to_json)
        kept.append(group[0])
        for other in group[1:]:
            scan.reject(
                rejected.DUPLICATE_ID, key, other.path, f"given {len(group)} times"
            )
    kept.sort(key=lambda item: (SPLITS.index(item.split), order_key(item.key)))
    return kept


def to_json(item: FilmPlan | ReportPlan) -> str:
    return json.dumps(dataclasses.asdict(item), sort_keys=True, ensure_ascii=False)


def from_json(kind: str, line: str) -> FilmPlan | ReportPlan:
    fields = json.loads(line)
    if kind == "reports":
        return ReportPlan(**fields)
    for name in ("labels", "boxes", "box_findings", "masks"):
        if fields[name] is not None:
            fields[name] = tuple(fields[name])
    return FilmPlan(**fields)
