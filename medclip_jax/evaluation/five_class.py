"""The five-class set: films with exactly one of five findings positive.

CheXpert-5x200 (Huang et al., GLoRIA, ICCV 2021; gloria/datasets) takes frontal films
that have one of the five competition findings positive and the other four and eight
further findings at zero. The looser rule leaves those eight free to occur, as they do
in patients.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.findings import (
    EVAL_FIVE,
    FINDINGS,
    NO_FINDING,
    POSITIVE,
    UNCERTAIN,
)
from medclip_jax.errors import UserError
from medclip_jax.evaluation.metrics import Strings

FIVE_COLUMNS: tuple[int, ...] = tuple(FINDINGS.index(name) for name in EVAL_FIVE)
OTHER_EIGHT: tuple[int, ...] = tuple(
    column
    for column in range(len(FINDINGS))
    if column != NO_FINDING and column not in FIVE_COLUMNS
)
RULES: tuple[str, ...] = ("loose", "chexpert_5x200")
UNCERTAIN_AS: tuple[str, ...] = ("disqualify", "zero")
SIDE_VIEWS: tuple[str, ...] = ("LATERAL", "OTHER")


@dataclass(frozen=True)
class FiveClassSet:
    """Attributes:
    indices: int [N], positions in the arrays it was chosen from, ascending.
    classes: int [N], 0 .. 4 in the order of EVAL_FIVE.
    eligible: class name to how many films the rule admits.
    """

    indices: np.ndarray
    classes: np.ndarray
    eligible: dict[str, int]

    def __len__(self) -> int:
        return len(self.indices)


def frontal(views: Strings) -> np.ndarray:
    """bool [N]: films whose view is not known to be lateral or another one."""
    return ~np.isin(np.asarray(views), SIDE_VIEWS)


def class_of(
    labels_Nx14: np.ndarray, rule: str = "loose", uncertain: str = "disqualify"
) -> np.ndarray:
    """The class of each film or sentence by the five-class rule, -1 where it has none.

    Args:
      labels_Nx14: int [N, 14], codes 1, 0, -1 (uncertain), -2 (not given).
      rule: "loose": exactly one of the five positive, other findings free;
        "chexpert_5x200": the eight other findings, devices among them, zero as well.
        No Finding is never looked at.
      uncertain: "disqualify": an uncertain label among those that must be zero rules
        the film out (GLoRIA); "zero": it counts as zero (MedCLIP).

    Returns:
      int [N], 0 .. 4 in the order of EVAL_FIVE, or -1.
    """
    if rule not in RULES:
        raise UserError(f"the five-class rule must be one of {RULES}, found {rule!r}")
    if uncertain not in UNCERTAIN_AS:
        raise UserError(f"uncertain must be one of {UNCERTAIN_AS}, found {uncertain!r}")
    labels_Nx14 = np.asarray(labels_Nx14).reshape(-1, len(FINDINGS))
    present = labels_Nx14 == POSITIVE
    if uncertain == "disqualify":
        present |= labels_Nx14 == UNCERTAIN
    five = labels_Nx14[:, FIVE_COLUMNS] == POSITIVE
    admitted = five.any(axis=1) & (present[:, FIVE_COLUMNS].sum(axis=1) == 1)
    if rule == "chexpert_5x200":
        admitted &= ~present[:, OTHER_EIGHT].any(axis=1)
    return np.where(admitted, five.argmax(axis=1), -1)


def choose(
    classes: np.ndarray,
    ids: Strings,
    *,
    per_class: int = 200,
    minimum: int = 1,
    balanced: bool = True,
    seed: int = 0,
    what: str = "films",
) -> FiveClassSet:
    """Draws up to `per_class` of each class.

    Args:
      classes: int [N] as from `class_of`; -1 is never chosen.
      ids: N ids; the draw goes by them, not by the order of the arrays.
      per_class: the most of each class.
      minimum: fewer eligible of any class than this is an error.
      balanced: as many of each class as the smallest has.
      seed: seed of the draw.
      what: "films" or "sentences", for the message.

    Raises:
      UserError: when a class has too few, with what every class has.
    """
    if per_class < minimum:
        raise UserError(
            f"at most {per_class} {what} a class were asked for, but at least "
            f"{minimum} are needed; ask for more, or lower the minimum"
        )
    classes = np.asarray(classes)
    eligible = {name: int((classes == c).sum()) for c, name in enumerate(EVAL_FIVE)}
    if min(eligible.values()) < minimum:
        found = ", ".join(f"{name} {count}" for name, count in eligible.items())
        raise UserError(
            f"the five-class set needs at least {minimum} {what} of each class with "
            f"exactly one of the five findings positive; found {found}. Evaluate on a "
            "larger split, or lower the minimum"
        )
    size = min(per_class, *eligible.values()) if balanced else per_class
    by_id = np.argsort(np.asarray(ids), kind="stable")
    chosen = []
    for c in range(len(EVAL_FIVE)):
        members = by_id[classes[by_id] == c]
        rng = np.random.default_rng([seed, c])
        chosen.append(rng.permutation(members)[:size])
    indices = np.sort(np.concatenate(chosen))
    return FiveClassSet(indices, classes[indices], eligible)
