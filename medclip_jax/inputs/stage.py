"""`train --stage DIR`: what a host will read, copied to its own disk before it starts.

The order of a run is shuffled over all data, so the films of a host lie in every shard;
but the order is known beforehand. Staged are the films of the host's rows in the steps
that are left, those that are measured while training, and all reports (which every
host needs: the order depends on their sentences). A host of P sees, in E passes over
the data, 1 - (1 - 1/P)^E of the films: of 16 hosts in 20 passes each 72 %, of 128
hosts 15 %.

    DIR/NAME-FINGERPRINT/PROCESS_of_COUNT/
      reports/          the files as they are
      images/SHARD      the host's records of a shard
      *.json            beside each file: its bytes, SHA-256 and rows

A file stands there whole or not at all. One that is whole and holds what is wanted is
left as it is; any other is made again. A film that is damaged where it comes from is
left out, and is the same bad record (`data.max_bad_rate`) when it is read; the next
start copies its shard again. Nothing is ever deleted, and a file without its
description, which is not of this program, is not written over.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_pipelines import records
from medclip_jax import storage
from medclip_jax.errors import TryAgain, UserError, passing
from medclip_jax.inputs.catalog import Catalog

Report = Callable[[str, bool], None]
"""Shows a line; True: the next one replaces it."""

_AT_ONCE = 256  # films read together: tens of MB
_BLOCK = 1 << 16  # ArrayRecord pads a file to these
_WRITER_OPTIONS = "group_size:1,uncompressed"  # as `prepare` writes films


class StagedFilms(Sequence):
    """The staged records of one data set, by their rows in the whole of it.

    Args:
      dataset: name, for messages.
      length: records of the whole.
      parts: file and rows of each staged shard, in the order of the rows.
      damaged: what is wrong with the wanted records that could not be staged, by row.
    """

    kind = "images"

    def __init__(
        self,
        dataset: str,
        length: int,
        parts: Sequence[tuple[Path, list[int]]],
        damaged: Mapping[int, str],
    ):
        from array_record.python import array_record_data_source as source

        self._dataset, self._length, self._damaged = dataset, length, dict(damaged)
        parts = [(file, rows) for file, rows in parts if rows]
        self._rows = np.array([row for _, rows in parts for row in rows], np.int64)
        files = [str(file) for file, _ in parts]
        self._files = [(str(file), len(rows)) for file, rows in parts]
        self._source = source.ArrayRecordDataSource(files) if files else ()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row):
        if row in self._damaged:
            raise records.DamagedRecord(self._damaged[row])
        place = int(np.searchsorted(self._rows, row))
        if place == len(self._rows) or self._rows[place] != row:
            raise LookupError(
                f"film {row} of {self._dataset} was not staged on this host"
            )
        return records.read(self.kind, self._source, place, self._files)


def reports(
    datasets: Sequence[records.Dataset], folder: Path, process: tuple[int, int]
) -> list[records.Dataset]:
    """Copies all reports of the data sets, and reads them from the copies.

    Args:
      datasets: opened where they are.
      folder: `--stage`.
      process: number of this process, and of all.

    Raises:
      UserError: too little space, or a file in the way.
      TryAgain: they cannot be read now.
    """
    found = []
    for dataset in datasets:
        if not len(dataset.reports):
            found.append(dataset)
            continue
        source = storage.path(dataset.path) / "reports"
        target = _folder(dataset, folder, process) / "reports"
        target.mkdir(parents=True, exist_ok=True)
        files = sorted(source.iterdir(), key=str)
        lacking = [file for file in files if _held(target / file.name) is None]
        _require_space(
            folder, sum(map(storage.size, lacking)), f"{dataset.name} reports"
        )
        for file in lacking:
            _make(target / file.name, lambda part: _copy(file, part))  # noqa: B023
        local = records.Records("reports", target)
        found.append(dataclasses.replace(dataset, reports=local))
    return found


def films(
    datasets: Sequence[records.Dataset],
    wanted: Sequence[np.ndarray],
    folder: Path,
    process: tuple[int, int],
    report: Report,
) -> list[records.Dataset]:
    """Copies the wanted films of the data sets, and reads them from the copies.

    Args:
      datasets: opened where they are.
      wanted: rows of the films of each.
      folder: `--stage`.
      process: number of this process, and of all.
      report: shows how far it is.

    Raises:
      UserError: too little space, a file in the way, or a shard that was cut short.
      TryAgain: a shard cannot be read now.
    """
    plans = [
        _plan(dataset, rows, _folder(dataset, folder, process))
        for dataset, rows in zip(datasets, wanted)
    ]
    lacking = [shard for plan in plans for shard in plan if shard.held is None]
    _require_space(folder, sum(shard.n_bytes for shard in lacking), "films")
    total = sum(len(shard.rows) for shard in lacking)
    done = 0
    for shard in lacking:
        shard.held = _make(shard.target, lambda part: _extract(shard, part))  # noqa: B023
        done += len(shard.rows)
        report(f"staging films: {done} of {total}", True)
    staged = []
    for dataset, plan in zip(datasets, plans):
        parts = [(shard.target, shard.held["rows"]) for shard in plan if shard.held]
        damaged = {row: why for shard in plan for row, why in shard.damaged.items()}
        films = StagedFilms(dataset.name, len(dataset.images), parts, damaged)
        staged.append(dataclasses.replace(dataset, images=films))
    report(_summary(datasets, plans, total, folder), False)
    return staged


def rows_of(catalog: Catalog, wanted_I: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows in each of `count` data sets of the images that are wanted."""
    return [
        catalog.image_row_I[wanted_I & (catalog.image_dataset_I == number)]
        for number in range(count)
    ]


@dataclasses.dataclass
class _Shard:
    """The wanted part of a shard.

    Attributes:
      dataset: it is of.
      rows: wanted, ascending, in the whole data set.
      target: the file to make.
      n_bytes: about what it will take.
      held: the description of the file where there is one that will do.
      damaged: why records of `rows` are not in the file, by row.
    """

    dataset: records.Dataset
    rows: list[int]
    target: Path
    n_bytes: int
    held: Mapping[str, Any] | None
    damaged: dict[int, str] = dataclasses.field(default_factory=dict)


def _folder(dataset: records.Dataset, folder: Path, process: tuple[int, int]) -> Path:
    index, count = process
    return folder / f"{dataset.name}-{dataset.fingerprint[:16]}" / f"{index}_of_{count}"


def _plan(dataset: records.Dataset, rows: np.ndarray, folder: Path) -> list[_Shard]:
    """The shards that hold wanted rows."""
    stored = dataset.images
    if not isinstance(stored, records.Records):
        return []  # a data set without films
    (folder / "images").mkdir(parents=True, exist_ok=True)
    each = stored.n_bytes / max(len(stored), 1)
    rows, first, plan = np.unique(rows), 0, []
    for name, count in stored.files:
        mine = rows[(rows >= first) & (rows < first + count)].tolist()
        first += count
        if not mine:
            continue
        target = folder / "images" / os.path.basename(name)
        held = _held(target)
        if held is not None and not set(mine) <= set(held["rows"]):
            held = None
        plan.append(_Shard(dataset, mine, target, int(each * len(mine)) + _BLOCK, held))
    return plan


def _extract(shard: _Shard, part: Path) -> dict[str, Any]:
    """Writes the wanted records of a shard, each checked against the study table."""
    from array_record.python import array_record_module

    stored, ids = shard.dataset.images, _ids(shard.dataset)
    assert isinstance(stored, records.Records)
    writer = array_record_module.ArrayRecordWriter(str(part), _WRITER_OPTIONS)
    try:
        for begin in range(0, len(shard.rows), _AT_ONCE):
            rows = shard.rows[begin : begin + _AT_ONCE]
            for row, content in _read(shard, rows).items():
                found = records.parse("images", content)["image_id"]
                if found != ids[row]:
                    raise UserError(
                        f"{shard.dataset.path}: studies.parquet expects image "
                        f"{ids[row]!r} in row {row}, the shards hold {found!r}; table "
                        "and shards are of two builds: prepare the dataset again"
                    )
                writer.write(content)
    finally:
        writer.close()
    return {"rows": [row for row in shard.rows if row not in shard.damaged]}


def _read(shard: _Shard, rows: list[int]) -> dict[int, bytes]:
    """Records by row; those that are damaged are noted instead."""
    stored = shard.dataset.images
    assert isinstance(stored, records.Records)
    try:
        return dict(zip(rows, stored.serialized(rows)))
    except (RuntimeError, IndexError):  # of any of them, which it does not name
        found = {}
        for row in rows:
            try:
                stored[row]
                found[row] = stored.serialized([row])[0]
            except records.DamagedRecord as error:
                shard.damaged[row] = str(error)
        return found


def _ids(dataset: records.Dataset) -> dict[int, str]:
    """Row of an image to its id."""
    rows = pc.list_flatten(dataset.table["image_rows"]).to_pylist()
    return dict(zip(rows, pc.list_flatten(dataset.table["image_ids"]).to_pylist()))


def _copy(source: Path, part: Path) -> dict[str, Any]:
    storage.download(source, part)
    if (found := part.stat().st_size) != (expected := storage.size(source)):
        raise UserError(
            f"{source}: {expected} bytes there, {found} copied; it changed meanwhile, "
            "or the copy was cut short: start again"
        )
    return {}


def _make(target: Path, write: Callable[[Path], dict[str, Any]]) -> Mapping[str, Any]:
    """Makes a file and its description, of which `write` gives a part; killed at any
    time, it can be made again."""
    description = _description(target)
    if target.exists() and not description.exists():
        raise UserError(
            f"{target} is in the way, and --stage did not make it: move it away, or "
            "name another folder"
        )
    part = target.with_name(target.name + ".part")
    try:
        with storage.naming_full_disk(part, "--stage may name another folder"):
            about = write(part)
            with part.open("r+b") as file:
                os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        kind = TryAgain if passing(error) else UserError
        raise kind(
            f"{part} could not be made ({type(error).__name__}: {error}): are the disks "
            "or mounts of the data and of --stage there, and may this account read and "
            "write them? Then start the same command again"
        ) from error
    about = {"bytes": part.stat().st_size, "sha256": _digest(part), **about}
    # Before the file: one without a description is of somebody else.
    storage.write_text(description, json.dumps(about) + "\n")
    part.replace(target)
    return about


def _held(target: Path) -> Mapping[str, Any] | None:
    """The description of a staged file that is whole, bit by bit; None without one."""
    try:
        about = json.loads(_description(target).read_text())
        if (
            target.stat().st_size == about["bytes"]
            and _digest(target) == about["sha256"]
        ):
            return about
    except (FileNotFoundError, ValueError):
        pass
    return None


def _description(target: Path) -> Path:
    return target.with_name(target.name + ".staged.json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    needed = int(1.05 * needed)
    if needed > free:
        raise UserError(
            f"--stage {folder}: this host's part of the {what} takes about "
            f"{_gb(needed)}, {_gb(free)} are free. Name a larger disk, use more hosts, "
            "or leave --stage away and read from a mount"
        )


def _summary(
    datasets: Sequence[records.Dataset],
    plans: Sequence[Sequence[_Shard]],
    copied: int,
    folder: Path,
) -> str:
    wanted = sum(len(shard.rows) for plan in plans for shard in plan)
    every = sum(len(dataset.images) for dataset in datasets)
    held = sum(shard.held["bytes"] for plan in plans for shard in plan if shard.held)
    return (
        f"staged in {folder}: {wanted} of {every} films, {wanted / max(every, 1):.1%}, "
        f"{_gb(held)}; {copied} of them copied now"
    )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
