"""Retrieval between films and text: by class, and of the very pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.prompts import normalise
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.zero_shot import Logits

PRECISION_KS: tuple[int, ...] = (1, 2, 5, 10)
RECALL_KS: tuple[int, ...] = (1, 5, 10)


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


@dataclass(frozen=True)
class ClassRetrieval:
    """What was compared with what.

    Attributes:
      logits: float [N, M], films by texts.
      film_classes: int [N].
      text_classes: int [M].
      film_patients, text_patients: ids, for the bootstrap over queries.
    """

    logits: Logits
    film_classes: np.ndarray
    text_classes: np.ndarray
    film_patients: metrics.Strings
    text_patients: metrics.Strings


def class_rows(
    task: ClassRetrieval,
    dataset: str,
    protocols: Sequence[str] = ("retrieval_image_to_text", "retrieval_text_to_image"),
    ks: Sequence[int] = PRECISION_KS,
    seed: int = 0,
) -> list[Row]:
    """Precision@K of class agreement, films to texts and texts to films.

    A candidate is right when it has the query's class: agreement of classes, not
    retrieval of one text. Chance is the mean share of right candidates.

    Args:
      task: films, texts and their classes; each text once.
      dataset: name for the rows.
      protocols: which of the two directions.
      ks: K; those above the number of candidates are left out.
      seed: seed of the bootstrap.

    Reference: Wang et al. (MedCLIP, EMNLP 2022) section 4.5; Zhang et al. (ConVIRT)
    section 4.2.
    """
    agree = task.film_classes[:, None] == task.text_classes[None]
    rows = []
    for protocol in protocols:
        to_text = protocol == "retrieval_image_to_text"
        correct = agree if to_text else agree.T
        both = (task.logits.trained, task.logits.untrained)
        found = [
            metrics.precision_at_k(
                of if to_text else of.T, correct, _fitting(ks, correct.shape[1])
            )
            for of in both
        ]
        rows += [
            measured(
                protocol,
                dataset,
                f"precision_at_{k}",
                [metrics.mean_statistic(of[k]) for of in found],
                task.film_patients if to_text else task.text_patients,
                float(correct.mean()),
                seed=seed,
                note=f"{correct.shape[1]} candidates",
            )
            for k in _fitting(ks, correct.shape[1])
        ]
    return rows


def exact_rows(
    logits: Logits,
    film_texts: np.ndarray,
    film_patients: metrics.Strings,
    dataset: str,
    ks: Sequence[int] = RECALL_KS,
    seed: int = 0,
) -> list[Row]:
    """Recall@K of a film's own report, and of a report's own film.

    Pairs are of a study: every film of the study is right for its report. Reports
    with the same words are one candidate, which is right for the films of all.

    Args:
      logits: float [N, G], films by distinct reports.
      film_texts: int [N], the report of each film.
      film_patients: N patient ids.
      dataset: name for the rows.
      ks: K; those above the number of candidates are left out.
      seed: seed of the bootstrap.
    """
    reports = logits.trained.shape[1]
    own = film_texts[:, None] == np.arange(reports)[None]
    first_film = own.argmax(axis=0)
    sides = (
        ("image_to_text", own, film_patients),
        ("text_to_image", own.T, np.asarray(film_patients)[first_film]),
    )
    rows = []
    for side, correct, patients in sides:
        ranks = [
            metrics.first_hit_rank(of if side == "image_to_text" else of.T, correct)
            for of in (logits.trained, logits.untrained)
        ]
        candidates = correct.shape[1]
        rows += [
            measured(
                f"retrieval_exact/{side}",
                dataset,
                f"recall_at_{k}",
                [metrics.mean_statistic(of < k) for of in ranks],
                patients,
                chance_of_recall(correct.sum(axis=1), candidates, k),
                seed=seed,
                note=f"{candidates} candidates",
            )
            for k in _fitting(ks, candidates)
        ]
    return rows


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


def _fitting(ks: Sequence[int], candidates: int) -> list[int]:
    return [k for k in ks if k <= candidates]
