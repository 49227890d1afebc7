"""PadChest: 16-bit films of a hospital in Alicante, 190 labels by physicians or a network.

`--raw` holds `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (or .csv.gz) and the PNG
films in any folders: `0/` to `50/` and `54/` as the archives have them (ImageDir), or flat.

    task          films
    padchest      labelled by physicians (MethodLabel Physician, about a quarter): figures on
                  PadChest are commonly given on these
    padchest_rnn  labelled by the network that was trained on them (RNN_model)

Both have the same labels: all that the table has, in lower case, in alphabetical order. A
cell is the text of a Python list whose items may have stray blanks, be empty, repeat or
differ in case. Of the items that are no finding, `exclude` leaves the film out, as does the
projection EXCLUDE; `suboptimal study` says nothing; `unchanged` says that what was there is
not told again, so that labels that are not named are not judged. `normal` counts where no
finding is named beside it. A cell that is `nan`, or has nothing but such items, is not a
normal film: it is in no task and gives no findings. The shipped map `padchest` tells which of
the 14 findings the labels are.

PA, AP and L are the views of their names; AP_horizontal is AP, COSTAL is OTHER, UNK unknown. The
age is the year of the study less that of birth. There is no published split: patients
go to train, validate or test (80/10/10) by a hash of PatientID. Reports are Spanish, reduced
to stems and without punctuation; they are not stored, for the extraction of findings from
text is English. About twenty films are missing from the archives or cut off: they are
rejected one by one. Films of 10 and 12 bits are scaled by the range of their values.

Reference: Bustos et al. 2020, arXiv 1901.07441; https://bimcv.cipf.es/bimcv-projects/padchest.
"""

import ast
import collections
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.film_files import find_films
from data_pipelines.label_map import LabelMap, find_label_map, read_label_map
from data_pipelines.plan import UNLABELLED, FilmPlan, Scan, split_of_patient
from data_pipelines.tables import (
    age_of,
    dicom_time,
    find_table,
    need_columns,
    numbered_rows,
    sex_of,
)
from medclip_jax.errors import UserError

TABLE = "PADCHEST_chest_x_ray_images_labels_160K*"
COLUMNS = [
    "ImageID",
    "ImageDir",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "MethodLabel",
    "Labels",
]
VIEW_OF: dict[str, str] = {
    "PA": "PA",
    "AP": "AP",
    "AP_horizontal": "AP",
    "L": "LATERAL",
    "COSTAL": "OTHER",
    "UNK": "UNKNOWN",
}
TASK_OF = {"Physician": "padchest", "RNN_model": "padchest_rnn"}
EXCLUDED = ("EXCLUDE", "exclude")
UNCHANGED, SUBOPTIMAL, NORMAL = "unchanged", "suboptimal study", "normal"
NOTHING = ("", "nan", "None")
LICENSE = "PadChest Dataset Research Use Agreement"
CREDIT = "PadChest, BIMCV and Hospital San Juan de Alicante, Bustos et al. 2020"


class PadChest(StudyBuilder):
    """TFDS builder for PadChest."""

    DESCRIPTION = "Chest radiographs of Hospital San Juan, Alicante, 2009-2017."
    NOTICE = (
        "Made from PadChest (Research Use Agreement): for research, and its films may "
        "not be given on."
    )
    HOMEPAGE = "https://bimcv.cipf.es/bimcv-projects/padchest/"
    CITATION = (
        "@article{bustos2020padchest, title={PadChest: a large chest x-ray image dataset "
        "with multi-label annotated reports}, author={Bustos, Aurelia and others}, "
        "journal={Medical Image Analysis}, year={2020}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the table, and the names of the files.

        Raises:
          UserError: the table or one of its columns is missing.
        """
        del options
        table = find_table(raw, TABLE)
        if table is None:
            raise UserError(f"expected {TABLE}.csv or .csv.gz in {raw}, found none")
        rows = numbered_rows(table)
        need_columns(table, [row for _, row in rows], COLUMNS)
        path = find_label_map("padchest", raw)
        assert path is not None  # it is shipped
        reading = _Reading(table.name, find_films(raw, ".png"), read_label_map(path))
        for line, row in rows:
            reading.film(line, row)
        return reading.finish()


def read_labels(cell: str) -> set[str]:
    """The items of a Labels cell, stripped and in lower case; empty ones are dropped.

    Raises:
      ValueError: neither empty nor the text of a list of texts.
    """
    if cell in NOTHING:
        return set()
    try:
        items = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(isinstance(x, str) for x in items):
        raise ValueError(f"Labels: expected the text of a list, found {cell[:40]!r}")
    return {item.strip().lower() for item in items} - {""}


class _Reading:
    def __init__(self, table: str, files: dict[str, str], label_map: LabelMap):
        self.made = Scan()
        self.table = table
        self.files = files
        self.label_map = label_map
        self.judged: list[tuple[str, str, set[str], bool]] = []
        self.unlabelled = 0
        self.excluded = 0
        self.unknown: collections.Counter = collections.Counter()

    def film(self, line: int, row: dict[str, str]) -> None:
        image = row["ImageID"]
        where = f"{self.table}, line {line}"
        try:
            labels = read_labels(row["Labels"])
            if row["MethodLabel"] not in TASK_OF:
                raise ValueError(
                    f"MethodLabel: expected {' or '.join(TASK_OF)}, found "
                    f"{row['MethodLabel'][:20]!r}"
                )
            if row["PatientID"] in NOTHING or row["StudyID"] in NOTHING:
                raise ValueError("expected a PatientID and a StudyID, found none")
        except ValueError as error:
            detail = f"{where}, {error}"
            self.made.reject(rejected.BAD_VALUE, image, image, detail)
            return
        if row["Projection"] == EXCLUDED[0] or EXCLUDED[1] in labels:
            self.excluded += 1
            return
        view = VIEW_OF.get(row["Projection"])
        if view is None:
            detail = (
                f"{where}, Projection: expected one of {', '.join(VIEW_OF)}; found "
            )
            detail += repr(row["Projection"][:20])
            self.made.reject(rejected.UNKNOWN_VIEW, image, image, detail)
            return
        path = self.files.get(image.removesuffix(".png"))
        if path is None:
            detail = f"{where}: no file of this name below --raw; its archive is "
            detail += f"{row['ImageDir'][:10]}.zip"
            self.made.reject(rejected.MISSING_FILE, image, image, detail)
            return
        if view == "UNKNOWN":
            self.made.warn("view not given", image, path, where)
        findings = labels - {UNCHANGED, SUBOPTIMAL}
        if findings != {NORMAL}:
            findings -= {NORMAL}
        if findings:
            task = TASK_OF[row["MethodLabel"]]
            self.judged.append((task, image, findings, UNCHANGED in labels))
        else:
            self.unlabelled += 1
        codes = self._codes(labels - {NORMAL} | findings) if findings else UNLABELLED
        date, birth = row["StudyDate_DICOM"], row["PatientBirth"]
        self.made.films.append(
            FilmPlan(
                image_id=image,
                patient_id=row["PatientID"],
                study_id=row["StudyID"],
                split=split_of_patient(row["PatientID"]),
                path=path,
                view=view,
                time=dicom_time(date, ""),
                sex=sex_of(row["PatientSex_DICOM"]),
                age=_age(date, birth),
                labels=codes,
                label_source="label_map" if findings else "none",
                license=LICENSE,
                credit=CREDIT,
            )
        )

    def _codes(self, labels: set[str]) -> tuple[int, ...]:
        """The 14 codes; `unchanged` and `suboptimal study` leave no negatives.

        The map does not know these two, and it denies nothing beside an unknown word.
        """
        codes, unknown = self.label_map.labels("|".join(sorted(labels)))
        self.unknown.update(set(unknown) - {UNCHANGED, SUBOPTIMAL})
        return codes or UNLABELLED

    def finish(self) -> Scan:
        """Adds tasks, their rows and the notes."""
        labels = sorted(set().union(*(found for _, _, found, _ in self.judged)))
        for method, task in TASK_OF.items():
            self.made.tasks[task] = Task(
                "multilabel", tuple(labels), about=f"PadChest, MethodLabel {method}"
            )
        for task, image, found, unchanged in self.judged:
            rest = (
                [label for label in labels if label not in found] if unchanged else []
            )
            self.made.annotate(
                "classes",
                task=task,
                image_id=image,
                positive=sorted(found),
                not_judged=rest,
            )
        for count, what in (
            (self.excluded, "films that PadChest excludes: left out"),
            (self.unlabelled, "films without a label: kept, in no task"),
        ):
            if count:
                self.made.notes.append(f"{count:,} {what}")
        for label, count in sorted(self.unknown.items()):
            detail = f"{count} films; it gives none of the 14 findings"
            self.made.warn("not in the label map", label[:60], "", detail)
        return self.made


def _age(date: str, birth: str) -> float:
    """Years, by the years of study and birth; -1 when not given or not believable."""
    try:
        return age_of(str(int(date[:4]) - int(float(birth))))
    except (ValueError, OverflowError):
        return -1.0
