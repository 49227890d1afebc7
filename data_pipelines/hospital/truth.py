"""What is kept beside a simulation and no real data has: the truth of each film.

`truth/studies.jsonl`     a study a line: body, findings, what the film has, what the
                          report tells
`truth/sentences.csv`     a sentence of a report a row, with its 14 codes
`truth/boxes.csv`         a box a row, in pixels of the film, with the phrase that tells it
`truth/masks.jsonl`       a mask a line, run lengths column by column (COCO, not packed)
`truth/progression.csv`   how each finding went since the patient's study before
"""

import numpy as np

from data_pipelines.annotations import run_lengths
from data_pipelines.findings import FINDINGS, NOT_GIVEN
from data_pipelines.hospital.course import progression, resolved
from data_pipelines.hospital.reports_text import Report
from data_pipelines.hospital.state import Finding, Patient, Study

SENTENCE_COLUMNS = (
    "patient_id",
    "study_id",
    "position",
    "section",
    "sentence",
    *FINDINGS,
)
BOX_COLUMNS = (
    "dataset",
    "split",
    "patient_id",
    "study_id",
    "image",
    "view",
    "finding",
    "name",
    "kind",
    "side",
    "severity",
    "x",
    "y",
    "w",
    "h",
    "image_width",
    "image_height",
    "phrase",
)
PROGRESSION_COLUMNS = (
    "dataset",
    "split",
    "patient_id",
    "study_id",
    "prior_study_id",
    "name",
    "kind",
    "side",
    "progression",
    "severity_before",
    "severity_now",
)
LEAST_SHARE = 0.04
"""Of a mask's area, below which one half of a bilateral finding gets no box."""


def study_record(
    dataset: str, split: str, patient: Patient, study: Study, images, report: Report
) -> dict:
    """One line of studies.jsonl."""
    return {
        "dataset": dataset,
        "split": split,
        "number": patient.number,
        **study.to_json(),
        "images": list(images),
        "body": vars(patient.body),
        "truth": study.truth(),
        "told": dict(zip(FINDINGS, report.labels, strict=True)),
    }


def sentence_rows(study: Study, report: Report) -> list[dict[str, str]]:
    """The rows of sentences.csv for one report; blank is not given."""
    return [
        {
            "patient_id": study.patient_id,
            "study_id": study.study_id,
            "position": str(position),
            "section": sentence.section,
            "sentence": sentence.text,
            **{
                name: "" if code == NOT_GIVEN else str(code)
                for name, code in zip(FINDINGS, sentence.codes, strict=True)
            },
        }
        for position, sentence in enumerate(report.sentences)
    ]


def phrase_of(report: Report, index: int) -> str:
    """The first sentence that tells a finding of the study; "" where it is omitted."""
    for sentence in report.sentences:
        if index in sentence.findings:
            return sentence.text
    return ""


def boxes_of(
    mask_HxW: np.ndarray, finding: Finding, view: str
) -> list[tuple[int, int, int, int]]:
    """Boxes around a mask: one, or one a side for bilateral findings seen frontally.

    Args:
      mask_HxW: bool.
      finding: whose mask it is.
      view: "AP", "PA" or "LATERAL".

    Returns:
      (x, y, w, h) in pixels, from the image's left to right.
    """
    middle = mask_HxW.shape[1] // 2
    parts = [(0, mask_HxW)]
    if finding.side == "bilateral" and view != "LATERAL":
        parts = [(0, mask_HxW[:, :middle]), (middle, mask_HxW[:, middle:])]
    total = int(mask_HxW.sum())
    boxes = []
    for offset, part in parts:
        if not total or part.sum() < LEAST_SHARE * total:
            continue
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        boxes.append(
            (
                int(columns[0]) + offset,
                int(rows[0]),
                int(columns[-1] - columns[0]) + 1,
                int(rows[-1] - rows[0]) + 1,
            )
        )
    return boxes


def film_rows(
    where: dict[str, str], study: Study, masks: dict[int, np.ndarray], report: Report
) -> tuple[list[dict], list[dict]]:
    """Boxes and masks of one film.

    Args:
      where: dataset, split, image and view of the film.
      study: what was rendered.
      masks: bool HxW by index into the study's findings.
      report: for the phrases.

    Returns:
      Rows of boxes.csv and records of masks.jsonl.
    """
    boxes, records = [], []
    for index in sorted(masks):
        mask_HxW, finding = masks[index], study.findings[index]
        if not mask_HxW.any():
            continue
        height, width = mask_HxW.shape
        about = {
            **where,
            "patient_id": study.patient_id,
            "study_id": study.study_id,
            "finding": index,
            "name": finding.name,
        }
        counts = run_lengths(mask_HxW)
        records.append({**about, "size": [height, width], "counts": counts})
        for x, y, w, h in boxes_of(mask_HxW, finding, where["view"]):
            boxes.append(
                {
                    **about,
                    "kind": finding.kind,
                    "side": finding.side,
                    "severity": finding.severity,
                    "x": x,
                    "y": y,
                    "w": w,
                    "h": h,
                    "image_width": width,
                    "image_height": height,
                    "phrase": phrase_of(report, index),
                }
            )
    return boxes, records


def progression_rows(
    dataset: str, split: str, before: Study | None, study: Study
) -> list[dict]:
    """How every finding went since the study before; none for a first study."""
    if before is None:
        return []
    past = {old.key: old for old in before.findings}
    turns = [(f, progression(before, f)) for f in study.findings]
    turns += [(old, "resolved") for old in resolved(before, study)]
    rows = []
    for finding, turn in turns:
        old = past.get(finding.key)
        rows.append(
            {
                "dataset": dataset,
                "split": split,
                "patient_id": study.patient_id,
                "study_id": study.study_id,
                "prior_study_id": before.study_id,
                "name": finding.name,
                "kind": finding.kind,
                "side": finding.side,
                "progression": turn,
                "severity_before": old.severity if old else 0.0,
                "severity_now": 0.0 if turn == "resolved" else finding.severity,
            }
        )
    return rows
