"""What the retrieval protocols share."""

from collections.abc import Mapping, Sequence

import numpy as np

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.prompts import normalise
from medclip_jax.evaluation.rows import Row, measured


def first_of_each(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Groups texts that are the same once normalised.

    Args:
      texts: M texts.

    Returns:
      (int [G], the position of each group's first text, ascending; int [M], the group
      of each text).
    """
    groups: dict[str, int] = {}
    first, group = [], []
    for position, text in enumerate(texts):
        plain = normalise(text)
        if plain not in groups:
            groups[plain] = len(groups)
            first.append(position)
        group.append(groups[plain])
    return np.asarray(first, int), np.asarray(group, int)


def chance_of_recall(right: np.ndarray, candidates: int, k: int) -> float:
    """Mean probability that K random candidates hold one of `right` right ones.

    Args:
      right: int [Q], right answers of each query.
      candidates: how many candidates there are.
      k: how many are drawn.
    """
    missed = np.ones(len(right))
    for drawn in range(k):
        missed *= np.clip(candidates - right - drawn, 0, None) / (candidates - drawn)
    return float(np.mean(1 - missed))


def fitting(ks: Sequence[int], candidates: int) -> list[int]:
    """Those K that do not exceed the number of candidates."""
    return [k for k in ks if k <= candidates]


def precision_rows(
    protocol: str,
    dataset: str,
    similarity: Mapping[str, np.ndarray],
    correct: np.ndarray,
    patients: metrics.Strings,
    ks: Sequence[int],
    *,
    units: metrics.Strings | None = None,
    seed: int = 0,
    note: str = "",
) -> list[Row]:
    """Precision@K over the queries.

    Args:
      protocol, dataset: names for the rows.
      similarity: network to float [Q, C]; equal values are ranked by index.
      correct: bool [Q, C], whether a candidate is a right answer; chance is the mean
        share of right candidates.
      patients: patient id of each query.
      ks: K; those above the number of candidates are left out.
      units: id of each query.
      seed: seed of the bootstrap.
      note: added to the number of candidates.
    """
    candidates = correct.shape[1]
    kept = fitting(ks, candidates)
    found = {
        name: metrics.precision_at_k(of, correct, kept)
        for name, of in similarity.items()
    }
    return [
        measured(
            protocol,
            dataset,
            f"precision_at_{k}",
            {name: metrics.Mean(of[k]) for name, of in found.items()},
            patients,
            float(correct.mean()),
            units=units,
            seed=seed,
            note=f"{candidates} candidates" + (f", {note}" if note else ""),
        )
        for k in kept
    ]
