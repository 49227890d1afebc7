"""Open-i: the chest films and reports of Indiana University, in two layouts.

The NLM's: `--raw` holds `ecgen-radiology/*.xml` (of NLMCXR_reports.tgz) and the PNG films
(of NLMCXR_png.tgz), or the DICOM films (of NLMCXR_dcm.tgz), or both, in any folder. Films
belong to a report by the ids of its `parentImage`; the `.jpg` that stands there is not used.

Kaggle's (raddar): `indiana_reports.csv`, `indiana_projections.csv` and the PNG films, which
were converted anew and have other names.

A study is a report (`CXR7`), and so is a patient: nothing links the reports. All is test:
there is no published split, and the set is used to judge models of other data. Reports
without a film are kept as texts, films of reports without findings and impression as films.
The de-identified `XXXX`, which stands for dates, names and ordinary words alike, becomes
`___`, the mark of MIMIC-CXR that all that reads reports knows. Many reports share their text
with others: retrieval has to count each of them as right.

Views are the DICOM files', by ViewPosition, which every third lacks. Where
`indiana_projections.csv` is there too, what is left is known if all films of a report that
are left over are of one side. Frontal, without PA or AP, is UNKNOWN, and so is the rest: without
either source laterals cannot be told from frontals. Kaggle's lines tell the side.

The 14 findings of a film are those of its report's text. What people read from the
report by hand, its MeSH headings, is a task of its own, `openi_mesh`; see `openi_mesh.py`.

Reference: Demner-Fushman et al. 2016, JAMIA 23(2):304-310; openi.nlm.nih.gov/faq.
"""

import collections
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.dicom_headers import read_headers
from data_pipelines.datasets.film_files import find_films
from data_pipelines.datasets.openi_mesh import LABELS, mesh_labels
from data_pipelines.plan import FilmPlan, ReportPlan, Scan
from data_pipelines.tables import age_of, need_columns, numbered_rows, sex_of
from medclip_jax.errors import UserError

TASK = "openi_mesh"
SECTIONS = ("comparison", "indication", "findings", "impression")
VIEWS: dict[str, str] = {
    "AP": "AP",
    "PA": "PA",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "LATERAL": "LATERAL",
}
"""DICOM's ViewPosition -> view; anything else is UNKNOWN."""

PROJECTIONS: dict[str, str] = {"frontal": "UNKNOWN", "lateral": "LATERAL"}
REPORTS_CSV, PROJECTIONS_CSV = "indiana_reports.csv", "indiana_projections.csv"
LICENSE = "CC BY-NC-ND 4.0"
CREDIT = "Open-i, Indiana University chest X-ray collection"


class Openi(StudyBuilder):
    """TFDS builder for Open-i."""

    DESCRIPTION = (
        "Chest radiographs and reports of the Indiana Network for Patient Care."
    )
    NOTICE = "Made from Open-i's Indiana University collection (CC BY-NC-ND 4.0)."
    HOMEPAGE = "https://openi.nlm.nih.gov/faq"
    CITATION = (
        "@article{demner2016preparing, title={Preparing a collection of radiology "
        "examinations for distribution and retrieval}, author={Demner-Fushman, Dina and "
        "others}, journal={JAMIA}, year={2016}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the XML files, or Kaggle's tables.

        Raises:
          UserError: neither is there, or a table lacks a column.
        """
        del options
        reading = _Reading(raw)
        xml_files = find_films(raw, ".xml")
        reports = [path for path in raw.glob(f"**/{REPORTS_CSV}") if path.is_file()]
        if xml_files:
            reading.nlm(sorted(xml_files.values(), key=_number))
        elif reports:
            reading.kaggle(reports[0])
        else:
            raise UserError(
                f"expected ecgen-radiology/*.xml or {REPORTS_CSV} below {raw}, found "
                "neither; unpack NLMCXR_reports.tgz and NLMCXR_png.tgz there"
            )
        return reading.finish()


def report_text(sections: dict[str, str]) -> str:
    """A report of named sections as one text; "" without findings and impression."""
    cleaned = {name: _clean(sections.get(name, "")) for name in SECTIONS}
    if not any(re.search("[A-Za-z]", cleaned[name]) for name in SECTIONS[2:]):
        return ""
    told = (f"{name.upper()}: {text}" for name, text in cleaned.items() if text)
    return "\n\n".join(told) + "\n"


def _clean(text: str) -> str:
    text = re.sub("X{4,}", "___", html.unescape(text))
    return re.sub(r"\s+", " ", text).strip()


def _number(path: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", path.rsplit("/", 1)[-1])
    return int(digits or 0), path


class _Reading:
    def __init__(self, raw: Path):
        self.raw = raw
        self.made = Scan()
        about = "MeSH headings of the report, by hand; films of a study share them"
        self.made.tasks[TASK] = Task("multilabel", LABELS, "study", about)
        self.pngs = find_films(raw, ".png")
        self.texts: collections.Counter = collections.Counter()

    # --- The NLM's layout

    def nlm(self, files: Sequence[str]) -> None:
        """Reads the XML files (paths below the raw folder)."""
        dicoms = find_films(self.raw, ".dcm")
        heads = self._headers(dicoms)
        sides = self._sides()
        for path in files:
            report = self._parse(path)
            if report is None:
                continue
            study, images, terms, sections, license = report
            films = {}
            for image in images:
                stem = next((s for s in _stems(image, study) if s in dicoms), "")
                head = heads.get(stem, {})
                films[image] = (
                    self.pngs.get(image) or dicoms.get(stem, ""),
                    VIEWS.get(head.get("ViewPosition", "").upper(), ""),
                    head,
                )
            views = {image: view for image, (_, view, _) in films.items()}
            views = left_over(views, sides.get(study.removeprefix("CXR"), []))
            self._report(study, sections, bool(images), path, license)
            for image, (place, _, head) in films.items():
                if not place:
                    detail = f"{path}: neither {image}.png nor its DICOM file is there"
                    self.made.reject(rejected.MISSING_FILE, image, path, detail)
                    continue
                self._film(image, study, place, views[image], license, head)
                self._classes(image, terms)

    def _parse(self, path: str):
        """Study, image ids, MeSH headings, sections and licence of one XML file."""
        try:
            root = ElementTree.parse(self.raw / path).getroot()
        except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
            # The message of a parser may quote the text.
            detail = f"expected well-formed XML, found a {type(error).__name__}"
            if isinstance(error, ElementTree.ParseError):
                detail += f" in line {error.position[0]}; unpack the archive again"
            self.made.reject(rejected.UNREADABLE, Path(path).stem, path, detail)
            return None
        uid = root.find("uId")
        study = "" if uid is None else uid.get("id", "").strip()
        if not re.fullmatch(r"CXR\d+", study):
            detail = f"uId: expected an id such as CXR1, found {study[:20]!r}"
            self.made.reject(rejected.BAD_VALUE, Path(path).stem, path, detail)
            return None
        images = [image.get("id", "").strip() for image in root.iter("parentImage")]
        terms = [term.text or "" for term in root.findall("MeSH/major")]
        sections = {
            node.get("Label", "").casefold(): "".join(node.itertext())
            for node in root.iter("AbstractText")
        }
        license = (root.findtext("licenseURL") or LICENSE).strip()
        return study, [i for i in images if i], terms, sections, license

    def _headers(self, dicoms: dict[str, str]) -> dict[str, dict[str, str]]:
        if not dicoms:
            return {}
        tags = ("ViewPosition", "PatientSex", "PatientAge")
        paths = [self.raw / path for path in dicoms.values()]
        found = zip(dicoms, read_headers(paths, tags), strict=True)
        return {stem: head for stem, head in found if head is not None}

    def _sides(self) -> dict[str, list[str]]:
        """uid -> views by Kaggle's table of projections, where that is there."""
        sides = collections.defaultdict(list)
        for path in sorted(self.raw.glob(f"**/{PROJECTIONS_CSV}"))[:1]:
            rows = numbered_rows(path)
            need_columns(path, [row for _, row in rows], ["uid", "projection"])
            for _, row in rows:
                view = PROJECTIONS.get(row["projection"].casefold(), "")
                sides[row["uid"]].append(view)
        return sides

    # --- Kaggle's layout

    def kaggle(self, path: Path) -> None:
        """Reads both tables."""
        rows = numbered_rows(path)
        columns = ["uid", "MeSH", "indication", "comparison", "findings", "impression"]
        need_columns(path, [row for _, row in rows], columns)
        films_path = path.with_name(PROJECTIONS_CSV)
        films = numbered_rows(films_path)
        names = ["uid", "filename", "projection"]
        need_columns(films_path, [row for _, row in films], names)
        terms = {row["uid"]: row["MeSH"].split(";") for _, row in rows}
        with_film = {row["uid"] for _, row in films}
        for number, row in rows:
            sections = {name: row[name] for name in SECTIONS}
            where = f"{path.name}, line {number}"
            if not re.fullmatch(r"\d+", row["uid"]):
                detail = f"{where}: expected a number as uid, found {row['uid'][:20]!r}"
                self.made.reject(rejected.BAD_VALUE, row["uid"][:20], "", detail)
                continue
            study = f"CXR{row['uid']}"
            self._report(study, sections, row["uid"] in with_film, where, LICENSE)
        for number, row in films:
            name, where = row["filename"], f"{films_path.name}, line {number}"
            view = PROJECTIONS.get(row["projection"].casefold())
            place = self.pngs.get(name.removesuffix(".png"))
            if view is None:
                detail = f"{where}: expected Frontal or Lateral, found "
                detail += repr(row["projection"][:20])
                self.made.reject(rejected.UNKNOWN_VIEW, name, "", detail)
            elif place is None:
                detail = f"{where}: no such PNG below the raw folder"
                self.made.reject(rejected.MISSING_FILE, name, "", detail)
            else:
                image = name.removesuffix(".dcm.png")
                self._film(image, f"CXR{row['uid']}", place, view, LICENSE, {})
                self._classes(image, terms.get(row["uid"], []))

    # --- Both

    def _report(
        self, study: str, sections: dict[str, str], has_film: bool, where: str, license
    ) -> None:
        text = report_text(sections)
        if not text:
            if has_film:
                self.made.warn("report without text", study, where)
            else:
                self.made.reject(rejected.NOTHING, study, where)
            return
        self.texts[tuple(_clean(sections.get(name, "")) for name in SECTIONS[2:])] += 1
        self.made.reports.append(
            ReportPlan(study, study, "test", text=text, license=license, credit=CREDIT)
        )

    def _film(
        self, image: str, study: str, path: str, view: str, license: str, head: dict
    ) -> None:
        self.made.films.append(
            FilmPlan(
                image_id=image,
                patient_id=study,
                study_id=study,
                split="test",
                path=path,
                view=view or "UNKNOWN",
                sex=sex_of(head.get("PatientSex", "")),
                age=age_of(head.get("PatientAge", "")),
                license=license,
                credit=CREDIT,
            )
        )

    def _classes(self, image: str, terms: Sequence[str]) -> None:
        labels = mesh_labels(terms)
        if labels is not None:
            row = {"positive": labels[0], "uncertain": labels[1]}
            self.made.annotate("classes", task=TASK, image_id=image, **row)

    def finish(self) -> Scan:
        """Notes what a user has to know of the whole set."""
        unknown = sum(film.view == "UNKNOWN" for film in self.made.films)
        self.made.notes.append("all is test: there is no published split")
        repeated = sum(count for count in self.texts.values() if count > 1)
        self.made.notes.append(f"{repeated:,} reports share their text with another")
        if unknown:
            self.made.notes.append(
                f"{unknown:,} of {len(self.made.films):,} films have no view but perhaps "
                f"frontal; the DICOM files and {PROJECTIONS_CSV} tell more"
            )
        return self.made


def left_over(views: dict[str, str], sides: Sequence[str]) -> dict[str, str]:
    """Views of a report's films, completed by what its projections leave over.

    Args:
      views: image -> view, "" where it is not known.
      sides: "LATERAL" or "UNKNOWN" (frontal) for each film of the report, in no order.

    Returns:
      The same with those that can only be one thing; "" stays where they cannot.
    """
    if len(sides) != len(views):
        return views
    left = collections.Counter(sides)
    left.subtract(
        "LATERAL" if v == "LATERAL" else "UNKNOWN" for v in views.values() if v
    )
    kinds = [side for side, count in left.items() if count > 0]
    if len(kinds) != 1 or min(left.values()) < 0:
        return views
    return {image: view or kinds[0] for image, view in views.items()}


def _stems(image: str, study: str) -> tuple[str, ...]:
    """How the DICOM file of an image may be called: with the report's id or without."""
    return image, image.removeprefix("CXR"), image.removeprefix(f"{study}_")
