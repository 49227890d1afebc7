"""Linear probe: logistic regression on frozen features, at 1, 10 and 100 % of labels.

The features are the image trunk's, before any projection. Every share of the labels,
every draw of it and every strength of the penalty is one problem of one compiled
program. The strength is chosen on validation films; the films judged choose nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.findings import NEGATIVE, POSITIVE
from medclip_jax.evaluation import plots_tasks, probe_solver, tasks
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
    each,
)
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.tasks import Question

NAME = "linear_probe"
ABOUT = About(
    "Linear probe",
    "Logistic regression on the frozen trunk's standardised features, fitted on 1, 10 "
    "and 100 % of the training patients: mean over draws of them, ± their deviation. "
    "AUROC (mean over labels) or, of several classes, accuracy. Probabilities of the "
    "films of a study are averaged where the study is judged.",
    "Zhang et al. (ConVIRT, MLHC 2022), section 4.1, appendix B and table 1",
    (
        "A strength, or a step to stop at, chosen on the test films.",
        "Features after the projection, or with batch statistics still moving.",
        "A share of the films instead of the patients: films of one patient are alike.",
        (
            "ConVIRT trains the head by Adam with dropout; here the penalty is exact, and "
            "its strength is chosen among six."
        ),
    ),
)
STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Of strength / 2 x |kernel|^2 beside the mean loss; of equals the first is taken."""


def plan(bench: Bench) -> list[Job]:
    """One job a question whose training split has both answers."""
    jobs = []
    for question in tasks.questions(bench, "binary", "multiclass", "multilabel"):
        name = f"{NAME} on {question.told}"
        parts, why = find_parts(question, bench.options)
        if parts is None:
            bench.skip(name, why)
            continue
        needs = [
            Need(question.films, part.positions)
            for part in (parts.train, parts.validate, parts.test)
        ]
        jobs.append(Job(name, _measure(question, parts, bench.options), needs))
    return jobs


def fit(
    features: Mapping[str, np.ndarray],
    question: Question,
    parts: Parts,
    seeds: int,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> Fitted:
    """Fits all problems of one network and lets validation choose the strengths.

    Args:
      features: "train", "validate" and "test" to float [K, F], of the parts' films.
      question: what is asked.
      parts: its units.
      seeds: draws of each share below 1.
      seed: of the first.
      fractions: shares of the training patients.
    """
    exclusive = question.task.kind == "multiclass"
    train_codes = parts.train.film_codes[:, parts.labels]
    names = parts.train.patients[parts.train.owner]
    draws = [
        (share, subset(train_codes, names, share, seed + draw, exclusive))
        for share in fractions
        for draw in range(seeds if share < 1 else 1)
    ]
    weights = np.stack([films for _, films in draws])
    mean = features["train"].mean(axis=0, dtype=np.float64)
    deviation = features["train"].std(axis=0, dtype=np.float64)
    standard = {
        part: ((of - mean) / np.where(deviation > 1e-6, deviation, 1)).astype(
            np.float32
        )
        for part, of in features.items()
    }
    counts = np.isin(train_codes, (POSITIVE, NEGATIVE))
    if exclusive:  # a film of a class that is not measured counts nowhere
        has_one = (train_codes == POSITIVE).any(axis=1, keepdims=True)
        counts = np.broadcast_to(has_one, counts.shape)
    heads = probe_solver.solve(
        standard["train"],
        train_codes == POSITIVE,
        counts,
        np.repeat(weights, len(STRENGTHS), axis=0),
        np.tile(STRENGTHS, len(draws)),
        exclusive=exclusive,
    )
    chances: dict[float, list[np.ndarray]] = {share: [] for share in fractions}
    chosen: dict[float, list[float]] = {share: [] for share in fractions}
    for number, (share, _) in enumerate(draws):
        best = -1, -np.inf
        for place in range(len(STRENGTHS)):
            row = number * len(STRENGTHS) + place
            told = probabilities(heads, row, standard["validate"], exclusive)
            score = figure(question, parts.labels, parts.validate, told)
            best = max(best, (row, score), key=lambda pair: pair[1])
        told = probabilities(heads, best[0], standard["test"], exclusive)
        chances[share].append(parts.test.pool(told))
        chosen[share].append(STRENGTHS[best[0] % len(STRENGTHS)])
    used: dict[float, list[int]] = {share: [] for share in fractions}
    for share, films in draws:
        used[share].append(len(np.unique(names[films])))
    return Fitted(
        {share: np.stack(of) for share, of in chances.items()},
        chosen,
        {share: float(np.mean(of)) for share, of in used.items()},
    )


def probabilities(
    heads: probe_solver.Heads, row: int, features_NxF: np.ndarray, exclusive: bool
) -> np.ndarray:
    """float [N, C] of one problem's head."""
    logits = features_NxF @ heads.kernels_BxFxC[row] + heads.biases_BxC[row]
    logits = logits.astype(np.float64)
    if not exclusive:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _measure(question: Question, parts: Parts, options: Options):
    def measure(networks: Networks) -> Outcome:
        def fitted(network: Network) -> Fitted:
            features = {
                name: network.trunk(question.films, part.positions)
                for name, part in (
                    ("train", parts.train),
                    ("validate", parts.validate),
                    ("test", parts.test),
                )
            }
            return fit(features, question, parts, options.seeds, options.seed)

        of = each(networks, fitted, text=False)
        rows, points = probe_rows(NAME, question, parts, of, options.seed)
        return Outcome(rows, [section(question, parts, points)])

    return measure


def section(question: Question, parts: Parts, points: Sequence[Point]) -> Section:
    """The picture of the figure against the share of the labels."""
    what = "accuracy" if question.task.kind == "multiclass" else "AUROC"
    text = (
        f"{question.task.about or question.name}. A linear head on the frozen image "
        f"trunk, fitted on a share of {len(np.unique(parts.train.patients))} training "
        f"patients and judged on {len(parts.test)} {question.task.unit}s."
    )
    picture = Picture(
        plots_tasks.fractions({question.told: points}, what),
        f"{what} against the share of the training patients whose labels were used, "
        "with the 95 % interval over the patients judged.",
    )
    return Section(f"Linear probe: {question.told}", text, [picture])
