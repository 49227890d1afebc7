"""Zero-shot scores: no label was seen, the classes are told in words.

What the protocols zero_shot_five, _multiclass, _binary and _findings share: how the
logits of a class's prompts become the class's score.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.findings import NOT_GIVEN, POSITIVE, UNCERTAIN
from medclip_jax.errors import UserError
from medclip_jax.evaluation.prompts import DEFAULT_PER_CLASS, draw_prompts

DRAWS = 5
POOLINGS: tuple[str, ...] = ("mean", "max")
MINIMUM_OF_EACH = 5
"""Fewer positive or negative films than this give no AUROC worth printing."""


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
    zscore: bool = False,
) -> np.ndarray:
    """Class scores of several prompt draws, float [D, N, C].

    Args:
      logits_NxP: float, the prompts of all classes laid end to end.
      prompts: class name to prompts, in the order of the class numbers.
      pooling: as in `class_scores`.
      draws: how often prompts are drawn.
      per_class: prompts a draw takes of each class.
      seed: seed of the first draw.
      zscore: whether each class is standardised over the films, see `standardise`.
    """
    columns = columns_of(prompts)
    scores = []
    for draw in range(draws):
        picked = draw_prompts(prompts, per_class, seed + draw)
        chosen = [columns[name][picked[name]] for name in prompts]
        drawn = class_scores(logits_NxP, chosen, pooling)
        scores.append(standardise(drawn) if zscore else drawn)
    return np.stack(scores)


def standardise(scores_NxC: np.ndarray) -> np.ndarray:
    """Each class less its mean over the films, divided by its deviation, float [N, C].

    The prediction for a film then depends on the other films judged with it; a single
    film, and a class of equal scores, is left as it is.

    Reference: marshuang80/gloria, gloria/utils/utils.py normalize.
    """
    if len(scores_NxC) < 2:
        return scores_NxC
    deviation = scores_NxC.std(axis=0)
    return (scores_NxC - scores_NxC.mean(axis=0)) / np.where(deviation, deviation, 1)


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
