"""Lays sentences out as a raw MIMIC-CXR report.

Every body line begins with one space and ends before column 80; blank lines hold one
space; headings are upper-case with a colon; de-identified spans are three underscores;
wet reads and addenda stand above the report, parted by a line of underscores.
"""

import random
import textwrap

from data_pipelines.hospital.grammar import expand, load, tidy
from data_pipelines.hospital.state import Body, Study

WIDTH = 79
RULE = " " + "_" * 78
TITLE = " " * 33 + "FINAL REPORT"
WET_READ_RATE, ADDENDUM_RATE, NOTIFICATION_RATE, RECOMMENDATION_RATE = (
    0.04,
    0.03,
    0.04,
    0.06,
)


def lay_out(
    rng: random.Random,
    style: str,
    body: Body,
    study: Study,
    before: Study | None,
    sentences,
) -> str:
    """Writes the raw text.

    Args:
      rng: the report's stream.
      style: "full" (FINDINGS and IMPRESSION), "views" (a heading such as PA AND
        LATERAL VIEWS OF THE CHEST), "impression" (no FINDINGS), "findings" (no
        IMPRESSION), "joined" (FINDINGS AND IMPRESSION), "paragraph" (neither).
      body, study, before: for indication, technique and comparison.
      sentences: those of the report, in order, each with `section` and `text`.

    Returns:
      The text, ending in a newline.
    """
    blocks = _heads(rng, style, body, study, before)
    for section in ("last_paragraph", "findings", "impression"):
        told = [s.text for s in sentences if s.section == section]
        if told:
            heading = _heading(rng, style, section, study)
            blocks.append((heading, _prose(rng, section, told)))
    if style == "full" and rng.random() < NOTIFICATION_RATE:
        blocks.append(("NOTIFICATION", [_notification(rng)]))
    if style in ("full", "views") and rng.random() < RECOMMENDATION_RATE:
        blocks.append(("RECOMMENDATION(S)", [_neutral(rng, "recommendation")]))
    lines = _above(rng, style, sentences) + [TITLE]
    roomy = rng.random() < 0.3 and style != "paragraph"  # its text has no heading
    for heading, paragraphs in blocks:
        lines += _block(heading, paragraphs, roomy)
    return "\n".join(lines).rstrip() + "\n"


def _block(heading: str, paragraphs: list[str], roomy: bool) -> list[str]:
    """One section; `roomy` puts a blank line below the heading."""
    lines = []
    for number, paragraph in enumerate(paragraphs):
        text = paragraph
        if heading and number == 0:
            if roomy:
                lines += [f" {heading}: ", " "]
            else:
                text = f"{heading}:  {paragraph}"
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=" ",
            subsequent_indent=" ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return [*lines, " "]


def _heading(rng: random.Random, style: str, section: str, study: Study) -> str:
    if section == "last_paragraph":
        return ""
    if style == "joined":
        return "FINDINGS AND IMPRESSION"
    if section == "findings" and style == "views":
        if len(study.views) > 1:
            return rng.choice(
                [
                    "PA AND LATERAL VIEWS OF THE CHEST",
                    "FRONTAL AND LATERAL VIEWS OF THE CHEST",
                    "CHEST, PA AND LATERAL",
                    "TWO VIEWS OF THE CHEST",
                ]
            )
        return rng.choice(
            [
                "SINGLE PORTABLE VIEW OF THE CHEST",
                "PORTABLE AP CHEST RADIOGRAPH",
                "AP VIEW OF THE CHEST",
                "PORTABLE UPRIGHT FRONTAL VIEW OF THE CHEST",
            ]
        )
    if section == "impression":
        return "CONCLUSION" if rng.random() < 0.03 else "IMPRESSION"
    return "FINDINGS"


def _prose(rng: random.Random, section: str, told: list[str]) -> list[str]:
    if section == "impression" and len(told) > 1 and rng.random() < 0.4:
        return [f"{number}. {text}" for number, text in enumerate(told, 1)]
    return [" ".join(told)]


def _heads(rng, style, body, study, before) -> list[tuple[str, list[str]]]:
    frontal_only = len(study.views) == 1
    blocks = []
    if style in ("full", "joined", "findings") and rng.random() < 0.75:
        exam = "CHEST (PORTABLE AP)" if frontal_only else "CHEST (PA AND LAT)"
        blocks.append((rng.choice(["EXAMINATION", "EXAMINATION", "EXAM"]), [exam]))
    asked = rng.choice(["INDICATION", "INDICATION", "HISTORY", "REASON FOR EXAM"])
    if style == "paragraph":
        asked = "HISTORY"
    blocks.append((asked, [_indication(rng, body)]))
    if style != "paragraph" and rng.random() < 0.7:
        text = rng.choice(load("neutral")["technique"]["AP" if frontal_only else "PA"])
        blocks.append(("TECHNIQUE", [tidy(expand(rng, text, {}))]))
    if style != "paragraph":
        blocks.append(("COMPARISON", [_comparison(rng, before)]))
    return blocks


def _indication(rng: random.Random, body: Body) -> str:
    words = load("neutral")["indication"]
    female = body.sex == "F"
    slots = {
        "person": "woman" if female else "man",
        "letter": body.sex,
        **{key: rng.choice(words[key]) for key in ("sign", "past", "ask")},
    }
    return tidy(expand(rng, rng.choice(words["text"]), slots))


def _comparison(rng: random.Random, before: Study | None) -> str:
    if before is None:
        return rng.choice(["None.", "None available.", "None.", "No prior films."])
    return rng.choice(
        [
            "Chest radiograph ___.",
            "Chest radiographs from ___.",
            "___.",
            "Multiple prior chest radiographs, most recently ___.",
            "Prior exam from ___.",
        ]
    )


def _neutral(rng: random.Random, kind: str) -> str:
    line = rng.choice(load("neutral")[kind])
    return tidy(expand(rng, line, {}))


def _notification(rng: random.Random) -> str:
    return rng.choice(
        [
            "The findings were discussed with ___, M.D. by telephone on ___ at "
            + "3:45 PM, 5 minutes after discovery of the findings.",
            "Dr. ___ was paged with the results at 10:20 a.m. on ___.",
        ]
    )


def _above(rng: random.Random, style: str, sentences) -> list[str]:
    """A wet read or an addendum above the report."""
    if style not in ("full", "views"):
        return []
    chance = rng.random()
    told = [s.text for s in sentences if s.section == "impression"]
    if chance < WET_READ_RATE:
        title = " " * 33 + "WET READ: ___ ___ ___ 9:30 PM"
        paragraphs = [" ".join(told)]
    elif chance < WET_READ_RATE + ADDENDUM_RATE:
        title = " " * 33 + "ADDENDUM"
        paragraphs = [
            "___ was informed of the findings by Dr. ___ by telephone at 9 a.m. on ___."
        ]
    else:
        return []
    return [title, " ", *_block("", paragraphs, False), RULE]
