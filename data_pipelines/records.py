"""What a shard holds, and how it is read. The reader shares only this with the writer.

A prepared dataset is one folder:

    images/            films, one record each (TFDS, ArrayRecord); absent if none
    reports/           reports, one record each (TFDS, ArrayRecord); absent if none
    studies.parquet    one row a study: patient -> studies in order -> rows of the two
    fingerprint.json   schema version, content hash, counts, how it was made
    rejected.csv       what was left out, and why
    warnings.csv       what was kept, and what is odd about it
    annotations/       side tables, where the source has more to say (annotations.py)

A row number counts through the TFDS splits in the order train, validate, test, shard
by shard. Images and reports are joined by the row numbers of the study table, which
are assigned after the shards are written; `open_dataset` checks ids at sampled rows.

Importing this module imports neither TFDS nor anything heavy; reading imports TFDS
(which needs no TensorFlow for this) and never jax, Beam or TensorFlow.
"""

import dataclasses
import functools
import json
import operator
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.findings import FINDINGS, SPLITS
from medclip_jax import storage
from medclip_jax.errors import TryAgain, UserError, passing

SCHEMA_VERSION = 1

LABEL_SOURCES: tuple[str, ...] = ("columns", "label_map", "report", "none")
"""Where a film's 14 labels come from, in the order of precedence."""

IMAGE_FIELDS: dict[str, str] = {
    "dataset": "text",
    "image_id": "text",
    "patient_id": "text",
    "study_id": "text",
    "split": "text",  # findings.SPLITS
    "view": "text",  # findings.VIEWS
    "time": "int64",  # seconds, comparable within a patient; -1 unknown
    "study_index": "int32",  # the source's own order of studies; -1 not given
    "film": "bytes",  # JPEG, 8-bit gray
    "height": "int32",  # of the stored film
    "width": "int32",
    "original_height": "int32",
    "original_width": "int32",
    "bit_depth": "int32",  # of the source pixels
    "inverted": "bool",  # the polarity was inverted when converting
    "sex": "text",  # "M", "F" or ""
    "age": "float32",  # years, -1 unknown
    "labels": "labels",  # 1, 0, -1 uncertain, -2 not given
    "label_source": "text",  # LABEL_SOURCES
    "boxes": "boxes",  # x, y, width, height in original pixels
    "box_findings": "int8s",  # index into FINDINGS
    "masks": "texts",  # run-length strings
    "license": "text",
    "credit": "text",
}
REPORT_FIELDS: dict[str, str] = {
    "dataset": "text",
    "study_id": "text",
    "patient_id": "text",
    "split": "text",
    "time": "int64",
    "study_index": "int32",
    "section_names": "texts",
    "section_texts": "texts",
    "sentences": "texts",
    "sentence_sections": "texts",  # the section's name, for each sentence
    "sentence_labels": "labels_of_each",
    "labels": "labels",
    "license": "text",
    "credit": "text",
}
FIELDS = {"images": IMAGE_FIELDS, "reports": REPORT_FIELDS}

TABLE_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("patient_id", pa.string()),
        ("study_id", pa.string()),
        ("split", pa.string()),
        ("time", pa.int64()),
        ("study_index", pa.int64()),  # 0, 1, ... in the order of time
        ("image_rows", pa.list_(pa.int64())),
        ("image_ids", pa.list_(pa.string())),
        ("image_views", pa.list_(pa.string())),
        ("image_labels", pa.list_(pa.int8())),  # 14 an image, one after another
        ("report_row", pa.int64()),  # -1: the study has no report
        ("n_sentences", pa.int32()),
        ("sentence_labels", pa.list_(pa.int8())),  # 14 a sentence
        ("report_labels", pa.list_(pa.int8())),  # 14, or empty without a report
    ]
)


@functools.cache
def features(kind: str):
    """The TFDS features of a kind of record.

    Args:
      kind: "images" or "reports".

    Returns:
      A `tfds.features.FeaturesDict`, made of features that need no TensorFlow.
    """
    from tensorflow_datasets import features as tfds_features

    n = len(FINDINGS)
    tensor = tfds_features.Tensor
    made = {
        "text": lambda: tfds_features.Text(),
        "texts": lambda: tfds_features.Sequence(tfds_features.Text()),
        "bytes": lambda: tensor(shape=(), dtype=np.object_),
        "bool": lambda: tensor(shape=(), dtype=np.bool_),
        "int32": lambda: tensor(shape=(), dtype=np.int32),
        "int64": lambda: tensor(shape=(), dtype=np.int64),
        "float32": lambda: tensor(shape=(), dtype=np.float32),
        "labels": lambda: tensor(shape=(n,), dtype=np.int8),
        "labels_of_each": lambda: tensor(shape=(None, n), dtype=np.int8),
        "int8s": lambda: tensor(shape=(None,), dtype=np.int8),
        "boxes": lambda: tensor(shape=(None, 4), dtype=np.float32),
    }
    return tfds_features.FeaturesDict({k: made[t]() for k, t in FIELDS[kind].items()})


def parse(kind: str, serialized: bytes) -> dict[str, Any]:
    """Parses one serialized record.

    The same as TFDS's `deserialize_example_np`, several times faster: the schema is
    flat and known.

    Args:
      kind: "images" or "reports".
      serialized: a `tf.train.Example`, as stored.

    Returns:
      Field name to str, list of str, bytes, number or array, as in `FIELDS`.
    """
    stored = _example().FromString(serialized).features.feature
    return {name: _READ[form](stored[name]) for name, form in FIELDS[kind].items()}


@functools.cache
def _example():
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _codes(value: Any) -> np.ndarray:
    return np.array(value.int64_list.value, np.int8)


_READ = {
    "text": lambda v: v.bytes_list.value[0].decode(),
    "texts": lambda v: [text.decode() for text in v.bytes_list.value],
    "bytes": lambda v: v.bytes_list.value[0],
    "bool": lambda v: bool(v.int64_list.value[0]),
    "int32": lambda v: v.int64_list.value[0],
    "int64": lambda v: v.int64_list.value[0],
    "float32": lambda v: v.float_list.value[0],
    "labels": _codes,
    "labels_of_each": lambda v: _codes(v).reshape(-1, len(FINDINGS)),
    "int8s": _codes,
    "boxes": lambda v: np.array(v.float_list.value, np.float32).reshape(-1, 4),
}


class DamagedRecord(UserError):
    """A stored record that is not what was written: ArrayRecord's own checksum of it
    differs."""


def read(
    kind: str, source: Sequence[bytes], row: int, files: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Reads and parses a record, and names its file where that fails.

    Args:
      kind: "images" or "reports".
      source: an `ArrayRecordDataSource`.
      row: counted through all of its files.
      files: name and number of records of each.

    Raises:
      DamagedRecord: its bytes are not those that were written.
      UserError: the file is cut short, or is not there.
      TryAgain: it cannot be read now.
    """
    try:
        return parse(kind, source[row])
    except (RuntimeError, IndexError) as error:  # what ArrayRecord's reader raises
        ends = np.cumsum([count for _, count in files])
        name = files[int(np.searchsorted(ends, row, side="right"))][0]
        # Each chunk of Riegeli, in which ArrayRecord writes, has a hash of header and
        # content.
        if "Riegeli/records file" in str(error):
            raise DamagedRecord(
                f"record {row} of the {kind} differs from its checksum; {_mend(name)}"
            ) from error
        if isinstance(error, IndexError):  # the index was read before the file was cut
            raise UserError(
                f"record {row} of the {kind} is not there any more: the file was cut "
                f"short meanwhile; {_mend(name)}"
            ) from error
        raise _unreadable(name, error) from error


def _unreadable(file: str | os.PathLike[str], error: Exception) -> UserError:
    kind = TryAgain if passing(error) else UserError
    return kind(
        f"{file} cannot be read ({error}): is its disk or mount there, and may this "
        "account read it? Then start the same command again"
    )


def _mend(file: str) -> str:
    return (
        f"copy {file} again, or prepare the dataset again with `medclip-jax prepare "
        "--overwrite`"
    )


class Records(Sequence):
    """The records of one kind, by row: random access, thread-safe, picklable.

    Attributes:
      kind: "images" or "reports".
      files: name and number of records of each shard, in the order of the rows.
      n_bytes: of all shards.
    """

    def __init__(self, kind: str, folder: Path):
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source

        self.kind = kind
        splits = tfds.builder_from_directory(folder).info.splits
        found = [splits[split] for split in SPLITS if split in splits]
        files = [file for split in found for file in split.file_instructions]
        self.files = [(str(file.filename), file.examples_in_shard) for file in files]
        self.n_bytes = sum(split.num_bytes for split in found)
        self._source = array_record_data_source.ArrayRecordDataSource(files)

    def check_files(self) -> None:
        """Opens every file: its index, which is at its end, must tell its records.

        Raises:
          UserError: naming the first file that is cut short, damaged or of another
            build.
          TryAgain: one cannot be read now.
        """
        # Opening is waiting where the files are on a mount.
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(_count, [name for name, _ in self.files])
            for (name, expected), count in zip(self.files, found):
                if count != expected:
                    raise UserError(
                        "a shard is damaged or an incomplete copy: expected "
                        f"{expected} records, found {count or 'no index at its end'}; "
                        f"{_mend(name)}"
                    )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row):
        row = operator.index(row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} {self.kind}")
        return read(self.kind, self._source, row, self.files)

    def serialized(self, rows: Sequence[int]) -> Sequence[bytes]:
        """Records as they are stored, read together."""
        return self._source.__getitems__(rows)

    def __repr__(self) -> str:
        return f"Records({self.kind!r}, {len(self)} rows)"


def _count(file: str) -> int:
    """Records of a file by the index at its end; 0 where there is none to be read."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(file, "readahead_buffer_size:0")
        if count := reader.num_records():
            return count
        reader.read([0])  # it counted none: this says why
    except (RuntimeError, IndexError) as error:
        if passing(error):
            raise _unreadable(file, error) from error
    return 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset, opened for reading."""

    name: str
    path: str
    images: Sequence[dict]
    reports: Sequence[dict]
    table: pa.Table
    fingerprint: str
    notice: str = ""  # what whoever uses the data is bound to; or that it is simulated
    kind: str = "csv"  # the adapter that read it: --dataset of `prepare`
    for_pretraining: bool = True  # or a set that is there to be evaluated on


def find_datasets(data_dir: str | os.PathLike[str]) -> list[str]:
    """Finds the prepared datasets below a folder, or the folder itself if it is one.

    Args:
      data_dir: a folder that `medclip-jax prepare --out` was given, or one dataset.

    Returns:
      Sorted paths.

    Raises:
      UserError: the folder is absent or holds no prepared dataset.
    """
    root = storage.path(data_dir)
    if not root.is_dir():
        raise UserError(
            f"expected a folder of prepared datasets, found nothing at {root}; "
            "make one with `medclip-jax prepare --out`"
        )
    if (root / "fingerprint.json").is_file():
        return [str(root)]
    found = sorted(
        str(child)
        for child in root.iterdir()
        if not child.name.startswith(".") and (child / "fingerprint.json").is_file()
    )
    if not found:
        raise UserError(
            f"expected prepared datasets in {root}, found none (no "
            "*/fingerprint.json); make one with `medclip-jax prepare --out`"
        )
    return found


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens a prepared dataset and checks that its parts belong together.

    Args:
      path: the folder of one dataset.

    Returns:
      The dataset; `images[row]` and `reports[row]` give records as dicts.

    Raises:
      UserError: no dataset there, made for another schema, or the study table and
        the shards disagree (the first difference is named).
      TryAgain: it cannot be read now.
    """
    path = storage.path(path)
    try:
        about = json.loads((path / "fingerprint.json").read_text())
    except (OSError, ValueError) as error:
        if passing(error):
            raise _unreadable(path / "fingerprint.json", error) from error
        raise UserError(
            f"expected a prepared dataset at {path}, found no readable "
            "fingerprint.json; make one with `medclip-jax prepare`"
        ) from None
    if about.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} was made for record schema {about.get('schema_version')}, this "
            f"program reads schema {SCHEMA_VERSION}; prepare it again with "
            "`medclip-jax prepare --overwrite`"
        )
    table = _read_table(path)
    try:
        stored = {
            kind: Records(kind, path / kind) if (path / kind).is_dir() else ()
            for kind in FIELDS
        }
    except Exception as error:  # TFDS, ArrayRecord and protobuf have kinds of their own
        if passing(error):
            raise _unreadable(path, error) from error
        raise _damaged(path, error) from error
    dataset = Dataset(
        about["name"],
        str(path),
        stored["images"],
        stored["reports"],
        table,
        about["fingerprint"],
        about.get("notice", ""),
        about.get("arguments", {}).get("dataset", "csv"),
        about.get("for_pretraining", True),
    )
    _check_counts(dataset, about)
    for kind in stored.values():
        if isinstance(kind, Records):
            kind.check_files()
    rows = np.linspace(0, table.num_rows - 1, 8) if table.num_rows else np.zeros(0)
    check_joins(dataset, rows.astype(int))
    return dataset


def _damaged(path: Path, error: Exception) -> UserError:
    kind = type(error).__name__
    return UserError(
        f"{path} is damaged: its shards cannot be read ({kind}); copy it again, or "
        "prepare it again with `medclip-jax prepare --overwrite`"
    )


def _read_table(path: Path) -> pa.Table:
    try:
        with (path / "studies.parquet").open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) and passing(error):  # pyarrow's own have none
            raise _unreadable(path / "studies.parquet", error) from error
        raise UserError(
            f"{path}/studies.parquet is missing or damaged; prepare the dataset again"
        ) from None
    if not table.schema.equals(TABLE_SCHEMA):
        raise UserError(
            f"{path}/studies.parquet has other columns than this program writes; "
            "prepare the dataset again"
        )
    return table


def _check_counts(dataset: Dataset, about: dict) -> None:
    for kind, stored in (("images", dataset.images), ("reports", dataset.reports)):
        if len(stored) != about[kind]:
            raise UserError(
                f"{dataset.path}: fingerprint.json names {about[kind]} {kind}, the "
                f"shards hold {len(stored)}; the folder is a mixture of two builds or "
                "an incomplete copy: copy it again, or prepare it again"
            )
    if dataset.table.num_rows != about["studies"]:
        raise UserError(
            f"{dataset.path}: fingerprint.json names {about['studies']} studies, "
            f"studies.parquet holds {dataset.table.num_rows}; prepare it again"
        )


def check_joins(dataset: Dataset, studies: Sequence[int] | np.ndarray) -> None:
    """Compares the ids in the study table with those in the shards.

    Args:
      dataset: an opened dataset.
      studies: rows of the study table to check.

    Raises:
      UserError: names the first row where they differ.
    """
    for study in dict.fromkeys(int(s) for s in studies):
        row = dataset.table.slice(study, 1).to_pylist()[0]
        for image_row, image_id in zip(row["image_rows"], row["image_ids"]):
            _check_row(dataset, "images", image_row, row, ("image_id", image_id))
        if row["report_row"] >= 0:
            _check_row(dataset, "reports", row["report_row"], row, None)


def _check_row(
    dataset: Dataset, kind: str, at: int, study: dict, also: tuple[str, str] | None
) -> None:
    stored: Sequence[dict] = getattr(dataset, kind)
    record = stored[at] if at < len(stored) else {}
    wanted = [(k, study[k]) for k in ("study_id", "patient_id", "split")]
    for field, value in [*wanted, *([also] if also else [])]:
        if record.get(field) != value:
            raise UserError(
                f"{dataset.path}: studies.parquet expects {field} {value!r} at row "
                f"{at} of {kind}, the shards hold {record.get(field)!r}; table and "
                "shards are of two builds: prepare the dataset again"
            )
