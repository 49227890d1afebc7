"""Pictures of sentence pairs."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from medclip_jax.evaluation.plots import CLASS_COLOURS, INK, STYLE, figure_of, png


def similarities(
    panels: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str]
) -> bytes:
    """How similar the two sentences of pairs are, by what they are to each other.

    Args:
      panels: title to cosines float [N].
      classes: int [N].
      names: of the classes.
    """
    lowest = min(float(scores.min()) for scores in panels.values())
    bins = np.linspace(min(lowest, 0.0) - 0.001, 1.001, 31)
    with matplotlib.rc_context(STYLE):
        figure, axes_of = figure_of(4.9 * len(panels), 4.1, len(panels))
        for axes, (title, scores) in zip(np.atleast_1d(axes_of), panels.items()):
            for c, name in enumerate(names):
                of = scores[classes == c]
                if not len(of):
                    continue
                colour = CLASS_COLOURS[c]
                weights = np.full(len(of), 1 / len(of))
                axes.hist(of, bins, weights=weights, color=colour, alpha=0.3)
                axes.hist(
                    of, bins, weights=weights, color=colour, histtype="step", lw=1.8,
                    ls=("-", "--", ":")[c % 3], label=f"{name} ({len(of)})",
                )  # fmt: skip
                axes.axvline(np.median(of), color=colour, lw=1.2, ls=(0, (1, 1.5)))
            axes.set(title=title, xlabel="cosine of the two sentences")
            axes.tick_params(colors=INK)
        np.atleast_1d(axes_of)[0].set_ylabel("share of the pairs of a label")
        handles, labels = np.atleast_1d(axes_of)[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return png(figure)
