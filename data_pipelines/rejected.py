"""What a build leaves out or finds odd: id, path, reason, detail. Never report text."""

import collections
import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

MISSING_FILE = "missing file"
UNREADABLE = "unreadable file"
OUTSIDE = "path outside the raw folder"
UNKNOWN_VIEW = "unknown view"
DUPLICATE_ID = "duplicate id"
NO_TEXT = "report without text"
NOTHING = "neither image nor text"
BAD_PIXELS = "bad pixels"
BAD_VALUE = "bad value"
TWO_SPLITS = "patient in two splits"

ADVICE: dict[str, str] = {
    MISSING_FILE: "is the download complete, and is --raw the dataset's own root?",
    UNREADABLE: "truncated or damaged downloads: compare with the source's checksums",
    OUTSIDE: "paths must stay below --raw; links that lead outside are not followed",
    UNKNOWN_VIEW: "map the value in the source's table, or leave the cell empty",
    DUPLICATE_ID: "one id must name one film, and one study one report",
    NO_TEXT: "empty report files or cells without a word",
    NOTHING: "rows need an image, a text, or both",
    BAD_PIXELS: "constant, almost constant, tiny or oddly shaped images",
    BAD_VALUE: "a cell that cannot be understood; the detail says which",
    TWO_SPLITS: "all rows of a patient must have one split",
}
"""For each reason, what to look at."""


@dataclasses.dataclass(frozen=True, order=True)
class Rejection:
    """One thing left out (or, in warnings.csv, kept although odd)."""

    reason: str
    id: str
    path: str = ""
    detail: str = ""


def write_rejections(path: Path, rejections: Iterable[Rejection]) -> None:
    """Writes a CSV with the columns id, path, reason, detail, sorted."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "reason", "detail"])
        for r in sorted(rejections):
            writer.writerow([r.id, r.path, r.reason, r.detail])


def describe_rejections(rejections: Iterable[Rejection]) -> str:
    """One line a reason: count, one example id, and what to look at."""
    by_reason: dict[str, list[Rejection]] = collections.defaultdict(list)
    for rejection in rejections:
        by_reason[rejection.reason].append(rejection)
    lines = []
    for reason, group in sorted(by_reason.items(), key=lambda x: (-len(x[1]), x[0])):
        first = min(group)
        detail = f" ({first.detail})" if first.detail else ""
        advice = f"\n      {ADVICE[reason]}" if reason in ADVICE else ""
        lines.append(
            f"  {len(group):>7,} x {reason}, for example {first.id}{detail}{advice}"
        )
    return "\n".join(lines)
