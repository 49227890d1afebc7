"""CheXpert v1.0 and v1.0-small: films and labels, no reports.

`--raw` is the folder with train.csv and valid.csv, or the one above it, or the folder
into which the four AIMI batches were unpacked (`CheXpert-v1.0 batch 1 (validate & csv)`
and so on; the train batches hold patient folders without a `train/` above). Labels of the
test set are read too where its films are there: the first of test.csv, groundtruth.csv
(the official ones, by study), test_labels.csv (CheXlocalize) and filter_test_labels.csv,
with a column Path (a film) or Study (all its films).

A path in a table may begin with `CheXpert-v1.0.../`, which is dropped; the split is that
of the table (valid.csv -> validate). Labels are taken by name, since the tables differ in their order
(in those of single readers Lung Lesion and Lung Opacity change places); age 0 is unknown, LL and
RL are laterals. Study K of a patient is taken as the K-th.

Reference: Irvin et al. 2019, arXiv 1901.07031; tensorflow/datasets, chexpert.py;
rajpurkarlab/cheXpert-test-set-labels.
"""

import os
import re
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.findings import FINDINGS
from data_pipelines.plan import FilmPlan, Scan, safe_path
from data_pipelines.tables import (
    age_of,
    label_columns,
    labels_of,
    need_columns,
    read_rows,
    sex_of,
)
from medclip_jax.errors import UserError

SPLIT_OF_TABLE: dict[str, str] = {
    "train": "train",
    "valid": "validate",
    "test": "test",
}
NAMES_OF_TABLE: dict[str, tuple[str, ...]] = {
    "train": ("train.csv",),
    "valid": ("valid.csv",),
    "test": (
        "test.csv",
        "groundtruth.csv",
        "test_labels.csv",
        "filter_test_labels.csv",
    ),
}
FRONTAL: dict[str, str] = {
    "AP": "AP",
    "PA": "PA",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "": "UNKNOWN",
}
LICENSE = "Stanford University Dataset Research Use Agreement"
CREDIT = "CheXpert, Irvin et al. 2019"
_PATH = re.compile(
    r"(?:CheXpert-v1\.0[^/]*/)?((train|valid|test)/(patient\d+)/study(\d+))(/.+)?"
)


class Chexpert(StudyBuilder):
    """TFDS builder for CheXpert."""

    FOR_PRETRAINING = True
    PATIENT_IN_PATH = r"(?<![0-9A-Za-z])patient\d{5}(?!\d)"
    DESCRIPTION = "Chest radiographs of Stanford Hospital with 14 labels, 2002-2017."
    NOTICE = (
        "Made from CheXpert (Stanford University Dataset Research Use Agreement): "
        "for research, not for commercial use."
    )
    HOMEPAGE = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    CITATION = (
        "@inproceedings{irvin2019chexpert, title={CheXpert: A large chest radiograph "
        "dataset with uncertainty labels and expert comparison}, author={Irvin, Jeremy "
        "and others}, booktitle={AAAI}, year={2019}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads train.csv, valid.csv and the test set's labels.

        Raises:
          UserError: no table, a table without its columns, no film where it says.
        """
        del options
        tables = find_tables(raw)
        if "train" not in tables and "valid" not in tables:
            raise UserError(
                f"expected train.csv and valid.csv in {raw} or in a folder "
                "CheXpert-v1.0* below it, found neither; --raw is the root of CheXpert"
            )
        reading = _Reading(raw, [path.parent for path in tables.values()])
        for name in sorted(set(SPLIT_OF_TABLE) - set(tables)):
            reading.made.notes.append(f"no {name}.csv")
        for name, path in tables.items():
            if name == "test" and not reading.has_test_films():
                reading.made.notes.append(f"{path.name}: no films of the test set")
                continue
            reading.table(path, SPLIT_OF_TABLE[name])
        if not reading.made.films:
            raise UserError(
                f"the tables in {raw} name no film that is there, for example "
                f"{reading.example or '(no rows)'}; are the images unpacked below --raw?"
            )
        return reading.made


def find_tables(raw: Path) -> dict[str, Path]:
    """The tables by name, in the raw folder or in one CheXpert folder below it."""
    found = {}
    folders = [raw, *sorted(p for p in raw.glob("CheXpert-v1.0*") if p.is_dir())]
    for name, files in NAMES_OF_TABLE.items():
        places = (folder / file for file in files for folder in folders)
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            found[name] = path
    return found


class _Reading:
    def __init__(self, raw: Path, table_folders: list[Path]):
        self.raw = raw
        self.made = Scan()
        self.example = ""
        batches = [p for p in raw.glob("CheXpert-v1.0*") if p.is_dir()]
        self.homes = [
            "" if home == raw else home.relative_to(raw).as_posix() + "/"
            for home in dict.fromkeys([*table_folders, raw, *sorted(batches)])
        ]
        self.home_of: dict[str, str | None] = {}

    def has_test_films(self) -> bool:
        return any((self.raw / home / "test").is_dir() for home in self.homes)

    def table(self, path: Path, split: str) -> None:
        """Adds the films of one table."""
        rows = read_rows(path)
        if not rows:
            self.made.notes.append(f"{path.name} has a header and no rows")
            return
        key = "Study" if "Study" in rows[0] and "Path" not in rows[0] else "Path"
        need_columns(path, rows, [key])
        columns = label_columns(rows[0])
        missing = [f for at, f in enumerate(FINDINGS) if at not in columns]
        if missing:
            raise UserError(f"{path}: missing the columns {', '.join(missing)}")
        for row in rows:
            self._row(row, row[key].replace("\\", "/"), columns, split)

    def _row(
        self, row: dict[str, str], cell: str, columns: dict[int, str], split: str
    ) -> None:
        match = _PATH.fullmatch(cell.rstrip("/"))
        if match is None or safe_path(self.raw, cell) is None:
            reason = rejected.BAD_VALUE if match is None else rejected.OUTSIDE
            detail = "expected [CheXpert-v1.0*/]{train,valid,test}/patientN/studyK/..."
            self.made.reject(reason, cell[:80] or "(no id)", cell[:200], detail)
            return
        study_path, _, patient, number, film = match.groups()
        self.example = self.example or study_path + (film or "")
        try:
            labels = labels_of(row, columns)
        except ValueError as error:
            self.made.reject(rejected.BAD_VALUE, study_path, cell, str(error))
            return
        home = self._home(study_path)
        if home is None:
            self.made.reject(rejected.MISSING_FILE, study_path + (film or ""), cell)
            return
        found = [film[1:]] if film else self._films_of(home)
        if not found:
            self.made.reject(rejected.MISSING_FILE, study_path, cell, "no film")
        for name in found:
            image_id = f"{study_path}/{name}"
            view = self._view(row, name)
            if view is None:
                detail = (
                    f"Frontal/Lateral is {row.get('Frontal/Lateral', '')[:20]!r}, "
                    f"AP/PA is {row.get('AP/PA', '')[:20]!r}"
                )
                self.made.reject(rejected.UNKNOWN_VIEW, image_id, cell, detail)
                continue
            if view == "UNKNOWN":
                self.made.warn("view not given", image_id, cell)
            self.made.films.append(
                FilmPlan(
                    image_id=image_id,
                    patient_id=patient,
                    study_id=f"{patient}/study{number}",
                    split=split,
                    path=f"{home}/{name}",
                    view=view,
                    study_index=int(number),
                    sex=sex_of(row.get("Sex", "")),
                    age=age_of(row.get("Age", "")) or -1.0,  # 0 is unknown
                    labels=labels,
                    label_source="columns",
                    license=LICENSE,
                    credit=CREDIT,
                )
            )

    def _home(self, study_path: str) -> str | None:
        """The study's folder relative to the raw folder, with or without train/."""
        part, patient, study = study_path.split("/")
        key = f"{part}/{patient}"
        if key not in self.home_of:
            places = [home + key for home in self.homes]
            places += [home + patient for home in self.homes if part == "train"]
            self.home_of[key] = next(
                (p for p in places if os.path.isdir(self.raw / p)), None
            )
        home = self.home_of[key]
        return None if home is None else f"{home}/{study}"

    def _films_of(self, folder: str) -> list[str]:
        return sorted(p.name for p in (self.raw / folder).glob("view*_*.jpg"))

    @staticmethod
    def _view(row: dict[str, str], name: str) -> str | None:
        side = row.get("Frontal/Lateral", "")
        if not side:  # tables of the test set have no such column
            match = re.search(r"_(frontal|lateral)\.", name)
            side = match.group(1) if match else ""
        if side.casefold() == "lateral":
            return "LATERAL"
        if side.casefold() == "frontal":
            return FRONTAL.get(row.get("AP/PA", "").upper())
        return None
