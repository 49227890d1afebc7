"""Zero-shot classification of the five findings: the headline figure.

Films with exactly one of the five CheXpert competition findings, as many of each; a
film takes the finding whose prompts it lies nearest to. The scores of a class's
prompts become one by the method's own rule (MedCLIP: the mean over ten drawn prompts;
its official code also has the maximum, which GLoRIA uses).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import (
    five_class,
    metrics,
    plots,
    plots_curves,
    prompts,
    zero_shot,
)
from medclip_jax.evaluation.protocol import (
    Abilities,
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
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.sets import Films

NAME = "zero_shot_five"
ABOUT = About(
    "Zero-shot classification of five findings",
    "Films with exactly one of Atelectasis, Cardiomegaly, Consolidation, Edema and "
    "Pleural Effusion, balanced. A film takes the class whose prompts score highest; "
    "mean over prompt draws.",
    "Huang et al. (GLoRIA, ICCV 2021), section 4.3 and gloria/datasets; Wang et al. "
    "(MedCLIP, EMNLP 2022), section 4.3",
    (
        "There is no one list of films: papers sampled their own.",
        "Laterals and films with uncertain labels are in some lists, not in others.",
        "Prompts drawn without a seed, or from sentences that training saw.",
        "Pooling by the mean or by the maximum moves the figure by several points.",
    ),
)


def plan(bench: Bench) -> list[Job]:
    """One job a data set whose split has enough films of each class."""
    jobs = []
    for films in bench.films:
        if films.tasks:  # the source asks its own questions
            continue
        try:
            chosen = choose_films(films, bench.options)
        except UserError as error:
            bench.skip(f"{NAME} on {films.name}", str(error))
            continue
        if not bench.abilities.reads_text:
            bench.skip(f"{NAME} on {films.name}", "the method reads no text")
            continue
        jobs.append(
            Job(
                f"{NAME} on {films.name}",
                _measure(films, chosen, bench.options, bench.abilities),
                [Need(films, chosen.indices)],
            )
        )
    return jobs


def choose_films(films: Films, options: Options) -> five_class.FiveClassSet:
    """The five-class set of a data set's split, drawn by id and seed.

    Raises:
      UserError: a class has fewer films than `options.minimum`.
    """
    split = films.where(options.split)
    if not len(split):
        raise UserError(f"it has no films in the split {options.split}")
    classes = five_class.class_of(
        films.labels_Nx14[split], options.rule, options.uncertain
    )
    if options.frontal:
        classes = np.where(five_class.frontal(films.views[split]), classes, -1)
    chosen = five_class.choose(
        classes,
        films.ids[split],
        per_class=options.per_class,
        minimum=options.minimum,
        seed=options.seed,
    )
    return five_class.FiveClassSet(
        split[chosen.indices], chosen.classes, chosen.eligible
    )


def _measure(
    films: Films,
    chosen: five_class.FiveClassSet,
    options: Options,
    abilities: Abilities,
):
    def measure(networks: Networks) -> Outcome:
        five = prompts.five_class_prompts()
        texts = [text for of in five.values() for text in of]
        logits = each(
            networks, lambda n: n.logits(films, chosen.indices, texts), text=True
        )
        rows = five_class_rows(
            logits,
            five,
            chosen.classes,
            films.patients[chosen.indices],
            films.name,
            units=films.ids[chosen.indices],
            draws=options.draws,
            per_class=options.prompts_per_class,
            pooling=abilities.pooling,
            zscore=abilities.zscore,
            seed=options.seed,
        )
        drawn = {
            name: zero_shot.drawn_scores(
                of,
                five,
                abilities.pooling,
                options.draws,
                options.prompts_per_class,
                options.seed,
                abilities.zscore,
            )
            for name, of in logits.items()
        }
        probabilities = _softmax(drawn["trained"]).mean(axis=0)
        rows.append(_calibration(films, chosen, drawn))
        section = _section(films, chosen, drawn, probabilities)
        return Outcome(rows, [section])

    return measure


def five_class_rows(
    logits: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[str]],
    classes: np.ndarray,
    patients: metrics.Strings,
    dataset: str,
    *,
    units: metrics.Strings | None = None,
    draws: int = zero_shot.DRAWS,
    per_class: int = prompts.DEFAULT_PER_CLASS,
    pooling: str = "mean",
    zscore: bool = False,
    seed: int = 0,
    protocol: str = NAME,
) -> list[Row]:
    """Rows of a multi-class zero-shot protocol, the headline first.

    Args:
      logits: network to float [N, P] with the prompts of all classes laid end to end.
      texts: class name to prompts, in the order of the class numbers.
      classes: int [N].
      patients: N patient ids.
      dataset: name for the rows.
      units: N film ids.
      draws: prompt draws; a figure is the mean over them, `std` the deviation.
      per_class: prompts a draw takes of each class.
      pooling: how the method makes one of a class's prompts, "mean" or "max".
      zscore: see `zero_shot.standardise`.
      seed: seed of draws and bootstrap.
      protocol: name for the rows.

    Returns:
      Accuracy with the method's pooling, with AUROC and macro F1; accuracy with the
      other pooling, and with the other choice of standardising; accuracy with all
      prompts at once.
    """
    chance = 1 / len(texts)
    about: dict[str, Any] = {"patients": patients, "units": units, "seed": seed}
    other = "max" if pooling == "mean" else "mean"
    ways = [
        ("", pooling, zscore),
        (f"/{other}_prompt", other, zscore),
        (f"/{'raw' if zscore else 'standardised'}", pooling, not zscore),
    ]
    rows = []
    for suffix, way, standard in ways:
        drawn = {
            name: zero_shot.drawn_scores(
                of, texts, way, draws, per_class, seed, standard
            )
            for name, of in logits.items()
        }
        right = {name: of.argmax(axis=2) == classes for name, of in drawn.items()}
        note = f"{way} of {per_class} prompts a class, {draws} draws"
        rows.append(
            measured(
                protocol + suffix,
                dataset,
                "accuracy",
                {name: metrics.Mean(of.mean(axis=0)) for name, of in right.items()},
                chance=chance,
                std=float(right["trained"].mean(axis=1).std()),
                note=note + (", standardised over the films" if standard else ""),
                **about,
            )
        )
        if not suffix:
            rows += _macro_rows(protocol, dataset, drawn, classes, chance, about)
    columns = list(zero_shot.columns_of(texts).values())
    everything = {
        name: zero_shot.class_scores(of, columns, pooling).argmax(1) == classes
        for name, of in logits.items()
    }
    rows.append(
        measured(
            f"{protocol}/all_prompts",
            dataset,
            "accuracy",
            {name: metrics.Mean(of) for name, of in everything.items()},
            chance=chance,
            note=f"{pooling} of all prompts, no draw",
            **about,
        )
    )
    return rows


def _macro_rows(protocol, dataset, drawn, classes, chance, about) -> list[Row]:
    areas, f1 = {}, {}
    for name, scores_DxNxC in drawn.items():
        count = scores_DxNxC.shape[2]
        areas[name] = metrics.MeanOf(
            [
                metrics.Auroc(classes == c, zero_shot.against_rest(scores)[:, c])
                for scores in scores_DxNxC
                for c in range(count)
            ]
        )
        f1[name] = metrics.MeanOf(
            [
                metrics.MacroF1(classes, scores.argmax(1), count)
                for scores in scores_DxNxC
            ]
        )
    note = "mean of one class against the rest"
    return [
        measured(protocol, dataset, "auroc", areas, chance=0.5, note=note, **about),
        measured(protocol, dataset, "macro_f1", f1, chance=chance, **about),
    ]


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _calibration(
    films: Films, chosen: five_class.FiveClassSet, drawn: Mapping[str, np.ndarray]
) -> Row:
    errors = {}
    for name, scores_DxNxC in drawn.items():
        chances = _softmax(scores_DxNxC).mean(axis=0)
        right = chances.argmax(axis=1) == chosen.classes
        errors[name] = plots_curves.calibration_error(chances.max(axis=1), right)
    return Row(
        f"{NAME}/calibration",
        films.name,
        "expected_calibration_error",
        errors["trained"],
        len(chosen),
        0.0,
        errors.get("untrained"),
        note="lower is better; softmax over the class scores, mean over the draws",
    )


def _mistakes(
    films: Films, chosen: five_class.FiveClassSet, chances: np.ndarray, most: int = 5
) -> list[Query]:
    """The films that the network was most sure of and wrong about, two a class at most."""
    told = chances.argmax(axis=1)
    sure = np.where(told != chosen.classes, chances.max(axis=1), -1.0)
    picked: list[int] = []
    for film in np.argsort(-sure, kind="stable"):
        alike = [p for p in picked if chosen.classes[p] == chosen.classes[film]]
        if sure[film] >= 0 and len(picked) < most and len(alike) < 2:
            picked.append(int(film))
    if not picked:
        return []
    pixels = np.concatenate(list(films.read(chosen.indices[picked])))[..., 0]
    shown = [
        RetrievedFilm(
            film,
            f"{EVAL_FIVE[chosen.classes[p]]}, taken for {EVAL_FIVE[told[p]]} "
            f"({chances[p, told[p]]:.0%})",
            False,
        )
        for film, p in zip(pixels, picked)
    ]
    text = "wrong, and most sure of it; at most two of a finding"
    return [Query("Failures", text, False, shown)]


def _section(
    films: Films,
    chosen: five_class.FiveClassSet,
    drawn: Mapping[str, np.ndarray],
    chances: np.ndarray,
) -> Section:
    classes = chosen.classes
    scores = drawn["trained"].mean(axis=0)
    recall = {name: _recall(of, classes) for name, of in drawn.items()}
    counts = ", ".join(f"{n} {c}" for n, c in chosen.eligible.items())
    return Section(
        f"Zero-shot classification: {films.name}",
        "Every film is compared with sentences that describe each finding, and takes "
        "the finding whose sentences it lies nearest to. No classifier was trained. "
        "The films hold exactly one of the five findings, as many of each as the "
        f"rarest has; eligible in this split: {counts}.",
        [
            Picture(
                plots.class_bars(
                    recall["trained"],
                    recall.get("untrained", [0.0] * 5),
                    EVAL_FIVE,
                    0.2,
                ),
                "Share of each finding's films that were named right, mean over the "
                "prompt draws.",
            ),
            Picture(
                plots.confusion_matrix(
                    metrics.confusion(classes, scores.argmax(axis=1), 5), EVAL_FIVE
                ),
                "What the films of each finding were taken for, the prompts of all "
                "draws together.",
            ),
            Picture(
                plots.roc(zero_shot.against_rest(scores), classes, EVAL_FIVE),
                "Each finding against the other four.",
            ),
            Picture(
                plots_curves.precision_recall(
                    zero_shot.against_rest(scores), classes, EVAL_FIVE
                ),
                "Precision against recall, each finding against the other four.",
            ),
            Picture(
                plots_curves.reliability(
                    chances.max(axis=1), chances.argmax(axis=1) == classes
                ),
                "Calibration: films by how sure the network was of the finding it "
                "named. Numbers are films.",
            ),
        ],
        _mistakes(films, chosen, chances),
    )


def _recall(scores_DxNxC: np.ndarray, classes: np.ndarray) -> list[float]:
    count = scores_DxNxC.shape[2]
    every = [
        metrics.classification(classes, scores.argmax(1), count)["recall_by_class"]
        for scores in scores_DxNxC
    ]
    return [float(value) for value in np.mean(every, axis=0)]
