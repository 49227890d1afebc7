"""One part of a build: a stretch of the plan -> one ArrayRecord shard.

This is what a Beam worker runs. A part is written beside its final name and renamed,
then a small JSON file says that it is finished and for which plan; a build that was
interrupted keeps the finished parts. Workers see the raw folder and the output folder
under the same paths as the program that started them.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import records, rejected
from data_pipelines.images import film as films
from data_pipelines.images.hashing import film_hash
from data_pipelines.plan import UNLABELLED, FilmPlan, ReportPlan, from_json, safe_path
from data_pipelines.rejected import Rejection

WRITER_OPTIONS = {
    "images": "group_size:1,uncompressed",  # the films are compressed already
    "reports": "group_size:1,zstd:3",
}
PROGRESS_EVERY = 32
MAX_FILE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Job:
    """A part to write. Plain strings and numbers: it travels to Beam workers."""

    kind: str  # "images" or "reports"
    split: str
    index: int
    plan: str  # JSON lines of plan items
    out: str  # the shard; `out`.json is written last
    raw: str
    dataset: str
    size: int

    @property
    def done(self) -> Path:
        return Path(self.out + ".json")

    @property
    def progress(self) -> Path:
        return Path(self.out + ".progress")


@dataclasses.dataclass(frozen=True)
class Part:
    """A finished part."""

    job: Job
    records: int
    size: int  # bytes
    seconds: float  # of processor time
    rejected: list[Rejection]
    warnings: list[Rejection]
    labels: dict[str, list[int]]  # of reports: study -> 14 labels
    hashes: dict[str, str]  # of films: image -> hexadecimal `film_hash`


def digest(job: Job) -> str:
    """What a part depends on, apart from the bytes of the raw files."""
    made = hashlib.blake2b(digest_size=16)
    made.update(Path(job.plan).read_bytes())
    made.update(f"{job.kind} {job.raw} {job.dataset} {job.size}".encode())
    made.update(f"{records.SCHEMA_VERSION} {WRITER_OPTIONS[job.kind]} 3".encode())
    return made.hexdigest()


def load_part(job: Job) -> Part | None:
    """Reads a finished part; None when it is absent, half, or of another plan."""
    try:
        about = json.loads(job.done.read_text())
        if about["digest"] != digest(job):
            return None
        if about["records"] and Path(job.out).stat().st_size != about["size"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    return Part(
        job,
        about["records"],
        about["size"],
        about["seconds"],
        [Rejection(*r) for r in about["rejected"]],
        [Rejection(*r) for r in about["warnings"]],
        about["labels"],
        about["hashes"],
    )


def write_part(job: Job) -> None:
    """Writes one part, unless it is there already.

    Raises:
      RuntimeError: a fault of ours in one record; names its id and never its text.
    """
    import time

    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    if load_part(job) is not None:
        return
    start = time.process_time()
    features = records.features(job.kind)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    maker = _FilmMaker(job) if job.kind == "images" else _ReportMaker(job)
    temporary = f"{job.out}.{uuid.uuid4().hex}.tmp"
    writer = array_record_module.ArrayRecordWriter(temporary, WRITER_OPTIONS[job.kind])
    count = seen = 0
    try:
        for item in _read_plan(job):
            record = _guarded(maker.make, item)
            if record is not None:
                encoded = features.encode_example(record)
                writer.write(serializer.serialize_example(encoded))
                count += 1
            seen += 1
            if seen % PROGRESS_EVERY == 0:
                job.progress.write_text(str(seen))
    except BaseException:
        writer.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    writer.close()
    size = os.stat(temporary).st_size
    os.replace(temporary, job.out)
    _finish(job, maker, count, size, time.process_time() - start)


def _read_plan(job: Job) -> Iterator[Any]:
    with open(job.plan, encoding="utf-8") as file:
        for line in file:
            yield from_json(job.kind, line)


def _guarded(make: Callable[[Any], dict | None], item: Any) -> dict | None:
    try:
        return make(item)
    except Exception as error:  # noqa: BLE001
        # The original message could quote report text: only its type goes on.
        raise RuntimeError(
            f"{type(item).__name__} {item.key}: {type(error).__name__} at "
            f"{_where(error)}"
        ) from None


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _finish(job: Job, maker: Any, count: int, size: int, seconds: float) -> None:
    about = {
        "digest": digest(job),
        "records": count,
        "size": size,
        "seconds": seconds,
        "rejected": [dataclasses.astuple(r) for r in maker.rejected],
        "warnings": [dataclasses.astuple(r) for r in maker.warnings],
        "labels": maker.labels,
        "hashes": maker.hashes,
    }
    temporary = Path(f"{job.done}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(about))
    os.replace(temporary, job.done)


class _Maker:
    def __init__(self, job: Job):
        self.job = job
        self.rejected: list[Rejection] = []
        self.warnings: list[Rejection] = []
        self.labels: dict[str, list[int]] = {}
        self.hashes: dict[str, str] = {}

    def read(self, item: FilmPlan | ReportPlan) -> bytes | None:
        """The bytes of the item's file, or None when it was rejected."""
        path = safe_path(self.job.raw, item.path)
        reason, detail = rejected.OUTSIDE, ""
        if path is not None:
            try:
                if path.stat().st_size <= MAX_FILE_BYTES:
                    return path.read_bytes()
                reason, detail = rejected.UNREADABLE, "file larger than 1 GiB"
            except FileNotFoundError:
                reason = rejected.MISSING_FILE
            except OSError as error:
                reason, detail = rejected.UNREADABLE, type(error).__name__
        self.rejected.append(Rejection(reason, item.key, item.path, detail))
        return None


class _FilmMaker(_Maker):
    def make(self, item: FilmPlan) -> dict | None:
        """The record of a film, or None when it is rejected."""
        data = self.read(item)
        if data is None:
            return None
        try:
            stored = films.convert(data, self.job.size)
        except films.BadFilm as bad:
            self.rejected.append(Rejection(bad.reason, item.key, item.path, bad.detail))
            return None
        if stored.bright_border:
            self.warnings.append(
                Rejection("bright border, perhaps inverted", item.key, item.path)
            )
        self.hashes[item.image_id] = film_hash(stored.jpeg).hex()
        fields = dataclasses.asdict(item)
        del fields["path"]
        fields.update(
            dataset=self.job.dataset,
            film=stored.jpeg,
            height=stored.height,
            width=stored.width,
            original_height=item.original_height or stored.original_height,
            original_width=item.original_width or stored.original_width,
            bit_depth=stored.bit_depth,
            inverted=stored.inverted,
            labels=np.array(item.labels or UNLABELLED, np.int8),
            boxes=np.array(item.boxes, np.float32).reshape(-1, 4),
            box_findings=np.array(item.box_findings, np.int8),
            masks=list(item.masks),
        )
        return fields


class _ReportMaker(_Maker):
    def __init__(self, job: Job):
        super().__init__(job)
        from data_pipelines.reports.extract import process_report

        self.process = process_report

    def make(self, item: ReportPlan) -> dict | None:
        """The record of a report, or None when it is rejected."""
        text = item.text
        if item.path:
            data = self.read(item)
            if data is None:
                return None
            if b"\0" in data:
                detail = "holds zero bytes; expected UTF-8 text (is it UTF-16?)"
                self.rejected.append(
                    Rejection(rejected.UNREADABLE, item.key, item.path, detail)
                )
                return None
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = data.decode("utf-8-sig", errors="replace")
                self.warnings.append(
                    Rejection("not UTF-8", item.key, item.path, "odd letters replaced")
                )
        has_words = re.search(r"[^\W\d_]", text)
        report = self.process(text, study=item.study_id) if has_words else None
        if report is None or not report.sentences:
            detail = "no sentence found" if report else "not a word"
            self.rejected.append(
                Rejection(rejected.NO_TEXT, item.key, item.path, detail)
            )
            return None
        self.labels[item.study_id] = [int(code) for code in report.labels]
        fields = dataclasses.asdict(item)
        del fields["path"], fields["text"]
        fields.update(
            dataset=self.job.dataset,
            section_names=list(report.sections),
            section_texts=list(report.sections.values()),
            sentences=list(report.sentences),
            sentence_sections=list(report.sentence_sections),
            sentence_labels=np.asarray(report.sentence_labels, np.int8),
            labels=np.asarray(report.labels, np.int8),
        )
        return fields
