"""Metrics on host arrays, and their intervals from a bootstrap over patients.

A statistic that is to have an interval is written as a function of film weights
W [R, N] (how often the resample r holds film n), so that all resamples are computed at
once; weights of one give the point value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sk

Statistic = Callable[[np.ndarray], np.ndarray]
"""Film weights [R, N] -> values [R]; NaN where a resample cannot give one."""

Strings = Sequence[str] | np.ndarray
"""Ids, as a list of str or an array of them."""

BOOTSTRAP_SAMPLES = 1000
_BLOCK_ENTRIES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def classification(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict:
    """Accuracy, macro precision, recall and F1, and recall by class.

    Args:
      truth: int [N], class of each film, 0 .. classes - 1.
      predicted: int [N].
      classes: how many classes there are, predicted or not.

    Returns:
      {"accuracy", "macro_precision", "macro_recall", "macro_f1": float,
      "recall_by_class": list of float}. A class never predicted has precision 0.
    """
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, predicted, labels=range(classes), average=None, zero_division=0
    )
    return {
        "accuracy": float(np.mean(np.asarray(truth) == np.asarray(predicted))),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "recall_by_class": [float(value) for value in recall],
    }


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts [classes, classes]: a row is the truth, a column what was predicted."""
    return sk.confusion_matrix(truth, predicted, labels=range(classes))


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN unless both kinds of film are there.

    Args:
      positive: bool [N].
      scores: float [N], higher for more positive; ties count one half.
    """
    positive = np.asarray(positive, bool)
    if positive.all() or not positive.any():
        return float("nan")
    return float(sk.roc_auc_score(positive, scores))


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall steps; NaN without a positive film."""
    positive = np.asarray(positive, bool)
    if not positive.any():
        return float("nan")
    return float(sk.average_precision_score(positive, scores))


def precision_at_k(
    similarity: np.ndarray, correct: np.ndarray, ks: Sequence[int]
) -> dict[int, np.ndarray]:
    """Share of correct candidates among each query's top K.

    Args:
      similarity: float [Q, C], higher for more similar; equal values are ranked by
        the candidate's index.
      correct: bool [Q, C], whether a candidate is a right answer.
      ks: numbers of candidates; each at most C.

    Returns:
      K to float [Q].

    Reference: Zhang et al. (ConVIRT) section 4.2; Wang et al. (MedCLIP) section 4.5.
    """
    deepest = max(ks)
    if deepest > similarity.shape[1]:
        raise ValueError(f"K={deepest} exceeds {similarity.shape[1]} candidates")
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :deepest]
    hits = np.take_along_axis(correct, order, axis=1).astype(np.float64)
    found = np.cumsum(hits, axis=1)
    return {k: found[:, k - 1] / k for k in ks}


def first_hit_rank(similarity: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Zero-based rank of each query's best right answer; ties go to the lower index.

    Args:
      similarity: float [Q, C].
      correct: bool [Q, C]; every row needs at least one right answer.

    Returns:
      int [Q].

    Reference: mlfoundations/open_clip, src/open_clip_train/metrics.py.
    """
    if not correct.any(axis=1).all():
        raise ValueError("a query without a right answer has no rank")
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.argmax(np.take_along_axis(correct, order, axis=1), axis=1)


def rank_summary(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Mean and median rank counted from one, and recall at each K.

    Args:
      ranks: int [Q], zero-based.
      ks: numbers of candidates.

    Returns:
      {"mean_rank", "median_rank", "recall_at_K"...}.
    """
    summary = {
        "mean_rank": float(ranks.mean() + 1),
        "median_rank": float(np.floor(np.median(ranks)) + 1),
    }
    return summary | {f"recall_at_{k}": float(np.mean(ranks < k)) for k in ks}


def mean_statistic(values: np.ndarray) -> Statistic:
    """The weighted mean of one value a film, such as whether it was right."""
    values = np.asarray(values, np.float64)

    def statistic(weights_RxN: np.ndarray) -> np.ndarray:
        total = weights_RxN.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return weights_RxN @ values / total

    return statistic


def auroc_statistic(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """The weighted area under the ROC curve, ties counting one half.

    Args:
      positive: bool [N].
      scores: float [N].
    """
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    is_positive = np.asarray(positive, bool)[order]

    def statistic(weights_RxN: np.ndarray) -> np.ndarray:
        ordered = weights_RxN[:, order]
        up = np.add.reduceat(ordered * is_positive, starts, axis=1)
        down = np.add.reduceat(ordered * ~is_positive, starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        wins = (up * (below + down / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return wins / (up.sum(axis=1) * down.sum(axis=1))

    return statistic


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The plain mean of several statistics, such as one AUROC a class."""

    def statistic(weights_RxN: np.ndarray) -> np.ndarray:
        return np.mean([each(weights_RxN) for each in statistics], axis=0)

    return statistic


def bootstrap(
    statistic: Statistic,
    patients: Strings,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
) -> Interval:
    """The value on all films and its 95 % interval, resampling whole patients.

    Films of one patient are alike, so resampling films would give intervals that are
    too narrow.

    Args:
      statistic: what is measured, as a function of film weights.
      patients: N patient ids, one a film.
      seed: seed of the resamples.
      samples: how many resamples; 0 for the value alone.

    Returns:
      The value with the 2.5 and 97.5 percentiles of the resamples. Resamples that
      cannot give a value are left out; with none left, and with a single patient,
      the bounds are NaN.
    """
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1
    value = float(statistic(np.ones((1, owner.size)))[0])
    if count < 2 or not samples:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // owner.size)
    drawn = []
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size=rows)
        drawn.append(statistic(times[:, owner].astype(np.float64)))
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value, float(low), float(high))
