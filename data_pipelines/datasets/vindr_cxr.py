"""VinDr-CXR: 28 labels and boxes by three radiologists a film, by five for the test set.

`--raw` is in one of two layouts, its films DICOM files with the extension `.dicom`:

- PhysioNet 1.0.0: `train/`, `test/`, and in `annotations/` (or beside them)
  `image_labels_train.csv`, `image_labels_test.csv`, `annotations_train.csv` and
  `annotations_test.csv`; either split may be absent.
- Kaggle (VinBigData): `train/` and `train.csv`, which has a row for each box, and for each reader
  who found nothing. `test/` has no public labels there and is left out.

    task          labels
    vindr_labels  PhysioNet's 28: 22 of places, 6 of the whole film
    vindr_kaggle  Kaggle's 15: a reader gives a label by a box of it

Train has a row a reader. `--readers majority` (the default) takes what more than half of a
film's readers say, `--readers any` what one of them says, as CXR-CLIP does; No finding
then needs that nobody found anything. This changes how many films have a label a great deal. The test
set has one row of the consensus. Headers differ: `rad_id` or `rad_ID`, `Other diseases` in train and
`Other disease` in test; letter case does not count here.

Boxes are corners in pixels of the film as stored. All stand in the side table `boxes`, each with
its reader ("" for the consensus), and are not merged. A film's own boxes are those whose
label its readers agree on. The shipped map `vindr_cxr` tells which of the 14 findings a label
is. Kaggle's labels ask for no edema, fracture or pneumonia: those are denied only where
the film has No finding.

Test is the official one; a tenth of train is validation by a hash of the film's id (of
Kaggle's films 80/10/10). No patients are named: each film counts as one. All films are PA. Age,
sex and size are in the headers: reading those of 18,000 films takes about a minute from a
local disk. An age of 0 is unknown.

Reference: Nguyen et al. 2022, doi 10.1038/s41597-022-01498-w;
https://physionet.org/content/vindr-cxr/1.0.0/; Soombit-ai/cxr-clip, datasets/README.md.
"""

import argparse
import collections
import dataclasses
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.dicom_headers import read_headers
from data_pipelines.datasets.film_files import box_of
from data_pipelines.findings import FINDINGS, NEGATIVE, NOT_GIVEN, POSITIVE
from data_pipelines.label_map import LabelMap, find_label_map, read_label_map
from data_pipelines.plan import (
    UNLABELLED,
    FilmPlan,
    Scan,
    carve_validate,
    safe_path,
    split_of_patient,
)
from data_pipelines.tables import (
    age_of,
    find_table,
    int_of,
    need_columns,
    numbered_rows,
    sex_of,
)
from medclip_jax.errors import UserError

NO_FINDING = "No finding"
LABELS: tuple[str, ...] = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    NO_FINDING,
)
KAGGLE_LABELS: tuple[str, ...] = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    NO_FINDING,
)
NOT_ASKED_BY_KAGGLE = ("Edema", "Fracture", "Pneumonia")
CORNERS = ["x_min", "y_min", "x_max", "y_max"]
HEADER = ("PatientAge", "PatientSex", "Rows", "Columns")
VOTES: dict[str, bool] = {"1": True, "1.0": True, "0": False, "0.0": False, "": False}
LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"
CREDIT = "VinDr-CXR, Vingroup Big Data Institute, Nguyen et al. 2022"
_NAMES = {name.casefold(): name for name in LABELS} | {
    "other disease": "Other diseases"
}


class VinDrCxr(StudyBuilder):
    """TFDS builder for VinDr-CXR."""

    DESCRIPTION = (
        "Chest radiographs of two hospitals in Hanoi, labelled by radiologists."
    )
    NOTICE = (
        "Made from VinDr-CXR (PhysioNet Credentialed Health Data License 1.5.0): may not "
        "be shared with people who have no access to it."
    )
    HOMEPAGE = "https://physionet.org/content/vindr-cxr/1.0.0/"
    CITATION = (
        "@article{nguyen2022vindr, title={VinDr-CXR: An open dataset of chest X-rays with "
        "radiologist's annotations}, author={Nguyen, Ha Q. and others}, "
        "journal={Scientific Data}, year={2022}}"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--readers",
            choices=("majority", "any"),
            default="majority",
            help="vindr_cxr: a film of train has a label when most of its readers give "
            "it, or when one does (default: %(default)s)",
        )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the tables and the headers of the films.

        Raises:
          UserError: a table or a column is missing.
        """
        home = raw / "annotations" if (raw / "annotations").is_dir() else raw
        reading = _Reading(raw, options.readers)
        tables = {
            split: table
            for split in ("train", "test")
            if (table := find_table(home, f"image_labels_{split}"))
        }
        if tables:
            for split in ("train", "test"):
                if split not in tables:
                    reading.made.notes.append(f"no image_labels_{split}.csv")
                    continue
                reading.labels(tables[split], split)
                reading.boxes(find_table(home, f"annotations_{split}"), split)
        elif table := find_table(raw, "train"):
            reading.kaggle(table)
        else:
            raise UserError(
                f"expected annotations/image_labels_train.csv (PhysioNet) or train.csv "
                f"(Kaggle) in {raw}, found neither; --raw is the folder with train/"
            )
        return reading.finish()


def agreed(votes: list[set[str]], rule: str) -> list[str]:
    """What a film's readers agree on.

    Args:
      votes: the labels of each reader.
      rule: "majority": more than half of them; "any": one, and No finding only where
        nobody gives anything else.

    Returns:
      Labels in the order of LABELS.
    """
    counts = collections.Counter(label for vote in votes for label in vote)
    found = [
        label
        for label in LABELS
        if counts[label] and (rule == "any" or 2 * counts[label] > len(votes))
    ]
    if rule == "any" and len(found) > 1:
        found = [label for label in found if label != NO_FINDING]
    return found


@dataclasses.dataclass
class _Film:
    split: str
    path: str
    where: str  # table and line of the first row
    votes: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    boxes: list[tuple[str, str, str, list[str]]] = dataclasses.field(
        default_factory=list
    )  # where, label, reader, the four cells
    fault: str = ""


class _Reading:
    def __init__(self, raw: Path, rule: str):
        self.raw = raw
        self.rule = rule
        self.made = Scan()
        self.films: dict[str, _Film] = {}
        self.task, self.task_labels = "vindr_labels", LABELS
        path = find_label_map("vindr_cxr", raw)
        assert path is not None  # it is shipped
        self.label_map: LabelMap = read_label_map(path)

    def labels(self, table: Path, split: str) -> None:
        """Reads image_labels_*.csv: a row a reader, or one of the consensus."""
        rows = _rows(table, ["image_id", *map(str.casefold, LABELS)])
        for line, row in rows:
            film = self._film_of(row["image_id"], split, f"{table.name}, line {line}")
            reader = row.get("rad_id", "")
            if reader in film.votes:
                film.fault = (
                    f"{table.name}, line {line}: reader {reader!r} a second time"
                )
            if odd := [name for name in LABELS if row[name.casefold()] not in VOTES]:
                cell = row[odd[0].casefold()][:20]
                film.fault = f"{table.name}, line {line}, {odd[0]}: expected 0 or 1, "
                film.fault += f"found {cell!r}"
                continue
            film.votes[reader] = {n for n in LABELS if VOTES[row[n.casefold()]]}

    def boxes(self, table: Path | None, split: str) -> None:
        """Reads annotations_*.csv; labels of a whole film have no corners."""
        if table is None:
            self.made.notes.append(f"no annotations_{split}.csv: no boxes")
            return
        for line, row in _rows(table, ["image_id", "class_name", *CORNERS]):
            image, where = row["image_id"], f"{table.name}, line {line}"
            film = self.films.get(image)
            if film is None or film.split != split:
                detail = f"{where}: its film is not in image_labels_{split}"
                self.made.warn("box left out", image, "", detail)
                continue
            self._box(film, row, where)

    def kaggle(self, table: Path) -> None:
        """Reads train.csv of the challenge."""
        self.task, self.task_labels = "vindr_kaggle", KAGGLE_LABELS
        if (self.raw / "test").is_dir():
            self.made.notes.append("test: no labels are public on Kaggle, left out")
        columns = ["image_id", "class_name", "rad_id", *CORNERS]
        for line, row in _rows(table, columns):
            where = f"{table.name}, line {line}"
            film = self._film_of(row["image_id"], "train", where)
            label = _NAMES.get(row["class_name"].casefold(), "")
            if label not in KAGGLE_LABELS:
                film.fault = f"{where}, class_name: expected one of "
                film.fault += (
                    f"{', '.join(KAGGLE_LABELS)}; found {row['class_name'][:40]!r}"
                )
                continue
            film.votes.setdefault(row["rad_id"], set()).add(label)
            self._box(film, row, where)

    def _film_of(self, image: str, split: str, where: str) -> _Film:
        film = self.films.setdefault(
            image, _Film(split, f"{split}/{image}.dicom", where)
        )
        if film.split != split:
            film.fault = f"{where}: {film.where} has the film in {film.split}"
        return film

    def _box(self, film: _Film, row: dict[str, str], where: str) -> None:
        cells = [row[column] for column in CORNERS]
        if any(cells):
            label = _NAMES.get(row["class_name"].casefold(), row["class_name"])
            film.boxes.append((where, label, row.get("rad_id", ""), cells))

    def finish(self) -> Scan:
        """Reads the headers and makes the films."""
        about = f"VinDr-CXR, {self.rule} of the readers in train"
        self.made.tasks[self.task] = Task("multilabel", self.task_labels, about=about)
        good = {}
        for image, film in sorted(self.films.items()):
            if film.fault or not image:
                fault = (
                    film.fault or f"{film.where}, image_id: expected an id, found none"
                )
                self.made.reject(rejected.BAD_VALUE, image, film.path, fault)
            elif safe_path(self.raw, film.path) is None:
                self.made.reject(rejected.OUTSIDE, image, film.path, film.where)
            else:
                good[image] = film
        headers = read_headers([self.raw / film.path for film in good.values()], HEADER)
        for (image, film), header in zip(good.items(), headers, strict=True):
            self._make(image, film, header or {})
        return self.made

    def _make(self, image: str, film: _Film, header: dict[str, str]) -> None:
        positive = agreed(list(film.votes.values()), self.rule)
        boxes, findings = [], []
        size = int_of(header.get("Columns", "")), int_of(header.get("Rows", ""))
        for where, label, reader, cells in film.boxes:
            try:
                if label not in LABELS:
                    raise ValueError(f"class_name: unknown label {label[:40]!r}")
                box = box_of(cells, *size, corners=True)
            except ValueError as error:
                self.made.warn("box left out", image, film.path, f"{where}: {error}")
                continue
            self.made.annotate(
                "boxes", image_id=image, label=label, reader=reader, box=box
            )
            if label in positive:
                boxes.append(box)
                findings.append(self._finding(label))
        split = "test" if film.split == "test" else carve_validate(image)
        if self.task == "vindr_kaggle":
            split = split_of_patient(image)
        codes = self._codes(positive)
        self.made.annotate("classes", task=self.task, image_id=image, positive=positive)
        self.made.films.append(
            FilmPlan(
                image_id=image,
                patient_id=image,
                study_id=image,
                split=split,
                path=film.path,
                view="PA",
                sex=sex_of(header.get("PatientSex", "")),
                age=age_of(header.get("PatientAge", "")) or -1.0,  # 0 is unknown
                labels=codes,
                label_source="none" if codes == UNLABELLED else "label_map",
                boxes=tuple(boxes),
                box_findings=tuple(findings),
                license=LICENSE,
                credit=CREDIT,
            )
        )

    def _codes(self, positive: list[str]) -> tuple[int, ...]:
        """The 14 codes; where readers agree on nothing, not even that, there are none."""
        codes, _ = self.label_map.labels("|".join(positive))
        if codes is None:
            return UNLABELLED
        if self.task == "vindr_labels" or NO_FINDING in positive:
            return codes
        return tuple(
            NOT_GIVEN if name in NOT_ASKED_BY_KAGGLE and code == NEGATIVE else code
            for name, code in zip(FINDINGS, codes, strict=True)
        )

    def _finding(self, label: str) -> int:
        """Which of the 14 findings a label is; -1 for none."""
        codes, _ = self.label_map.labels(label)
        return codes.index(POSITIVE) if codes and POSITIVE in codes else -1


def _rows(table: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows by column names in lower case; `other disease` is `other diseases`."""
    rows = [
        (line, {_column(name): cell for name, cell in row.items()})
        for line, row in numbered_rows(table)
    ]
    if rows or not table.name.startswith("annotations"):  # all may be normal
        need_columns(table, [row for _, row in rows], columns)
    return rows


def _column(name: str) -> str:
    return _NAMES.get(name.casefold(), name).casefold()
