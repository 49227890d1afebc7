"""Retrieval between films and sentences by agreement of class.

Films of the five-class set are compared with sentences that tell exactly one of the
five findings, each sentence once. A candidate is right when it has the query's class:
this is agreement of classes, not retrieval of one text.
"""

import numpy as np

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import five_class, plots, prompts, zero_shot_five
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
from medclip_jax.evaluation.retrieval import first_of_each, precision_rows
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films, Sentences

TO_TEXT, TO_IMAGE = "retrieval_image_to_text", "retrieval_text_to_image"
ABOUT = About(
    "Retrieval by class",
    "Precision@K between films of the five-class set and sentences that tell exactly "
    "one of the five findings: the share of the K nearest candidates that have the "
    "query's class, mean over queries. Equal similarities are ranked by index.",
    "Wang et al. (MedCLIP, EMNLP 2022), section 4.5; Zhang et al. (ConVIRT, MLHC "
    "2022), section 4.2",
    (
        "It measures agreement of classes: chance is the class's share of candidates.",
        "The same sentence standing many times among the candidates.",
    ),
)
KS = (1, 2, 5, 10)


def plan(bench: Bench) -> list[Job]:
    """One job a data set with films and sentences of each class."""
    jobs = []
    for films in bench.films:
        if films.tasks and films.name not in bench.sentences:  # made of films alone
            continue
        name = f"retrieval_by_class on {films.name}"
        sentences = bench.sentences.get(films.name)
        if sentences is None:
            bench.skip(name, "this split has no report text")
            continue
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
            continue
        try:
            chosen = zero_shot_five.choose_films(films, bench.options)
            told = choose_sentences(sentences, bench.options)
        except UserError as error:
            bench.skip(name, str(error))
            continue
        measure = _measure(films, chosen, sentences, told, bench.options)
        jobs.append(Job(name, measure, [Need(films, chosen.indices)]))
    return jobs


def choose_sentences(sentences: Sentences, options: Options) -> five_class.FiveClassSet:
    """Distinct sentences with exactly one of the five positive, balanced.

    Raises:
      UserError: a class has fewer than two.
    """
    first, _ = first_of_each(sentences.texts)
    classes = five_class.class_of(sentences.labels_Mx14[first])
    chosen = five_class.choose(
        classes,
        [prompts.normalise(sentences.texts[i]) for i in first],
        per_class=options.per_class,
        minimum=2,
        seed=options.seed,
        what="sentences",
    )
    return five_class.FiveClassSet(
        first[chosen.indices], chosen.classes, chosen.eligible
    )


def _measure(
    films: Films,
    chosen: five_class.FiveClassSet,
    sentences: Sentences,
    told: five_class.FiveClassSet,
    options: Options,
):
    def measure(networks: Networks) -> Outcome:
        # Equal similarities are ranked by index; in the order of the reports that
        # would favour nobody's class.
        texts = [sentences.texts[i] for i in told.indices]
        logits = each(
            networks, lambda n: n.logits(films, chosen.indices, texts), text=True
        )
        agree = chosen.classes[:, None] == told.classes[None]
        rows = precision_rows(
            TO_TEXT,
            films.name,
            logits,
            agree,
            films.patients[chosen.indices],
            KS,
            units=films.ids[chosen.indices],
            seed=options.seed,
        )
        rows += precision_rows(
            TO_IMAGE,
            films.name,
            {name: of.T for name, of in logits.items()},
            agree.T,
            sentences.patients[told.indices],
            KS,
            seed=options.seed,
        )
        section = _section(films, chosen, sentences, told, logits["trained"], options)
        section.pictures.insert(0, _curves(rows))
        return Outcome(rows, [section])

    return measure


def _curves(rows: list[Row]) -> Picture:
    titles = {"film to sentences": TO_TEXT, "sentence to films": TO_IMAGE}
    panels = {
        title: [row for row in rows if row.protocol == protocol]
        for title, protocol in titles.items()
    }
    return Picture(
        plots.precision_curves(panels),
        "Precision at K with 95 % intervals over patients.",
        wide=True,
    )


def _section(
    films: Films,
    chosen: five_class.FiveClassSet,
    sentences: Sentences,
    told: five_class.FiveClassSet,
    logits_NxM: np.ndarray,
    options: Options,
) -> Section:
    """One query a finding, drawn by chance, with the five films nearest to it."""
    rng = np.random.default_rng([options.seed, 5])
    queries = []
    for c, name in enumerate(EVAL_FIVE):
        query = int(rng.choice(np.flatnonzero(told.classes == c)))
        best = np.argsort(-logits_NxM[:, query], kind="stable")[:5]
        pixels = np.concatenate(list(films.read(chosen.indices[best])))[..., 0]
        source = told.indices[query]
        shown = f"study {sentences.studies[source]}"
        if options.show_text:
            shown = sentences.texts[source]
        holds = [EVAL_FIVE[of] for of in chosen.classes[best]]
        retrieved = [
            RetrievedFilm(film, found, found == name)
            for film, found in zip(pixels, holds)
        ]
        queries.append(Query(name, shown, options.show_text, retrieved))
    text = (
        "A candidate counts as right when it holds the finding of the query; this is "
        "agreement of findings, not retrieval of one particular report. Below: one "
        "query a finding, drawn by chance and not picked, with the five films nearest "
        "to it."
    )
    if not options.show_text:
        text += " Report text is protected and not shown (--show-text)."
    return Section(f"Retrieval: {films.name}", text, [], queries)
