"""Pictures of the tasks: ROC of several networks, score histograms, label fractions."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from sklearn.metrics import auc, roc_curve

from medclip_jax.evaluation.plots import (
    CHANCE,
    STYLE,
    TRAINED,
    UNTRAINED,
    figure_of,
    png,
    square,
)

NETWORKS: dict[str, tuple[str, str]] = {
    "trained": (TRAINED, "o"),
    "untrained": (UNTRAINED, "s"),
    "imagenet": ("#B8860B", "^"),
    "supervised": ("#009E73", "D"),
}
"""Network to its colour and mark."""


def network_style(name: str) -> tuple[str, str]:
    """Colour and mark of a network."""
    return NETWORKS.get(name, ("#CC79A7", "v"))


def roc_of_networks(scores: Mapping[str, np.ndarray], positive: np.ndarray) -> bytes:
    """One ROC curve a network, with the chance line.

    Args:
      scores: network to float [N].
      positive: bool [N].
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(5.8, 6.0)
        axes.plot([0, 1], [0, 1], "--", color=CHANCE, lw=1.4, label="chance 0.50")
        for name, of in scores.items():
            false, true, _ = roc_curve(positive, of)
            label = f"{name} {auc(false, true):.2f}"
            axes.plot(false, true, color=network_style(name)[0], lw=2.2, label=label)
        return square(
            figure,
            axes,
            "false positive rate",
            "true positive rate",
            "area under the curve",
        )


def margins(scores: np.ndarray, positive: np.ndarray, names: Sequence[str]) -> bytes:
    """Histograms of the scores of the negative and of the positive units.

    Args:
      scores: float [N], positive words less negative ones.
      positive: bool [N].
      names: of the negative and of the positive class.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 4.4)
        edges = np.histogram_bin_edges(np.append(scores, 0.0), 30)
        for kind, colour, name in ((~positive, UNTRAINED, names[0]),
                                   (positive, TRAINED, names[1])):  # fmt: skip
            weights = np.full(kind.sum(), 1 / max(kind.sum(), 1))
            axes.hist(
                scores[kind],
                edges,
                weights=weights,
                color=colour,
                alpha=0.65,
                label=f"{name} ({kind.sum()})",
            )
        axes.axvline(0, color=CHANCE, ls="--", lw=1.4)
        axes.set(xlabel="score: yes less no", ylabel="share of the class")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return png(figure)


def fractions(panels: Mapping[str, Sequence[Any]], what: str) -> bytes:
    """Figure against the share of the training labels, one line a network.

    Args:
      panels: title to points, each with `share` (0 .. 1), `network`, `value`, `low`,
        `high` (maybe NaN) and `chance`.
      what: the figure, such as "AUROC".
    """
    with matplotlib.rc_context(STYLE):
        figure, axes_of = figure_of(5.0 * len(panels) + 0.8, 4.6, len(panels))
        for axes, (title, points) in zip(np.atleast_1d(axes_of), panels.items()):
            shares = sorted({point.share for point in points})
            place = {share: x for x, share in enumerate(shares)}
            for name in dict.fromkeys(point.network for point in points):
                line = sorted(
                    (p for p in points if p.network == name), key=lambda p: p.share
                )
                colour, mark = network_style(name)
                x = [place[p.share] for p in line]
                axes.plot(
                    x,
                    [p.value for p in line],
                    "-" + mark,
                    color=colour,
                    lw=2,
                    ms=7,
                    label=name,
                )
                low = [p.low for p in line]
                high = [p.high for p in line]
                if np.isfinite(low).all():
                    axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
            axes.axhline(points[0].chance, color=CHANCE, ls="--", lw=1.4,
                         label=f"chance {points[0].chance:.2f}")  # fmt: skip
            axes.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
            axes.set(title=title, xlabel="share of the training labels")
            axes.margins(x=0.08)
        first = np.atleast_1d(axes_of)[0]
        first.set_ylabel(what)
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        return png(figure)
