"""Pairs of sentences: their similarity, and thresholds on it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medclip_jax.evaluation.features import Network

Row = Mapping[str, Any]


def sentences(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The first and the second sentences; protected text."""
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]


def vectors(network: Network, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the first and of the second sentences, float64 [N, D] each."""
    first, second = sentences(rows)
    joint = np.asarray(network.texts([*first, *second]).joint_BxD, np.float64)
    return joint[: len(rows)], joint[len(rows) :]


def cosines(network: Network, rows: Sequence[Row]) -> np.ndarray:
    """float64 [N], the cosine of the two sentences in the joint space."""
    first, second = vectors(network, rows)
    return (first * second).sum(axis=1)


def couples(rows: Sequence[Row]) -> np.ndarray:
    """N names, the same for two sentences in either order; holds no text."""
    numbers: dict[frozenset[str], int] = {}
    both = (frozenset(pair) for pair in zip(*sentences(rows)))
    return np.array([f"couple {numbers.setdefault(p, len(numbers))}" for p in both])


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """The threshold with the most pairs right when more than it is positive.

    Half way between two scores that are next to each other, or infinite; the lowest
    of several that are as good.

    Args:
      scores: float [N].
      positive: bool [N].
    """
    cuts = _cuts(scores)
    return float(
        cuts[
            np.argmax(_above(scores, positive, cuts) + _below(scores, ~positive, cuts))
        ]
    )


def best_order(
    scores: np.ndarray, classes: np.ndarray
) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """Two thresholds, and which of three classes lies below, between and above.

    Args:
      scores: float [N].
      classes: int [N], 0 to 2.

    Returns:
      The classes from the lowest scores to the highest, and the lower and the upper
      threshold, with the most pairs right.
    """
    cuts = _cuts(scores)
    best = (-1.0, (0, 1, 2), (-np.inf, np.inf))
    for a, b, c in itertools.permutations(range(3)):
        order = (a, b, c)
        low, middle, high = (_below(scores, classes == of, cuts) for of in order)
        # Right at cuts i <= j: low[i] + (middle[j] - middle[i]) + (all high - high[j]).
        first = low - middle
        reached = np.maximum.accumulate(first)
        total = reached + middle + (classes == order[2]).sum() - high
        j = int(np.argmax(total))
        i = int(np.argmax(first[: j + 1]))
        if total[j] > best[0]:
            best = (float(total[j]), order, (float(cuts[i]), float(cuts[j])))
    return best[1], best[2]


def classes_of(
    scores: np.ndarray, order: tuple[int, int, int], thresholds: tuple[float, float]
) -> np.ndarray:
    """int [N], the classes that `best_order` gives scores."""
    low, high = thresholds
    return np.asarray(order)[(scores > low).astype(int) + (scores > high)]


def out_of_fold(
    scores: np.ndarray,
    positive: np.ndarray,
    groups: np.ndarray,
    seed: int,
    folds: int = 10,
) -> np.ndarray:
    """bool [N]: above the threshold that is best on the other folds.

    Args:
      scores: float [N].
      positive: bool [N].
      groups: N names; those of one name stay in one fold.
      seed: of the folds, which are stratified.
      folds: how many.
    """
    told = np.zeros(len(scores), bool)
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for rest, fold in parts.split(scores, positive, groups):
        told[fold] = scores[fold] > best_threshold(scores[rest], positive[rest])
    return told


def _cuts(scores: np.ndarray) -> np.ndarray:
    ranked = np.unique(np.asarray(scores, np.float64))
    return np.r_[-np.inf, (ranked[1:] + ranked[:-1]) / 2, np.inf]


def _below(scores: np.ndarray, of: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """How many scores of some pairs are not above each cut."""
    return np.searchsorted(np.sort(scores[of]), cuts, side="right").astype(np.float64)


def _above(scores: np.ndarray, of: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return of.sum() - _below(scores, of, cuts)
