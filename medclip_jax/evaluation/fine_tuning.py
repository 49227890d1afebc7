"""Fine-tuning: the whole image tower is trained on 1, 10 and 100 % of the labels.

From where it starts is what is compared: the network in question, the same one
untrained, and ImageNet weights where there are any.
"""

from collections.abc import Callable, Mapping

import numpy as np

from medclip_jax.evaluation import plots_tasks, probes, tasks
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.probes import (
    FRACTIONS,
    Fitted,
    Parts,
    Point,
    figure,
    find_parts,
    probe_rows,
    subset,
)
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Need,
    Networks,
    Options,
    Outcome,
)
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.tasks import Question
from medclip_jax.evaluation.tuning import Labels, Tuned, Tuning

NAME = "fine_tuning"
ABOUT = About(
    "Fine-tuning",
    "The image tower and a linear head trained on 1, 10 and 100 % of the training "
    "patients: the head alone at 1e-3, then everything at 1e-4, Adam, dropout 0.2 "
    "before the head, batches of 64; the rate is halved after 3 validations without "
    "improvement, and the best of them is judged. AUROC or, of classes, accuracy.",
    "Zhang et al. (ConVIRT, MLHC 2022), section 4.1, appendix B and table 1",
    (
        "Steps: with few, the start decides more than after convergence.",
        "The checkpoint chosen on the test films.",
        "ConVIRT's figures are means of five runs; the row says of how many this is.",
        "A start on ImageNet weights is the baseline that matters, not a random one.",
    ),
)
STARTS = ("trained", "untrained", "imagenet")


QUESTIONS = ("rsna_target", tasks.FIVE, "covidx", "mura_abnormal")
"""Those of ConVIRT's table: a fine-tuning takes as long as a small training."""


def plan(bench: Bench) -> list[Job]:
    """One job a question whose training split has both answers."""
    jobs: list[Job] = []
    if bench.untuned:
        bench.skip(NAME, bench.untuned)
        return jobs
    assert bench.tune is not None  # `untuned` says
    for question in tasks.questions(bench, "binary", "multiclass", "multilabel"):
        if question.name not in QUESTIONS:
            continue
        name = f"{NAME} on {question.told}"
        parts, why = find_parts(question, bench.options)
        if parts is None:
            bench.skip(name, why)
            continue
        # No film need be embedded: the tower that embeds them changes.
        needs = [Need(question.films, np.zeros(0, np.int64))]
        measure = _measure(question, parts, bench.options, bench.tune)
        jobs.append(Job(name, measure, needs))
    return jobs


def _measure(
    question: Question, parts: Parts, options: Options, tune: Callable[[Tuning], Tuned]
):
    def measure(networks: Networks) -> Outcome:
        starts = {name: networks[name] for name in STARTS if name in networks}
        fitted, done = tune_all(starts, question, parts, options, tune)
        more = (
            f"at most {options.tune_steps} steps of 64 films, {min(done)} to "
            f"{max(done)} done; mean of {options.tune_draws} draws"
        )
        rows, points = probe_rows(NAME, question, parts, fitted, options.seed, more)
        return Outcome(rows, [_section(question, parts, points, options)])

    return measure


def tune_all(
    starts: Mapping[str, Network],
    question: Question,
    parts: Parts,
    options: Options,
    tune: Callable[[Tuning], Tuned],
) -> tuple[dict[str, Fitted], list[int]]:
    """Trains from each start on each share of the labels.

    Returns:
      Network to its probabilities of the units judged, and the steps of each training.
    """
    exclusive = question.task.kind == "multiclass"
    codes = parts.train.film_codes[:, parts.labels]
    patients = parts.train.patients[parts.train.owner]
    draws = [
        (share, draw)
        for share in FRACTIONS
        for draw in range(options.tune_draws if share < 1 else 1)
    ]
    total, number, done = len(starts) * len(draws), 0, []
    fitted = {}
    for name, start in starts.items():
        chances: dict[float, list[np.ndarray]] = {share: [] for share in FRACTIONS}
        used: dict[float, list[int]] = {share: [] for share in FRACTIONS}
        for share, draw in draws:
            number += 1
            seed = options.seed + draw
            films = subset(codes, patients, share, seed, exclusive)
            made = tune(
                Tuning(
                    start,
                    question.films,
                    parts.train.positions[films],
                    parts.validate.positions,
                    parts.test.positions,
                    codes[films].astype(np.int8),
                    Labels(codes.shape[1], exclusive),
                    lambda of: figure(question, parts.labels, parts.validate, of),
                    options.tune_steps,
                    seed,
                    number=number,
                    of=total,
                )
            )
            done.append(made.steps)
            used[share].append(len(np.unique(patients[films])))
            chances[share].append(parts.test.pool(made.told))
        fitted[name] = Fitted(
            {share: np.stack(of) for share, of in chances.items()},
            {},
            {share: float(np.mean(of)) for share, of in used.items()},
        )
    return fitted, done


def _section(
    question: Question, parts: Parts, points: list[Point], options: Options
) -> Section:
    what = "accuracy" if question.task.kind == "multiclass" else "AUROC"
    patients = len(np.unique(parts.train.patients))
    text = (
        f"{question.task.about or question.name}. The whole image tower is trained on a "
        f"share of {patients} training patients, for at most {options.tune_steps} "
        f"steps, and judged on {len(parts.test)} {question.task.unit}s. Untrained is "
        "the same tower from random weights."
    )
    if parts.carved:
        text += f" Every {probes.CARVED}th training patient validates."
    picture = Picture(
        plots_tasks.fractions({question.told: points}, what),
        f"{what} against the share of the training patients, by what training started "
        "from, with the 95 % interval over the patients judged.",
    )
    return Section(f"Fine-tuning: {question.told}", text, [picture])
