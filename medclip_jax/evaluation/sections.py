"""The sections of the report, made of what was measured on one data set."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.evaluation import metrics, plots, zero_shot
from medclip_jax.evaluation.report import Picture, Query, RetrievedFilm, Section
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films, Result, Sentences


def of_result(
    result: Result,
    films: Films,
    sentences: Sentences | None,
    show_text: bool,
    seed: int = 0,
) -> list[Section]:
    """Sections of one data set; a part that was not measured is left out.

    Args:
      result: from `suite.measure`.
      films: the films it was measured on.
      sentences: whose positions `result.found` names.
      show_text: whether query text may be shown; else the study's id stands there.
      seed: seed of t-SNE.
    """
    made = [
        _zero_shot(result),
        _retrieval(result, films, sentences, show_text),
        _embeddings(result, seed),
    ]
    return [section for section in made if section is not None]


def _zero_shot(result: Result) -> Section | None:
    pictures = []
    if result.five is not None and result.chosen is not None:
        five, classes = result.five, result.chosen.classes
        predicted = five.scores.argmax(axis=1)
        pictures += [
            Picture(
                plots.class_bars(five.recall, five.untrained_recall, EVAL_FIVE, 0.2),
                "Share of each finding's films that were named right, mean over the "
                "prompt draws.",
            ),
            Picture(
                plots.confusion_matrix(
                    metrics.confusion(classes, predicted, 5), EVAL_FIVE
                ),
                "What the films of each finding were taken for, the prompts of all "
                "draws together.",
            ),
            Picture(
                plots.roc(zero_shot.against_rest(five.scores), classes, EVAL_FIVE),
                "Each finding against the other four.",
            ),
        ]
    dots = [
        row
        for row in result.rows
        if row.protocol.startswith("zero_shot_findings/")
        and row.metric == "auroc"
        and row.dataset == result.name
    ]
    if dots:
        caption = "AUROC of each of the findings over the films of the split."
        pictures.append(Picture(plots.finding_dots(dots), caption))
    if not pictures:
        return None
    text = (
        "Every film is compared with sentences that describe each finding, and takes "
        "the finding whose sentences it lies nearest to. No classifier was trained."
    )
    if result.five is not None and result.chosen is not None:
        counts = ", ".join(f"{n} {c}" for n, c in result.chosen.eligible.items())
        text += (
            " The five-class films hold exactly one of the five findings, as many of "
            f"each as the rarest has; eligible in this split: {counts}."
        )
    return Section(f"Zero-shot classification: {result.name}", text, pictures)


def _retrieval(
    result: Result, films: Films, sentences: Sentences | None, show_text: bool
) -> Section | None:
    titles = {
        "film to sentences": "retrieval_image_to_text",
        "sentence to films": "retrieval_text_to_image",
    }
    panels = {
        title: [row for row in result.rows if row.protocol == protocol]
        for title, protocol in titles.items()
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels or sentences is None or result.chosen is None:
        return None
    queries, where = [], result.chosen
    for name, (query, best) in result.found.items():
        positions = where.indices[best]
        pixels = np.concatenate(list(films.read(positions)))[..., 0]
        shown = (
            sentences.texts[query] if show_text else f"study {sentences.studies[query]}"
        )
        holds = [EVAL_FIVE[c] for c in where.classes[best]]
        retrieved = [
            RetrievedFilm(film, found, found == name)
            for film, found in zip(pixels, holds)
        ]
        queries.append(Query(name, shown, show_text, retrieved))
    text = (
        "A candidate counts as right when it holds the finding of the query; this is "
        "agreement of findings, not retrieval of one particular report."
    )
    if queries:
        text += (
            " Below: one query a finding, drawn by chance and not picked, with the "
            "five films nearest to it."
        )
        if not show_text:
            text += " Report text is protected and not shown (--show-text)."
    picture = Picture(
        plots.precision_curves(panels),
        "Precision at K with 95 % intervals over patients.",
        wide=len(panels) > 1,
    )
    return Section(f"Retrieval: {result.name}", text, [picture], queries)


def _embeddings(result: Result, seed: int) -> Section | None:
    if result.chosen is None or not result.embeddings or len(result.chosen) < 10:
        return None
    classes = result.chosen.classes
    rng = np.random.default_rng([seed, 2])
    shown = np.sort(rng.permutation(len(classes))[: plots.TSNE_FILMS])
    panels = {
        name: plots.project(result.embeddings[name][shown], seed)
        for name in ("untrained", "trained")
    }
    picture = Picture(
        plots.tsne(panels, classes[shown], EVAL_FIVE),
        f"t-SNE of {len(shown)} films, coloured by the finding they hold.",
        wide=True,
    )
    text = (
        "Where the films lie in the joint space, drawn in the plane. Distances between "
        "far groups mean little in such a picture."
    )
    return Section(f"Embeddings: {result.name}", text, [picture])


def training(metrics_file: Path) -> Section | None:
    """The training curves; None when nothing was logged.

    Args:
      metrics_file: metrics.jsonl of the workdir; a torn last line is left out.
    """
    lines = read_metrics(metrics_file)
    if not any("loss" in line for line in lines):
        return None
    steps = len({line["step"] for line in lines})
    picture = Picture(
        plots.training_curves(lines), f"From {steps} logged steps.", wide=True
    )
    return Section("Training", "The run that made this checkpoint.", [picture])


def read_metrics(metrics_file: Path) -> list[Mapping[str, float]]:
    """Lines of metrics.jsonl that are whole and name a step; [] without a file."""
    if not metrics_file.is_file():
        return []
    lines: list[Mapping[str, float]] = []
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(parsed, dict) and "step" in parsed:
            lines.append(parsed)
    return lines


def limits(
    rows: Sequence[Row], simulated: bool, prompt_overlap: int, checked: int, same: bool
) -> list[str]:
    """What the reader must not conclude.

    Args:
      rows: the figures.
      simulated: whether films are simulated.
      prompt_overlap: training sentences that equal an evaluation prompt.
      checked: training sentences looked at.
      same: whether the data are those that the checkpoint was trained on.
    """
    said = []
    if simulated:
        said.append(
            "The films are simulated. Figures on real films are other figures, and "
            "usually much lower."
        )
    said.append(
        "The intervals hold the chance of which patients were in the split. They do "
        "not hold that of another training run with another seed."
    )
    said.append(
        "The labels say what the report or the label file says, so a figure measures "
        "agreement with those, errors included."
    )
    if any(row.protocol.startswith("zero_shot_five") for row in rows):
        said.append(
            "The five-class films are balanced and hold exactly one of the five "
            "findings. In a hospital findings are rarer and come together."
        )
    if not checked:
        said.append(
            "No training sentence was at hand, so whether training saw an evaluation "
            "prompt was not checked."
        )
    elif prompt_overlap:
        said.append(
            f"{prompt_overlap} of {checked} distinct training sentences equal an "
            "evaluation prompt: the zero-shot figures are of a network that was told "
            "the answer."
        )
    else:
        said.append(
            f"None of {checked} distinct training sentences equals an evaluation "
            "prompt after normalisation."
        )
    if not same:
        said.append(
            "The data are not those of the training run (another fingerprint), so "
            "whether their patients were outside training was not checked."
        )
    said.append("This model is for research. It is no medical device.")
    return said
