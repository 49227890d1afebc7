"""What a source says beyond the 14 findings: side tables beside the shards.

A prepared dataset may have a folder `annotations/` with one Parquet file a table. Rows
are keyed by ids, never by row numbers, so they may speak of films of another dataset:
MS-CXR annotates the films of MIMIC-CXR-JPG and has none of its own.

    classes         a row a film and task: the labels of the source's own vocabulary
    boxes           boxes under the source's own names, one a row
    phrases         a phrase and the boxes of what it tells
    progression     a finding's change between two films
    sentence_pairs  two sentences and how they relate
    hashes          a hash of what a film looks like, to find it again in other sets

`tasks.json` names the tasks of `classes`: their labels, and what unit is judged.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medclip_jax import storage
from medclip_jax.errors import UserError

FOLDER = "annotations"
TASKS = "tasks.json"

SCHEMAS: dict[str, pa.Schema] = {
    "classes": pa.schema(
        [
            ("task", pa.string()),
            ("image_id", pa.string()),
            ("positive", pa.list_(pa.string())),  # of the task's labels
            ("uncertain", pa.list_(pa.string())),
            ("not_judged", pa.list_(pa.string())),  # what is in no list is negative
        ]
    ),
    "boxes": pa.schema(
        [
            ("image_id", pa.string()),
            ("label", pa.string()),
            ("reader", pa.string()),  # "" where the source names none
            ("box", pa.list_(pa.float32(), 4)),  # x, y, width, height, original pixels
        ]
    ),
    "phrases": pa.schema(
        [
            ("phrase_id", pa.string()),
            ("image_id", pa.string()),
            ("patient_id", pa.string()),
            ("category", pa.string()),
            ("text", pa.string()),  # protected: never logged
            ("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x, y, width, height
            ("image_width", pa.int32()),  # of the pixels that the boxes refer to
            ("image_height", pa.int32()),
            ("split", pa.string()),  # the source's own; "" where it has none
        ]
    ),
    "progression": pa.schema(
        [
            ("image_id", pa.string()),
            ("previous_image_id", pa.string()),
            ("patient_id", pa.string()),
            ("finding", pa.string()),
            ("label", pa.string()),  # improving, stable, worsening
            ("quality", pa.string()),
        ]
    ),
    "sentence_pairs": pa.schema(
        [
            ("pair_id", pa.string()),
            ("sentence1", pa.string()),  # protected: never logged
            ("sentence2", pa.string()),
            ("label", pa.string()),
            ("subset", pa.string()),
            ("split", pa.string()),
        ]
    ),
    "hashes": pa.schema([("image_id", pa.string()), ("hash", pa.binary(32))]),
}

Kind = Literal["multiclass", "binary", "multilabel"]
Unit = Literal["image", "study", "patient"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A question that a source answers of its films.

    Attributes:
      kind: "multiclass": exactly one of the labels is positive; "binary": one label,
        positive or not; "multilabel": any of the labels.
      labels: in the source's own spelling and order.
      unit: what a figure is given for: scores of the films of a study, or of a
        patient, are averaged first.
      about: one line: what is asked and where it is defined.
    """

    kind: Kind
    labels: tuple[str, ...]
    unit: Unit = "image"
    about: str = ""

    def __post_init__(self):
        if self.kind == "binary" and len(self.labels) != 1:
            raise ValueError(f"a binary task has one label, found {self.labels}")


Tables = Mapping[str, Sequence[Mapping[str, Any]]]


def write(folder: Path, tables: Tables, tasks: Mapping[str, Task]) -> str:
    """Writes the side tables of a dataset.

    Args:
      folder: of the dataset; nothing is written when there is nothing to write.
      tables: rows of each of SCHEMAS, in any order.
      tasks: those that `classes` speaks of.

    Returns:
      A hash of the contents that the order of the rows does not change; "" when
      nothing was written.

    Raises:
      ValueError: a row of `classes` that does not fit its task.
    """
    filled = {name: rows for name, rows in sorted(tables.items()) if rows}
    if not filled:
        return ""
    for row in filled.get("classes", ()):
        _check(row, tasks)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    made = hashlib.sha256()
    for name, rows in filled.items():
        names = SCHEMAS[name].names
        empty: dict[str, Any] = {"uncertain": [], "not_judged": []}
        plain = [{k: row[k] if k in row else empty[k] for k in names} for row in rows]
        plain.sort(key=_key)
        table = pa.Table.from_pylist(plain, SCHEMAS[name])
        pq.write_table(
            table,
            folder / FOLDER / f"{name}.parquet",
            compression="zstd",
            write_page_checksum=True,
        )
        for row in table.to_pylist():
            made.update(repr(row).encode())
    stored = {name: dataclasses.asdict(task) for name, task in sorted(tasks.items())}
    made.update(json.dumps(stored).encode())
    (folder / FOLDER / TASKS).write_text(json.dumps(stored, indent=1) + "\n")
    return made.hexdigest()


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(repr(value) for value in row.values())


def _check(row: Mapping[str, Any], tasks: Mapping[str, Task]) -> None:
    task = tasks[row["task"]]
    named = [*row["positive"], *row.get("uncertain", ()), *row.get("not_judged", ())]
    unknown = sorted(set(named) - set(task.labels))
    if unknown:
        raise ValueError(f"{row['task']} has no label {unknown}")
    if task.kind == "multiclass" and len(row["positive"]) != 1:
        raise ValueError(f"{row['task']}: one label a film, found {row['positive']}")


def read(folder: str | Path, name: str) -> pa.Table:
    """A side table of a prepared dataset; without rows where it has none.

    Args:
      folder: of the dataset.
      name: one of SCHEMAS.

    Raises:
      UserError: the file is damaged or has other columns.
    """
    path = storage.path(folder) / FOLDER / f"{name}.parquet"
    if not path.is_file():
        return SCHEMAS[name].empty_table()
    try:
        with path.open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        raise UserError(f"{path} is damaged; prepare the dataset again") from None
    if not table.schema.equals(SCHEMAS[name]):
        raise UserError(
            f"{path} has other columns than this program reads; prepare the dataset again"
        )
    return table


def read_tasks(folder: str | Path) -> dict[str, Task]:
    """The tasks of a prepared dataset by name; empty where it has none."""
    path = storage.path(folder) / FOLDER / TASKS
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    return {
        name: Task(**{**task, "labels": tuple(task["labels"])})
        for name, task in stored.items()
    }


# --- Masks --------------------------------------------------------------------------


def run_lengths(mask_HxW: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first run of zeros (maybe 0 long).

    Args:
      mask_HxW: bool.

    Returns:
      The `counts` of COCO's uncompressed run-length encoding.
    """
    flat = np.asarray(mask_HxW, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def mask_of_runs(
    counts: Sequence[int] | np.ndarray, height: int, width: int
) -> np.ndarray:
    """The bool mask [height, width] of `run_lengths`."""
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def encode_mask(mask_HxW: np.ndarray) -> str:
    """A mask (bool) as one string for a record: "HEIGHTxWIDTH:" and its run lengths."""
    height, width = mask_HxW.shape
    return f"{height}x{width}:{' '.join(map(str, run_lengths(mask_HxW)))}"


def decode_mask(text: str) -> np.ndarray:
    """The bool mask [H, W] of `encode_mask`."""
    size, _, counts = text.partition(":")
    height, width = (int(part) for part in size.split("x"))
    return mask_of_runs(np.array(counts.split(), np.int64), height, width)


def box_mask(boxes: Iterable[Sequence[float]], height: int, width: int) -> np.ndarray:
    """The union of boxes (x, y, width, height in pixels) as a bool mask [H, W]."""
    mask_HxW = np.zeros((height, width), bool)
    for x, y, w, h in boxes:
        top, left = max(0, int(y)), max(0, int(x))
        mask_HxW[top : max(0, int(y + h)), left : max(0, int(x + w))] = True
    return mask_HxW


# --- Copies -------------------------------------------------------------------------

SAME = 32
"""Two films whose hashes differ in at most so many of the 256 bits count as one film.

Measured on 600 films of NIH ChestX-ray14 and 530 of the COVID-19 image data collection
(636,116 pairs of different patients) and on 568 simulated films of 256 px. Bits that
differ:

    different patients    nearest 60 (simulated 51), one pair in 100,000 below 66 (55),
                          in 10,000 below 75 (66): about 9 bits for each power of ten
    same patient          nearest 52 (78)
    brought to 299 x 299, JPEG quality 75     at most 20 (17)
    224 x 224; 256 px short side; quality 30  at most 23 (15)
    window from the 1st to the 99th percentile of the gray levels    at most 17 (15)
    window from the 5th to the 95th    99 % at most 34 (21); found: 98.7 % (all)
    gamma 0.6                          99 % at most 27 (28); found: 99.9 % (99.8 %)
    histogram equalised                found: 69 % (81 %)
    2 % of the short side cut off all round    found: 27 % (52 %)
    mirrored                           found: none

By that slope 10^10 pairs of strangers hold some tens within 32 bits: a film that is
named is to be looked at.
"""

_PAIRS_AT_ONCE = 1_000_000


def find_copies(
    hashes_N: Sequence[bytes], among_M: Sequence[bytes]
) -> list[tuple[int, int]]:
    """Pairs of films that look the same.

    Args:
      hashes_N, among_M: of the side table `hashes`.

    Returns:
      (position in the first, position in the second) of each pair whose hashes differ
      in at most SAME bits, in order. 10^9 pairs take about 5 s of one core.
    """
    if not hashes_N or not among_M:
        return []
    first = np.frombuffer(b"".join(hashes_N), np.uint64).reshape(len(hashes_N), -1)
    second = np.frombuffer(b"".join(among_M), np.uint64).reshape(len(among_M), -1)
    words = np.ascontiguousarray(second.T)
    block = max(1, _PAIRS_AT_ONCE // len(second))
    found = []
    for start in range(0, len(first), block):
        rows = first[start : start + block]
        # Strangers differ in more than SAME of the first half of the bits already.
        half = np.bitwise_count(rows[:, 0, None] ^ words[0])
        half += np.bitwise_count(rows[:, 1, None] ^ words[1])
        near, far = np.nonzero(half <= SAME)
        differ = np.bitwise_count(rows[near] ^ second[far]).sum(1, dtype=np.int64)
        same = differ <= SAME
        found += [(start + int(i), int(j)) for i, j in zip(near[same], far[same])]
    return found
