"""report.html: one page that needs no network, with its pictures inside it."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from medclip_jax.evaluation import published
from medclip_jax.evaluation.protocol import About
from medclip_jax.evaluation.report import (
    COLUMNS,
    SIMULATED,
    Query,
    Report,
    Section,
    cells,
    used_columns,
)
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.stylesheet import CSS

THUMBNAIL = 176


def render(report: Report, abouts: Mapping[str, About]) -> str:
    """The page as one string.

    Args:
      report: what to say.
      abouts: protocol to what it measures, in the order of the page; names of one
        `About` become one chapter.
    """
    chapters = _chapters(report, abouts)
    parts = [_header(report), _contents(chapters)]
    headline = next((r for r in report.rows if _is_headline(r)), None)
    if headline is not None:
        parts.append(_ladder(headline))
    parts += [_board(report.rows), *(_chapter(*chapter) for chapter in chapters)]
    parts += [_section(s, "h2") for s in report.sections if not s.protocol]
    parts += [_leaks(report), _limits(report), _skipped(report)]
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


def _is_headline(row: Row) -> bool:
    return (row.protocol, row.metric) == ("zero_shot_five", "accuracy")


def _header(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{_e(k)}</dt><dd>{_e(v)}</dd></div>" for k, v in report.facts.items()
    )
    parts = [
        f'<header><h1>{_e(report.title)}</h1><dl class="facts">{facts}</dl></header>'
    ]
    if report.simulated:
        name, rest = SIMULATED.split(". ", 1)
        parts.append(f'<p class="banner"><b>{_e(name)}.</b> {_e(rest)}</p>')
    return "\n".join(parts)


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


# --- Leaderboard ----------------------------------------------------------------------


SHOWN = 3
"""Data sets of a protocol that the leaderboard shows before it folds the others."""


def _board(rows: Sequence[Row]) -> str:
    """A figure of each protocol and data set on a scale, those that papers have first.

    Of shares of the labels it is that of all.
    """
    chosen: dict[tuple[str, str], tuple[Row, list[published.Figure]]] = {}
    ranks: dict[tuple[str, str], tuple[int, bool]] = {}
    for row in rows:
        papers = published.beside(row)
        key = row.protocol, row.dataset
        wanted = np.isfinite(row.value) and ("/" not in row.protocol or papers)
        rank = len(papers), row.metric.endswith("_100%")
        if wanted and (key not in chosen or rank > ranks[key]):
            chosen[key], ranks[key] = (row, papers), rank
    groups: dict[str, list[tuple[Row, list[published.Figure]]]] = {}
    for (protocol, _), entry in chosen.items():
        groups.setdefault(protocol, []).append(entry)
    lines = []
    for protocol, entries in groups.items():
        entries.sort(key=lambda entry: not entry[1])
        drawn = [_board_line(*entry) for entry in entries]
        lines += drawn[:SHOWN]
        if drawn[SHOWN:]:
            lines.append(
                f"<details><summary>{words(protocol)}: {len(drawn) - SHOWN} further "
                f"data sets</summary>{''.join(drawn[SHOWN:])}</details>"
            )
    if not lines:
        return ""
    legend = (
        '<span><i class="dot this"></i>this checkpoint, 95 % interval</span>'
        '<span><i class="dot untrained"></i>untrained</span>'
        '<span><i class="dot imagenet"></i>ImageNet</span>'
        '<span><i class="dot supervised"></i>supervised</span>'
        '<span><i class="tick"></i>chance</span>'
        '<span><i class="dot paper"></i>published, on other data</span>'
    )
    return (
        '<section id="leaderboard"><h2>Leaderboard</h2><p>Each figure beside what it '
        "must be held against. Published figures are the papers' own, measured on "
        "<b>other data</b> than these: they show where the field stands, not a ranking."
        f'</p><div class="legend">{legend}</div>'
        f'<div class="board">{"".join(lines)}</div></section>'
    )


def _board_line(row: Row, papers: Sequence[published.Figure]) -> str:
    values = [row.value, row.chance, row.high or 0, *(p.value for p in papers)]
    top = max([1.0, *(v * 1.05 for v in values if v is not None and np.isfinite(v))])

    def at(value: float | None, kind: str, title: str) -> str:
        if value is None or not np.isfinite(value):
            return ""
        place = min(max(value / top, 0), 1)
        return f'<i class="{kind}" style="left:{place:.1%}" title="{_e(title)}"></i>'

    bar = ""
    if row.low is not None and row.high is not None and np.isfinite(row.low):
        left = max(row.low, 0) / top
        width = max(row.high - max(row.low, 0), 0) / top
        bar = f'<i class="range" style="left:{left:.1%};width:{width:.1%}"></i>'
    marks = "".join(
        at(p.value, "dot paper", f"{p.system}: {p.value:.3g} ({p.source})")
        for p in papers
    )
    marks += at(row.chance, "tick", f"chance {row.chance:.3f}")
    for kind in ("untrained", "imagenet", "supervised"):
        value = getattr(row, kind)
        marks += at(value, f"dot {kind}", f"{kind} {value:.3f}" if value else kind)
    marks += at(row.value, "dot this", f"this checkpoint {row.value:.3f}")
    told = "; ".join(f"{p.system} {p.value:.3g}" for p in papers)
    listed = f'<p class="papers">published: {_e(told)}</p>' if told else ""
    interval = ""
    if row.low is not None and np.isfinite(row.low):
        interval = f"<small>{row.low:.3f} to {row.high:.3f}</small>"
    return (
        f'<div class="line"><div class="what"><b>{_e(words(row.protocol))}</b>'
        f"<small>{_e(row.dataset)}, {_e(words(row.metric))}, n = {row.n}</small></div>"
        f'<div class="scale"><span class="strip">{bar}{marks}</span>{listed}</div>'
        f'<div class="figure"><b>{row.value:.3f}</b>{interval}</div></div>'
    )


def words(name: str) -> str:
    """A protocol's or metric's name for reading."""
    return name.replace("_", " ").replace("/", ": ").replace("auroc", "AUROC")


# --- Chapters -------------------------------------------------------------------------

Chapter = tuple[str, About, list[Row], list[Section]]


def _chapters(report: Report, abouts: Mapping[str, About]) -> list[Chapter]:
    """(anchor, about, rows, sections) of each protocol that has any."""
    made = []
    for about in dict.fromkeys(abouts.values()):
        names = [name for name, of in abouts.items() if of == about]
        rows = [row for row in report.rows if row.definition == about.definition]
        sections = [s for s in report.sections if s.protocol in names]
        if rows or sections:
            anchor = re.sub(r"\W+", "-", about.title.lower())
            made.append((anchor, about, rows, sections))
    return made


def _contents(chapters: Iterable[Chapter]) -> str:
    links = "".join(
        f'<a href="#{anchor}">{_e(about.title)}</a>' for anchor, about, _, _ in chapters
    )
    return f'<nav><a href="#leaderboard">Leaderboard</a>{links}</nav>' if links else ""


def _chapter(
    anchor: str, about: About, rows: Sequence[Row], sections: Sequence[Section]
) -> str:
    main = [row for row in rows if "/" not in row.protocol]
    others = [row for row in rows if "/" in row.protocol]
    parts = [f'<section id="{anchor}"><h2>{_e(about.title)}</h2>']
    traps = "".join(f"<li>{_e(trap)}</li>" for trap in about.traps)
    parts.append(
        f"<p>{_e(about.definition)}</p><details class=how><summary>How it is computed, "
        f"and what makes such figures incomparable</summary><p>Defined in: "
        f"{_e(about.source)}.</p><ul>{traps}</ul></details>"
    )
    if main:
        parts.append(_table(main))
    if others:
        parts.append(
            f"<details><summary>{len(others)} further figures</summary>"
            f"{_table(others)}</details>"
        )
    parts += [_section(section, "h3") for section in sections[:1]]
    parts += [
        f"<details class=more><summary>{_e(section.title)}</summary>"
        f"{_section(section, 'h3', titled=False)}</details>"
        for section in sections[1:]
    ]
    return "".join(parts) + "</section>"


def _table(rows: Sequence[Row]) -> str:
    used = used_columns(rows)
    names = {row.protocol for row in rows}
    if len(names) == 1 and "/" not in names.pop():  # the chapter says it
        used = [column for column in used if column != COLUMNS.index("protocol")]
    head = "".join(
        f"<th{' class=text' if i < 3 else ''}>{_e(COLUMNS[i])}</th>" for i in used
    )
    body = "".join(
        f'<tr title="{_e(row.note)}">'
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


def _section(section: Section, level: str, titled: bool = True) -> str:
    figures = "".join(
        f"<figure{' class=wide' if picture.wide else ''}>"
        f'<img alt="{_e(picture.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">'
        f"<figcaption>{_e(picture.caption)}</figcaption></figure>"
        for picture in section.pictures
    )
    title = f"<{level}>{_e(section.title)}</{level}>" if titled else ""
    return (
        f"<div class=part>{title}<p>{_e(_sentence(section.text))}</p>"
        f'<div class="pictures">{figures}</div>'
        f"{''.join(map(_query, section.queries))}</div>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _query(query: Query) -> str:
    shown = f"“{_e(query.shown)}”" if query.is_text else _e(query.shown)
    films = "".join(
        f'<figure class="{"right" if film.right else "wrong"}">'
        f'<img alt="film with {_e(film.found)}" src="{_thumbnail(film.film_HxW)}">'
        f"<figcaption>{'✓' if film.right else '✗'} {_e(film.found)}</figcaption></figure>"
        for film in query.films
    )
    return (
        f'<div class="query"><div class="asks"><h4>{_e(query.asks)}</h4><p>{shown}</p>'
        f'</div><div class="films" style="--n:{max(5, len(query.films))}">{films}</div>'
        "</div>"
    )


def _thumbnail(film_HxW: np.ndarray) -> str:
    image = Image.fromarray(film_HxW)
    image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- The end --------------------------------------------------------------------------


def _leaks(report: Report) -> str:
    if not report.leaks:
        return ""
    items = "".join(f"<li>{_e(line)}</li>" for line in report.leaks)
    return (
        '<section><h2>Leaks between training and evaluation</h2><p class="banner">What '
        "the network has seen of what it is judged on. A figure on these is too high "
        "by an unknown amount; prepare with --hold-out, and train again.</p>"
        f'<ul class="limits leaks">{items}</ul></section>'
    )


def _skipped(report: Report) -> str:
    if not report.skipped:
        return ""
    items = "".join(
        f"<li><b>{_e(name)}</b>: {_e(why)}</li>" for name, why in report.skipped.items()
    )
    return (
        f"<details><summary>{len(report.skipped)} protocols and parts that were not "
        f'run on these data</summary><ul class="limits">{items}</ul></details>'
    )


def _limits(report: Report) -> str:
    if not report.limits:
        return ""
    items = "".join(f"<li>{_e(limit)}</li>" for limit in report.limits)
    return (
        "<section><h2>What these figures do not show</h2>"
        f"<ul class=limits>{items}</ul></section>"
    )


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)
