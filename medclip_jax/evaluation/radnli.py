"""RadNLI: does one sentence of a report follow from another, or contradict it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from medclip_jax.evaluation import metrics, nli_fine_tuning, plots_pairs
from medclip_jax.evaluation import sentence_pairs as pairs
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.nli_fine_tuning import Labelled
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Networks,
    Options,
    Outcome,
    each,
)
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.sets import Table
from medclip_jax.evaluation.small_probes import logistic

NAME = "radnli"
ABOUT = About(
    "Natural language inference (RadNLI)",
    "Zero-shot: entailment against contradiction by the cosine of the two sentences, "
    "auroc, and accuracy with the threshold that is best on the dev split. /three_way: "
    "neutral too, with two thresholds and the order of the labels best on dev. /frozen: "
    "logistic regression on [u, v, |u - v|, u * v] of fixed sentence vectors. "
    "/fine_tuned: the text tower trained on the joined sentences, mean over runs. What "
    "the last two were fitted on is in the row.",
    "Boecking et al. (BioViL, ECCV 2022), section 4.1; Bannur et al. (BioViL-T, CVPR "
    "2023); Miura et al., NAACL 2021, physionet.org/content/radnli-report-inference",
    (
        "Published figures on two classes are on fewer pairs, chosen in an unknown way.",
        "Guessing neutral is right in 0.58 of the test pairs; some models do worse.",
        "Papers fit on MedNLI alone; fitting on the dev split of RadNLI is easier.",
        "Every two sentences stand there in both orders: they are no two pairs.",
        "/fine_tuned has no dropout and no token types, unlike the published runs.",
    ),
)
LABELS = ("entailment", "neutral", "contradiction")
ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
LEAST = 10
"""Pairs of each label that are needed to judge, and to fit."""


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs of one file.

    Attributes:
      of: data set and split, for a note.
      rows: of the side table `sentence_pairs`.
    """

    of: str
    rows: Sequence[pairs.Row]

    @property
    def name(self) -> str:
        """What they are, for a note."""
        return f"{len(self.rows)} pairs of {self.of}"

    @property
    def classes(self) -> np.ndarray:
        """int [N], index into LABELS."""
        return np.array([LABELS.index(row["label"]) for row in self.rows])

    @property
    def enough(self) -> bool:
        """Whether there are LEAST of each label."""
        counts = np.bincount(self.classes, minlength=3) if self.rows else [0]
        return min(counts) >= LEAST


def plan(bench: Bench) -> list[Job]:
    """One job a table of RadNLI."""
    tables = [table for table in bench.sentence_pairs if table.kind == "radnli"]
    if not tables:
        bench.skip(NAME, "no data set is of the kind radnli")
    jobs = []
    for table in tables:
        name = f"{NAME} on {table.name}"
        test = _of(table, "test")
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
        elif bench.options.split != "test":
            bench.skip(name, "its dev split chooses thresholds; test alone is judged")
        elif not test.enough:
            bench.skip(name, f"{LEAST} test pairs of each label are needed")
        else:
            if not bench.options.tune_steps:
                bench.skip(f"{NAME}/fine_tuned on {table.name}", bench.untuned)
            mednli = [of for of in bench.sentence_pairs if of.kind == "mednli"][:1]
            fitted = "+".join([table.fingerprint, *(of.fingerprint for of in mednli)])
            measure = _measure(table, mednli, bench.options)
            jobs.append(Job(name, measure, (), fitted))
    return jobs


def _of(table: Table, split: str) -> Pairs:
    rows = [
        row
        for row in sorted(table.rows, key=lambda row: row["pair_id"])
        if row["split"] == split and row["label"] in LABELS
    ]
    return Pairs(f"{table.name}, {split}", rows)


def _measure(table: Table, mednli: Sequence[Table], options: Options):
    def measure(networks: Networks) -> Outcome:
        test, dev = _of(table, "test"), _of(table, "validate")
        outcome = Outcome()
        scores = each(networks, lambda n: pairs.cosines(n, test.rows), text=True)
        tuned = {}
        if dev.enough:
            tuned = each(networks, lambda n: pairs.cosines(n, dev.rows), text=True)
        else:
            outcome.skipped[f"{NAME} thresholds on {table.name}"] = (
                f"{LEAST} dev pairs of each label are needed"
            )
        outcome.rows += _two_class(table, test, scores, dev, tuned, options)
        outcome.rows += _three_way(table, test, scores, dev, tuned, options)
        training, choosing = training_pairs(mednli, dev, options.seed)
        if training is None:
            outcome.skipped[f"{NAME}/frozen and /fine_tuned on {table.name}"] = (
                f"neither MedNLI nor the dev split has {LEAST} pairs of each label"
            )
        else:
            outcome.rows += _frozen(table, test, training, networks, options)
            try:
                if options.tune_steps:
                    outcome.rows += _fine_tuned(
                        table, test, training, choosing, networks, options
                    )
            except nli_fine_tuning.TooSlow as error:
                outcome.skipped[f"{NAME}/fine_tuned on {table.name}"] = str(error)
        shown = {
            name: scores[name] for name in ("untrained", "trained") if name in scores
        }
        picture = Picture(
            plots_pairs.similarities(shown, test.classes, LABELS),
            "How similar the two sentences are, by label; dotted: the median.",
            True,
        )
        text = (
            "Sentences of reports in pairs: the second follows from the first, "
            "contradicts it, or neither. Nothing was trained for this picture."
        )
        title = f"Natural language inference: {table.name}"
        outcome.sections.append(Section(title, text, [picture]))
        return outcome

    return measure


def training_pairs(
    mednli: Sequence[Table], dev: Pairs, seed: int
) -> tuple[Pairs | None, Pairs | None]:
    """What to fit on, and what to choose a learning rate on.

    MedNLI's train and dev split where they are; else four fifths of RadNLI's dev split
    and the rest of it, no couple of sentences in both. None where there is neither.
    """
    for table in mednli:
        train, validate = _of(table, "train"), _of(table, "validate")
        if train.enough and validate.enough:
            return train, validate
    if not dev.enough:
        return None, None
    parts = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    train_rows, rest = next(parts.split(dev.rows, groups=pairs.couples(dev.rows)))
    fitted, chosen = ([dev.rows[i] for i in at] for at in (train_rows, rest))
    return Pairs(dev.of, fitted), Pairs(dev.of, chosen)


def _rows(
    protocol: str,
    table: Table,
    test: Pairs,
    right: Mapping[str, np.ndarray],
    note: str,
    options: Options,
) -> list[Row]:
    """accuracy and macro_accuracy of the three labels; `right` is [runs, N]."""
    classes, couples = test.classes, pairs.couples(test.rows)
    members = [np.flatnonzero(classes == c) for c in range(3)]
    means = {name: of.mean(axis=0) for name, of in right.items()}
    runs = right["trained"]
    by_run = {
        "accuracy": runs.mean(axis=1),
        "macro_accuracy": np.mean([runs[:, m].mean(axis=1) for m in members], axis=0),
    }
    of_metric: dict[str, dict[str, metrics.Statistic]] = {
        "accuracy": {name: metrics.Mean(of) for name, of in means.items()},
        "macro_accuracy": {
            name: metrics.MeanOf([metrics.Mean(of[m], m) for m in members])
            for name, of in means.items()
        },
    }
    chances = {
        "accuracy": max(map(len, members)) / len(classes),
        "macro_accuracy": 1 / 3,
    }
    return [
        measured(
            protocol,
            table.name,
            metric,
            statistics,
            couples,
            chances[metric],
            units=[row["pair_id"] for row in test.rows],
            seed=options.seed,
            std=float(by_run[metric].std()) if len(runs) > 1 else None,
            note=note,
        )
        for metric, statistics in of_metric.items()
    ]


def _two_class(table, test, scores, dev, tuned, options) -> list[Row]:
    kept = test.classes != NEUTRAL
    positive = test.classes[kept] == ENTAILMENT
    kept_dev = dev.classes != NEUTRAL if tuned else None
    couples = pairs.couples(test.rows)[kept]
    share = float(positive.mean())
    of_metric: dict[str, tuple[dict[str, metrics.Statistic], float]] = {
        "auroc": ({n: metrics.Auroc(positive, s[kept]) for n, s in scores.items()}, 0.5)
    }
    if tuned:
        right = {
            name: (of[kept] > pairs.best_threshold(
                tuned[name][kept_dev], dev.classes[kept_dev] == ENTAILMENT
            )) == positive
            for name, of in scores.items()
        }  # fmt: skip
        of_metric["accuracy"] = (
            {n: metrics.Mean(of.astype(float)) for n, of in right.items()},
            max(share, 1 - share),
        )
    return [
        measured(
            NAME,
            table.name,
            metric,
            statistics,
            couples,
            chance,
            units=[row["pair_id"] for row, is_kept in zip(test.rows, kept) if is_kept],
            seed=options.seed,
            note=f"zero-shot; {positive.sum()} entailment, {(~positive).sum()} "
            "contradiction, neutral left out",
        )
        for metric, (statistics, chance) in of_metric.items()
    ]


def _three_way(table, test, scores, dev, tuned, options) -> list[Row]:
    if not tuned:
        return []
    right, orders = {}, {}
    for name, of in scores.items():
        orders[name], thresholds = pairs.best_order(tuned[name], dev.classes)
        told = pairs.classes_of(of, orders[name], thresholds)
        right[name] = (told == test.classes)[None].astype(float)
    order = " < ".join(LABELS[c] for c in orders["trained"])
    note = f"zero-shot, two thresholds of dev; by similarity {order}"
    return _rows(f"{NAME}/three_way", table, test, right, note, options)


def _frozen(table, test, training, networks, options) -> list[Row]:
    def right(network: Network) -> np.ndarray:
        features = (
            pair_features(*pairs.vectors(network, of.rows)) for of in (training, test)
        )
        fitted, judged = features
        told = logistic(fitted, training.classes, judged, balanced=False)
        return (told == test.classes)[None].astype(float)

    of = each(networks, right, text=True)
    note = f"frozen sentence vectors, fitted on {training.name}"
    return _rows(f"{NAME}/frozen", table, test, of, note, options)


def pair_features(first_NxD: np.ndarray, second_NxD: np.ndarray) -> np.ndarray:
    """float64 [N, 4 D]: both vectors, how they differ, and their product."""
    parts = (first_NxD, second_NxD, abs(first_NxD - second_NxD), first_NxD * second_NxD)
    return np.concatenate(parts, axis=1)


def _fine_tuned(table, test, training, choosing, networks, options) -> list[Row]:
    rates = {}

    def right(network: Network) -> np.ndarray:
        told, rates[network.name] = nli_fine_tuning.fine_tune(
            network,
            Labelled(
                nli_fine_tuning.join_pairs(network, training.rows), training.classes
            ),
            Labelled(
                nli_fine_tuning.join_pairs(network, choosing.rows), choosing.classes
            ),
            nli_fine_tuning.join_pairs(network, test.rows),
            options.seeds,
            options.seed,
        )
        return (told == test.classes).astype(float)

    of = each(networks, right, text=True)
    note = (
        f"text tower fine-tuned on {training.name}; {options.seeds} runs, learning rate "
        f"{rates['trained']:g}"
    )
    return _rows(f"{NAME}/fine_tuned", table, test, of, note, options)
