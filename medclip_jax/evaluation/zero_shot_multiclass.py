"""Zero-shot classification of a source's own classes, such as COVIDx's three."""

from collections.abc import Mapping

import numpy as np

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
from medclip_jax.evaluation.task_prompts import PromptSet
from medclip_jax.evaluation.tasks import Asked, Question

NAME = "zero_shot_multiclass"
ABOUT = About(
    "Zero-shot classification of a set's own classes",
    "A film takes the class whose prompts score highest; mean over prompt draws. "
    "Accuracy by the method's own rule; after a slash, by each of three rules: the mean "
    "of the prompts' logits, the cosine with their mean embedding, and the largest "
    "logit standardised over the films judged.",
    "COVIDx: Wang et al. 2020, arXiv 2003.09871, COVID prompts of Wang et al. (MedCLIP, "
    "EMNLP 2022); RSNA: the classes of stage_2_detailed_class_info.csv; rules: MedCLIP, "
    "CLIP (Radford et al. 2021), GLoRIA (Huang et al., ICCV 2021)",
    (
        "Classes are not balanced: hold accuracy against the largest class's share.",
        "Scores that are standardised depend on the other films judged.",
        "The classes of COVID sets differ in hospital, age and file processing too.",
        "RSNA's films stand in COVIDx and in the COVID-19 Radiography Database.",
    ),
)


def plan(bench: Bench) -> list[Job]:
    """One job a multi-class task."""
    jobs = []
    for question in tasks.questions(bench, "multiclass"):
        name = f"{NAME} on {question.told}"
        split, options = bench.options.split, bench.options
        asked = tasks.ask(question, split, options, options.max_films)
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
        elif not len(asked):
            bench.skip(name, tasks.no_films(question, split))
        elif len(np.unique(asked.classes)) < 2:
            bench.skip(name, f"all films of the split {split} are of one class")
        else:
            need = Need(question.films, asked.positions)
            jobs.append(Job(name, _measure(question, asked, bench), [need]))
    return jobs


def _measure(question: Question, asked: Asked, bench: Bench):
    def measure(networks: Networks) -> Outcome:
        told = task_prompts.of_classes(question.task.labels)
        styles = each(
            networks,
            lambda n: zero_shot_styles.scores(
                n, question.films, asked, told.prompts, bench.options, bench.abilities
            ),
            text=True,
        )
        rows = multiclass_rows(styles, question, asked, told, bench.options.seed)
        scores = {name: of[zero_shot_styles.OWN] for name, of in styles.items()}
        return Outcome(rows, [_section(question, asked, scores)])

    return measure


def multiclass_rows(
    styles: Mapping[str, Mapping[str, np.ndarray]],
    question: Question,
    asked: Asked,
    told: PromptSet,
    seed: int = 0,
) -> list[Row]:
    """Rows of one question, accuracy first.

    Args:
      styles: network to style to scores_DxUxC.
      question: what is asked.
      asked: its units.
      told: the prompts.
      seed: seed of the bootstrap.

    Returns:
      By the method's own rule accuracy, macro F1, balanced accuracy and AUROC (one
      class against the rest, mean over the classes that there are, then of each);
      accuracy of every style.
    """
    classes, labels = asked.classes, question.task.labels
    count = len(labels)
    largest = np.bincount(classes, minlength=count).max() / len(classes)
    notes = [f"the largest class has {largest:.2f}", f"prompts: {told.source}"]
    notes += [tasks.unit_note(question)] if tasks.unit_note(question) else []
    note = "; ".join(notes)

    def row(suffix: str, metric: str, of, chance: float, std=None) -> Row:
        return measured(
            NAME + suffix,
            question.told,
            metric,
            of,
            asked.patients,
            chance,
            units=asked.ids,
            seed=seed,
            std=std,
            note=note,
        )

    def accuracy(style: str, suffix: str) -> Row:
        right = {
            name: of[style].argmax(axis=2) == classes
            for name, of in styles.items()
            if style in of
        }
        over_draws = right["trained"].mean(axis=1)
        return row(
            suffix,
            "accuracy",
            {name: metrics.Mean(of.mean(axis=0)) for name, of in right.items()},
            1 / count,
            float(over_draws.std()) if len(over_draws) > 1 else None,
        )

    own = {name: of[zero_shot_styles.OWN] for name, of in styles.items()}
    rows = [
        accuracy(zero_shot_styles.OWN, ""),
        row("", "macro_f1", _over_draws(own, _macro_f1(classes, count)), 1 / count),
        row(
            "",
            "balanced_accuracy",
            _over_draws(own, _recall(classes, count)),
            1 / count,
        ),
    ]
    present = [c for c in range(count) if 0 < (classes == c).sum() < len(classes)]
    rows.append(row("", "auroc", _over_draws(own, _areas(classes, present)), 0.5))
    rows += [
        row(f"/{labels[c]}", "auroc", _over_draws(own, _areas(classes, [c])), 0.5)
        for c in present
    ]
    held = [s for s in zero_shot_styles.STYLES if s in styles["trained"]]
    return rows + [accuracy(style, f"/{style}") for style in held]


def _over_draws(own: Mapping[str, np.ndarray], statistic) -> dict:
    return {
        name: metrics.MeanOf([statistic(scores) for scores in scores_DxUxC])
        for name, scores_DxUxC in own.items()
    }


def _macro_f1(classes: np.ndarray, count: int):
    return lambda scores: metrics.MacroF1(classes, scores.argmax(1), count)


def _recall(classes: np.ndarray, count: int):
    return lambda scores: metrics.macro_recall(classes, scores.argmax(1), count)


def _areas(classes: np.ndarray, of: list[int]):
    def areas(scores: np.ndarray) -> metrics.MeanOf:
        rest = zero_shot.against_rest(scores)
        return metrics.MeanOf([metrics.Auroc(classes == c, rest[:, c]) for c in of])

    return areas


def _section(
    question: Question, asked: Asked, own: Mapping[str, np.ndarray]
) -> Section:
    names, classes = question.task.labels, asked.classes
    scores = own["trained"].mean(axis=0)
    counts = np.bincount(classes, minlength=len(names))
    told = ", ".join(f"{name} {count}" for name, count in zip(names, counts))
    text = f"{question.task.about or question.name}. Films judged: {told}."
    if asked.left_out:
        text += f" {asked.left_out} more were left out (--max-films)."
    matrix = metrics.confusion(classes, scores.argmax(axis=1), len(names))
    present = [c for c in range(len(names)) if counts[c]]
    place = np.searchsorted(present, classes)
    pictures = [
        Picture(
            plots.confusion_matrix(matrix, names),
            "What the films of each class were taken for, the prompts of all draws "
            "together.",
        ),
        Picture(
            plots.roc(
                zero_shot.against_rest(scores)[:, present],
                place,
                [names[c] for c in present],
            ),
            "Each class against the rest.",
        ),
    ]
    return Section(f"Zero-shot, own classes: {question.told}", text, pictures)
