"""MIMIC-CXR-JPG or MIMIC-CXR, with reports (PhysioNet, credentialed access).

Read from the raw folder, each table as .csv or .csv.gz:

    mimic-cxr-2.0.0-metadata    views, sizes, dates
    mimic-cxr-2.0.0-split       train, validate, test
    mimic-cxr-2.0.0-chexpert    or -negbio: labels of a study (--labels)
    mimic-cxr-2.1.0-test-set-labeled    if there: a radiologist's labels, which replace
                                those of the same studies (--test-labels none: they
                                do not)
    [files/]p10/p10000032/s50414267/DICOM_ID.jpg
    reports: s50414267.txt beside the study's folder, the same below
    mimic-cxr-reports/, or in the study's folder; or all that below --reports DIR

The DICOM release MIMIC-CXR (2.0.0, 2.1.0) has no such tables but

    cxr-record-list             dicom_id, subject_id and study_id of each film
    [files/]p10/p10000032/s50414267/DICOM_ID.dcm

Views, sizes and times then come from the headers; with the tables of MIMIC-CXR-JPG put
beside it, from those. cxr-study-list names the reports where they are looked for anyway;
cxr-provider-list is not used. Its films have not the gray levels of the JPG release (see
data_pipelines/images/dicom.py): do not train on the one and evaluate on the other.

Labels are of the study and so of each of its films. A study without a row in the label
table (8 of the release) is labelled from its report; a row of blanks means that
nothing was mentioned. Times are seconds since 0001-01-01 in the shifted calendar of the
patient. A blank ViewPosition is kept as UNKNOWN and listed in warnings.csv; a value
outside the published list is rejected.

Reference: https://physionet.org/content/mimic-cxr-jpg/2.1.0/ ; views as in MIT-LCP/
mimic-cxr, notebooks/generate-stats-from-paper.ipynb.
"""

import argparse
import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.dicom_headers import read_headers
from data_pipelines.findings import FINDINGS
from data_pipelines.plan import FilmPlan, ReportPlan, Scan, split_of_patient
from data_pipelines.tables import (
    dicom_time,
    find_table,
    int_of,
    label_columns,
    labels_of,
    need_columns,
    read_rows,
    split_of,
)
from medclip_jax.errors import UserError

OTHER_VIEWS = (
    "LPO, RAO, RPO, LAO, AP AXIAL, XTABLE LATERAL, AP LLD, PA LLD, AP RLD, PA RLD, "
    "L5 S1, SWIMMERS"
)
VIEW_OF: dict[str, str] = {
    "": "UNKNOWN",
    "AP": "AP",
    "PA": "PA",
    "LATERAL": "LATERAL",
    "LL": "LATERAL",
    **dict.fromkeys(OTHER_VIEWS.split(", "), "OTHER"),
}
LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"
CREDIT = "MIMIC-CXR-JPG, Johnson et al. 2019"
REPORT_CREDIT = "MIMIC-CXR, Johnson et al. 2019"
IMAGE_PLACES = [
    (prefix, suffix)
    for prefix in ("files/", "")
    for suffix in (".jpg", ".jpeg", ".png", ".dcm")
]
REPORT_PLACES = (
    "files/{group}/{subject}/{study}.txt",
    "mimic-cxr-reports/files/{group}/{subject}/{study}.txt",
    "{group}/{subject}/{study}.txt",
    "mimic-cxr-reports/{group}/{subject}/{study}.txt",
    "files/{group}/{subject}/{study}/{study}.txt",
    "{group}/{subject}/{study}/{study}.txt",
)
HEADER_TAGS = ("ViewPosition", "StudyDate", "StudyTime", "Rows", "Columns")
PROBES = 200


class MimicCxr(StudyBuilder):
    """TFDS builder for MIMIC-CXR-JPG and its reports."""

    FOR_PRETRAINING = True
    PATIENT_IN_PATH = r"(?<![0-9A-Za-z])p1\d{7}(?=[/\\])"
    PATIENT_COLUMN = ("subject_id", "p")
    DESCRIPTION = "Chest radiographs and reports of one US hospital, 2011-2016."
    NOTICE = (
        "Made from MIMIC-CXR (PhysioNet Credentialed Health Data License): share "
        "neither the data nor what can give it back with anyone without a licence."
    )
    HOMEPAGE = "https://physionet.org/content/mimic-cxr-jpg/"
    CITATION = (
        "@misc{johnson2019mimiccxrjpg, title={MIMIC-CXR-JPG, a large publicly "
        "available database of labeled chest radiographs}, author={Johnson, Alistair "
        "E. W. and others}, year={2019}, eprint={1901.07042}}"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--labels",
            choices=("chexpert", "negbio", "report"),
            default="chexpert",
            help="mimic_cxr: the label table, or report: by our own extraction "
            "(default: %(default)s)",
        )
        parser.add_argument(
            "--test-labels",
            choices=("auto", "none"),
            default="auto",
            help="mimic_cxr: use the radiologist's labels of the 2.1.0 test set when "
            "they are there (default: %(default)s)",
        )
        parser.add_argument(
            "--reports",
            type=Path,
            metavar="DIR",
            help="mimic_cxr: where the reports are, when not below --raw",
        )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the release's tables.

        Raises:
          UserError: neither metadata nor record list, no film where they say, a table
            without its columns.
        """
        return _Reading(raw, options).scan()


class _Reading:
    def __init__(self, raw: Path, options: Any):
        self.raw = raw
        self.options = options
        self.made = Scan(reports_root=options.reports)
        metadata = find_table(raw, "mimic-cxr-*-metadata")
        path = metadata or find_table(raw, "cxr-record-list")
        if path is None:
            raise UserError(
                f"expected mimic-cxr-2.0.0-metadata.csv (or .csv.gz) in {raw}, or "
                "cxr-record-list.csv beside DICOM files, found neither; --raw is the "
                "root of MIMIC-CXR-JPG or MIMIC-CXR, where its tables are"
            )
        self.rows = read_rows(path)
        wanted = ["dicom_id", "subject_id", "study_id"]
        from_table = ["ViewPosition", "StudyDate"] if metadata else []
        need_columns(path, self.rows, wanted + from_table)
        self.place = self._find_images()
        if metadata is None:
            self._read_headers(path)
        self.splits = self._read_splits()
        self.labels = self._read_labels()

    def scan(self) -> Scan:
        prefix, suffix = self.place
        studies: dict[str, FilmPlan] = {}
        for row in self.rows:
            film = self._film(row, prefix, suffix)
            if film is not None:
                self.made.films.append(film)
                known = studies.get(film.study_id)
                if known is None or film.image_id < known.image_id:
                    studies[film.study_id] = film
        self._reports(studies)
        self._blank_studies(studies)
        return self.made

    def _read_splits(self) -> dict[str, str]:
        path = find_table(self.raw, "mimic-cxr-*-split")
        if path is None:
            self.made.notes.append(
                "no mimic-cxr-2.0.0-split table: 80/10/10 by a hash of the patient"
            )
            return {}
        rows = read_rows(path)
        need_columns(path, rows, ["dicom_id", "split"])
        return {row["dicom_id"]: row["split"] for row in rows}

    def _read_labels(self) -> dict[str, tuple[int, ...]]:
        labels: dict[str, tuple[int, ...]] = {}
        if self.options.labels != "report":
            path = find_table(self.raw, f"mimic-cxr-*-{self.options.labels}")
            if path is None and self.options.labels == "negbio":
                raise UserError(
                    f"--labels negbio: expected mimic-cxr-2.0.0-negbio.csv (or .csv.gz) "
                    f"in {self.raw}, found none; leave --labels out, or say report"
                )
            if path is None:
                self.made.notes.append(
                    f"no mimic-cxr-2.0.0-{self.options.labels} table: films are "
                    "labelled from the reports"
                )
            else:
                labels.update(self._label_table(path))
        path = find_table(self.raw, "mimic-cxr-*-test-set-labeled")
        if path is not None and self.options.test_labels == "auto":
            by_hand = self._label_table(path)
            labels.update(by_hand)
            self.made.notes.append(
                f"{len(by_hand):,} studies carry a radiologist's labels ({path.name})"
            )
        return labels

    def _label_table(self, path: Path) -> dict[str, tuple[int, ...]]:
        rows = read_rows(path)
        need_columns(path, rows, ["study_id"])
        columns = label_columns(rows[0])
        missing = [f for at, f in enumerate(FINDINGS) if at not in columns]
        if missing:
            raise UserError(f"{path}: missing the columns {', '.join(missing)}")
        labels: dict[str, tuple[int, ...]] = {}
        differing = set()
        for row in rows:
            study = study_name(row["study_id"])
            try:
                made = labels_of(row, columns)
            except ValueError as error:
                self.made.reject(rejected.BAD_VALUE, study, path.name, str(error))
                continue
            if labels.setdefault(study, made) != made:
                differing.add(study)
        for study in sorted(differing):
            del labels[study]
            detail = "rows with different labels; none is used"
            self.made.reject(rejected.DUPLICATE_ID, study, path.name, detail)
        return labels

    def _find_images(self) -> tuple[str, str]:
        """Whether there is files/, and what the films end in."""
        step = max(1, len(self.rows) // PROBES)
        probes = [_Place(row) for row in self.rows[::step]]
        hits: collections.Counter = collections.Counter()
        for prefix, suffix in IMAGE_PLACES:
            for place in probes:
                path = self.raw / f"{prefix}{place.folder}/{place.dicom_id}{suffix}"
                hits[prefix, suffix] += path.is_file()
        (prefix, suffix), count = hits.most_common(1)[0]
        if not count:
            example = f"files/{probes[0].folder}/{probes[0].dicom_id}.jpg"
            raise UserError(
                f"of {len(probes)} films tried, none is below {self.raw}, for example "
                f"{example} (with or without files/); is --raw the root of "
                "MIMIC-CXR-JPG or MIMIC-CXR, and is the download complete?"
            )
        return prefix, suffix

    def _read_headers(self, path: Path) -> None:
        """Fills the rows of a record list with what the films' headers say."""
        prefix, suffix = self.place
        if suffix != ".dcm":
            raise UserError(
                f"expected mimic-cxr-2.0.0-metadata.csv (or .csv.gz) beside {path}, "
                f"found none; films that end in {suffix} tell neither view nor date"
            )
        places = [_Place(row) for row in self.rows]
        paths = [self.raw / f"{prefix}{p.folder}/{p.dicom_id}.dcm" for p in places]
        for row, header in zip(self.rows, read_headers(paths, HEADER_TAGS)):
            row.update(header or dict.fromkeys(HEADER_TAGS, ""))
        self.made.notes.append(
            f"{path.name}: views, sizes and times are from the DICOM headers"
        )

    def _film(self, row: dict[str, str], prefix: str, suffix: str) -> FilmPlan | None:
        place = _Place(row)
        image_id = place.dicom_id
        path = f"{prefix}{place.folder}/{image_id}{suffix}"
        if not (image_id and row["subject_id"] and row["study_id"]):
            detail = "dicom_id, subject_id or study_id is blank"
            self.made.reject(rejected.BAD_VALUE, image_id or "(no id)", path, detail)
            return None
        view = VIEW_OF.get(row["ViewPosition"].upper())
        if view is None:
            detail = f"ViewPosition is {row['ViewPosition'][:30]!r}"
            self.made.reject(rejected.UNKNOWN_VIEW, image_id, path, detail)
            return None
        if view == "UNKNOWN":
            self.made.warn("view not given", image_id, path)
        split = split_of_patient(place.subject)
        if self.splits:
            split = split_of(self.splits.get(image_id, "")) or ""
        if not split:
            found = self.splits.get(image_id)
            detail = f"split is {found!r}" if found else "no row in the split table"
            self.made.reject(rejected.BAD_VALUE, image_id, path, detail)
            return None
        labels = self.labels.get(place.study)
        return FilmPlan(
            image_id=image_id,
            patient_id=place.subject,
            study_id=place.study,
            split=split,
            path=path,
            view=view,
            time=dicom_time(row["StudyDate"], row.get("StudyTime", "")),
            labels=labels,
            label_source="none" if labels is None else "columns",
            original_height=int_of(row.get("Rows", "")),
            original_width=int_of(row.get("Columns", "")),
            license=LICENSE,
            credit=CREDIT if suffix != ".dcm" else REPORT_CREDIT,
        )

    def _reports(self, studies: dict[str, FilmPlan]) -> None:
        """Finds each study's report; nowhere any report is no fault."""
        places = list(REPORT_PLACES)
        root = os.fspath(self.made.reports_root or self.raw)
        found, missing = [], []
        for study, film in sorted(studies.items()):
            names = {
                "group": film.patient_id[:3],
                "subject": film.patient_id,
                "study": study,
            }
            for place in places:
                path = place.format(**names)
                if os.path.isfile(os.path.join(root, path)):
                    # Mostly one place serves all: it is tried first from now on.
                    places.remove(place)
                    places.insert(0, place)
                    found.append((film, path))
                    break
            else:
                missing.append((study, places[0].format(**names)))
        if not found:
            if self.made.reports_root:
                raise UserError(f"--reports: found no report below {root}")
            packed = sorted(self.raw.glob("mimic-cxr-reports.*"))
            more = f"; unpack {packed[0].name}" if packed else ""
            self.made.notes.append(f"no report was found: films only{more}")
            return
        for study, path in missing:
            self.made.reject(rejected.MISSING_FILE, study, path, "report")
        for film, path in found:
            plan = ReportPlan(
                study_id=film.study_id,
                patient_id=film.patient_id,
                split=film.split,
                path=path,
                time=film.time,
                license=LICENSE,
                credit=REPORT_CREDIT,
            )
            self.made.reports.append(plan)

    def _blank_studies(self, studies: dict[str, FilmPlan]) -> None:
        blank = sorted(set(studies) - set(self.labels)) if self.labels else []
        if blank:
            self.made.notes.append(
                f"{len(blank):,} studies have no row in the label table, for example "
                f"{blank[0]}: labelled from their reports"
            )


@dataclasses.dataclass(frozen=True)
class _Place:
    """The names that a row of the metadata gives rise to."""

    row: dict[str, str]

    @property
    def dicom_id(self) -> str:
        return self.row["dicom_id"]

    @property
    def subject(self) -> str:
        return "p" + self.row["subject_id"].removeprefix("p")

    @property
    def study(self) -> str:
        return study_name(self.row["study_id"])

    @property
    def folder(self) -> str:
        return f"{self.subject[:3]}/{self.subject}/{self.study}"


def study_name(cell: str) -> str:
    """ "s50414267" from 50414267, s50414267 or 50414267.0."""
    return "s" + cell.removeprefix("s").removesuffix(".0")
