"""Progression: did a finding improve, stay or get worse between two films?

A linear classifier sees the features of the current film and of the film before, side
by side; of a network that reads both films together, its one feature. Every patient is judged by a classifier that never saw the patient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclip_jax.evaluation import metrics, plots_films
from medclip_jax.evaluation.features import Network, Place
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
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.sets import Films, Table
from medclip_jax.evaluation.small_probes import (
    Classifier,
    compact,
    linear_svm,
    logistic,
    out_of_fold,
    unit,
)

NAME = "temporal_image_classification"
ABOUT = About(
    "Progression between two films",
    "Improving, stable or worsening, one classifier a finding: multinomial logistic "
    "regression on the L2-normalised trunk features of the current and the previous film "
    "side by side, or the one of a network that reads both; 10 folds grouped by patient, "
    "3 seeds. macro_accuracy: mean of the recalls of the three classes; accuracy: share "
    "named right; both the mean over findings. /joint: the same on joint features. "
    "/ungrouped_svm: a linear SVM on joint features, folds that part a patient's rows. "
    "/separate_training: fitted on labelled pairs of the training split, judged on all.",
    "Bannur et al. (BioViL-T, CVPR 2023), section 4.2; MS-CXR-T, "
    "physionet.org/content/ms-cxr-t; SVT-Yang/MedST, temporal_test.py, for /ungrouped_svm",
    (
        "BioViL-T fine-tunes on other labelled pairs; here the towers are frozen.",
        "Patients have several rows: ungrouped folds judge patients they were fitted on.",
        "Stable is the most frequent class of some findings: accuracy rewards guessing it.",
        "Films of MS-CXR-T lie in the training split of MIMIC-CXR: hold them out.",
    ),
)
LABELS = ("improving", "stable", "worsening")
FOLDS, SEEDS = 10, 3
Way = Callable[[Network, Sequence["Pair"]], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """A row of the side table `progression` with its two films."""

    row: Mapping[str, Any]
    current: Place
    previous: Place

    @property
    def label(self) -> int:
        """Index into LABELS."""
        return LABELS.index(self.row["label"])

    @property
    def unit(self) -> str:
        """A name of film pair and finding."""
        row = self.row
        return f"{row['image_id']} {row['previous_image_id']} {row['finding']}"

    @property
    def split(self) -> str:
        """Of the current film."""
        films, position = self.current
        return str(films.splits[position])


def plan(bench: Bench) -> list[Job]:
    """One job a table of progressions."""
    every = {id(table): find_pairs(table, bench) for table in bench.progression}
    jobs = []
    for table in bench.progression:
        name = f"{NAME} on {table.name}"
        pairs, left_out = every[id(table)]
        judged = [pair for pair in pairs if pair.split == bench.options.split]
        if len(judged) < len(pairs):
            why = f"their films are not in the split {bench.options.split}"
            left_out = {**left_out, why: len(pairs) - len(judged)}
        by_finding, few = _enough(judged, FOLDS)
        told = [f"{count} labels: {why}" for why, count in left_out.items()]
        told += [f"{finding}: {why}" for finding, why in few.items()]
        if told:
            whole = "" if by_finding else "nothing: "
            bench.skip(
                f"some of {name}" if by_finding else name, whole + "; ".join(told)
            )
        if not by_finding:
            continue
        patients = {pair.row["patient_id"] for pair in judged}
        training = [
            pair
            for of, _ in every.values()
            for pair in of
            if pair.split == "train" and pair.row["patient_id"] not in patients
        ]
        # Split "train" judged: there is nothing separate to fit on.
        training = training if bench.options.split != "train" else []
        fitted_on, _ = _enough(training, FOLDS)
        fitted_on = {of: fitted_on[of] for of in by_finding if of in fitted_on}
        lacking = [finding for finding in by_finding if finding not in fitted_on]
        if lacking:
            bench.skip(
                f"{NAME}/separate_training on {table.name}",
                f"{', '.join(lacking)}: fewer than {FOLDS} patients of each class have "
                "labelled pairs of films in the split train",
            )
        used = [p for of in (by_finding, fitted_on) for ps in of.values() for p in ps]
        jobs.append(
            Job(
                name,
                _measure(table, by_finding, fitted_on, bench.options),
                _needs(used),
                table.fingerprint,
            )
        )
    return jobs


def find_pairs(table: Table, bench: Bench) -> tuple[list[Pair], dict[str, int]]:
    """Rows whose films are both there; reason to how many are left out for it."""
    ids = [
        row[name] for row in table.rows for name in ("image_id", "previous_image_id")
    ]
    found = bench.find(ids)
    pairs, left_out = [], {"their films are in no prepared data set": 0, "label": 0}
    for row in table.rows:
        if not (row["image_id"] in found and row["previous_image_id"] in found):
            left_out["their films are in no prepared data set"] += 1
        elif row["label"] not in LABELS:
            left_out["label"] += 1
        else:
            films = found[row["image_id"]], found[row["previous_image_id"]]
            pairs.append(Pair(row, *films))
    pairs.sort(key=lambda pair: pair.unit)
    if unknown := left_out.pop("label"):
        left_out[f"their label is none of {', '.join(LABELS)}"] = unknown
    return pairs, {why: count for why, count in left_out.items() if count}


def _enough(
    pairs: Sequence[Pair], least: int
) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """Pairs by finding where each class has enough patients; why others are not."""
    by_finding: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_finding.setdefault(pair.row["finding"], []).append(pair)
    kept, few = {}, {}
    for finding, of in sorted(by_finding.items()):
        patients = [
            len({p.row["patient_id"] for p in of if p.row["label"] == label})
            for label in LABELS
        ]
        if min(patients) >= least:
            kept[finding] = of
        else:
            counts = ", ".join(f"{n} {label}" for n, label in zip(patients, LABELS))
            few[finding] = f"{least} patients of each class are needed, found {counts}"
    return kept, few


def _needs(pairs: Sequence[Pair]) -> list[Need]:
    places = [place for pair in pairs for place in (pair.current, pair.previous)]
    sets = {films.name: films for films, _ in places}
    return [
        Need(films, np.unique([at for of, at in places if of is films]))
        for films in sets.values()
    ]


def features(network: Network, joint: bool, pairs: Sequence[Pair]) -> np.ndarray:
    """As `side_by_side`; of a network that reads both films, its one unit vector."""
    if not network.reads_prior:
        return side_by_side(network.joint if joint else network.trunk, pairs)
    made = network.compared([(pair.current, pair.previous) for pair in pairs])
    return unit(np.asarray(made.joint_BxD if joint else made.trunk_BxF))


def side_by_side(
    of: Callable[[Films, np.ndarray], np.ndarray], pairs: Sequence[Pair]
) -> np.ndarray:
    """Unit features of the current film, then of the one before: float64 [N, 2 F].

    Args:
      of: a network's `trunk` or `joint`.
      pairs: N of them.
    """
    halves = []
    for places in ([p.current for p in pairs], [p.previous for p in pairs]):
        sets = {films.name: films for films, _ in places}
        parts: dict[tuple[str, int], np.ndarray] = {}
        for name, films in sets.items():
            positions = np.unique([at for f, at in places if f is films])
            vectors = unit(of(films, positions))
            parts |= {(name, int(p)): v for p, v in zip(positions, vectors)}
        halves.append(np.array([parts[films.name, at] for films, at in places]))
    return np.concatenate(halves, axis=1)


def _measure(
    table: Table,
    by_finding: Mapping[str, Sequence[Pair]],
    fitted_on: Mapping[str, Sequence[Pair]],
    options: Options,
):
    def folds(fit: Classifier, joint: bool, grouped: bool):
        """Predictions of each finding's pairs, SEEDS x N."""

        def predict(network: Network) -> dict[str, np.ndarray]:
            return {
                finding: _out_of_fold(network, pairs, fit, joint, grouped, options.seed)
                for finding, pairs in by_finding.items()
            }

        return predict

    def separate(network: Network) -> dict[str, np.ndarray]:
        made = {}
        for finding, training in fitted_on.items():
            judged = by_finding[finding]
            every = features(network, False, [*training, *judged])
            places, n = compact(every), len(training)
            labels = np.array([pair.label for pair in training])
            made[finding] = logistic(places[:n], labels, places[n:])[None]
        return made

    def measure(networks: Networks) -> Outcome:
        rows: list[Row] = []
        shown: Mapping[str, np.ndarray] = {}
        ways: list[tuple[str, Callable, str]] = [
            ("", folds(logistic, False, True), f"{FOLDS} folds by patient"),
            ("/joint", folds(logistic, True, True), f"{FOLDS} folds by patient"),
            ("/ungrouped_svm", folds(linear_svm, True, False), "patients part"),
        ]
        if fitted_on:
            counts = ", ".join(f"{len(of)} {name}" for name, of in fitted_on.items())
            ways.append(("/separate_training", separate, f"fitted on {counts}"))
        for suffix, predict, note in ways:
            predicted = each(networks, predict, text=False)
            findings = predicted["trained"]
            judged = {name: by_finding[name] for name in findings}
            rows += _rows(NAME + suffix, table.name, judged, predicted, note, options)
            shown = shown or findings
        return Outcome(rows, [_section(table, by_finding, shown, options)])

    return measure


def _out_of_fold(
    network: Network,
    pairs: Sequence[Pair],
    fit: Classifier,
    joint: bool,
    grouped: bool,
    seed: int,
) -> np.ndarray:
    seen = compact(features(network, joint, pairs))
    labels = np.array([pair.label for pair in pairs])
    patients = np.array([pair.row["patient_id"] for pair in pairs])
    return np.array(
        [
            out_of_fold(
                seen, labels, patients if grouped else None, fit, seed + n, FOLDS
            )
            for n in range(SEEDS)
        ]
    )


def _rows(
    protocol: str,
    dataset: str,
    by_finding: Mapping[str, Sequence[Pair]],
    predicted: Mapping[str, Mapping[str, np.ndarray]],
    note: str,
    options: Options,
) -> list[Row]:
    """macro_accuracy and accuracy, the mean over findings and of each."""
    every = [pair for pairs in by_finding.values() for pair in pairs]
    patients = np.array([pair.row["patient_id"] for pair in every])
    units = np.array([pair.unit for pair in every])
    labels = np.array([pair.label for pair in every])
    ends = np.cumsum([len(pairs) for pairs in by_finding.values()])
    where = dict(zip(by_finding, np.split(np.arange(len(every)), ends[:-1])))
    right = {
        network: np.concatenate([of[f] for f in by_finding], axis=1) == labels
        for network, of in predicted.items()
    }
    most = {f: np.bincount(labels[rows]).max() / len(rows) for f, rows in where.items()}
    heads, details = [], []
    for metric, statistic, chances in (
        ("macro_accuracy", recalls, dict.fromkeys(where, 1 / len(LABELS))),
        ("accuracy", share, most),
    ):
        by_seed = [
            metrics.MeanOf([statistic(seed_N, labels, r) for r in where.values()])
            for seed_N in right["trained"]
        ]
        values = [float(of(np.ones((1, len(every))))[0]) for of in by_seed]
        mean = {network: of.mean(axis=0) for network, of in right.items()}
        heads.append(
            measured(
                protocol,
                dataset,
                metric,
                {
                    n: metrics.MeanOf(
                        [statistic(of, labels, r) for r in where.values()]
                    )
                    for n, of in mean.items()
                },
                patients,
                float(np.mean(list(chances.values()))),
                units=units,
                seed=options.seed,
                std=float(np.std(values)) if len(values) > 1 else None,
                note=f"mean over {len(where)} findings, {note}",
            )
        )
        for finding, rows in where.items():
            of_label = np.bincount(labels[rows], minlength=len(LABELS))
            details.append(
                measured(
                    f"{protocol}/{finding}",
                    dataset,
                    metric,
                    {
                        n: statistic(of[rows], labels[rows], np.arange(len(rows)))
                        for n, of in mean.items()
                    },
                    patients[rows],
                    float(chances[finding]),
                    units=units[rows],
                    seed=options.seed,
                    note=", ".join(f"{n} {name}" for n, name in zip(of_label, LABELS)),
                )
            )
    return heads + details


def recalls(right_N: np.ndarray, labels_N: np.ndarray, rows: np.ndarray):
    """The mean over classes of the share named right, among some rows."""
    classes = [rows[labels_N[rows] == c] for c in range(len(LABELS))]
    return metrics.MeanOf([metrics.Mean(right_N[of], of) for of in classes if len(of)])


def share(right_N: np.ndarray, labels_N: np.ndarray, rows: np.ndarray):
    """The share of some rows that were named right."""
    del labels_N
    return metrics.Mean(right_N[rows], rows)


def _section(
    table: Table,
    by_finding: Mapping[str, Sequence[Pair]],
    predicted: Mapping[str, np.ndarray],
    options: Options,
) -> Section:
    rng = np.random.default_rng([options.seed, 16])
    grid = {}
    for finding, pairs in by_finding.items():
        labels = np.array([pair.label for pair in pairs])
        cells = []
        for c, name in enumerate(LABELS):
            at = int(rng.choice(np.flatnonzero(labels == c)))
            told = LABELS[predicted[finding][0, at]]
            before, now = (
                next(films.read(np.array([position])))[0, ..., 0]
                for films, position in (pairs[at].previous, pairs[at].current)
            )
            cells.append(plots_films.Change(before, now, name, told))
        grid[finding] = cells
    caption = (
        "The film before and the current film; beneath, what was labelled, and what "
        "the classifier said that did not see the patient."
    )
    return Section(
        f"Progression between two films: {table.name}",
        "One pair of films for each finding and label, drawn by chance and not picked. "
        "A linear classifier on the features of the two films says how the finding "
        "changed; the towers are as they were trained.",
        [Picture(plots_films.changes(grid), caption, True)],
    )
