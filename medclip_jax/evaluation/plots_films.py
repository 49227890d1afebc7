"""Pictures of films: heat maps with boxes, pairs of films, masks."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from medclip_jax.evaluation.plots import INK, STYLE, png

BOX = "#35E0FF"
TOLD = "#FF8A1F"
RIGHT, WRONG = "#00785A", "#C24E00"


@dataclass(frozen=True)
class HeatMap:
    """A film with what a network finds for a phrase.

    Attributes:
      film_SxS: uint8.
      map_SxS: float, the similarity at each pixel.
      boxes: x, y, width, height in pixels of this film.
      title: short: the category and the figure.
      told: the phrase, or its id.
    """

    film_SxS: np.ndarray
    map_SxS: np.ndarray
    boxes: Sequence[Sequence[float]]
    title: str
    told: str


def heat_maps(groups: Mapping[str, Sequence[HeatMap]]) -> bytes:
    """A row a group; each film alone, then under its map, both with the boxes.

    Args:
      groups: name to films, as many in each group.
    """
    most = max(len(films) for films in groups.values())
    every = [film for films in groups.values() for film in films]
    low = min(float(film.map_SxS.min()) for film in every)
    high = max(float(film.map_SxS.max()) for film in every)
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        height = 3.25 * len(groups) + 0.6
        figure = Figure(figsize=(2.6 * 2 * most + 1.0, height))
        FigureCanvasAgg(figure)
        parts = figure.add_gridspec(
            len(groups), 2 * most, left=0.06, right=0.895, wspace=0.04, hspace=0.3,
            top=1 - 0.45 / height, bottom=0.6 / height,
        )  # fmt: skip
        for row, (name, films) in enumerate(groups.items()):
            for place, film in enumerate(films):
                alone = figure.add_subplot(parts[row, 2 * place])
                under = figure.add_subplot(parts[row, 2 * place + 1])
                for axes in (alone, under):
                    _film(axes, film.film_SxS)
                    _boxes(axes, film.boxes)
                under.imshow(
                    film.map_SxS,
                    cmap="inferno",
                    vmin=low,
                    vmax=high,
                    alpha=0.45,
                )
                alone.set_title(film.title, fontsize=11, pad=6, loc="left")
                told = "\n".join(
                    textwrap.wrap(film.told, 58, max_lines=2, placeholder=" …")
                )
                alone.text(
                    0, -0.03, told, transform=alone.transAxes, va="top", fontsize=9
                )
                if place == 0:
                    alone.set_ylabel(name, fontsize=12.5, fontweight="bold")
        middle = figure.add_axes((0.912, 0.3, 0.013, 0.4))
        scale = ScalarMappable(Normalize(low, high), "inferno")
        bar = figure.colorbar(scale, cax=middle)
        bar.set_label("cosine of patch and phrase")
        bar.outline.set_visible(False)
        return png(figure)


def word_maps(rows: Mapping[str, Sequence[HeatMap]]) -> bytes:
    """A row a phrase; in it the film once for each word, under what the word looks at.

    Args:
      rows: name to films, each with the map of one word; the title is the word.
    """
    most = max(len(films) for films in rows.values())
    high = max(float(film.map_SxS.max()) for films in rows.values() for film in films)
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        height = 2.5 * len(rows) + 0.5
        figure = Figure(figsize=(2.05 * most + 1.3, height))
        FigureCanvasAgg(figure)
        parts = figure.add_gridspec(
            len(rows), most, left=0.06, right=0.89, wspace=0.05, hspace=0.32,
            top=1 - 0.4 / height, bottom=0.35 / height,
        )  # fmt: skip
        for row, (name, films) in enumerate(rows.items()):
            for place, film in enumerate(films):
                axes = figure.add_subplot(parts[row, place])
                _film(axes, film.film_SxS)
                axes.imshow(film.map_SxS, cmap="inferno", vmin=0, vmax=high, alpha=0.45)
                _boxes(axes, film.boxes)
                axes.set_title(film.title, fontsize=11, pad=5, loc="left")
                if place == 0:
                    axes.set_ylabel(name, fontsize=12.5, fontweight="bold")
                    told = textwrap.shorten(film.told, 110, placeholder=" …")
                    axes.text(0, -0.05, told, transform=axes.transAxes, va="top",
                              fontsize=9)  # fmt: skip
        middle = figure.add_axes((0.91, 0.25, 0.012, 0.5))
        bar = figure.colorbar(ScalarMappable(Normalize(0, high), "inferno"), cax=middle)
        bar.set_label("share of the word's attention in a cell")
        bar.outline.set_visible(False)
        return png(figure)


def _film(axes, film_SxS: np.ndarray) -> None:
    axes.imshow(film_SxS, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _boxes(axes, boxes: Sequence[Sequence[float]]) -> None:
    for x, y, width, height in boxes:
        box = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec=BOX, lw=1.6)
        box.set_path_effects([withStroke(linewidth=3, foreground=INK)])
        axes.add_patch(box)


@dataclass(frozen=True)
class Change:
    """Two films of a patient, what changed and what was said of it.

    Attributes:
      previous_SxS, current_SxS: uint8.
      truth, predicted: labels.
    """

    previous_SxS: np.ndarray
    current_SxS: np.ndarray
    truth: str
    predicted: str


def changes(grid: Mapping[str, Sequence[Change]]) -> bytes:
    """A row a finding; in it pairs of films, the earlier left of the later."""
    columns = max(len(cells) for cells in grid.values())
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        height = 2.55 * len(grid) + 0.45
        figure = Figure(figsize=(4.1 * columns + 0.5, height))
        FigureCanvasAgg(figure)
        parts = figure.add_gridspec(
            len(grid), columns, left=0.04, right=0.995, wspace=0.06, hspace=0.24,
            top=1 - 0.4 / height, bottom=0.38 / height,
        )  # fmt: skip
        for row, (name, cells) in enumerate(grid.items()):
            for column, cell in enumerate(cells):
                two = parts[row, column].subgridspec(1, 2, wspace=0.02)
                before, now = (figure.add_subplot(two[place]) for place in (0, 1))
                _film(before, cell.previous_SxS)
                _film(now, cell.current_SxS)
                right = cell.truth == cell.predicted
                before.text(
                    0, -0.04, f"labelled {cell.truth}", transform=before.transAxes,
                    va="top", fontsize=10,
                )  # fmt: skip
                now.text(
                    0, -0.04, f"{'✓' if right else '✗'} said {cell.predicted}",
                    transform=now.transAxes, va="top", fontsize=10,
                    color=RIGHT if right else WRONG,
                )  # fmt: skip
                if row == 0:
                    before.set_title("before", fontsize=10, pad=5)
                    now.set_title("now", fontsize=10, pad=5)
                if column == 0:
                    before.set_ylabel(name, fontsize=11.5, fontweight="bold")
        return png(figure)


@dataclass(frozen=True)
class Outlined:
    """A film with an annotated and a predicted mask.

    Attributes:
      film_SxS: uint8.
      truth_SxS, predicted_SxS: bool.
      title: short: the figure.
    """

    film_SxS: np.ndarray
    truth_SxS: np.ndarray
    predicted_SxS: np.ndarray
    title: str


def outlines(groups: Mapping[str, Sequence[Outlined]]) -> bytes:
    """A row a group; each film alone, then with both masks.

    Args:
      groups: name to films, as many in each group.
    """
    most = max(len(films) for films in groups.values())
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        height = 2.35 * len(groups) + 0.5
        figure = Figure(figsize=(2.05 * 2 * most + 0.5, height))
        FigureCanvasAgg(figure)
        parts = figure.add_gridspec(
            len(groups), most, left=0.035, right=0.995, wspace=0.06, hspace=0.2,
            top=1 - 0.3 / height, bottom=0.45 / height,
        )  # fmt: skip
        for row, (name, films) in enumerate(groups.items()):
            for place, film in enumerate(films):
                two = parts[row, place].subgridspec(1, 2, wspace=0.02)
                alone, drawn = (figure.add_subplot(two[side]) for side in (0, 1))
                for axes in (alone, drawn):
                    _film(axes, film.film_SxS)
                for mask, colour, style in (
                    (film.truth_SxS, BOX, "solid"),
                    (film.predicted_SxS, TOLD, "dashed"),
                ):
                    # An edge of zeros closes outlines at the border of the film.
                    edged = np.pad(mask.astype(float), 1)
                    if mask.any():
                        at = np.arange(len(edged)) - 1
                        drawn.contour(
                            at, at, edged, [0.5], colors=colour, linewidths=1.7,
                            linestyles=style,
                        )  # fmt: skip
                drawn.set(
                    xlim=(-0.5, len(film.film_SxS) - 0.5),
                    ylim=(len(film.film_SxS) - 0.5, -0.5),
                )
                alone.set_title(film.title, fontsize=10.5, pad=5)
                if place == 0:
                    alone.set_ylabel(name, fontsize=12, fontweight="bold")
        handles = [
            Line2D([], [], color=BOX, lw=2.2, label="annotated"),
            Line2D([], [], color=TOLD, lw=2.2, ls="dashed", label="predicted"),
        ]
        legend = figure.legend(
            handles=handles, loc="lower center", ncols=2, facecolor="#4A535E",
            labelcolor="white", frameon=True, edgecolor="none", fontsize=10,
        )  # fmt: skip
        legend.set_zorder(5)
        return png(figure)
