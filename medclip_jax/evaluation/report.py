"""What a report says, and its files: results.json, results.md, samples.npz.

The page, report.html, is made in `page.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax import storage
from medclip_jax.errors import UserError
from medclip_jax.evaluation import samples
from medclip_jax.evaluation.rows import Row


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows, told to those who cannot see it too."""

    png: bytes
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class RetrievedFilm:
    """Attributes:
    film_HxW: uint8.
    found: what the film holds, one of the five names.
    right: whether that is what the query asks for.
    """

    film_HxW: np.ndarray
    found: str
    right: bool


@dataclass(frozen=True)
class Query:
    """Attributes:
    asks: the finding that the query tells.
    shown: its text, or the study it is from where text must not be shown.
    is_text: whether `shown` is the text.
    films: the films found, best first.
    """

    asks: str
    shown: str
    is_text: bool
    films: Sequence[RetrievedFilm]


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, pictures, and retrieved films.

    `protocol` is the name of the protocol it belongs to; "" for parts of no protocol.
    """

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    protocol: str = ""


@dataclass(frozen=True)
class Report:
    """All that the report says.

    Attributes:
      title: of the page.
      checkpoint: workdir and step.
      data: data sets and split.
      rows: every figure; the first accuracy of `zero_shot_five` is the headline.
      facts: short label to short value, under the title.
      simulated: whether any film is simulated; the page then says so first.
      sections: in order.
      skipped: protocol to the reason why it was not run.
      details: heading to text shown as it is, such as the config.
      limits: what the figures do not show.
      leaks: what training and evaluation share, one line each.
      extra: further keys of results.json.
    """

    title: str
    checkpoint: str
    data: str
    rows: Sequence[Row]
    facts: Mapping[str, str]
    simulated: bool
    sections: Sequence[Section] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()
    leaks: Sequence[str] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


def write(report: Report, page: str, out: Path) -> Path:
    """Writes report.html, results.json, results.md and samples.npz.

    Args:
      report: what to say.
      page: the HTML of `page.render`.
      out: folder, made if need be.

    Returns:
      The path of report.html.
    """
    storage.make_folder(out)
    results = {
        "checkpoint": report.checkpoint,
        "data": report.data,
        "rows": [row.as_json() for row in report.rows],
        "skipped": dict(report.skipped),
        "simulated": report.simulated,
        **report.extra,
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    storage.write_text(out / "results.json", text + "\n")
    storage.write_text(out / "results.md", markdown(report))
    samples.write(report.rows, out)
    path = out / "report.html"
    storage.write_text(path, page)
    return path


def read_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """The main rows of a results.json.

    Raises:
      UserError: there is none, it is another file, or it is of another step.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
        checkpoint = str(results["checkpoint"])
        rows = [row for row in results["rows"] if "/" not in row["protocol"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--results: expected results.json of `medclip-jax evaluate`, could not "
            f"read {path} as one"
        ) from error
    if not checkpoint.endswith(f" step {step}"):
        raise UserError(
            f"--results: {path} was measured on {checkpoint}, but step {step} is "
            f"exported; evaluate that one (--step {step}), or export the other"
        )
    return rows


COLUMNS = (
    "protocol",
    "data",
    "metric",
    "value",
    "95 % interval",
    "chance",
    "untrained",
    "pixels",
    "ImageNet",
    "supervised",
    "n",
)


def cells(row: Row) -> tuple[str, ...]:
    """One row as short texts, in the order of COLUMNS."""
    interval = ""
    if row.low is not None and np.isfinite(row.low):
        interval = f"{row.low:.3f} to {row.high:.3f}"
    return (
        row.protocol,
        row.dataset,
        row.metric,
        number(row.value) + (f" ± {row.std:.3f}" if row.std is not None else ""),
        interval,
        number(row.chance),
        number(row.untrained),
        number(row.pixels_logistic),
        number(row.imagenet),
        number(row.supervised),
        str(row.n),
    )


def markdown(report: Report) -> str:
    """The figures as a Markdown table."""
    header, *rows = _aligned(report.rows)
    lines = [f"# {report.title}", "", f"Checkpoint: {report.checkpoint}  "]
    lines += [f"Data: {report.data}", ""]
    if report.simulated:
        lines += [f"**{SIMULATED}**", ""]
    rule = ["-" * len(name) for name in header]
    lines += ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
    lines += ["", "± is the deviation over prompt draws; intervals are over patients."]
    if report.skipped:
        lines += ["", "Not run:", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.skipped.items()]
    return "\n".join(lines) + "\n"


def plain_table(rows: Sequence[Row]) -> str:
    """The figures as lines of text, for a terminal."""
    lines = ["  ".join(row).rstrip() for row in _aligned(rows)]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _aligned(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows, without columns that are empty, each padded to its column."""
    table = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    used = used_columns(rows)
    return [[line[i].ljust(widths[i]) for i in used] for line in table]


SIMULATED = (
    "Simulated data. Every film and every report here was made by a program. The "
    "figures show that the code works; they say nothing about patients."
)


def used_columns(rows: Sequence[Row]) -> list[int]:
    """Columns that some row fills; an all-empty one is noise."""
    return [i for i in range(len(COLUMNS)) if any(cells(row)[i] for row in rows)]


def number(value: float | None) -> str:
    """Three digits, or nothing where there is no value."""
    return "" if value is None or not np.isfinite(value) else f"{value:.3f}"
