"""Are two sentences on a change alike when they say the same, and not otherwise?"""

from collections.abc import Sequence

import numpy as np

from medclip_jax.evaluation import metrics, plots_pairs
from medclip_jax.evaluation import sentence_pairs as pairs
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

NAME = "temporal_sentence_similarity"
ABOUT = About(
    "Temporal sentence similarity",
    "Cosine of two sentences that tell the same change (paraphrase) or another one "
    "(contradiction). auroc: paraphrases against contradictions; accuracy: above a "
    "threshold that is chosen on nine of ten folds for the tenth, over all pairs.",
    "Bannur et al. (BioViL-T, CVPR 2023), section 4.5; MS-CXR-T, "
    "physionet.org/content/ms-cxr-t",
    (
        "A threshold taken from the fold that it is judged on is too good.",
        "Accuracy of guessing contradiction is 0.61 on all 361 pairs of MS-CXR-T.",
        "Some report the mined pairs (RadGraph) alone.",
    ),
)
LABELS = ("paraphrase", "contradiction")
FOLDS = 10


def plan(bench: Bench) -> list[Job]:
    """One job a table with paraphrases and contradictions."""
    tables = [
        table
        for table in bench.sentence_pairs
        if any(row["label"] == LABELS[0] for row in table.rows)
    ]
    if not tables:
        bench.skip(NAME, "no data set has pairs of sentences labelled paraphrase")
    jobs = []
    for table in tables:
        name = f"{NAME} on {table.name}"
        rows = [
            row
            for row in sorted(table.rows, key=lambda row: row["pair_id"])
            if row["label"] in LABELS and row["split"] == bench.options.split
        ]
        counts = [sum(row["label"] == label for row in rows) for label in LABELS]
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
        elif min(counts) < FOLDS:
            bench.skip(
                name,
                f"{FOLDS} pairs of each label are needed in the split "
                f"{bench.options.split}, found {counts[0]} and {counts[1]}",
            )
        else:
            measure = _measure(table, rows, bench.options)
            jobs.append(Job(name, measure, (), table.fingerprint))
    return jobs


def _measure(table: Table, rows: Sequence[pairs.Row], options: Options):
    def measure(networks: Networks) -> Outcome:
        positive = np.array([row["label"] == LABELS[0] for row in rows])
        groups = pairs.couples(rows)
        scores = each(networks, lambda n: pairs.cosines(n, rows), text=True)
        right = {
            name: pairs.out_of_fold(of, positive, groups, options.seed, FOLDS)
            == positive
            for name, of in scores.items()
        }
        subsets = np.array([row["subset"] for row in rows])
        parts = {"": np.ones(len(rows), bool)}
        parts |= {f"/{name}": subsets == name for name in np.unique(subsets) if name}
        made: list[Row] = []
        for suffix, of in parts.items():
            where = np.flatnonzero(of)
            share = float(positive[where].mean())
            note = f"{positive[where].sum()} paraphrases of {len(where)} pairs"
            for metric, statistics, chance in (
                (
                    "auroc",
                    {n: metrics.Auroc(positive[of], s[of]) for n, s in scores.items()},
                    0.5,
                ),
                (
                    "accuracy",
                    {n: metrics.Mean(r[of].astype(float)) for n, r in right.items()},
                    max(share, 1 - share),
                ),
            ):
                if metric == "auroc" and not 0 < share < 1:
                    continue
                made.append(
                    measured(
                        NAME + suffix,
                        table.name,
                        metric,
                        statistics,
                        groups[where],
                        chance,
                        units=[rows[int(i)]["pair_id"] for i in where],
                        seed=options.seed,
                        note=note,
                    )
                )
        classes = (~positive).astype(int)
        shown = {
            name: scores[name] for name in ("untrained", "trained") if name in scores
        }
        section = Section(
            f"Temporal sentence similarity: {table.name}",
            "Each pair tells one finding. The two sentences of a paraphrase tell the "
            "same change in other words; those of a contradiction mostly differ in one "
            "word. A network that reads the change holds the two apart.",
            [
                Picture(
                    plots_pairs.similarities(shown, classes, LABELS),
                    "How similar the sentences of a pair are; dotted: the median.",
                    True,
                )
            ],
        )
        return Outcome(made, [section])

    return measure
