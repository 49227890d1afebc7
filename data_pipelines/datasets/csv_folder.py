"""Any folder with a metadata.csv: the way to bring private data.

`metadata.csv` is UTF-8 with a header; one row a film, or a report without a film. An
empty cell means "not given". Columns (all but one of `image` and `report` optional):

    image         path of the film inside the folder; empty: a text without image
    image_id      unique name of the film; default: the `image` path
    patient_id    default: the study, or else the image; give it, splits go by it
    study_id      films with the same study share one report; default: the image
    view          AP, PA, LATERAL (L, LL, RL), "AP Supine", frontal, OTHER, or empty
    sex, age      M or F; years
    report        the report's or the note's text. Rows of one study may repeat it;
                  different texts of one study are joined in the order of the images
    findings      the source's own words for what is there: see label_map.csv
    split         train, val/valid/validate, test; without the column: 80/10/10 by a
                  hash of the patient
    time          whole seconds, or an ISO date; or
    offset_days   days, negative before the event; shifted to begin at 0 a patient
                  that has negative ones
    study_index   (or follow_up) order of the studies of a patient, when times are
                  not known
    orig_width, orig_height   size before this copy was made smaller
    license, credit           kept with every record
    No Finding, Enlarged Cardiomediastinum, Cardiomegaly, Lung Lesion, Lung Opacity,
    Edema, Consolidation, Pneumonia, Atelectasis, Pneumothorax, Pleural Effusion,
    Pleural Other, Fracture, Support Devices
                  1, 0, -1 (uncertain) or empty

A film's labels come from the 14 columns if any of them is filled in its row, else from
`findings` by `label_map.csv` (value,finding,code; see data_pipelines/label_map.py)
in the folder or by --label-map, else from the study's report.
"""

import argparse
import collections
import dataclasses
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.findings import FINDINGS, SPLITS
from data_pipelines.label_map import LabelMap, find_label_map, read_label_map
from data_pipelines.plan import (
    UNLABELLED,
    FilmPlan,
    ReportPlan,
    Scan,
    split_of_patient,
)
from data_pipelines.tables import (
    MAX_SECONDS,
    age_of,
    int_of,
    label_columns,
    labels_of,
    read_rows,
    sex_of,
    split_of,
    time_of,
)
from medclip_jax.errors import UserError

VIEW_OF: dict[str, str] = {
    "": "UNKNOWN",
    "unknown": "UNKNOWN",
    "frontal": "UNKNOWN",  # frontal, but from front or back is not said
    "ap": "AP",
    "ap supine": "AP",
    "ap erect": "AP",
    "ap_horizontal": "AP",
    "ap portable": "AP",
    "pa": "PA",
    "l": "LATERAL",
    "ll": "LATERAL",
    "rl": "LATERAL",
    "lat": "LATERAL",
    "lateral": "LATERAL",
    "other": "OTHER",
    "oblique": "OTHER",
}


class CsvFolder(StudyBuilder):
    """TFDS builder for a folder with metadata.csv."""

    FOR_PRETRAINING = True
    DESCRIPTION = "A folder of films and texts described by a metadata.csv."

    NOTICE = "The licence and credit of each record stand with it."

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--label-map",
            default="",
            metavar="FILE",
            help="csv: mapping from `findings` values to findings: a CSV file, the "
            'name of one that comes with the program, or "none" (default: '
            "label_map.csv in the raw folder, if there is one)",
        )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads metadata.csv.

        Raises:
          UserError: no metadata.csv, no usable column, a bad label map.
        """
        path = raw / "metadata.csv"
        if not path.is_file():
            raise UserError(
                f"expected {path}, found none; `medclip-jax prepare --help` "
                "describes its columns"
            )
        rows = read_rows(path)
        if not rows or not {"image", "report"} & set(rows[0]):
            raise UserError(
                f"{path}: expected rows and a column `image` or `report`; found "
                f"{len(rows)} rows with the columns "
                f"{', '.join(list(rows[0])[:30]) if rows else '(none)'}"
            )
        map_path = find_label_map(options.label_map, raw)
        reading = _Reading(rows, read_label_map(map_path) if map_path else None)
        return reading.scan()


def offset_seconds(days: str) -> int | None:
    """Seconds of a number of days; None when it is no number."""
    try:
        seconds = round(float(days) * 86400)
    except (ValueError, OverflowError):
        return None
    return seconds if abs(seconds) < MAX_SECONDS else None


@dataclasses.dataclass
class _Row:
    """A row whose ids are settled."""

    cells: dict[str, str]
    image: str
    image_id: str
    study_id: str
    patient_id: str
    time: int = -1
    labels: tuple[int, ...] | None = None
    label_source: str = "none"


class _Reading:
    def __init__(self, rows: list[dict[str, str]], label_map: LabelMap | None):
        self.rows = rows
        self.columns = label_columns(rows[0])
        self.label_map = label_map
        self.made = Scan()
        self.has_split = "split" in rows[0]

    def scan(self) -> Scan:
        rows = [row for cells in self.rows if (row := self._ids(cells))]
        rows = self._fill_patients(rows)
        self._separate_studies(rows)
        self._times(rows)
        for row in rows:
            self._film(row)
        by_study = collections.defaultdict(list)
        for row in rows:
            if row.cells.get("report"):
                by_study[row.study_id].append(row)
        for study_rows in by_study.values():
            self._report(study_rows)
        self._notes()
        return self.made

    def _ids(self, cells: dict[str, str]) -> _Row | None:
        image = cells.get("image", "")
        study = cells.get("study_id", "")
        image_id = cells.get("image_id", "") or image
        known = image_id or study or cells.get("patient_id", "") or "(no id)"
        if not image and not cells.get("report"):
            self.made.reject(rejected.NOTHING, known)
            return None
        if not (study or image_id):
            detail = "a text without image needs a study_id"
            self.made.reject(rejected.BAD_VALUE, known, image, detail)
            return None
        if self.has_split and split_of(cells.get("split", "")) is None:
            detail = f"split is {cells.get('split', '')[:20]!r}"
            self.made.reject(rejected.BAD_VALUE, known, image, detail)
            return None
        study = study or image_id
        patient = cells.get("patient_id", "") or study
        return _Row(cells, image, image_id, study, patient)

    def _fill_patients(self, rows: list[_Row]) -> list[_Row]:
        """A row without a patient belongs to the patient of its study's other rows."""
        named = collections.defaultdict(set)
        for row in rows:
            if row.cells.get("patient_id"):
                named[row.study_id].add(row.patient_id)
        kept = []
        for row in rows:
            known = named[row.study_id]
            if not row.cells.get("patient_id") and known:
                if len(known) > 1:
                    detail = "no patient_id, and other rows of the study name several"
                    known_as = row.image_id or row.study_id
                    self.made.reject(rejected.BAD_VALUE, known_as, row.image, detail)
                    continue
                (row.patient_id,) = known
            kept.append(row)
        return kept

    def _separate_studies(self, rows: list[_Row]) -> None:
        """Where study ids count anew for each patient, puts the patient before."""
        patients = collections.defaultdict(set)
        for row in rows:
            patients[row.study_id].add(row.patient_id)
        if any(len(found) > 1 for found in patients.values()):
            for row in rows:
                row.study_id = f"{row.patient_id}/{row.study_id}"
            self.made.notes.append(
                "study ids repeat between patients: stored as patient_id/study_id"
            )

    def _times(self, rows: list[_Row]) -> None:
        earliest: dict[str, int] = collections.defaultdict(int)
        relative = []
        for row in rows:
            cell, offset = row.cells.get("time", ""), row.cells.get("offset_days", "")
            time = time_of(cell)
            if not cell and offset:
                time = offset_seconds(offset)
                if time is not None:
                    relative.append(row)
                    patient = row.patient_id
                    earliest[patient] = min(earliest[patient], time)
            if time is None:
                detail = f"{(cell or offset)[:30]!r} was not understood"
                self.made.warn("unknown time", row.image_id or row.study_id, "", detail)
            row.time = -1 if time is None else time
        for row in relative:
            row.time -= earliest[row.patient_id]

    def _split(self, row: _Row) -> str:
        if self.has_split:
            return split_of(row.cells["split"]) or "train"
        return split_of_patient(row.patient_id)

    def _study_index(self, row: _Row) -> int:
        cell = row.cells.get("study_index", "") or row.cells.get("follow_up", "")
        return max(int_of(cell, -1), -1)

    def _labels(self, row: _Row) -> tuple[tuple[int, ...] | None, str]:
        labels = labels_of(row.cells, self.columns)
        if labels != UNLABELLED:
            return labels, "columns"
        cell = row.cells.get("findings", "")
        if self.label_map is None or not cell:
            return None, "none"
        mapped, unknown = self.label_map.labels(cell)
        for value in unknown:
            detail = f"findings value {value[:60]!r}"
            self.made.warn("not in the label map", row.image_id, row.image, detail)
        return mapped, "none" if mapped is None else "label_map"

    def _film(self, row: _Row) -> None:
        if not row.image:
            return
        cells = row.cells
        view = VIEW_OF.get(cells.get("view", "").casefold())
        if view is None:
            detail = f"view is {cells['view'][:30]!r}"
            self.made.reject(rejected.UNKNOWN_VIEW, row.image_id, row.image, detail)
            return
        if view == "UNKNOWN":
            self.made.warn("view not given", row.image_id, row.image)
        try:
            labels, source = self._labels(row)
        except ValueError as error:
            self.made.reject(rejected.BAD_VALUE, row.image_id, row.image, str(error))
            return
        self.made.films.append(
            FilmPlan(
                image_id=row.image_id,
                patient_id=row.patient_id,
                study_id=row.study_id,
                split=self._split(row),
                path=row.image,
                view=view,
                time=row.time,
                study_index=self._study_index(row),
                sex=sex_of(cells.get("sex", "")),
                age=age_of(cells.get("age", "")),
                labels=labels,
                label_source=source,
                original_height=int_of(cells.get("orig_height", "")),
                original_width=int_of(cells.get("orig_width", "")),
                license=cells.get("license", ""),
                credit=cells.get("credit", ""),
            )
        )

    def _report(self, rows: list[_Row]) -> None:
        rows.sort(key=lambda row: (row.image, row.cells["report"]))
        texts = list(dict.fromkeys(row.cells["report"] for row in rows))
        first = rows[0]
        if len(texts) > 1:
            detail = f"{len(texts)} texts, joined"
            self.made.warn("several texts of one study", first.study_id, "", detail)
        licenses = dict.fromkeys(row.cells.get("license", "") for row in rows)
        credits = dict.fromkeys(row.cells.get("credit", "") for row in rows)
        self.made.reports.append(
            ReportPlan(
                study_id=first.study_id,
                patient_id=first.patient_id,
                split=self._split(first),
                text="\n\n".join(texts),
                time=min((r.time for r in rows if r.time >= 0), default=-1),
                study_index=self._study_index(first),
                license="; ".join(x for x in licenses if x),
                credit="; ".join(x for x in credits if x),
            )
        )

    def _notes(self) -> None:
        if not self.has_split:
            self.made.notes.append(
                f"no split column: {'/'.join(SPLITS)} 80/10/10 by patient"
            )
        if 0 < len(self.columns) < len(FINDINGS):
            self.made.notes.append(
                f"label columns: {len(self.columns)} of 14 are there, the other "
                "findings are not given"
            )
        if self.label_map is None and any(r.get("findings") for r in self.rows):
            self.made.notes.append(
                "the findings column is not used: there is no label_map.csv "
                "(see --label-map)"
            )
