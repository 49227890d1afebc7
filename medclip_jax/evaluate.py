"""Evaluation: checkpoint -> films and texts -> protocols -> report. Read downwards.

Everything is measured beside the same network before its first step, on the same
films, and every film goes through each network once.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from data_pipelines.records import Dataset
from medclip_jax import (
    __version__,
    cli,
    evaluate_networks,
    evaluate_options,
    fine_tune,
    storage,
)
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluate_data import (
    check_prompts,
    is_simulated,
    load_films,
    load_sentences,
    load_tables,
    same_as_training,
)
from medclip_jax.evaluation import (
    baselines,
    leaks,
    page,
    prompts,
    protocols,
    report,
    sections,
    suite,
    zero_shot_five,
)
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films
from medclip_jax.inputs import catalog
from medclip_jax.runtime import cluster

log = logging.getLogger(__name__)

BASELINE_FILMS_PER_CLASS = 400


def main(argv: list[str] | None = None) -> int:
    # --- Options ------------------------------------------------------------------
    args = evaluate_options.parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's lines on opening
    started = time.perf_counter()
    wanted = protocols.select(args.protocols)
    evaluate_options.check(args)
    cluster.refuse("evaluate", os.environ)

    # --- Checkpoint ---------------------------------------------------------------
    run = run_lib.open_run(args.workdir, args.step)
    ceiling = evaluate_networks.open_supervised(args.ceiling) if args.ceiling else None
    _say(f"checkpoint of step {run.step} from {args.workdir}, {jax.device_count()} "
         f"{jax.devices()[0].platform} device(s)")  # fmt: skip

    # --- Data, and whether training saw a prompt ----------------------------------
    datasets = catalog.open_datasets(args.data)
    overlap = check_prompts(datasets, run.config.data.train_split)
    if not args.allow_prompt_overlap:
        prompts.require_no_overlap(overlap)
    bench = make_bench(args, run, datasets)

    found = leaks_of(run, datasets, bench)
    for leak in found:
        _say(f"leak: {leaks.describe(leak)}")

    # --- Networks -----------------------------------------------------------------
    networks = evaluate_networks.make(
        run, args.batch_size, features_folder(args), args.imagenet, ceiling
    )

    # --- Protocols ----------------------------------------------------------------
    results = suite.run(bench, networks, wanted, _say)

    # --- Baselines ----------------------------------------------------------------
    add_pixels(results, bench, run)
    if ceiling is not None:
        add_ceiling(results, bench, networks["supervised"])

    # --- Report -------------------------------------------------------------------
    made = make_report(args, run, datasets, bench, results, overlap, found)
    path = report.write(made, page.render(made, protocols.abouts()), args.out)
    rows = [row for row in made.rows if "/" not in row.protocol]
    print(report.plain_table(rows))
    for name, why in made.skipped.items():
        print(f"not run: {name}: {why}")
    _say(f"evaluated in {time.perf_counter() - started:.0f} s")
    print(f"report: {path}")
    return 0


def make_bench(
    args: argparse.Namespace, run: run_lib.Run, datasets: Sequence[Dataset]
) -> Bench:
    """The data as the protocols see them."""
    split, config = args.split, run.config
    show_text = args.show_text or all(is_simulated(dataset) for dataset in datasets)
    sentences = reports = load_sentences(datasets, split, "sentence", config)
    if _reads_reports(run):
        reports = load_sentences(datasets, split, "report", config)
    return Bench(
        load_films(datasets, config.data.image_size, split),
        sentences,
        reports,
        load_tables(datasets, "phrases"),
        load_tables(datasets, "progression"),
        load_tables(datasets, "sentence_pairs"),
        Options(
            split=split,
            per_class=args.per_class,
            minimum=min(args.minimum, args.per_class),
            rule=args.rule,
            uncertain=args.uncertain,
            frontal=args.views == "frontal",
            by_view=args.by_view,
            prompts_per_class=args.prompts_per_class,
            draws=args.draws,
            max_films=args.max_films,
            seed=args.seed,
            seeds=args.seeds,
            show_text=show_text,
            tune_steps=args.tune_steps,
            tune_draws=args.tune_draws,
            queries=args.queries,
        ),
        evaluate_networks.abilities(run),
        fine_tune.Tuner(run),
    )


def leaks_of(
    run: run_lib.Run, datasets: Sequence[Dataset], bench: Bench
) -> list[leaks.Leak]:
    """What the run's training data share with what is judged."""
    trained, split = evaluate_networks.trained_on(run), bench.options.split
    splits = (run.config.data.train_split,)
    judged = {str(i) for films in bench.films for i in films.ids[films.where(split)]}
    return leaks.find_leaks(
        [leaks.of_training(d, splits) for d in datasets if d.name in trained],
        [leaks.of_evaluation(d, (split,), judged) for d in datasets],
    )


def features_folder(args: argparse.Namespace) -> Path | None:
    """Where features are kept: in the workdir, elsewhere, or nowhere."""
    if args.features == "none":
        return None
    return storage.path(args.features) if args.features else args.workdir / "features"


def add_pixels(results: suite.Results, bench: Bench, run: run_lib.Run) -> None:
    """Adds logistic regression on 16 x 16 pixels, fitted on training films."""
    judged = headline_sets(results, bench)
    if not judged:
        return
    pixels, classes, patients = [], [], []
    options = replace(
        bench.options,
        split=run.config.data.train_split,
        per_class=BASELINE_FILMS_PER_CLASS,
        minimum=1,
    )
    names = evaluate_networks.trained_on(run)
    try:
        for of in (films for films in bench.films if films.name in names):
            chosen = zero_shot_five.choose_films(of, options)
            pixels += [baselines.shrink(part) for part in of.read(chosen.indices)]
            classes.append(chosen.classes)
            patients += [f"{of.name} {p}" for p in of.patients[chosen.indices]]
    except UserError as error:
        results.skipped["pixels_logistic"] = f"training films: {error}"
        return
    if not pixels:
        results.skipped["pixels_logistic"] = (
            f"the run's training data ({', '.join(names)}) are not below --data"
        )
        return
    fitted = baselines.fit_pixels_logistic(
        np.concatenate(pixels), np.concatenate(classes), patients
    )
    _say(f"logistic regression on {fitted.films} training films, 16 x 16 pixels")
    for of in judged:
        chosen = zero_shot_five.choose_films(of, bench.options)
        predicted = fitted.predict(of.read(chosen.indices))
        _note(results, of, "pixels_logistic", predicted == chosen.classes)


def add_ceiling(results: suite.Results, bench: Bench, ceiling: Network) -> None:
    """Adds the accuracy of a supervised network on the same films."""
    for of in headline_sets(results, bench):
        chosen = zero_shot_five.choose_films(of, bench.options)
        logits = ceiling.class_logits(of, chosen.indices)
        right = baselines.five_of(logits) == chosen.classes
        _note(results, of, "supervised", right)


def headline_sets(results: suite.Results, bench: Bench) -> list[Films]:
    """Data sets that have the headline figure."""
    named = {row.dataset for row in results.rows if _is_headline(row)}
    return [films for films in bench.films if films.name in named]


def _is_headline(row: Row) -> bool:
    return (row.protocol, row.metric) == (zero_shot_five.NAME, "accuracy")


def _note(
    results: suite.Results,
    films: Films,
    column: Literal["pixels_logistic", "supervised"],
    right: np.ndarray,
) -> None:
    """Writes a baseline's accuracy beside the headline figure."""
    for place, row in enumerate(results.rows):
        if _is_headline(row) and row.dataset == films.name:
            value = float(right.mean())
            results.rows[place] = (
                replace(row, supervised=value)
                if column == "supervised"
                else replace(row, pixels_logistic=value)
            )


def make_report(
    args: argparse.Namespace,
    run: run_lib.Run,
    datasets: Sequence[Dataset],
    bench: Bench,
    results: suite.Results,
    overlap: Mapping[str, int],
    found: Sequence[leaks.Leak],
) -> report.Report:
    """Puts what was measured into words and pictures."""
    simulated = any(is_simulated(dataset) for dataset in datasets)
    same = same_as_training(evaluate_networks.trained_on(run), datasets)
    curves = sections.training(args.workdir / "metrics.jsonl")
    embedded = ", ".join(f"{name} {n:,}" for name, n in results.films.items())
    towers = [
        run.config.model[t].name for t in ("image", "text") if t in run.config.model
    ]
    return report.Report(
        title=f"Evaluation of {run.config.method} at step {run.step}",
        checkpoint=f"{args.workdir} step {run.step}",
        data=", ".join(f"{of.name} {args.split}" for of in bench.films),
        rows=results.rows,
        facts={
            "Method": run.config.method,
            "Encoders": ", ".join(towers),
            "Checkpoint": f"{args.workdir}, step {run.step} ({args.step})",
            "Films, each embedded once": embedded,
        },
        simulated=simulated,
        sections=[*results.sections, *([curves] if curves else [])],
        skipped=results.skipped,
        details={
            "Config": run.config.to_json_best_effort(indent=1),
            "Data and programs": _provenance(args, run, datasets, overlap),
            "Time": "\n".join(f"{t:8.1f} s  {of}" for of, t in results.seconds.items()),
        },
        limits=sections.limits(
            results.rows, simulated, overlap["sentences"], overlap["checked"], same
        )
        + [
            f"{d.name}: {d.notice}"
            for d in datasets
            if not is_simulated(d) and d.notice
        ],
        leaks=[leaks.describe(leak) for leak in found],
        extra={
            "leaks": [asdict(leak) for leak in found],
            "prompt_overlap": overlap["sentences"],
            "training_sentences_checked": overlap["checked"],
            "same_data_as_training": same,
            "fingerprints": {d.name: d.fingerprint for d in datasets},
            "version": __version__,
        },
    )


def _provenance(args, run, datasets, overlap) -> str:
    lines = [f"training data: {run.fingerprint}"]
    lines += [f"evaluated on:  {d.name} {d.fingerprint}. {d.notice}" for d in datasets]
    lines += [
        f"prompt overlap: {overlap['sentences']} of {overlap['checked']} sentences",
        f"medclip_jax {__version__}, jax {jax.__version__}",
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)",
        "options: " + ", ".join(f"{k}={v}" for k, v in sorted(vars(args).items())),
    ]
    return "\n".join(lines)


def _reads_reports(run: run_lib.Run) -> bool:
    return run.config.data.view == "pairs" and run.config.data.text == "report"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
