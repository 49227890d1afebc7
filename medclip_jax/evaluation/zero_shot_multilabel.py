"""Zero-shot answers to a source's own list of findings: a pair of prompts a label.

ChestX-ray14's, PadChest's, VinDr-CXR's and Open-i's own vocabularies, and the five
findings of CheXpert at the level of a study.
"""

from collections.abc import Mapping

import numpy as np

from data_pipelines.findings import NEGATIVE, POSITIVE
from medclip_jax.evaluation import (
    metrics,
    plots,
    task_prompts,
    tasks,
    zero_shot,
    zero_shot_styles,
)
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Need,
    Networks,
    Outcome,
    each,
)
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.tasks import Asked, Question

NAME = "zero_shot_multilabel"
ABOUT = About(
    "Zero-shot answers to a set's own findings",
    "AUROC and average precision of each label of the source's vocabulary; a film's "
    "score is that of the words LABEL less that of no LABEL. The mean is over labels "
    "with at least 5 positive and 5 negative units. Uncertain labels are left out.",
    "Tiu et al. (CheXzero, Nat. Biomed. Eng. 2022), prompts; You et al. (CXR-CLIP, "
    "MICCAI 2023) and Soombit-ai/cxr-clip for labels with more than 10 positives",
    (
        "Which labels the mean runs over: rare ones move it.",
        "CheXpert is judged by study: scores of a study's films are averaged.",
        "Labels of ChestX-ray14 are text-mined; PadChest's are partly a network's.",
        "Readers of VinDr-CXR differ: any of three or their majority.",
    ),
)
MANY = 10
"""CXR-CLIP's mean is over labels with more positives than this."""


def plan(bench: Bench) -> list[Job]:
    """One job a multi-label task."""
    jobs = []
    for question in tasks.questions(bench, "multilabel"):
        name = f"{NAME} on {question.told}"
        split, options = bench.options.split, bench.options
        asked = tasks.ask(question, split, options, options.max_films)
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
        elif not len(asked):
            bench.skip(name, tasks.no_films(question, split))
        elif not usable(asked):
            bench.skip(
                name,
                f"no label has {zero_shot.MINIMUM_OF_EACH} positive and as many "
                f"negative units among {len(asked)}",
            )
        else:
            need = Need(question.films, asked.positions)
            jobs.append(Job(name, _measure(question, asked, bench), [need]))
    return jobs


def usable(asked: Asked) -> list[int]:
    """Columns of the labels with enough positive and negative units."""
    positive = (asked.codes_UxC == POSITIVE).sum(axis=0)
    negative = (asked.codes_UxC == NEGATIVE).sum(axis=0)
    least = np.minimum(positive, negative)
    return [int(c) for c in np.flatnonzero(least >= zero_shot.MINIMUM_OF_EACH)]


def _measure(question: Question, asked: Asked, bench: Bench):
    def measure(networks: Networks) -> Outcome:
        columns = usable(asked)
        labels = [question.task.labels[c] for c in columns]

        def margins(network) -> dict[str, np.ndarray]:
            made: dict[str, list[np.ndarray]] = {}
            pairs = [task_prompts.pair(label) for label in labels]
            network.texts(
                [text for pair in pairs for of in pair.values() for text in of]
            )
            for label in labels:
                words = task_prompts.pair(label)
                styles = zero_shot_styles.scores(
                    network, question.films, asked, words, bench.options,
                    bench.abilities,
                )  # fmt: skip
                for style, scores in styles.items():
                    made.setdefault(style, []).append(
                        zero_shot_styles.margin(scores)[0]
                    )
            return {style: np.stack(of, axis=1) for style, of in made.items()}

        styles = each(networks, margins, text=True)
        rows = multilabel_rows(styles, question, asked, columns, bench.options.seed)
        outcome = Outcome(rows, _section(question, asked, rows))
        short = [
            f"{label} {(asked.codes_UxC[:, c] == POSITIVE).sum()}"
            for c, label in enumerate(question.task.labels)
            if c not in columns
        ]
        if short:
            outcome.skipped[f"some of {NAME} on {question.told}"] = (
                f"at least {zero_shot.MINIMUM_OF_EACH} positive and as many negative "
                f"units are needed; positive units found: {', '.join(short)}"
            )
        return outcome

    return measure


def multilabel_rows(
    styles: Mapping[str, Mapping[str, np.ndarray]],
    question: Question,
    asked: Asked,
    columns: list[int],
    seed: int = 0,
) -> list[Row]:
    """Rows of one question, the mean AUROC first.

    Args:
      styles: network to style to margins float [U, L], positive less negative words.
      question: what is asked.
      asked: its units.
      columns: the L labels among the task's.
      seed: seed of the bootstrap.
    """
    own = {name: of[zero_shot_styles.OWN] for name, of in styles.items()}
    unit = tasks.unit_note(question)

    def statistics(margins: Mapping[str, np.ndarray], place: int, kind):
        codes = asked.codes_UxC[:, columns[place]]
        rows = np.flatnonzero(np.isin(codes, (NEGATIVE, POSITIVE)))
        positive = codes[rows] == POSITIVE
        return {n: kind(positive, m[rows, place], rows) for n, m in margins.items()}

    def mean_row(suffix: str, margins, places: list[int], note: str) -> Row:
        parts = [statistics(margins, place, metrics.Auroc) for place in places]
        return measured(
            NAME + suffix,
            question.told,
            "auroc",
            {n: metrics.MeanOf([part[n] for part in parts]) for n in margins},
            asked.patients,
            0.5,
            units=asked.ids,
            seed=seed,
            note="; ".join(filter(None, [note, unit])),
        )

    positives = (asked.codes_UxC[:, columns] == POSITIVE).sum(axis=0)
    every = list(range(len(columns)))
    many = [place for place in every if positives[place] > MANY]
    told = f"mean of {len(every)} labels, of which {len(many)} have more than {MANY} positive"
    rows = [mean_row("", own, every, told)]
    if many and len(many) < len(every):
        note = f"mean of the {len(many)} labels with more than {MANY} positive"
        rows.append(mean_row(f"/more_than_{MANY}", own, many, note))
    # One prompt a side: the three rules differ in their standardisation alone.
    rows += [
        mean_row(f"/{style}", {n: of[style] for n, of in styles.items()}, every, "")
        for style in zero_shot_styles.STYLES
        if all(style in of for of in styles.values())
    ]
    for place, column in enumerate(columns):
        codes = asked.codes_UxC[:, column]
        kept = np.isin(codes, (NEGATIVE, POSITIVE))
        positive = codes[kept] == POSITIVE
        for metric, kind, chance in (
            ("auroc", metrics.Auroc, 0.5),
            ("average_precision", metrics.AveragePrecision, float(positive.mean())),
        ):
            rows.append(
                measured(
                    f"{NAME}/{question.task.labels[column]}",
                    question.told,
                    metric,
                    {n: kind(positive, m[kept, place]) for n, m in own.items()},
                    asked.patients[kept],
                    chance,
                    units=asked.ids[kept],
                    seed=seed,
                    note=f"{positive.sum()} positive",
                )
            )
    return rows


def _section(question: Question, asked: Asked, rows: list[Row]) -> list[Section]:
    labels = {f"{NAME}/{label}" for label in question.task.labels}
    dots = [r for r in rows if r.metric == "auroc" and r.protocol in labels]
    text = f"{question.task.about or question.name}. Each label is asked as LABEL against no LABEL"
    text += f", of {len(asked)} {question.task.unit}s."
    if asked.left_out:
        text += f" {asked.left_out} more films were left out (--max-films)."
    picture = Picture(plots.finding_dots(dots), "AUROC of each label.")
    return [Section(f"Zero-shot, own findings: {question.told}", text, [picture])]
