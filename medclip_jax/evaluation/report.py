"""Writes results.json, results.md and one report.html that needs no network."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from medclip_jax.evaluation import samples
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.stylesheet import CSS

THUMBNAIL = 176


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
    """A heading, a sentence or two, pictures, and retrieved films."""

    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)


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
    extra: Mapping[str, object] = field(default_factory=dict)


def write(report: Report, out: str | Path) -> Path:
    """Writes report.html, results.json, results.md and samples.npz.

    Args:
      report: what to say.
      out: folder, made if need be.

    Returns:
      The path of report.html.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "checkpoint": report.checkpoint,
        "data": report.data,
        "rows": [row.as_json() for row in report.rows],
        "skipped": dict(report.skipped),
        "simulated": report.simulated,
        **report.extra,
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(report), encoding="utf-8")
    samples.write(report.rows, out)
    page = out / "report.html"
    page.write_text(render(report), encoding="utf-8")
    return page


COLUMNS = (
    "protocol",
    "data",
    "metric",
    "value",
    "95 % interval",
    "chance",
    "untrained",
    "pixels",
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
        _number(row.value) + (f" ± {row.std:.3f}" if row.std is not None else ""),
        interval,
        _number(row.chance),
        _number(row.untrained),
        _number(row.pixels_logistic),
        _number(row.supervised),
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
    used = _used_columns(rows)
    return [[line[i].ljust(widths[i]) for i in used] for line in table]


SIMULATED = (
    "Simulated data. Every film and every report here was made by a program. The "
    "figures show that the code works; they say nothing about patients."
)


def render(report: Report) -> str:
    """The page as one string of HTML; pictures are inside it."""
    headline = next(
        (
            row
            for row in report.rows
            if (row.protocol, row.metric) == ("zero_shot_five", "accuracy")
        ),
        None,
    )
    main_rows = [row for row in report.rows if "/" not in row.protocol]
    parts = [
        f"<header><h1>{_e(report.title)}</h1>",
        '<dl class="facts">',
        *(
            f"<div><dt>{_e(k)}</dt><dd>{_e(v)}</dd></div>"
            for k, v in report.facts.items()
        ),
        "</dl></header>",
    ]
    if report.simulated:
        name, rest = SIMULATED.split(". ", 1)
        parts.append(f'<p class="banner"><b>{_e(name)}.</b> {_e(rest)}</p>')
    if headline is not None:
        parts.append(_ladder(headline))
    parts.append(f"<section><h2>Figures</h2>{_table(main_rows)}")
    parts.append(
        "<p class=note>± is the deviation over prompt draws. Intervals hold 95 % of "
        "resamples of whole patients. <i>Untrained</i> is the same network before its "
        "first step.</p>"
    )
    if len(main_rows) < len(report.rows):
        others = [row for row in report.rows if "/" in row.protocol]
        parts.append(
            f"<details><summary>{len(others)} further figures</summary>"
            f"{_table(others)}</details>"
        )
    if report.skipped:
        items = "".join(
            f"<li><b>{_e(name)}</b>: {_e(why)}</li>"
            for name, why in report.skipped.items()
        )
        parts.append(f'<div class="skipped"><h3>Not run</h3><ul>{items}</ul></div>')
    parts.append("</section>")
    parts += [_section(section) for section in report.sections]
    if report.limits:
        items = "".join(f"<li>{_e(limit)}</li>" for limit in report.limits)
        parts.append(
            "<section><h2>What these figures do not show</h2>"
            f"<ul class=limits>{items}</ul></section>"
        )
    parts += [
        f"<details><summary>{_e(name)}</summary><pre>{_e(text)}</pre></details>"
        for name, text in report.details.items()
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(report.title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>{chr(10).join(parts)}</main></body></html>\n"
    )


def _ladder(row: Row) -> str:
    """The headline figure among what it must be held against, as bars."""
    steps = [
        ("chance", row.chance, "other"),
        ("untrained network", row.untrained, "other"),
        ("logistic regression, 16 × 16 pixels", row.pixels_logistic, "other"),
        ("zero-shot, from words alone", row.value, "this"),
        ("supervised network, from labels", row.supervised, "other"),
    ]
    bars = "".join(
        f'<div class="step {kind}"><span class="name">{_e(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{value:.1%}"></span></span>'
        f'<span class="value">{value:.2f}</span></div>'
        for name, value, kind in steps
        if value is not None
    )
    interval = ""
    if row.low is not None and np.isfinite(row.low):
        interval = f", 95 % interval {row.low:.2f} to {row.high:.2f}"
    return (
        f'<section class="headline"><div class="big"><span>{row.value:.2f}</span>'
        f"<p>zero-shot accuracy over five findings on {row.n} films of "
        f"{_e(row.dataset)}{interval}</p></div>"
        f'<div class="ladder">{bars}</div></section>'
    )


def _table(rows: Sequence[Row]) -> str:
    used = _used_columns(rows)
    head = "".join(
        f"<th{' class=text' if i < 3 else ''}>{_e(COLUMNS[i])}</th>" for i in used
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=text' if i < 3 else ' class=value' if i == 3 else ''}>"
            f"{_e(cells(row)[i])}</td>"
            for i in used
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(section: Section) -> str:
    figures = "".join(
        f"<figure{' class=wide' if picture.wide else ''}>"
        f'<img alt="{_e(picture.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">'
        f"<figcaption>{_e(picture.caption)}</figcaption></figure>"
        for picture in section.pictures
    )
    return (
        f"<section><h2>{_e(section.title)}</h2><p>{_e(section.text)}</p>"
        f'<div class="pictures">{figures}</div>'
        f"{''.join(map(_query, section.queries))}</section>"
    )


def _query(query: Query) -> str:
    shown = f"“{_e(query.shown)}”" if query.is_text else _e(query.shown)
    films = "".join(
        f'<figure class="{"right" if film.right else "wrong"}">'
        f'<img alt="chest film with {_e(film.found)}" src="{_thumbnail(film.film_HxW)}">'
        f"<figcaption>{'✓' if film.right else '✗'} {_e(film.found)}</figcaption></figure>"
        for film in query.films
    )
    return (
        f'<div class="query"><div class="asks"><h3>{_e(query.asks)}</h3><p>{shown}</p>'
        f'</div><div class="films">{films}</div></div>'
    )


def _thumbnail(film_HxW: np.ndarray) -> str:
    image = Image.fromarray(film_HxW)
    image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _used_columns(rows: Sequence[Row]) -> list[int]:
    """Columns that some row fills; an all-empty one is noise."""
    return [i for i in range(len(COLUMNS)) if any(cells(row)[i] for row in rows)]


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)
