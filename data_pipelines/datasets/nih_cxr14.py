"""NIH ChestX-ray14: 14 labels mined from reports, and 984 boxes.

`--raw` holds `Data_Entry_2017_v2020.csv` (read where both are) or `Data_Entry_2017.csv`,
`train_val_list.txt` and `test_list.txt`, perhaps `BBox_List_2017.csv`, and the PNG films in any
folders: `images/`, or `images_001/images/` to `images_012/images/`. Tables may be gzipped.

    task        labels
    nih_cxr14   the 14 labels; none of them for No Finding
    nih_google  Fracture, Pneumothorax, Airspace opacity, Nodule or mass: the labels that
                radiologists of Google gave 4,376 films again, where `*_NIH.csv` or
                `google2019_nih*.csv` with them is in `--raw`

Labels give the 14 findings by the shipped map `nih_cxr14`. The test split is the official one;
a tenth of the patients of train_val_list is validation, by a hash of their numbers. (Lists of
70/10/20, as MRM has them, are another split with another test.)

In both headers the commas within brackets part cells: widths stand under
`OriginalImage[Width`, boxes under `Bbox [x`, `y`, `w` and `h]`. The sizes are those before the
films were made 1024 x 1024; boxes are in pixels of the PNG. The 2017 table ends its lines
with a comma and has ages up to 414: those above 120 are none. Boxes call Infiltration
`Infiltrate`; their finding is that of the label map, and their own name, as the labels spell
it, stands in the side table `boxes`.

Reference: Wang et al. 2017, arXiv 1705.02315; Majkowska et al. 2020,
doi 10.1148/radiol.2019191293; https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

import collections
import re
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.film_files import box_of, find_films
from data_pipelines.findings import POSITIVE
from data_pipelines.label_map import LabelMap, find_label_map, read_label_map
from data_pipelines.plan import FilmPlan, Scan, carve_validate
from data_pipelines.tables import (
    age_of,
    find_table,
    need_columns,
    numbered_rows,
    sex_of,
)
from medclip_jax.errors import UserError

ENTRIES = ("Data_Entry_2017_v2020", "Data_Entry_2017")
COLUMNS = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
]
BOX_COLUMNS = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
BOXES = "BBox_List_2017"
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
GOOGLE = ("*_NIH", "google2019_nih*")
GOOGLE_LABELS = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
NO_FINDING = "No Finding"
LICENSE = "NIH Clinical Center: free to use, with attribution"
CREDIT = "NIH Clinical Center, ChestX-ray14, Wang et al. 2017"
Box = tuple[float, float, float, float]
_NAME = re.compile(r"(\d{8})_\d{3}\.png")


class NihCxr14(StudyBuilder):
    """TFDS builder for NIH ChestX-ray14."""

    DESCRIPTION = "Chest radiographs of the NIH Clinical Center with 14 mined labels."
    NOTICE = (
        "Made from NIH ChestX-ray14: cite Wang et al. 2017 and the NIH Clinical Center."
    )
    HOMEPAGE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    CITATION = (
        "@inproceedings{wang2017chestxray, title={ChestX-ray8: hospital-scale chest "
        "X-ray database and benchmarks}, author={Wang, Xiaosong and others}, "
        "booktitle={CVPR}, year={2017}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads tables and lists, and the size of the films that have boxes.

        Raises:
          UserError: a table, a list or a column is missing.
        """
        del options
        return _Reading(raw).scan()


def read_lists(raw: Path) -> dict[str, set[str]]:
    """The official split: film -> "train", "test", or both where the lists disagree.

    Raises:
      UserError: a list is missing or is no text.
    """
    found: dict[str, set[str]] = collections.defaultdict(set)
    for name, split in LISTS.items():
        try:
            lines = (raw / name).read_text("utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read {raw / name} ({type(error).__name__}); expected a film's "
                "name a line. The lists are beside the images on the dataset's page"
            ) from None
        for line in lines:
            found[line].add(split)
    return found


class _Reading:
    def __init__(self, raw: Path):
        self.raw = raw
        self.made = Scan()
        self.made.tasks["nih_cxr14"] = Task(
            "multilabel", LABELS, about="ChestX-ray14, Finding Labels"
        )
        self.label_map = _label_map(raw)
        self.files = find_films(raw, ".png")
        self.boxes: dict[str, list[tuple[str, Box]]] = collections.defaultdict(list)

    def scan(self) -> Scan:
        table = next((p for name in ENTRIES if (p := find_table(self.raw, name))), None)
        if table is None:
            raise UserError(
                f"expected Data_Entry_2017_v2020.csv or Data_Entry_2017.csv in "
                f"{self.raw}, found neither; --raw is the folder with the tables"
            )
        splits = read_lists(self.raw)
        rows = numbered_rows(table)
        need_columns(table, [row for _, row in rows], COLUMNS)
        self._read_boxes()
        for line, row in rows:
            where = f"{table.name}, line {line}"
            try:
                self._film(row, where, splits.get(row["Image Index"], set()))
            except ValueError as error:
                image = row["Image Index"]
                self.made.reject(rejected.BAD_VALUE, image, image, f"{where}, {error}")
        self._read_google()
        return self.made

    def _film(self, row: dict[str, str], where: str, splits: set[str]) -> None:
        image = row["Image Index"]
        name = _NAME.fullmatch(image)
        if not name:
            raise ValueError("Image Index: expected a name such as 00000001_000.png")
        patient = name.group(1)
        if not row["Patient ID"].isdecimal() or int(row["Patient ID"]) != int(patient):
            raise ValueError(
                f"Patient ID: expected {int(patient)} as in the name, found "
                f"{row['Patient ID'][:20]!r}"
            )
        labels = read_labels(row["Finding Labels"])
        if len(splits) != 1:
            reason = rejected.TWO_SPLITS if splits else rejected.BAD_VALUE
            detail = (
                f"{where}: in {'both' if splits else 'neither'} of {', '.join(LISTS)}"
            )
            self.made.reject(reason, image, image, detail)
            return
        (split,) = splits
        path = self.files.get(image.removesuffix(".png"))
        if path is None:
            detail = f"{where}: no file of this name below --raw"
            self.made.reject(rejected.MISSING_FILE, image, image, detail)
            return
        age = age_of(row["Patient Age"])
        if age < 0:
            detail = f"{where}: Patient Age is {row['Patient Age'][:10]!r}"
            self.made.warn("age not believable", image, path, detail)
        view = row["View Position"].upper()
        if view not in ("AP", "PA"):
            detail = f"{where}: View Position is {view[:20]!r}"
            self.made.warn("view not given", image, path, detail)
        codes, _ = self.label_map.labels(row["Finding Labels"])
        boxes = self.boxes.get(image, [])
        follow_up = row["Follow-up #"]
        self.made.annotate("classes", task="nih_cxr14", image_id=image, positive=labels)
        for label, box in boxes:
            self.made.annotate("boxes", image_id=image, label=label, reader="", box=box)
        self.made.films.append(
            FilmPlan(
                image_id=image,
                patient_id=patient,
                study_id=image.removesuffix(".png"),
                split="test" if split == "test" else carve_validate(patient),
                path=path,
                view=view if view in ("AP", "PA") else "UNKNOWN",
                study_index=int(follow_up) if follow_up.isdecimal() else -1,
                sex=sex_of(row["Patient Gender"]),
                age=age,
                labels=codes,
                label_source="label_map",
                boxes=tuple(box for _, box in boxes),
                box_findings=tuple(self._finding(label) for label, _ in boxes),
                license=LICENSE,
                credit=CREDIT,
            )
        )

    def _finding(self, label: str) -> int:
        """Which of the 14 findings a label is; -1 for none."""
        codes, _ = self.label_map.labels(label)
        return codes.index(POSITIVE) if codes and POSITIVE in codes else -1

    def _read_boxes(self) -> None:
        table = find_table(self.raw, BOXES)
        rows = numbered_rows(table) if table else []
        if table is None or not rows:
            self.made.notes.append(f"no {BOXES}.csv, or no row in it: no boxes")
            return
        need_columns(table, [row for _, row in rows], BOX_COLUMNS)
        for line, row in rows:
            image, label = row["Image Index"], row["Finding Label"]
            label = "Infiltration" if label == "Infiltrate" else label
            path = self.files.get(image.removesuffix(".png"), "")
            try:
                if label not in LABELS:
                    raise ValueError(
                        f"Finding Label: expected one of the 14, found {label[:30]!r}"
                    )
                cells = [row[column] for column in BOX_COLUMNS[2:]]
                self.boxes[image].append((label, box_of(cells, *self._size(path))))
            except ValueError as error:
                detail = f"{table.name}, line {line}: {error}"
                self.made.warn("box left out", image, path, detail)

    def _size(self, path: str) -> tuple[int, int]:
        """Width and height of a film; 0 where it cannot be read, as conversion finds."""
        try:
            with Image.open(self.raw / path) as film:
                return film.size
        except OSError:
            return 0, 0

    def _read_google(self) -> None:
        table = next((p for name in GOOGLE if (p := find_table(self.raw, name))), None)
        if table is None:
            return
        rows = numbered_rows(table)
        need_columns(table, [r for _, r in rows], ["Image Index", *GOOGLE_LABELS])
        self.made.tasks["nih_google"] = Task(
            "multilabel", GOOGLE_LABELS, about="ChestX-ray14, relabelled by Google"
        )
        known = {film.image_id for film in self.made.films}
        for line, row in rows:
            image = row["Image Index"]
            cells = [row[label] for label in GOOGLE_LABELS]
            if image not in known or not {"YES", "NO"}.issuperset(cells):
                detail = (
                    f"{table.name}, line {line}: expected a film of the set, and YES "
                )
                detail += f"or NO in {', '.join(GOOGLE_LABELS)}"
                self.made.warn("labels left out", image, "", detail)
                continue
            positive = [name for name in GOOGLE_LABELS if row[name] == "YES"]
            self.made.annotate(
                "classes", task="nih_google", image_id=image, positive=positive
            )


def read_labels(cell: str) -> list[str]:
    """The labels of a cell, joined by `|`; none for No Finding.

    Raises:
      ValueError: an unknown label, an empty cell, or No Finding beside a finding.
    """
    words = [word.strip() for word in cell.split("|")]
    if words == [NO_FINDING]:
        return []
    if unknown := [word for word in words if word not in LABELS]:
        raise ValueError(
            f"Finding Labels: expected {NO_FINDING} or some of the 14 labels, found "
            f"{unknown[0][:30]!r}"
        )
    return sorted(set(words))


def _label_map(raw: Path) -> LabelMap:
    path = find_label_map("nih_cxr14", raw)
    assert path is not None  # it is shipped
    return read_label_map(path)
