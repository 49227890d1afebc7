"""MURA 1.1 and 1.0: studies of an upper limb, normal or abnormal.

`--raw` is `MURA-v1.1/` or the folder above it. Its lists have no header:
`train_image_paths.csv` and `valid_image_paths.csv` (a film a line, the root's name at its
front) and `train_labeled_studies.csv`, `valid_labeled_studies.csv` (a study's folder with a
slash at its end, and 1 or 0). Version 1.0 has `train.csv` and `valid.csv` instead, with a
film and its label a line. Only what they list is read: some copies hold `._image1.png`.

    task           label     unit
    mura_abnormal  Abnormal  study

The label belongs to the study, and its films inherit it; scores of a study's films are to be
averaged (Rajpurkar et al. average probabilities; ConVIRT averages over a patient's films).
A study's folder tells the label again (`study1_positive`): where the two differ the study is
left out. MURA says nothing of the 14 findings; the view is OTHER, as of all that is no chest.

The published validation split is the test split here, as in ConVIRT: the real test split
was never given away. A tenth of the train patients is validation, by a hash of their ids.
Studies count anew for each patient and body part, so a study is `patient/part/study`.

Films with a side 2.5 times the other are rejected by the checks of `prepare`, which are
made for chests: fingers may need a higher --max-rejected-percent.

Reference: Rajpurkar et al. 2018, arXiv 1712.06957; Zhang et al. 2022 (ConVIRT),
arXiv 2010.00747, section 5.
"""

import collections
import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.plan import UNLABELLED, FilmPlan, Scan, carve_validate, safe_path
from medclip_jax.errors import UserError

TASK = "mura_abnormal"
SPLITS = ("train", "valid")
LICENSE = "Stanford University Dataset Research Use Agreement"
CREDIT = "MURA, Rajpurkar et al. 2018"
_STUDY = re.compile(
    r"(?:MURA-v1\.[01]/)?"
    r"((train|valid)/(XR_[A-Z]+)/(patient\d+)/(study\d+)(?:_(positive|negative))?)"
)


@dataclasses.dataclass(frozen=True)
class _Study:
    """A study as a path in a list names it."""

    folder: str  # below the root, without a slash at its end
    split: str
    part: str
    patient: str
    number: str
    suffix: str  # "positive", "negative" or ""


class Mura(StudyBuilder):
    """TFDS builder for MURA."""

    DESCRIPTION = "Radiographs of the upper limb, normal or abnormal by study."
    NOTICE = (
        "Made from MURA (Stanford University Dataset Research Use Agreement): for "
        "research, not for commercial use."
    )
    HOMEPAGE = "https://stanfordmlgroup.github.io/competitions/mura/"
    CITATION = (
        "@inproceedings{rajpurkar2018mura, title={MURA: Large Dataset for Abnormality "
        "Detection in Musculoskeletal Radiographs}, author={Rajpurkar, Pranav and "
        "others}, booktitle={MIDL}, year={2018}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the lists of either version.

        Raises:
          UserError: a list is missing, is no CSV, or has another number of columns.
        """
        del options
        root = next((p for p in sorted(raw.glob("MURA-v1.[01]")) if p.is_dir()), raw)
        reading = _Reading(raw, root)
        for split in SPLITS:
            if (root / f"{split}_labeled_studies.csv").is_file():
                reading.labels(root / f"{split}_labeled_studies.csv")
                reading.films(root / f"{split}_image_paths.csv", 1)
            elif (root / f"{split}.csv").is_file():
                reading.labels(root / f"{split}.csv")
                reading.films(root / f"{split}.csv", 2)
            else:
                raise UserError(
                    f"expected {split}_labeled_studies.csv and {split}_image_paths.csv "
                    f"(or {split}.csv of version 1.0) in {root}, found neither; --raw is "
                    "MURA-v1.1/ or the folder above it"
                )
        reading.finish()
        return reading.made


class _Reading:
    def __init__(self, raw: Path, root: Path):
        self.root, self.home = root, root.relative_to(raw).as_posix()
        self.made = Scan()
        about = "the study's label; scores of its films are averaged"
        self.made.tasks[TASK] = Task("binary", ("Abnormal",), "study", about)
        self.label_of: dict[str, set[str]] = collections.defaultdict(set)
        self.films_of: collections.Counter = collections.Counter()

    def labels(self, path: Path) -> None:
        """Reads studies, or films, with labels."""
        for where, (cell, label) in _rows(path, 2):
            study = self._study(where, cell)
            if study is None:
                continue
            told = {"positive": "1", "negative": "0"}.get(study.suffix, label)
            if label not in ("0", "1") or label != told:
                detail = f"{where}: expected 1 (abnormal) or 0, as the folder's name "
                detail += f"has it, found {label[:20]!r}"
                self.made.reject(rejected.BAD_VALUE, study.folder, cell, detail)
                self.label_of[study.folder].add("bad")
                continue
            self.label_of[study.folder].add(label)

    def films(self, path: Path, columns: int) -> None:
        """Reads films whose studies' labels are known."""
        for where, (cell, *_) in _rows(path, columns):
            if columns == 2 and _STUDY.match(cell) is None:
                continue  # rejected with its label
            study = self._study(where, cell)
            name = cell.rsplit("/", 1)[-1]
            if study is None:
                continue
            self.films_of[study.folder] += 1
            labels = self.label_of.get(study.folder, set())
            if labels not in ({"0"}, {"1"}):
                found = "one that was refused" if "bad" in labels else "both"
                detail = f"{where}: expected one label of its study, found "
                detail += found if labels else "none"
                film = f"{study.folder}/{name}"
                self.made.reject(rejected.BAD_VALUE, film, cell, detail)
                continue
            self._film(study, name, "1" in labels)

    def finish(self) -> None:
        """Notes what has labels and no films."""
        for folder in sorted(set(self.label_of) - set(self.films_of)):
            self.made.warn("study without films", folder)
        if not self.made.films:
            raise UserError(f"the lists in {self.root} name no film with a label")

    def _study(self, where: str, cell: str) -> _Study | None:
        match = _STUDY.match(cell)
        if match is None or safe_path(self.root, cell.rstrip("/")) is None:
            reason = rejected.BAD_VALUE if match is None else rejected.OUTSIDE
            detail = f"{where}: expected [MURA-v1.1/]{{train,valid}}/XR_PART/patientN/"
            detail += "studyK_{positive,negative}/..."
            self.made.reject(reason, cell[:80] or "(no path)", cell[:200], detail)
            return None
        return _Study(*(group or "" for group in match.groups()))

    def _film(self, study: _Study, name: str, abnormal: bool) -> None:
        image_id = f"{study.folder}/{name}"
        split = "test" if study.split == "valid" else carve_validate(study.patient)
        positive = ["Abnormal"] if abnormal else []
        self.made.annotate("classes", task=TASK, image_id=image_id, positive=positive)
        self.made.films.append(
            FilmPlan(
                image_id=image_id,
                patient_id=study.patient,
                study_id=f"{study.patient}/{study.part}/{study.number}",
                split=split,
                path=image_id if self.home == "." else f"{self.home}/{image_id}",
                view="OTHER",
                labels=UNLABELLED,
                license=LICENSE,
                credit=CREDIT,
            )
        )


def _rows(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV without header, each with its file and line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(enumerate(csv.reader(file, strict=True), 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}); expected a UTF-8 CSV file"
        ) from None
    for number, row in rows:
        cells = [cell.strip().replace("\\", "/") for cell in row]
        if not any(cells):
            continue
        if len(cells) != columns:
            raise UserError(
                f"{path}, line {number}: expected {columns} columns without a header, "
                f"found {len(cells)}"
            )
        yield f"{path.name}, line {number}", cells
