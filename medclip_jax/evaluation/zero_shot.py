"""Zero-shot classification: no label was seen, the classes are told in words.

`logits` come in pairs: of the trained network, and of the same network untrained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.findings import FINDINGS, NOT_GIVEN, POSITIVE, UNCERTAIN
from medclip_jax.errors import UserError
from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.prompts import DEFAULT_PER_CLASS, draw_prompts
from medclip_jax.evaluation.rows import Row, measured

DRAWS = 5
POOLINGS: tuple[str, ...] = ("mean", "max")
MINIMUM_OF_EACH = 5
"""Fewer positive or negative films than this give no AUROC worth printing."""


@dataclass(frozen=True)
class Logits:
    """Attributes:
    trained: float [N, P], of all films with all prompts.
    untrained: the same of the untrained network.
    """

    trained: np.ndarray
    untrained: np.ndarray


def columns_of(prompts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Class name to the columns of its prompts, when all are laid end to end."""
    columns, start = {}, 0
    for name, texts in prompts.items():
        columns[name] = np.arange(start, start + len(texts))
        start += len(texts)
    return columns


def class_scores(
    logits_NxP: np.ndarray, columns: Sequence[np.ndarray], pooling: str = "mean"
) -> np.ndarray:
    """Pools the prompts of each class.

    Args:
      logits_NxP: float, of all films with all prompts.
      columns: for each class, the columns of its prompts.
      pooling: "mean" of the logits (the prompt ensemble) or their "max".

    Returns:
      float [N, C].

    Raises:
      UserError: for another pooling.

    Reference: RyanWangZf/MedCLIP, medclip/modeling_medclip.py PromptClassifier.
    """
    if pooling not in POOLINGS:
        raise UserError(f"prompt pooling must be one of {POOLINGS}, found {pooling!r}")
    reduce = np.mean if pooling == "mean" else np.max
    return np.stack([reduce(logits_NxP[:, c], axis=1) for c in columns], axis=1)


def drawn_scores(
    logits_NxP: np.ndarray,
    prompts: Mapping[str, Sequence[str]],
    pooling: str,
    draws: int = DRAWS,
    per_class: int = DEFAULT_PER_CLASS,
    seed: int = 0,
) -> np.ndarray:
    """Class scores of several prompt draws, float [D, N, C]."""
    columns = columns_of(prompts)
    scores = []
    for draw in range(draws):
        picked = draw_prompts(prompts, per_class, seed + draw)
        chosen = [columns[name][picked[name]] for name in prompts]
        scores.append(class_scores(logits_NxP, chosen, pooling))
    return np.stack(scores)


def five_class_rows(
    logits: Logits,
    prompts: Mapping[str, Sequence[str]],
    classes: np.ndarray,
    patients: metrics.Strings,
    dataset: str,
    *,
    draws: int = DRAWS,
    per_class: int = DEFAULT_PER_CLASS,
    pooling: str = "mean",
    seed: int = 0,
) -> list[Row]:
    """Rows of the protocol `zero_shot_five`, the headline first.

    Args:
      logits: float [N, P] with the prompts of all classes laid end to end.
      prompts: class name to prompts, in the order of the class numbers.
      classes: int [N].
      patients: N patient ids.
      dataset: name for the rows.
      draws: prompt draws; a figure is the mean over them, `std` the deviation.
      per_class: prompts a draw takes of each class.
      pooling: how the method makes one of a class's prompts, "mean" or "max".
      seed: seed of draws and bootstrap.

    Returns:
      Accuracy with the method's pooling, with AUROC and macro F1; accuracy with the
      other pooling; accuracy with all prompts at once.
    """
    chance = 1 / len(prompts)
    other = "max" if pooling == "mean" else "mean"
    rows = []
    for way, suffix in ((pooling, ""), (other, f"/{other}_prompt")):
        drawn = [
            drawn_scores(of, prompts, way, draws, per_class, seed)
            for of in (logits.trained, logits.untrained)
        ]
        right = [scores.argmax(axis=2) == classes for scores in drawn]
        rows.append(
            measured(
                f"zero_shot_five{suffix}",
                dataset,
                "accuracy",
                [metrics.mean_statistic(of.mean(axis=0)) for of in right],
                patients,
                chance,
                seed=seed,
                std=float(right[0].mean(axis=1).std()),
                note=f"{way} of {per_class} prompts a class, {draws} draws",
            )
        )
        if way == pooling:
            rows += _macro_rows(drawn, classes, patients, dataset, chance, seed)
    everything = [
        class_scores(of, list(columns_of(prompts).values()), pooling)
        for of in (logits.trained, logits.untrained)
    ]
    rows.append(
        measured(
            "zero_shot_five/all_prompts",
            dataset,
            "accuracy",
            [metrics.mean_statistic(of.argmax(1) == classes) for of in everything],
            patients,
            chance,
            seed=seed,
            note=f"{pooling} of all prompts, no draw",
        )
    )
    return rows


def _macro_rows(
    drawn: Sequence[np.ndarray],
    classes: np.ndarray,
    patients: metrics.Strings,
    dataset: str,
    chance: float,
    seed: int,
) -> list[Row]:
    areas, f1 = [], []
    for scores_DxNxC in drawn:
        count = scores_DxNxC.shape[2]
        areas.append(
            metrics.mean_of(
                [
                    metrics.auroc_statistic(classes == c, against_rest(scores)[:, c])
                    for scores in scores_DxNxC
                    for c in range(count)
                ]
            )
        )
        f1.append(
            np.mean(
                [
                    metrics.classification(classes, s.argmax(1), count)["macro_f1"]
                    for s in scores_DxNxC
                ]
            )
        )
    return [
        measured(
            "zero_shot_five",
            dataset,
            "auroc",
            areas,
            patients,
            0.5,
            seed=seed,
            note="mean of one class against the rest",
        ),
        Row(
            "zero_shot_five",
            dataset,
            "macro_f1",
            float(f1[0]),
            len(classes),
            chance,
            float(f1[1]),
        ),
    ]


def against_rest(scores_NxC: np.ndarray) -> np.ndarray:
    """Each class's score less the mean of the others', float [N, C].

    A film's logits share an offset that says nothing of its class; without this an
    AUROC across films would measure the offset.
    """
    others = (scores_NxC.sum(axis=1, keepdims=True) - scores_NxC) / (
        scores_NxC.shape[1] - 1
    )
    return scores_NxC - others


def binary_target(
    labels: np.ndarray, not_given: str = "zero"
) -> tuple[np.ndarray, np.ndarray]:
    """One finding's films and which of them are positive.

    Args:
      labels: int [N], codes of one finding.
      not_given: "zero": what is not given counts as negative, as in CheXpert;
        "ignore": such films are left out. Uncertain films always are.

    Returns:
      (kept bool [N], positive bool [N]).
    """
    if not_given not in ("zero", "ignore"):
        raise UserError(f"not_given must be zero or ignore, found {not_given!r}")
    kept = labels != UNCERTAIN
    if not_given == "ignore":
        kept &= labels != NOT_GIVEN
    return kept, labels == POSITIVE


def findings_rows(
    logits: Logits,
    prompts: Mapping[str, Sequence[str]],
    labels_Nx14: np.ndarray,
    patients: metrics.Strings,
    dataset: str,
    *,
    not_given: str = "zero",
    minimum: int = MINIMUM_OF_EACH,
    seed: int = 0,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the protocol `zero_shot_findings`: one binary question a finding.

    A finding's score is the mean logit of its prompts less that of the others'.

    Args:
      logits: float [N, P] with the prompts of the 14 findings laid end to end.
      prompts: finding to prompts, in the order of FINDINGS.
      labels_Nx14: int codes.
      patients: N patient ids.
      dataset: name for the rows.
      not_given: as in `binary_target`.
      minimum: films of either kind that a finding needs.
      seed: seed of the bootstrap.

    Returns:
      (the mean AUROC over findings first, then AUROC and average precision of each;
      finding to the reason why it was left out).
    """
    columns = [columns_of(prompts)[name] for name in FINDINGS]
    scores = [
        against_rest(class_scores(of, columns))
        for of in (logits.trained, logits.untrained)
    ]
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for column, name in enumerate(FINDINGS):
        kept, positive = binary_target(labels_Nx14[:, column], not_given)
        count = int(positive.sum()), int((kept & ~positive).sum())
        if min(count) < minimum:
            left_out[name] = f"{count[0]} positive and {count[1]} negative"
            continue
        of_finding = [s[kept, column] for s in scores]
        owners = np.asarray(patients)[kept]
        rows += _finding_rows(name, of_finding, positive[kept], owners, dataset, seed)
    areas = [row for row in rows if row.metric == "auroc"]
    if areas:
        mean = Row(
            "zero_shot_findings",
            dataset,
            "auroc",
            float(np.mean([row.value for row in areas])),
            len(labels_Nx14),
            0.5,
            float(np.mean([row.untrained for row in areas])),
            note=f"mean of {len(areas)} findings",
        )
        rows.insert(0, mean)
    return rows, left_out


def _finding_rows(
    name: str,
    scores: Sequence[np.ndarray],
    positive: np.ndarray,
    patients: np.ndarray,
    dataset: str,
    seed: int,
) -> list[Row]:
    protocol = f"zero_shot_findings/{name}"
    area = measured(
        protocol,
        dataset,
        "auroc",
        [metrics.auroc_statistic(positive, of) for of in scores],
        patients,
        0.5,
        seed=seed,
        note=f"{int(positive.sum())} positive",
    )
    precision = Row(
        protocol,
        dataset,
        "average_precision",
        metrics.average_precision(positive, scores[0]),
        len(positive),
        float(positive.mean()),
        metrics.average_precision(positive, scores[1]),
    )
    return [area, precision]
