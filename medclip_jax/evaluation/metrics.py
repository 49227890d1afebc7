"""Metrics on host arrays, and their intervals from a bootstrap over patients.

A statistic that is to have an interval is a function of unit weights W [R, N] (how
often the resample r holds unit n: a film, a phrase, a query), so that all resamples
are computed at once; weights of one give the point value. It is also plain arrays, so
that two checkpoints can be compared later on the same resamples (`compare.py`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sk

Strings = Sequence[str] | np.ndarray
"""Ids, as a list of str or an array of them."""

BOOTSTRAP_SAMPLES = 1000
LEAST_SHARE = 0.5
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


@dataclass(frozen=True)
class Mean:
    """The weighted mean of one value a unit, such as whether it was right.

    Attributes:
      values: float [K].
      rows: int [K], the units that have one; None is all, in order.
    """

    values: np.ndarray
    rows: np.ndarray | None = None

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        weights_RxK = _of_rows(weights_RxN, self.rows)
        with np.errstate(invalid="ignore"):
            values_K = np.asarray(self.values, np.float64)
            return weights_RxK @ values_K / weights_RxK.sum(axis=1)


@dataclass(frozen=True)
class Auroc:
    """The weighted area under the ROC curve, ties counting one half.

    Attributes:
      positive: bool [K].
      scores: float [K].
      rows: int [K], the units that they are of; None is all, in order.
    """

    positive: np.ndarray
    scores: np.ndarray
    rows: np.ndarray | None = None

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        ups, downs = _by_score(self, weights_RxN)
        below = np.cumsum(downs, axis=1) - downs
        wins = (ups * (below + downs / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return wins / (ups.sum(axis=1) * downs.sum(axis=1))


@dataclass(frozen=True)
class AveragePrecision:
    """The weighted area under the precision-recall steps; attributes as of `Auroc`."""

    positive: np.ndarray
    scores: np.ndarray
    rows: np.ndarray | None = None

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        ups, downs = (part[:, ::-1] for part in _by_score(self, weights_RxN))
        hits, misses = np.cumsum(ups, axis=1), np.cumsum(downs, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.nan_to_num(hits / (hits + misses))
            return (ups * precision).sum(axis=1) / ups.sum(axis=1)


@dataclass(frozen=True)
class MacroF1:
    """The mean F1 over classes; a class never met and never predicted has 0.

    Attributes:
      truth, predicted: int [N].
      classes: how many classes there are.
    """

    truth: np.ndarray
    predicted: np.ndarray
    classes: int

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        total = np.zeros(len(weights_RxN))
        for c in range(self.classes):
            true, told = self.truth == c, self.predicted == c
            hits = weights_RxN @ (true & told).astype(np.float64)
            both = weights_RxN @ (true.astype(np.float64) + told)
            total += np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
        return total / self.classes


@dataclass(frozen=True)
class F1:
    """The F1 of one class; 0 where it is never met and never predicted.

    Attributes:
      positive, predicted: bool [K].
      rows: int [K], the units that they are of; None is all, in order.
    """

    positive: np.ndarray
    predicted: np.ndarray
    rows: np.ndarray | None = None

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        weights_RxK = _of_rows(weights_RxN, self.rows)
        true, told = np.asarray(self.positive, bool), np.asarray(self.predicted, bool)
        hits = weights_RxK @ (true & told).astype(np.float64)
        both = weights_RxK @ (true.astype(np.float64) + told)
        return np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)


@dataclass(frozen=True)
class MeanOf:
    """The plain mean of several statistics, such as one AUROC a class."""

    parts: Sequence["Mean | Auroc | AveragePrecision | MacroF1 | F1 | MeanOf"]

    def __call__(self, weights_RxN: np.ndarray) -> np.ndarray:
        return np.mean([part(weights_RxN) for part in self.parts], axis=0)


Statistic = Mean | Auroc | AveragePrecision | MacroF1 | F1 | MeanOf
"""Unit weights [R, N] -> values [R]; NaN where a resample cannot give one."""


def macro_recall(truth: np.ndarray, predicted: np.ndarray, classes: int) -> MeanOf:
    """The mean over classes of the share of a class's units that were named right.

    Also called macro or balanced accuracy. Classes that `truth` (int [N]) does not
    have are left out.
    """
    right = (truth == predicted).astype(np.float64)
    members = [np.flatnonzero(truth == c) for c in range(classes)]
    return MeanOf([Mean(right[rows], rows) for rows in members if len(rows)])


def to_arrays(statistic: Statistic, prefix: str = "") -> dict[str, np.ndarray]:
    """A statistic as named arrays, for an npz file; `from_arrays` reads them."""
    made = {f"{prefix}kind": np.array(type(statistic).__name__)}
    if isinstance(statistic, MeanOf):
        for place, part in enumerate(statistic.parts):
            made |= to_arrays(part, f"{prefix}{place}/")
        return made | {f"{prefix}parts": np.array(len(statistic.parts))}
    for field in dataclasses.fields(statistic):
        value = getattr(statistic, field.name)
        if value is not None:
            made[prefix + field.name] = np.asarray(value)
    return made


def from_arrays(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Statistic:
    """The statistic of `to_arrays`."""
    kind = str(arrays[f"{prefix}kind"])
    if kind == "MeanOf":
        count = int(arrays[f"{prefix}parts"])
        return MeanOf([from_arrays(arrays, f"{prefix}{i}/") for i in range(count)])
    made = {
        "Mean": Mean,
        "Auroc": Auroc,
        "AveragePrecision": AveragePrecision,
        "F1": F1,
    }
    if kind == "MacroF1":
        return MacroF1(
            arrays[prefix + "truth"],
            arrays[prefix + "predicted"],
            int(arrays[prefix + "classes"]),
        )
    names = [field.name for field in dataclasses.fields(made[kind])]
    return made[kind](**{n: arrays[prefix + n] for n in names if prefix + n in arrays})


def _of_rows(weights_RxN: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return weights_RxN if rows is None else weights_RxN[:, rows]


def _by_score(
    of: Auroc | AveragePrecision, weights_RxN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positive and of negative units at each score, lowest score first."""
    scores = np.asarray(of.scores)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positive = np.asarray(of.positive, bool)[order]
    ordered = _of_rows(weights_RxN, of.rows)[:, order]
    return (
        np.add.reduceat(ordered * positive, starts, axis=1),
        np.add.reduceat(ordered * ~positive, starts, axis=1),
    )


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
      cannot give a value are left out; where fewer than LEAST_SHARE are left (they
      are those that hold every rare label), and with a single patient, the bounds
      are NaN.
    """
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1
    value = float(statistic(np.ones((1, owner.size)))[0])
    if count < 2 or not samples:
        return Interval(value, float("nan"), float("nan"))
    drawn = [statistic(weights) for weights in resample(owner, samples, seed)]
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if values.size < LEAST_SHARE * samples:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def resample(owner: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws patients with replacement.

    Args:
      owner: int [N], the number of each unit's patient, 0 .. P - 1.
      samples: how many resamples.
      seed: of the draws.

    Yields:
      Unit weights float [r, N]; in all `samples` rows, in blocks that fit memory.
    """
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // owner.size)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size=rows)
        yield times[:, owner].astype(np.float64)
