"""Pictures of scores: precision against recall, and how sure a network should be."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from medclip_jax.evaluation.plots import (
    CHANCE,
    CLASS_COLOURS,
    STYLE,
    TRAINED,
    figure_of,
    png,
    square,
)

BINS = 10


def precision_recall(
    scores_NxC: np.ndarray, classes: np.ndarray, names: Sequence[str]
) -> bytes:
    """One precision-recall curve a class against the rest.

    Args:
      scores_NxC: float, comparable between films.
      classes: int [N].
      names: C class names.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(5.8, 6.2)
        chance = float(np.mean([np.mean(classes == c) for c in range(len(names))]))
        axes.axhline(
            chance, ls="--", color=CHANCE, lw=1.4, label=f"chance {chance:.2f}"
        )
        for c, name in enumerate(names):
            positive = classes == c
            precision, recall, _ = precision_recall_curve(positive, scores_NxC[:, c])
            area = average_precision_score(positive, scores_NxC[:, c])
            axes.plot(
                recall,
                precision,
                color=CLASS_COLOURS[c % 5],
                lw=2,
                drawstyle="steps-post",
                label=f"{name} {area:.2f}",
            )
        return square(figure, axes, "recall", "precision", "average precision")


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, bins: int = BINS
) -> float:
    """Expected calibration error over equal-width bins of confidence.

    Args:
      confidence: float [N] in 0..1, the probability given to the class named.
      right: bool [N], whether it was right.
      bins: how many.

    Returns:
      The mean over films of |accuracy - confidence| of the film's bin.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    rows = _bins(confidence, right, bins)
    return float(sum(share * abs(told - true) for told, true, share, _ in rows))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> bytes:
    """How often films were named right against how sure the network was."""
    rows = _bins(confidence, right, bins)
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(5.8, 5.2)
        axes.plot([0, 1], [0, 1], "--", color=CHANCE, lw=1.4, label="calibrated")
        told, true, share, counts = (np.array(column) for column in zip(*rows))
        axes.plot(told, true, "-", color=TRAINED, lw=1.6, alpha=0.6)
        axes.scatter(
            told,
            true,
            s=40 + 900 * share,
            color=TRAINED,
            alpha=0.75,
        )
        for x, y, count in zip(told, true, counts):
            axes.annotate(
                f"{count:.0f}", (x, y), textcoords="offset points", xytext=(0, -4),
                ha="center", fontsize=8, color="white" if count > 20 else "black",
            )  # fmt: skip
        axes.set(
            xlabel="confidence: probability of the class named",
            ylabel="share named right",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.05),
        )
        axes.scatter([], [], s=60, color=TRAINED, label="films, by confidence")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10)
        return png(figure)


def _bins(
    confidence: np.ndarray, right: np.ndarray, bins: int
) -> list[tuple[float, float, float, int]]:
    """(mean confidence, share right, share of films, films) of each bin that has any."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    made = []
    for bin_number in range(bins):
        inside = place == bin_number
        if inside.any():
            made.append(
                (
                    float(confidence[inside].mean()),
                    float(right[inside].mean()),
                    float(inside.mean()),
                    int(inside.sum()),
                )
            )
    return made
