"""Retrieval of a film's own report, and of a report's own film.

Pairs are of a study: every film of a study is right for its report. Reports with the
same words are one candidate, which is right for the films of all. A report is compared
as the method was trained: as one text, or by the mean over its sentences.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medclip_jax.evaluation import metrics, prompts
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Need,
    Networks,
    Outcome,
    each,
)
from medclip_jax.evaluation.retrieval import chance_of_recall, first_of_each, fitting
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.sets import Films, Sentences
from medclip_jax.evaluation.zero_shot_findings import sample_films

NAME = "retrieval_exact"
ABOUT = About(
    "Retrieval of the very pair",
    "Recall@K of the report of a film's study among all distinct reports, and of a "
    "film of the report's study among all films.",
    "Radford et al. (CLIP, 2021), mlfoundations/open_clip, "
    "src/open_clip_train/metrics.py, with equal reports counted as one",
    ("Reports that say the same: counted apart, a right answer is called wrong.",),
)
KS = (1, 5, 10)


def plan(bench: Bench) -> list[Job]:
    """One job a data set with films that have reports."""
    jobs = []
    for films in bench.films:
        if films.tasks and films.name not in bench.sentences:  # made of films alone
            continue
        name = f"{NAME} on {films.name}"
        texts = bench.reports.get(films.name)
        if texts is None:
            bench.skip(name, "this split has no report text")
            continue
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
            continue
        used, reports, owner = pairs(films, sample_films(films, bench), texts)
        if len(reports) < 2:
            why = f"{len(reports)} distinct reports belong to a film; 2 are needed"
            bench.skip(name, why)
            continue
        measure = _measure(films, used, texts, reports, owner, bench.options.seed)
        jobs.append(Job(name, measure, [Need(films, used)]))
    return jobs


def _measure(films: Films, used, texts: Sentences, reports, owner, seed: int):
    def measure(networks: Networks) -> Outcome:
        positions = np.concatenate(reports)
        first, group = first_of_each([texts.texts[i] for i in positions])
        distinct = [texts.texts[positions[i]] for i in first]
        parts = np.split(group, np.cumsum([len(report) for report in reports])[:-1])
        logits = {
            name: np.stack([of[:, part].mean(axis=1) for part in parts], axis=1)
            for name, of in each(
                networks, lambda n: n.logits(films, used, distinct), text=True
            ).items()
        }
        rows = exact_rows(
            logits,
            owner,
            films.patients[used],
            films.name,
            units=films.ids[used],
            seed=seed,
        )
        return Outcome(rows)

    return measure


def exact_rows(
    logits: Mapping[str, np.ndarray],
    film_texts: np.ndarray,
    film_patients: metrics.Strings,
    dataset: str,
    ks: Sequence[int] = KS,
    *,
    units: metrics.Strings | None = None,
    seed: int = 0,
) -> list[Row]:
    """Recall@K in both directions.

    Args:
      logits: network to float [N, G], films by distinct reports.
      film_texts: int [N], the report of each film.
      film_patients: N patient ids.
      dataset: name for the rows.
      ks: K; those above the number of candidates are left out.
      units: N film ids.
      seed: seed of the bootstrap.
    """
    reports = logits["trained"].shape[1]
    own = film_texts[:, None] == np.arange(reports)[None]
    first_film = own.argmax(axis=0)
    sides = (
        ("image_to_text", own, film_patients, units),
        ("text_to_image", own.T, np.asarray(film_patients)[first_film], None),
    )
    rows = []
    for side, correct, patients, names in sides:
        ranks = {
            name: metrics.first_hit_rank(
                of if side == "image_to_text" else of.T, correct
            )
            for name, of in logits.items()
        }
        candidates = correct.shape[1]
        rows += [
            measured(
                f"{NAME}/{side}",
                dataset,
                f"recall_at_{k}",
                {name: metrics.Mean(of < k) for name, of in ranks.items()},
                patients,
                chance_of_recall(correct.sum(axis=1), candidates, k),
                units=names,
                seed=seed,
                note=f"{candidates} candidates",
            )
            for k in fitting(ks, candidates)
        ]
    return rows


def pairs(
    films: Films, used: np.ndarray, texts: Sentences
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Films that have a report; the texts of each distinct report; film to report."""
    of_study: dict[str, list[int]] = {}
    for position, study in enumerate(texts.studies):
        of_study.setdefault(str(study), []).append(position)
    kept: list[int] = []
    reports: list[np.ndarray] = []
    owner: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    for film in used:
        positions = of_study.get(str(films.studies[film]))
        if not positions:
            continue
        words = tuple(prompts.normalise(texts.texts[i]) for i in positions)
        if words not in known:
            known[words] = len(reports)
            reports.append(np.asarray(positions))
        kept.append(film)
        owner.append(known[words])
    return np.asarray(kept, int), reports, np.asarray(owner, int)
