"""What the linear probe and fine-tuning share: shares of the labels, and the rows.

A figure is a mean over draws of the training patients; validation chooses what there
is to choose; the films judged choose nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.findings import NEGATIVE, POSITIVE
from medclip_jax.evaluation import metrics, tasks
from medclip_jax.evaluation.protocol import Options
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.tasks import Asked, Question

FRACTIONS = (0.01, 0.1, 1.0)
TRAIN, VALIDATE = "train", "validate"
CARVED = 5
"""Without a validation split, each so many-th training patient is one."""


@dataclass(frozen=True)
class Parts:
    """Training, validation and judged units of a question.

    Attributes:
      train, validate, test: units; of `train` the films are fitted on.
      labels: columns of the task that are measured.
      carved: whether validation patients were taken of the training split.
    """

    train: Asked
    validate: Asked
    test: Asked
    labels: list[int]
    carved: bool = False


@dataclass(frozen=True)
class Point:
    """One figure of one network at one share of the labels, for the picture."""

    share: float
    network: str
    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Fitted:
    """A network's heads on the units judged.

    Attributes:
      chances: share of the labels to the probabilities of each draw, float [S, U, C].
      strengths: share to the strength that each draw's validation chose; empty where
        there is none to choose.
      patients: share to how many patients it is, the mean over draws: of few, more
        than the share says, since every answer must be met.
    """

    chances: Mapping[float, np.ndarray]
    strengths: Mapping[float, list[float]]
    patients: Mapping[float, float] = field(default_factory=dict)


def find_parts(question: Question, options: Options) -> tuple[Parts | None, str]:
    """The units of a question, or None and why there are too few.

    A label is measured when the units judged hold it and lack it, and so do the
    training films and the validation units.
    """
    if options.split == TRAIN:
        return None, "the training split is the one that is judged"
    test = tasks.ask(question, options.split, options, options.max_films)
    train = tasks.ask(question, TRAIN, options, options.probe_films)
    if not len(test) or not len(train):
        return None, tasks.no_films(question, options.split if len(train) else TRAIN)
    validate = test
    if options.split != VALIDATE:
        validate = tasks.ask(question, VALIDATE, options, options.max_films)
    carved = options.split == VALIDATE or not _both(question, validate)
    if carved:
        train, validate = carve(train)
    labels = _both(question, test)
    labels = [c for c in labels if c in _both(question, train)]
    labels = [c for c in labels if c in _both(question, validate)]
    exclusive = question.task.kind == "multiclass"
    if len(labels) < (2 if exclusive else 1):
        return None, (
            "training, validation and judged films must each hold and lack a label; "
            f"this is so of {len(labels)} of {len(question.task.labels)}"
        )
    return Parts(train, validate, test, labels, carved), ""


def _both(question: Question, asked: Asked) -> list[int]:
    """Columns of labels that some units have and some have not."""
    has = (asked.codes_UxC == POSITIVE).any(axis=0)
    lacks = (asked.codes_UxC == NEGATIVE).any(axis=0)
    return [int(c) for c in np.flatnonzero(has & lacks)]


def carve(train: Asked) -> tuple[Asked, Asked]:
    """Every fifth patient, in the order of the ids, becomes validation."""
    _, patient = np.unique(train.patients, return_inverse=True)
    away = patient % CARVED == CARVED - 1
    return train.only(~away), train.only(away)


def subset(
    codes_KxC: np.ndarray,
    patients: metrics.Strings,
    fraction: float,
    seed: int,
    exclusive: bool,
) -> np.ndarray:
    """The films of a share of the patients, in which every answer is met.

    Patients come in an order drawn by the seed, so that a smaller share lies within a
    larger one; first of all come those that are the first with some answer.

    Args:
      codes_KxC: label codes of the films.
      patients: K ids.
      fraction: share of the patients; at least as many as there are answers to meet.
      seed: of the draw.
      exclusive: whether only positive codes are answers (one class a film).

    Returns:
      bool [K].
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.random.default_rng([seed, 61]).permutation(len(names))
    place = np.argsort(order)[owner]
    needed = {
        int(place[films].min())
        for codes in codes_KxC.T
        for code in ((POSITIVE,) if exclusive else (POSITIVE, NEGATIVE))
        if (films := codes == code).any()
    }
    others = [p for p in range(len(names)) if p not in needed]
    size = max(round(fraction * len(names)), len(needed))
    return np.isin(place, [*sorted(needed), *others][:size])


def statistic(question: Question, labels: list[int], asked: Asked, chances_UxC):
    """What a question is judged by: accuracy of classes, mean AUROC of labels."""
    codes = asked.codes_UxC[:, labels]
    if question.task.kind == "multiclass":
        # A film of a class that was not fitted is never named right.
        truth = np.where((codes == POSITIVE).any(1), codes.argmax(1), -1)
        return metrics.Mean((chances_UxC.argmax(1) == truth).astype(np.float64))
    parts = []
    for column in range(len(labels)):
        rows = np.flatnonzero(np.isin(codes[:, column], (POSITIVE, NEGATIVE)))
        positive = codes[rows, column] == POSITIVE
        parts.append(metrics.Auroc(positive, chances_UxC[rows, column], rows))
    return metrics.MeanOf(parts)


def figure(question: Question, labels: list[int], asked: Asked, chances_KxC) -> float:
    """The value of `statistic` for probabilities of films."""
    of = statistic(question, labels, asked, asked.pool(chances_KxC))
    return float(of(np.ones((1, len(asked))))[0])


def probe_rows(
    name: str,
    question: Question,
    parts: Parts,
    fitted: Mapping[str, Fitted],
    seed: int = 0,
    more: str = "",
) -> tuple[list[Row], list[Point]]:
    """One row a share of the labels, then each label at the largest share.

    Args:
      name: of the protocol.
      question: what is asked.
      parts: its units.
      fitted: network to its heads on the units judged.
      seed: seed of the bootstrap.
      more: for the notes.
    """
    test, labels = parts.test, parts.labels
    several = question.task.kind == "multiclass"
    metric, chance = ("accuracy", 1 / len(labels)) if several else ("auroc", 0.5)
    rows, points = [], []
    for share, of_trained in fitted["trained"].chances.items():
        of = {
            network: metrics.MeanOf(
                [statistic(question, labels, test, one) for one in heads.chances[share]]
            )
            for network, heads in fitted.items()
        }
        every = [figure_of(part, len(test)) for part in of["trained"].parts]
        row = measured(
            name,
            question.told,
            f"{metric}_{share:.0%}",
            of,
            test.patients,
            chance,
            units=test.ids,
            seed=seed,
            std=float(np.std(every)) if len(of_trained) > 1 else None,
            note=_note(question, parts, share, fitted["trained"], more),
        )
        rows.append(row)
        for network, statistics in of.items():
            low, high = (row.low, row.high) if network == "trained" else (None, None)
            points.append(
                Point(
                    share,
                    network,
                    figure_of(statistics, len(test)),
                    np.nan if low is None else low,
                    np.nan if high is None else high,
                    chance,
                )
            )
    if question.task.kind == "multilabel":
        rows += _label_rows(name, question, parts, fitted, seed)
    return rows, points


def figure_of(of: metrics.Statistic, units: int) -> float:
    """The value on all units."""
    return float(of(np.ones((1, units)))[0])


def _label_rows(name, question, parts, fitted, seed) -> list[Row]:
    share = max(fitted["trained"].chances)
    rows = []
    for place, column in enumerate(parts.labels):
        codes = parts.test.codes_UxC[:, column]
        kept = np.flatnonzero(np.isin(codes, (POSITIVE, NEGATIVE)))
        positive = codes[kept] == POSITIVE
        of = {
            network: metrics.MeanOf(
                [
                    metrics.Auroc(positive, one[kept, place])
                    for one in heads.chances[share]
                ]
            )
            for network, heads in fitted.items()
        }
        rows.append(
            measured(
                f"{name}/{question.task.labels[column]}",
                question.told,
                f"auroc_{share:.0%}",
                of,
                parts.test.patients[kept],
                0.5,
                units=parts.test.ids[kept],
                seed=seed,
                note=f"{positive.sum()} positive",
            )
        )
    return rows


def _note(question, parts: Parts, share: float, of: Fitted, more: str) -> str:
    patients = len(np.unique(parts.train.patients))
    used = of.patients.get(share, share * patients)
    notes = [
        f"{used:g} of {patients} training patients with {len(parts.train.positions)} films"
    ]
    strengths = of.strengths.get(share, [])
    if parts.train.left_out:
        notes.append(f"{parts.train.left_out} training films left out by the limit")
    if parts.carved:
        notes.append("validation patients taken of the training split")
    if strengths:
        counts = Counter(strengths)
        notes.append(
            "strength by validation: "
            + ", ".join(f"{s:g} x{counts[s]}" for s in sorted(counts))
        )
    if len(parts.labels) < len(question.task.labels):
        notes.append(f"{len(parts.labels)} of {len(question.task.labels)} labels")
    if tasks.unit_note(question):
        notes.append(tasks.unit_note(question))
    return "; ".join([*notes, *filter(None, [more])])
