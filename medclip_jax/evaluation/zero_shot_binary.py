"""Zero-shot answers to yes-or-no questions: pneumonia, COVID, tuberculosis, ...

A film's score is that of the positive prompts less that of the negative ones. The AUROC
is of this score itself; a hard label has but two values, and the area under their curve
is another number. Accuracy and F1 are given at a margin of zero, and at the threshold
that is best on the validation split: the films judged choose nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.findings import NEGATIVE, POSITIVE
from medclip_jax.evaluation import (
    metrics,
    plots_tasks,
    task_prompts,
    tasks,
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
from medclip_jax.evaluation.zero_shot import MINIMUM_OF_EACH

NAME = "zero_shot_binary"
ABOUT = About(
    "Zero-shot answers to yes-or-no questions",
    "AUROC and average precision of the score of the positive prompts less that of the "
    "negative ones; accuracy and F1 of the positive class at a margin of 0, and at the "
    "threshold with the best F1 on the validation split.",
    "Boecking et al. (BioViL, ECCV 2022), section 4.3, and microsoft/hi-ml, "
    "test_zero_shot_classification.py; Wang et al. (MedCLIP, EMNLP 2022), section 4.3; "
    "Tiu et al. (CheXzero, 2022) for pairs of LABEL and no LABEL",
    (
        "A threshold chosen on the films judged; an AUROC of hard labels.",
        (
            "RSNA's negatives here are all films without pneumonia, the abnormal ones too; "
            "others keep Normal films alone."
        ),
        "MedCLIP balances the classes first, so its accuracies are of another mixture.",
        (
            "BioViL averages the embeddings of its prompts before they are normalised; "
            "here each counts the same."
        ),
    ),
)
VALIDATE = "validate"


def plan(bench: Bench) -> list[Job]:
    """One job a binary task."""
    jobs = []
    options = bench.options
    for question in tasks.questions(bench, "binary"):
        name = f"{NAME} on {question.told}"
        asked = judged_units(
            tasks.ask(question, options.split, options, options.max_films)
        )
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
            continue
        if not len(asked):
            bench.skip(name, tasks.no_films(question, options.split))
            continue
        count = np.bincount(asked.codes_UxC[:, 0] == POSITIVE, minlength=2)
        if count.min() < MINIMUM_OF_EACH:
            why = f"{count[1]} positive and {count[0]} negative"
            bench.skip(name, f"at least {MINIMUM_OF_EACH} of each are needed: {why}")
            continue
        needs = [Need(question.films, asked.positions)]
        tuning = tuning_units(question, bench)
        if tuning is not None:
            needs.append(Need(question.films, tuning.positions))
        jobs.append(Job(name, _measure(question, asked, tuning, bench), needs))
    return jobs


def judged_units(asked: Asked) -> Asked:
    """Only units that were judged positive or negative."""
    return asked.only(np.isin(asked.codes_UxC[:, 0], (NEGATIVE, POSITIVE)))


def tuning_units(question: Question, bench: Bench) -> Asked | None:
    """The validation split, where the threshold is chosen; None where it cannot be."""
    options = bench.options
    name = f"threshold of {NAME} on {question.told}"
    if options.split == VALIDATE:
        bench.skip(name, "the validation split is the one that is judged")
        return None
    asked = judged_units(tasks.ask(question, VALIDATE, options, options.max_films))
    count = np.bincount(asked.codes_UxC[:, 0] == POSITIVE, minlength=2)
    if count.min() < MINIMUM_OF_EACH:
        bench.skip(
            name,
            f"the validation split has {count[1]} positive and {count[0]} negative; "
            f"{MINIMUM_OF_EACH} of each are needed",
        )
        return None
    return asked


def best_threshold(positive: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the best F1 of `scores > threshold`; the lowest of equals.

    Args:
      positive: bool [N], of films that are not judged with it.
      scores: float [N].

    Returns:
      Half way between two neighbouring scores, or below the lowest.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    truth = np.asarray(positive, bool)[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = np.cumsum(truth)[ends]
    f1 = 2 * hits / (ends + 1 + truth.sum())
    below = np.r_[ranked[1:], ranked[-1] - 2.0][ends]
    best = len(ends) - 1 - int(np.argmax(f1[::-1]))
    return float((ranked[ends[best]] + below[best]) / 2)


def _measure(question: Question, asked: Asked, tuning: Asked | None, bench: Bench):
    def measure(networks: Networks) -> Outcome:
        rows: list[Row] = []
        normal = task_prompts.normal_sentences(bench)
        label = question.task.labels[0]
        told = task_prompts.of_binary(question.name, label, normal)

        def scores_of(part: Asked, words: PromptSet):
            return each(
                networks,
                lambda n: zero_shot_styles.scores(
                    n, question.films, part, words.prompts, bench.options,
                    bench.abilities,
                ),
                text=True,
            )  # fmt: skip

        head: dict[str, dict[str, np.ndarray]] = {}
        for place, words in enumerate(told):
            judged = scores_of(asked, words)
            tuned = scores_of(tuning, words) if tuning is not None else None
            rows += binary_rows(
                judged,
                question,
                asked,
                words,
                tuned and {n: of[zero_shot_styles.OWN] for n, of in tuned.items()},
                tuning,
                suffix=f"/{words.name}_prompts" if place else "",
                seed=bench.options.seed,
            )
            head = head or judged
        return Outcome(rows, [_section(question, asked, head)])

    return measure


def binary_rows(
    styles: Mapping[str, Mapping[str, np.ndarray]],
    question: Question,
    asked: Asked,
    told: PromptSet,
    tuned: Mapping[str, np.ndarray] | None = None,
    tuning: Asked | None = None,
    *,
    suffix: str = "",
    seed: int = 0,
) -> list[Row]:
    """Rows of one question in one set of words.

    Args:
      styles: network to style to scores_DxUx2 of the units judged.
      question: what is asked.
      asked: the units judged.
      told: the words.
      tuned: network to scores_DxVx2 of the validation units.
      tuning: the validation units.
      suffix: of the protocol's name.
      seed: seed of the bootstrap.
    """
    positive = asked.codes_UxC[:, 0] == POSITIVE
    share = float(positive.mean())
    notes = [f"{positive.sum()} positive", f"prompts: {told.source}"]
    notes += [tasks.unit_note(question)] if tasks.unit_note(question) else []
    own = {n: zero_shot_styles.margin(of[zero_shot_styles.OWN]) for n, of in styles.items()}  # fmt: skip

    def row(metric, of, chance, more="", place="") -> Row:
        return measured(
            NAME + suffix + place,
            question.told,
            metric,
            of,
            asked.patients,
            chance,
            units=asked.ids,
            seed=seed,
            note="; ".join([*notes, *([more] if more else [])]),
        )

    def mean(kind, margins: Mapping[str, np.ndarray]) -> dict:
        return {
            name: metrics.MeanOf([kind(positive, one) for one in of])
            for name, of in margins.items()
        }

    rows = [
        row("auroc", mean(metrics.Auroc, own), 0.5),
        row("average_precision", mean(metrics.AveragePrecision, own), share),
    ]
    rows += _hard(row, positive, {n: m > 0 for n, m in own.items()}, share, "", "")
    if tuned is not None and tuning is not None:
        rows += _hard(
            row,
            positive,
            validated(own, tuned, tuning.codes_UxC[:, 0] == POSITIVE),
            share,
            f"threshold of the best F1 on {len(tuning)} validation films",
            "/validated_threshold",
        )
    for style in zero_shot_styles.STYLES:
        if style in styles["trained"]:
            of = {
                n: zero_shot_styles.margin(s[style])
                for n, s in styles.items()
                if style in s
            }
            rows.append(row("auroc", mean(metrics.Auroc, of), 0.5, place=f"/{style}"))
    return rows


def validated(
    own: Mapping[str, np.ndarray],
    tuned: Mapping[str, np.ndarray],
    positive: np.ndarray,
) -> dict[str, np.ndarray]:
    """Hard labels at thresholds of the validation films, each draw by its own.

    Args:
      own: network to margins float [D, U] of the units judged.
      tuned: network to scores_DxVx2 of the validation units.
      positive: bool [V], of the validation units.

    Returns:
      Network to bool [D, U].
    """
    made = {}
    for name, margins in own.items():
        chosen = zero_shot_styles.margin(tuned[name])
        limits = [best_threshold(positive, one) for one in chosen]
        made[name] = margins > np.asarray(limits)[:, None]
    return made


def _hard(row, positive, told: Mapping[str, np.ndarray], share, note, place):
    """Accuracy and F1 of hard labels bool [D, U]; chance is a coin's."""
    right = {
        n: metrics.Mean((of == positive).mean(axis=0, dtype=np.float64))
        for n, of in told.items()
    }
    f1 = {
        n: metrics.MeanOf([metrics.F1(positive, one) for one in of])
        for n, of in told.items()
    }
    return [
        row("accuracy", right, 0.5, note, place),
        row("f1", f1, share / (share + 0.5), note, place),
    ]


def _section(
    question: Question, asked: Asked, styles: Mapping[str, Mapping[str, np.ndarray]]
) -> Section:
    positive = asked.codes_UxC[:, 0] == POSITIVE
    curves = {
        name: zero_shot_styles.margin(of[zero_shot_styles.OWN]).mean(axis=0)
        for name, of in styles.items()
    }
    text = (
        f"{question.task.about or question.name}. {positive.sum()} of {len(asked)} are "
        "positive. Each is asked in words; no label was used."
    )
    if asked.left_out:
        text += f" {asked.left_out} more films were left out (--max-films)."
    names: Sequence[str] = ["no", task_prompts.words(question.task.labels[0])]
    pictures = [
        Picture(
            plots_tasks.roc_of_networks(curves, positive),
            "Scores of the films ranked; the method's own rule, mean over the draws.",
        ),
        Picture(
            plots_tasks.margins(curves["trained"], positive, names),
            "How the scores lie. At a margin of 0 the positive words win.",
        ),
    ]
    return Section(f"Zero-shot, yes or no: {question.told}", text, pictures)
