"""Writes the report of a study: sentences from the state, each with its true codes.

The codes follow the CheXpert labeler's meaning: a sentence tells No Finding when no
finding but devices is positive or uncertain in it and it names no other abnormality.
The study's label vector is what the report says (hedged, omitted or not), which may
differ from what is in the film; both are kept.
"""

from dataclasses import dataclass

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from data_pipelines.hospital.course import pick, stream
from data_pipelines.hospital.report_layout import lay_out
from data_pipelines.hospital.state import Body, Study
from data_pipelines.hospital.teller import Teller

LABELED_SECTIONS = ("findings", "impression", "last_paragraph")

STYLES: dict[str, float] = {
    "full": 0.56,
    "views": 0.16,
    "impression": 0.10,
    "findings": 0.08,
    "joined": 0.05,
    "paragraph": 0.05,
}
"""Which headings a report has; see report_layout.py."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report.

    Attributes:
      section: one of LABELED_SECTIONS.
      text: as written, without list number.
      codes: int of each of FINDINGS in their order.
      findings: indices into the study's findings that it tells as present.
    """

    section: str
    text: str
    codes: tuple[int, ...]
    findings: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """A report: the raw text, its sentences, and the 14 codes that it tells."""

    text: str
    sentences: tuple[Sentence, ...]
    labels: tuple[int, ...]


def write_report(
    seed: int, body: Body, study: Study, before: Study | None, dataset="mimic_cxr"
) -> Report:
    """Writes the report of a study.

    Args:
      seed: of the simulation; the text is a function of it, the ids and the state.
      body: of the patient.
      study: what to tell.
      before: the patient's study before it, or None.
      dataset: part of the stream's name.

    Returns:
      The report.
    """
    rng = stream(seed, dataset, study.patient_id, study.study_id, "report")
    style = pick(rng, STYLES)
    teller = Teller(rng, study, before)
    clauses = {"findings": teller.findings(), "impression": teller.impression()}
    if style in ("impression", "joined"):
        clauses = {"impression": clauses["findings"]}
    elif style == "findings":
        clauses.pop("impression")
    elif style == "paragraph":
        clauses = {"last_paragraph": clauses["findings"]}
    sentences = tuple(
        Sentence(section, clause.text, _vector(clause.codes), clause.findings)
        for section, told in clauses.items()
        for clause in told
    )
    text = lay_out(rng, style, body, study, before, sentences)
    return Report(text, sentences, aggregate([s.codes for s in sentences]))


def aggregate(rows: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The 14 codes of a text from those of its sentences.

    Only positive, only negative, only uncertain: that; uncertain beside negative:
    uncertain; otherwise positive. No Finding: only where every sentence tells it.

    Reference: stanfordmlgroup/chexpert-labeler, stages/aggregate.py.
    """
    out = []
    for column, name in enumerate(FINDINGS):
        told = {row[column] for row in rows} - {NOT_GIVEN}
        if name == "No Finding":
            fine = rows and all(row[column] == POSITIVE for row in rows)
            out.append(POSITIVE if fine else NOT_GIVEN)
        elif not told:
            out.append(NOT_GIVEN)
        elif {NEGATIVE, UNCERTAIN} <= told:
            out.append(UNCERTAIN)
        else:
            out.append(max(told, key=lambda code: (code == POSITIVE, code)))
    return tuple(out)


def _vector(codes: dict[str, int]) -> tuple[int, ...]:
    sick = any(
        code in (POSITIVE, UNCERTAIN)
        for name, code in codes.items()
        if name != "Support Devices"
    )
    none = NOT_GIVEN if sick else codes.get("No Finding", POSITIVE)
    return (none, *(codes.get(name, NOT_GIVEN) for name in FINDINGS[1:]))
