"""Retrieval of films by a film, and of films of the 8x200 set by words.

Films are compared by the cosine of their trunk features, before any projection; a film
and words by the method's own score. A candidate is right when it has the query's class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import eight_by_200, plots, zero_shot_five
from medclip_jax.evaluation.eight_by_200 import EIGHT
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Need,
    Networks,
    Options,
    Outcome,
    each,
)
from medclip_jax.evaluation.report import Picture, Query, RetrievedFilm, Section
from medclip_jax.evaluation.retrieval import precision_rows
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films

NAME = "retrieval_image_to_image"
BY_TEXT = "retrieval_text_to_image/8x200"
ABOUT = About(
    "Retrieval of films by a film",
    "Precision@K by the cosine of trunk features: the share of the K nearest films that "
    "have the query's class, mean over queries. Each film of the five-class set asks "
    "for the others, those of its own patient left out; after the slash, the queries "
    "and candidates of ConVIRT's 8x200, which words ask for too, by the method's score.",
    "Zhang et al. (ConVIRT, MLHC 2022), section 4.2 and table 2; yuhaozhang/convirt",
    (
        "Films of the query's patient among the candidates are found by the patient.",
        "Features after the projection give other figures.",
        "A class with fewer candidates than K caps the figure at their number / K.",
        "In ConVIRT's published lists, seven patients are query and candidate.",
        (
            "8x200 lies in CheXpert's training split: a network pretrained on it has "
            "seen these films."
        ),
    ),
)
KS = (1, 5, 10, 50, 100)
SHOWN = 5


@dataclass(frozen=True)
class Lists:
    """Queries and candidates, films by their positions.

    Attributes:
      protocol: name of the rows.
      names: of the classes.
      queries, candidates: int [Q], [C].
      query_classes, candidate_classes: int.
      note: for the rows.
    """

    protocol: str
    names: tuple[str, ...]
    queries: np.ndarray
    query_classes: np.ndarray
    candidates: np.ndarray
    candidate_classes: np.ndarray
    note: str


def plan(bench: Bench) -> list[Job]:
    """For each data set the five-class set and 8x200, where there are enough films."""
    jobs: list[Job] = []
    options = bench.options
    for films in bench.films:
        name = f"{NAME} on {films.name}"
        try:
            five = zero_shot_five.choose_films(films, options)
            lists = Lists(
                NAME, EVAL_FIVE, five.indices, five.classes, five.indices,
                five.classes, "leave one patient out",
            )  # fmt: skip
            needs = [Need(films, five.indices)]
            jobs.append(Job(name, _measure(films, lists, options), needs))
        except UserError as error:
            if not films.tasks:  # else it has classes of its own
                bench.skip(name, str(error))
        _plan_eight(films, bench, jobs)
    return jobs


def _plan_eight(films: Films, bench: Bench, jobs: list[Job]) -> None:
    """Adds the jobs of 8x200 to `jobs`: the published lists, or the rule."""
    options, name = bench.options, f"{NAME}/8x200 on {films.name}"
    # Lists of CheXpert's films speak of no other set's.
    published = options.queries is not None and films.kind == "chexpert"
    try:
        if published:
            assert options.queries is not None
            images = eight_by_200.published_images(options.queries, films)
            by_text, texts = eight_by_200.published_texts(options.queries, films)
        else:
            images = by_text = eight_by_200.draw(films, options)
            texts = eight_by_200.prompt_queries(options.seed)
    except eight_by_200.NotItsQuestion:
        return
    except UserError as error:
        bench.skip(name, str(error))
        return
    source = "ConVIRT's lists" if published else "by the rule, queries drawn"
    lists = Lists(
        f"{NAME}/8x200", EIGHT, images.queries, images.query_classes,
        images.candidates, images.candidate_classes, source,
    )  # fmt: skip
    needs = [Need(films, images.films)]
    jobs.append(Job(name, _measure(films, lists, options, not published), needs))
    if not bench.abilities.reads_text:
        bench.skip(f"{BY_TEXT} on {films.name}", "the method reads no text")
        return
    measure = _measure_texts(films, by_text, texts, options)
    needs = [Need(films, by_text.candidates)]
    jobs.append(Job(f"{BY_TEXT} on {films.name}", measure, needs))


def _measure(films: Films, lists: Lists, options: Options, apart: bool = True):
    def measure(networks: Networks) -> Outcome:
        usable = others(films, lists) if apart else None
        similarity = each(
            networks, lambda n: cosines(n, films, lists, usable), text=False
        )
        agree = lists.query_classes[:, None] == lists.candidate_classes[None]
        rows = image_rows(similarity, agree, usable, films, lists, options.seed)
        return Outcome(rows, [_section(films, lists, similarity["trained"], rows)])

    return measure


def others(films: Films, lists: Lists) -> np.ndarray:
    """bool [Q, C]: candidates of another patient than the query's."""
    patients = films.patients
    return patients[lists.queries][:, None] != patients[lists.candidates][None]


def cosines(
    network: Network, films: Films, lists: Lists, usable: np.ndarray | None
) -> np.ndarray:
    """float [Q, C] of trunk features; what is not usable comes last."""
    asked = _unit(network.trunk(films, lists.queries))
    offered = _unit(network.trunk(films, lists.candidates))
    similarity = asked @ offered.T
    return similarity if usable is None else np.where(usable, similarity, -np.inf)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def image_rows(
    similarity: Mapping[str, np.ndarray],
    agree: np.ndarray,
    usable: np.ndarray | None,
    films: Films,
    lists: Lists,
    seed: int = 0,
) -> list[Row]:
    """Precision@K; chance is the mean share of right films among those usable.

    Args:
      similarity: network to float [Q, C], -inf where not usable.
      agree: bool [Q, C], whether a candidate has the query's class.
      usable: bool [Q, C]; None is all.
      films: the data set.
      lists: queries and candidates.
      seed: seed of the bootstrap.
    """
    if usable is None:
        usable = np.ones_like(agree)
    offered = usable.sum(axis=1)
    right = agree & usable
    chance = float(np.mean(right.sum(axis=1) / np.maximum(offered, 1)))
    rows = precision_rows(
        lists.protocol,
        films.name,
        similarity,
        right,
        films.patients[lists.queries],
        [k for k in KS if k <= offered.min()],
        units=films.ids[lists.queries],
        seed=seed,
        note=lists.note,
    )
    return [replace(row, chance=chance) for row in rows]


def _measure_texts(
    films: Films,
    of: eight_by_200.Set,
    texts: eight_by_200.TextQueries,
    options: Options,
):
    def measure(networks: Networks) -> Outcome:
        similarity = each(
            networks, lambda n: n.logits(films, of.candidates, texts.texts).T, text=True
        )
        agree = texts.classes[:, None] == of.candidate_classes[None]
        # A query text is nobody's: each counts as a patient of its own.
        names = [f"{EIGHT[c]} {place}" for place, c in enumerate(texts.classes)]
        rows = precision_rows(
            BY_TEXT,
            films.name,
            similarity,
            agree,
            names,
            KS,
            units=names,
            seed=options.seed,
            note="ConVIRT's queries" if texts.protected else "queries of prompts",
        )
        show = options.show_text or not texts.protected
        return Outcome(rows, [_text_section(films, of, texts, similarity, rows, show)])

    return measure


def _curves(title: str, rows: list[Row]) -> Picture:
    return Picture(
        plots.precision_curves({title: rows}),
        "Precision at K with 95 % intervals over queries' patients.",
    )


def _shown(films: Films, positions: np.ndarray, names: list[str], rights: list[bool]):
    pixels = np.concatenate(list(films.read(positions)))[..., 0]
    return [RetrievedFilm(*of) for of in zip(pixels, names, rights)]


def _section(
    films: Films, lists: Lists, similarity: np.ndarray, rows: list[Row]
) -> Section:
    """One query a class, the first of each, with the films nearest to it."""
    queries = []
    for c, name in enumerate(lists.names):
        query = int(np.flatnonzero(lists.query_classes == c)[0])
        best = np.argsort(-similarity[query], kind="stable")[:SHOWN]
        best = best[np.isfinite(similarity[query][best])]
        found = lists.candidate_classes[best]
        positions = np.r_[lists.queries[query], lists.candidates[best]]
        told = ["the query", *(lists.names[of] for of in found)]
        rights = [True, *(bool(of == c) for of in found)]
        shown = f"film {films.ids[lists.queries[query]]}"
        queries.append(
            Query(name, shown, False, _shown(films, positions, told, rights))
        )
    text = (
        f"{len(lists.queries)} films ask among {len(lists.candidates)}: {lists.note}. "
        "Right is what holds the query's class. Below, the first query of each class "
        f"with the {SHOWN} films nearest to it."
    )
    which = " (8x200)" if lists.protocol != NAME else ""
    title = f"Film to films{which}: {films.name}"
    return Section(title, text, [_curves("film to films", rows)], queries)


def _text_section(films, of, texts, similarity, rows, show: bool) -> Section:
    queries = []
    for c, name in enumerate(EIGHT):
        query = int(np.flatnonzero(texts.classes == c)[0])
        best = np.argsort(-similarity["trained"][query], kind="stable")[:SHOWN]
        found = of.candidate_classes[best]
        told, rights = [EIGHT[f] for f in found], [bool(f == c) for f in found]
        shown = texts.texts[query] if show else f"query {query}"
        retrieved = _shown(films, of.candidates[best], told, rights)
        queries.append(Query(name, shown, show, retrieved))
    text = (
        f"{len(texts.texts)} texts ask for {len(of.candidates)} films of eight "
        "categories. Below, the first query of each with the films nearest to it."
    )
    title = f"Words to films (8x200): {films.name}"
    return Section(title, text, [_curves("words to films", rows)], queries)
