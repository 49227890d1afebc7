"""Report -> sections, by the rules of the official MIMIC-CXR parser and beyond."""

import csv
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

RULES = resources.files("data_pipelines.reports") / "rules"

_OFFICIAL_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s", re.DOTALL)
# Beyond the official expression: the first line, any indent, digits, apostrophes,
# ampersands and dots, no text after the colon.
_WIDE_HEADING = re.compile(
    r"(?:^|\n)[ \t]*([A-Z][A-Z0-9 ()/,&'.\-]*[A-Z0-9)])[ \t]*:(?=\s|$)"
)
_UNDERSCORE_LINE = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_TITLE_LINE = re.compile(
    r"^\s*(?:FINAL|WET READ|PRELIMINARY)?\s*REPORT\s*\n", re.IGNORECASE
)


@dataclass(frozen=True)
class _Headings:
    exact: dict[str, str]
    contains: tuple[str, ...]
    views: re.Pattern
    any_case: re.Pattern
    label: tuple[str, ...]


@cache
def _headings() -> _Headings:
    table = tomllib.loads((RULES / "sections.toml").read_text("utf-8"))
    exact = {raw: name for name, raws in table["exact"].items() for raw in raws}
    names = sorted(table["any_case"], key=len, reverse=True)
    any_case = "|".join(re.escape(name) for name in names)
    return _Headings(
        exact=exact,
        contains=tuple(table["contains"]),
        views=re.compile("|".join(re.escape(view) for view in table["views"])),
        any_case=re.compile(
            rf"(?:^|\n)[ \t]*({any_case})[ \t]*:(?=\s|$)", re.IGNORECASE
        ),
        label=tuple(table["label"]),
    )


@cache
def _exceptions() -> dict[str, tuple[str, int, int]]:
    """Study -> (section name or "", start, end): reports the parser cannot read."""
    lines = (RULES / "mimic_exceptions.csv").read_text("utf-8").splitlines()
    return {
        row["study"]: (row["section"], int(row["start"] or 0), int(row["end"] or 0))
        for row in csv.DictReader(lines)
    }


def normalize_heading(heading: str) -> str:
    """Names the section that a raw heading opens.

    Args:
      heading: text before the colon, in any case.

    Returns:
      A section name in lower case; an unknown heading keeps its own.

    Reference: MIT-LCP/mimic-cxr, txt/section_parser.py, normalize_section_names.
    """
    rules = _headings()
    name = heading.lower().strip()
    if name in rules.exact:
        return rules.exact[name]
    for part in rules.contains:
        if part in name:
            return part
    return "findings" if rules.views.search(name) else name


def _find_headings(text: str, official: bool) -> list[tuple[str, int, int]]:
    """Lists (raw heading, start of heading, start of its text)."""
    if official:
        # The parser's rule to go on after the first line of a text changes nothing:
        # a heading begins with a line break.
        return [
            (match.group(1), match.start(1), match.end())
            for match in _OFFICIAL_HEADING.finditer(text)
        ]
    found: list[tuple[str, int, int]] = []
    matches = [*_WIDE_HEADING.finditer(text), *_headings().any_case.finditer(text)]
    for match in sorted(matches, key=lambda match: match.start(1)):
        if not found or match.start(1) >= found[-1][2]:
            found.append((match.group(1), match.start(1), match.end()))
    return found


def _final_report(text: str) -> str:
    """Cuts a wet read that stands above a final report without headings."""
    parts = [part for part in _UNDERSCORE_LINE.split(text) if part.strip()]
    return parts[-1] if parts else text


def _name_sections(
    text: str, headings: list[tuple[str, int, int]], official: bool
) -> list[tuple[str, str]]:
    if not headings:
        if not official:
            text = _TITLE_LINE.sub("", _final_report(text))
        return [("full report", text)]
    named = [("preamble", text[: headings[0][1]])]
    ends = [start for _, start, _ in headings[1:]] + [len(text)]
    for (heading, _, start), end in zip(headings, ends, strict=True):
        named.append((normalize_heading(heading), text[start:end]))
    # An empty findings or impression is a heading used as a title.
    empty = (lambda body: not body.strip()) if official else _has_no_word
    return [
        (name, body)
        for name, body in named
        if not (name in ("impression", "findings") and empty(body))
    ]


def _has_no_word(body: str) -> bool:
    return re.search("[A-Za-z]", body) is None


def _split_last_paragraph(named: list[tuple[str, str]], official: bool) -> None:
    name, body = named[-1]
    parts = (
        body.split("\n \n", 1)
        if official
        else re.split(r"\n[ \t]*\n", body, maxsplit=1)
    )
    if len(parts) == 2 and (official or parts[1].strip()):
        named[-1] = (name, parts[0])
        named.append(("last_paragraph", parts[1]))


def parse_sections(text: str, official: bool = False) -> dict[str, str]:
    """Splits a report into named sections.

    Args:
      text: a raw report, MIMIC-CXR style (upper-case headings and a colon) or plain.
      official: follow the official parser to the letter. Otherwise its gaps are
        handled: a heading on the first line or without indent, headings with digits,
        apostrophes, ampersands or dots, the common headings in any case, a wet read
        above a final report without headings, headings over de-identified text only.

    Returns:
      Section name -> text, in reading order; of duplicate names the last one wins.
      "preamble" is what stands before the first heading, "full report" a report
      without headings, "last_paragraph" the tail of the last section of a report
      with neither findings nor impression.

    Reference: MIT-LCP/mimic-cxr, txt/section_parser.py.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    named = _name_sections(text, _find_headings(text, official), official)
    names = {name for name, _ in named}
    # Without headings there is nothing to cut away, but the official rule cuts.
    cut = official or (named and named[-1][0] != "full report")
    if cut and not names & {"impression", "findings"}:
        _split_last_paragraph(named, official)
    return {name: body if official else body.strip() for name, body in named}


def label_sections(text: str, study: str = "") -> tuple[dict[str, str], list[str]]:
    """Parses a report and chooses the sections whose text may be labelled.

    Findings and impression where there are any, else the last paragraph, else the
    whole of a report without headings: never indication, history or comparison.

    Args:
      text: a raw report.
      study: MIMIC-CXR study id (s50413267 or 50413267): 54 studies have text that no
        rule finds, listed with the official parser.

    Returns:
      All sections, and the names of those to label in reading order.
    """
    study = f"s{study}" if study.isdigit() else study
    sections = parse_sections(text)
    if study in _exceptions():
        name, start, end = _exceptions()[study]
        if name:
            return sections, [name] if name in sections else []
        sections = {"custom": text[start:end].strip()}
        return sections, ["custom"] if sections["custom"] else []
    for names in (_headings().label, ("last_paragraph",), ("full report",)):
        chosen = [name for name in sections if name in names and sections[name]]
        if chosen:
            return sections, chosen
    return sections, []


def official_label_text(text: str) -> str:
    """Returns the text that the official files hold for a report.

    Impression, else findings, else last paragraph, else comparison, else nothing.

    Reference: MIT-LCP/mimic-cxr, txt/create_section_files.py.
    """
    sections = parse_sections(text, official=True)
    for name in ("impression", "findings", "last_paragraph", "comparison"):
        if name in sections:
            return sections[name].strip()
    return ""
