"""The study table and the fingerprint, made by a pass over the finished shards.

Row numbers are known only once the shards are written; nothing here trusts the plan.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines import records
from data_pipelines.findings import FINDINGS, SPLITS, VIEWS


@dataclasses.dataclass
class StudyRow:
    """One study while the table is made."""

    dataset: str
    patient_id: str
    split: str
    time: int
    source_index: int
    images: list[tuple[int, str, int, list[int]]]  # view, id, row, labels
    report_row: int = -1
    sentence_labels: list[int] = dataclasses.field(default_factory=list)
    report_labels: list[int] = dataclasses.field(default_factory=list)


class TableMaker:
    """Takes every record once, in any order, and gives table and fingerprint."""

    def __init__(self) -> None:
        self.studies: dict[str, StudyRow] = {}
        self.digests: dict[str, list[bytes]] = {kind: [] for kind in records.FIELDS}
        self.label_counts: collections.Counter = collections.Counter()
        self.label_sources: collections.Counter = collections.Counter()
        self.views: collections.Counter = collections.Counter()
        self.images_of_split: collections.Counter = collections.Counter()

    def add_image(self, row: int, record: dict[str, Any]) -> None:
        self.digests["images"].append(record_digest("images", record))
        study = self._study(record)
        labels = record["labels"].tolist()
        view = VIEWS.index(record["view"])
        study.images.append((view, record["image_id"], row, labels))
        self.views[record["view"]] += 1
        self.images_of_split[record["split"]] += 1
        self.label_sources[record["label_source"]] += 1
        self.label_counts.update(("images", *pair) for pair in enumerate(labels))

    def add_report(self, row: int, record: dict[str, Any]) -> None:
        self.digests["reports"].append(record_digest("reports", record))
        study = self._study(record)
        if study.report_row >= 0:
            raise RuntimeError(f"study {record['study_id']} has two report records")
        study.report_row = row
        study.sentence_labels = record["sentence_labels"].ravel().tolist()
        study.report_labels = record["labels"].tolist()
        self.label_counts.update(
            ("reports", *pair) for pair in enumerate(study.report_labels)
        )

    def _study(self, record: dict[str, Any]) -> StudyRow:
        study = self.studies.get(record["study_id"])
        if study is None:
            study = self.studies[record["study_id"]] = StudyRow(
                record["dataset"],
                record["patient_id"],
                record["split"],
                record["time"],
                record["study_index"],
                [],
            )
        for name in ("dataset", "patient_id", "split"):
            if getattr(study, name) != record[name]:
                raise RuntimeError(
                    f"study {record['study_id']} has two values of {name}: "
                    f"{getattr(study, name)!r} and {record[name]!r}"
                )
        # The films of a study may differ in time: the study begins with the first.
        known = [t for t in (study.time, record["time"]) if t >= 0]
        study.time = min(known, default=-1)
        known = [i for i in (study.source_index, record["study_index"]) if i >= 0]
        study.source_index = min(known, default=-1)
        return study

    def table(self) -> pa.Table:
        """The study table: one row a study, patient by patient, in order of time."""
        of_patient: dict[str, list[str]] = collections.defaultdict(list)
        for study_id, study in self.studies.items():
            of_patient[study.patient_id].append(study_id)
        rows: dict[str, list] = {name: [] for name in records.TABLE_SCHEMA.names}
        for patient_id in sorted(of_patient):
            for index, study_id in enumerate(self._in_order(of_patient[patient_id])):
                for name, value in self._row(study_id, index).items():
                    rows[name].append(value)
        return pa.table(rows, schema=records.TABLE_SCHEMA)

    def _in_order(self, study_ids: Sequence[str]) -> list[str]:
        """The source's own order if it is given for all, else time, unknown last."""
        given = [self.studies[s].source_index for s in study_ids]
        if min(given) >= 0 and len(set(given)) == len(given):
            return [s for _, s in sorted(zip(given, study_ids))]
        unknown = np.iinfo(np.int64).max

        def key(study_id: str) -> tuple[int, str]:
            time = self.studies[study_id].time
            return (time if time >= 0 else unknown, study_id)

        return sorted(study_ids, key=key)

    def _row(self, study_id: str, index: int) -> dict[str, Any]:
        study = self.studies[study_id]
        images = sorted(study.images)
        return {
            "dataset": study.dataset,
            "patient_id": study.patient_id,
            "study_id": study_id,
            "split": study.split,
            "time": study.time,
            "study_index": index,
            "image_rows": [row for _, _, row, _ in images],
            "image_ids": [image_id for _, image_id, _, _ in images],
            "image_views": [VIEWS[view] for view, _, _, _ in images],
            "image_labels": [code for *_, labels in images for code in labels],
            "report_row": study.report_row,
            "n_sentences": len(study.sentence_labels) // len(FINDINGS),
            "sentence_labels": study.sentence_labels,
            "report_labels": study.report_labels,
        }

    def fingerprint(self, annotated: str = "") -> str:
        """A hash of the contents that no order of writing or reading changes.

        Args:
          annotated: the hash of the side tables, "" where there are none.
        """
        made = hashlib.sha256(f"schema {records.SCHEMA_VERSION}".encode())
        for kind in records.FIELDS:
            made.update(f"{kind} {len(self.digests[kind])}".encode())
            for digest in sorted(self.digests[kind]):
                made.update(digest)
        made.update(annotated.encode())
        return made.hexdigest()[:32]

    def patients(self) -> dict[str, tuple[int, int, int]]:
        """Split -> numbers of patients, studies and studies with a report."""
        counts = {}
        for split in SPLITS:
            chosen = [s for s in self.studies.values() if s.split == split]
            counts[split] = (
                len({s.patient_id for s in chosen}),
                len(chosen),
                sum(s.report_row >= 0 for s in chosen),
            )
        return counts


def record_digest(kind: str, record: dict[str, Any]) -> bytes:
    """A hash of one record's contents, whatever way it was serialized."""
    made = hashlib.blake2b(digest_size=16)
    for name in records.FIELDS[kind]:
        for piece in _pieces(record[name]):
            made.update(len(piece).to_bytes(8, "little"))
            made.update(piece)
    return made.digest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, list):
        yield str(len(value)).encode()
        for one in value:
            yield from _pieces(one)
    elif isinstance(value, np.ndarray):
        yield str(value.shape).encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, float):
        yield np.float32(value).tobytes()
    else:
        yield str(value).encode()
