"""Pictures of the report, each a PNG; no global matplotlib state is touched."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.manifold import TSNE
from sklearn.metrics import auc, roc_curve
from threadpoolctl import threadpool_limits

# Okabe and Ito's colours, told apart with any kind of colour vision, and one mark a
# class so that colour never stands alone.
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B")
CLASS_MARKS = ("o", "s", "^", "D", "v")
TRAINED, UNTRAINED, CHANCE = "#1F5FA8", "#A9B4C0", "#444B54"
INK, GRID = "#1B2430", "#E3E8EE"
DPI = 130
TSNE_FILMS = 600

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": "#9AA5B1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


def figure_of(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes side by side."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def png(figure: Figure) -> bytes:
    """The figure as a file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Without the software stamp the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def square(figure: Figure, axes: Any, xlabel: str, ylabel: str, title: str) -> bytes:
    """Finishes curves of one rate against another: axes 0 to 1, a titled legend."""
    axes.set(
        xlabel=xlabel,
        ylabel=ylabel,
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        title=title,
        fontsize=10,
    )
    return png(figure)


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Shares by row, counts beneath; rows are the truth.

    Args:
      counts: int [C, C].
      names: C class names.

    Returns:
      PNG bytes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 5.4)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted from words alone")
        axes.set_ylabel("finding in the film")
        for row, column in np.ndindex(counts.shape):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{share:.0%}\n({counts[row, column]})",
                ha="center",
                va="center",
                fontsize=9.5,
                color="white" if share > 0.55 else INK,
            )
        bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1))
        bar.outline.set_visible(False)
        bar.set_label("share of the films of a finding")
        return png(figure)


def roc(scores_NxC: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> bytes:
    """One ROC curve a class against the rest, with the chance line.

    Args:
      scores_NxC: float, comparable between films.
      classes: int [N].
      names: C class names.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(5.8, 6.2)
        axes.plot([0, 1], [0, 1], "--", color=CHANCE, lw=1.4, label="chance 0.50")
        for c, name in enumerate(names):
            false, true, _ = roc_curve(classes == c, scores_NxC[:, c])
            axes.plot(
                false,
                true,
                color=CLASS_COLOURS[c % 5],
                lw=2,
                label=f"{name} {auc(false, true):.2f}",
            )
        return square(
            figure,
            axes,
            "false positive rate",
            "true positive rate",
            "area under the curve",
        )


def class_bars(
    trained: Sequence[float],
    untrained: Sequence[float],
    names: Sequence[str],
    chance: float,
) -> bytes:
    """Share of each class's films that were named right, beside untrained and chance."""
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 5.2)
        place = np.arange(len(names))
        for shift, values, colour, label in (
            (-0.2, trained, TRAINED, "trained"),
            (0.2, untrained, UNTRAINED, "untrained"),
        ):
            bars = axes.bar(place + shift, values, 0.38, color=colour, label=label)
            for text in axes.bar_label(bars, fmt="%.2f", fontsize=9.5, padding=2):
                text.set_path_effects([withStroke(linewidth=3, foreground="white")])
                text.set_zorder(5)
        axes.axhline(
            chance, color=CHANCE, ls="--", lw=1.4, label=f"chance {chance:.2f}"
        )
        short = [name.replace(" ", "\n") for name in names]
        axes.set_xticks(place, short, fontsize=9.5)
        axes.set(ylim=(0, 1.1), ylabel="named right")
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
        return png(figure)


def precision_curves(rows: Mapping[str, Sequence[Any]]) -> bytes:
    """Precision@K of one or two directions, with intervals, untrained and chance.

    Args:
      rows: panel title to its rows, whose metrics end in "_K".
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = figure_of(4.6 * len(rows) + 0.6, 4.2, len(rows))
        for axes, (title, panel) in zip(np.atleast_1d(panels), rows.items()):
            ks = [int(row.metric.rsplit("_", 1)[1]) for row in panel]
            place = range(len(ks))
            low = [row.value if row.low is None else row.low for row in panel]
            high = [row.value if row.high is None else row.high for row in panel]
            axes.fill_between(place, low, high, color=TRAINED, alpha=0.15, lw=0)
            for values, style, colour, label in (
                ([row.value for row in panel], "-o", TRAINED, "trained"),
                ([row.untrained for row in panel], "-s", UNTRAINED, "untrained"),
                ([row.chance for row in panel], "--", CHANCE, "chance"),
            ):
                axes.plot(place, values, style, color=colour, lw=2, label=label)
            axes.set_xticks(place, ks)
            axes.set(ylim=(0, 1.02), xlabel="K", title=title)
        np.atleast_1d(panels)[0].set_ylabel("precision at K")
        handles, labels = np.atleast_1d(panels)[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return png(figure)


def finding_dots(rows: Sequence[Any]) -> bytes:
    """AUROC of each finding with its interval, the untrained figure and chance.

    Args:
      rows: rows whose protocol ends in "/FINDING".
    """
    ordered = sorted(rows, key=lambda row: row.value)
    names = [row.protocol.split("/", 1)[1] for row in ordered]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(7.2, 1.6 + 0.36 * len(rows))
        place = np.arange(len(rows))
        axes.axvline(0.5, color=CHANCE, ls="--", lw=1.4, label="chance")
        axes.scatter(
            [row.untrained for row in ordered],
            place,
            marker="D",
            s=34,
            color=UNTRAINED,
            label="untrained",
            zorder=3,
        )
        axes.hlines(
            place,
            [row.value if row.low is None else row.low for row in ordered],
            [row.value if row.high is None else row.high for row in ordered],
            color=TRAINED,
            lw=2.4,
            alpha=0.55,
        )
        axes.scatter(
            [row.value for row in ordered],
            place,
            s=52,
            color=TRAINED,
            label="trained, 95 % interval",
            zorder=4,
        )
        for y, row in zip(place, ordered):
            axes.text(1.03, y, f"{row.value:.2f}", va="center", fontsize=10)
        axes.set_yticks(place, names)
        lowest = min(
            0.3, *(v for r in rows for v in (r.value, r.untrained, r.low or 1))
        )
        axes.set(xlim=(max(0, lowest - 0.03), 1.0), xlabel="AUROC")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
        return png(figure)


def project(embeddings_NxD: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of normalised embeddings to the plane, float [N, 2]; seeded."""
    count = len(embeddings_NxD)
    if count < 4:
        raise ValueError(f"t-SNE of {count} films shows nothing")
    # PCA cannot start from embeddings that are all but equal, as before training.
    model = TSNE(
        perplexity=min(30.0, (count - 1) / 3),
        init="random",
        random_state=seed,
        metric="cosine",
    )
    # Its threads wait for one another by spinning: on a busy machine two are far
    # slower than one.
    with threadpool_limits(1):
        return model.fit_transform(np.asarray(embeddings_NxD, np.float32))


def tsne(
    panels: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str]
) -> bytes:
    """Scatter of films in the plane, coloured by finding.

    Args:
      panels: title to points float [N, 2], from `project`.
      classes: int [N].
      names: C class names.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes_of = figure_of(5.2 * len(panels), 5.3, len(panels))
        for axes, (title, points) in zip(np.atleast_1d(axes_of), panels.items()):
            for c, name in enumerate(names):
                chosen = classes == c
                axes.scatter(
                    *points[chosen].T,
                    s=17,
                    alpha=0.8,
                    lw=0,
                    color=CLASS_COLOURS[c % 5],
                    marker=CLASS_MARKS[c % 5],
                    label=name,
                )
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            axes.grid(False)
        handles, labels = np.atleast_1d(axes_of)[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3 if len(panels) == 1 else 5,
            markerscale=2,
            columnspacing=1.2,
            handletextpad=0.2,
        )
        return png(figure)


def training_curves(lines: Sequence[Mapping[str, float]]) -> bytes:
    """Loss, and zero-shot figures where they were measured, over the steps.

    Args:
      lines: of metrics.jsonl. A step that stands twice, as after a restart, counts
        once.
    """
    by_step = {int(line["step"]): line for line in lines}
    series = {
        name: [
            (step, line[name])
            for step, line in sorted(by_step.items())
            if isinstance(line.get(name), int | float)
        ]
        for name in ("loss", "zero_shot/accuracy", "zero_shot/auroc")
    }
    measured = {n: s for n, s in series.items() if s and n != "loss"}
    with matplotlib.rc_context(STYLE):
        columns = 2 if measured else 1
        figure, axes_of = figure_of(4.9 * columns, 3.9, columns)
        axes_of = np.atleast_1d(axes_of)
        if series["loss"]:
            axes_of[0].plot(*zip(*series["loss"]), color=TRAINED, lw=1.8)
        axes_of[0].set(title="training loss", xlabel="step")
        for (name, points), colour, chance in zip(
            measured.items(), (TRAINED, "#D55E00"), (0.2, 0.5)
        ):
            label = name.split("/")[1].replace("auroc", "AUROC")
            axes_of[1].plot(
                *zip(*points), "-o", color=colour, lw=1.8, ms=5, label=label
            )
            axes_of[1].axhline(
                chance, color=colour, ls="--", lw=1.2, label=f"chance {chance}"
            )
        if measured:
            axes_of[1].set(title="zero-shot on validation films", xlabel="step")
            axes_of[1].set(ylim=(0, 1.02), xlim=axes_of[0].get_xlim())
            handles, labels = axes_of[1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        for axes in axes_of:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return png(figure)
