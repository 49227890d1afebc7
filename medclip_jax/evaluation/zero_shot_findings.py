"""Zero-shot classification of the 14 findings: one binary question a finding.

A finding's score is the mean logit of its prompts less that of the other findings';
ranking films by it gives an AUROC without any threshold. What an uncertain label and
an absent one count as is told in the row.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.findings import FINDINGS
from medclip_jax.evaluation import five_class, metrics, plots, prompts, zero_shot
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
from medclip_jax.evaluation.sets import Films

NAME = "zero_shot_findings"
ABOUT = About(
    "Zero-shot classification of 14 findings",
    "AUROC of each finding over the films of the split; a film's score is the mean "
    "logit of the finding's prompts less that of the other findings' prompts. Films "
    "whose label is uncertain are left out of that finding.",
    "Tiu et al. (CheXzero, Nat. Biomed. Eng. 2022) for the multi-label question; "
    "prompts of Wang et al. (MedCLIP, EMNLP 2022) where it has them",
    (
        "A film's logits share an offset: without a contrast it decides the ranking.",
        "Labels that nobody gave count as negative in CheXpert; as unknown elsewhere.",
        "Official CheXpert figures are per study: its films are averaged first.",
    ),
)
MINIMUM_OF_EACH = 5
"""Fewer positive or negative films than this give no AUROC worth printing."""


def plan(bench: Bench) -> list[Job]:
    """One job a data set with labels of the 14 findings."""
    jobs = []
    for films in bench.films:
        if films.tasks:  # the source asks its own questions
            continue
        name = f"{NAME} on {films.name}"
        used = sample_films(films, bench)
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
        elif not len(used):
            bench.skip(name, f"it has no films in the split {bench.options.split}")
        elif not (films.labels_Nx14[used] >= 0).any():
            bench.skip(name, "none of its films has a label of the 14 findings")
        else:
            jobs.append(Job(name, _measure(films, used, bench), [Need(films, used)]))
    return jobs


def sample_films(films: Films, bench: Bench) -> np.ndarray:
    """Positions of at most `max_films` films of the split, drawn by id; ascending.

    Only frontal ones where that is asked for, unless the set has none: captions of
    figures, films of limbs.
    """
    options = bench.options
    usable = films.where(options.split)
    frontal = usable[five_class.frontal(films.views[usable])]
    if options.frontal and len(frontal):
        usable = frontal
    by_id = usable[np.argsort(films.ids[usable], kind="stable")]
    rng = np.random.default_rng([options.seed, 14])
    return np.sort(rng.permutation(by_id)[: options.max_films])


def _measure(films: Films, used: np.ndarray, bench: Bench):
    def measure(networks: Networks) -> Outcome:
        fourteen = prompts.fourteen_prompts()
        texts = [text for of in fourteen.values() for text in of]
        logits = each(networks, lambda n: n.logits(films, used, texts), text=True)
        views = films.views[used]
        groups = {films.name: np.ones(len(used), bool)}
        if bench.options.by_view:
            groups |= {f"{films.name} {v}": views == v for v in np.unique(views)}
        outcome = Outcome()
        for name, rows in groups.items():
            made, left_out = findings_rows(
                {network: of[rows] for network, of in logits.items()},
                fourteen,
                films.labels_Nx14[used[rows]],
                films.patients[used[rows]],
                name,
                units=films.ids[used[rows]],
                not_given=bench.abilities.not_given,
                seed=bench.options.seed,
            )
            outcome.rows += made
            if left_out:
                counts = "; ".join(f"{of} {why}" for of, why in left_out.items())
                outcome.skipped[f"some of {NAME} on {name}"] = (
                    f"at least {MINIMUM_OF_EACH} films of each kind are needed, "
                    f"found {counts}"
                )
        outcome.sections += _section(films, outcome.rows)
        return outcome

    return measure


def findings_rows(
    logits: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[str]],
    labels_Nx14: np.ndarray,
    patients: metrics.Strings,
    dataset: str,
    *,
    units: metrics.Strings | None = None,
    not_given: str = "zero",
    minimum: int = MINIMUM_OF_EACH,
    seed: int = 0,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of one group of films.

    Args:
      logits: network to float [N, P], the prompts of the 14 findings laid end to end.
      texts: finding to prompts, in the order of FINDINGS.
      labels_Nx14: int codes.
      patients: N patient ids.
      dataset: name for the rows.
      units: N film ids.
      not_given: as in `zero_shot.binary_target`.
      minimum: films of either kind that a finding needs.
      seed: seed of the bootstrap.

    Returns:
      (the mean AUROC over findings first, then AUROC and average precision of each;
      finding to the reason why it was left out).
    """
    columns = [zero_shot.columns_of(texts)[name] for name in FINDINGS]
    scores = {
        network: zero_shot.against_rest(zero_shot.class_scores(of, columns))
        for network, of in logits.items()
    }
    owners = np.asarray(patients)
    names = owners if units is None else np.asarray(units)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    areas: dict[str, list[metrics.Statistic]] = {network: [] for network in scores}
    for column, finding in enumerate(FINDINGS):
        kept, positive = zero_shot.binary_target(labels_Nx14[:, column], not_given)
        count = int(positive.sum()), int((kept & ~positive).sum())
        if min(count) < minimum:
            left_out[finding] = f"{count[0]} positive and {count[1]} negative"
            continue
        where = np.flatnonzero(kept)
        for metric, kind, chance in (
            ("auroc", metrics.Auroc, 0.5),
            ("average_precision", metrics.AveragePrecision, count[0] / len(where)),
        ):
            rows.append(
                measured(
                    f"{NAME}/{finding}",
                    dataset,
                    metric,
                    {
                        n: kind(positive[kept], s[kept, column])
                        for n, s in scores.items()
                    },
                    owners[kept],
                    chance,
                    units=names[kept],
                    seed=seed,
                    note=f"{count[0]} positive",
                )
            )
        for network, of in scores.items():
            part = metrics.Auroc(positive[kept], of[kept, column], where)
            areas[network].append(part)
    if rows:
        mean = measured(
            NAME,
            dataset,
            "auroc",
            {network: metrics.MeanOf(parts) for network, parts in areas.items()},
            owners,
            0.5,
            units=names,
            seed=seed,
            note=f"mean of {len(areas['trained'])} findings",
        )
        rows.insert(0, mean)
    return rows, left_out


def _section(films: Films, rows: Sequence[Row]) -> list[Section]:
    dots = [
        row
        for row in rows
        if "/" in row.protocol and row.metric == "auroc" and row.dataset == films.name
    ]
    if not dots:
        return []
    caption = "AUROC of each of the findings over the films of the split."
    return [
        Section(
            f"Findings, one by one: {films.name}",
            "Whether a finding is there, asked of every film of the split in words.",
            [Picture(plots.finding_dots(dots), caption)],
        )
    ]
