"""Evaluation: checkpoint -> films and texts -> protocols -> report. Read downwards.

Everything is measured twice, on the checkpoint and on the same network before its
first step, over the same films.
"""

import argparse
import functools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from data_pipelines.records import Dataset
from medclip_jax import __version__, cli, evaluate_options
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluate_data import (
    check_prompts,
    is_simulated,
    is_training_data,
    load_films,
    load_sentences,
)
from medclip_jax.evaluation import baselines, five_class, prompts, report, sections
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.rows import Row, select_protocols
from medclip_jax.evaluation.sets import Films, Networks, Options, Result, Sentences
from medclip_jax.evaluation.suite import measure
from medclip_jax.inputs import augment, catalog
from medclip_jax.methods.interface import ClassifiesFilms

log = logging.getLogger(__name__)

BASELINE_FILMS_PER_CLASS = 400


def main(argv: list[str] | None = None) -> int:
    # --- Options ------------------------------------------------------------------
    args = evaluate_options.parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's lines on opening
    started = time.perf_counter()
    protocols = select_protocols(args.protocols)
    evaluate_options.check(args)

    # --- Checkpoint ---------------------------------------------------------------
    run = run_lib.open_run(args.workdir, args.step)
    if not hasattr(run.method, "embed_texts"):
        raise UserError(
            f"{args.workdir} holds a run of method {run.config.method!r}, which reads "
            "no text; these protocols need a method with a text tower. A supervised "
            "run is the ceiling of another one: --ceiling"
        )
    ceiling = open_ceiling(args.ceiling) if args.ceiling else None
    _say(f"checkpoint of step {run.step} from {args.workdir}, {jax.device_count()} "
         f"{jax.devices()[0].platform} device(s)")  # fmt: skip

    # --- Films, sentences, and whether training saw a prompt ----------------------
    datasets = catalog.open_datasets(args.data)
    films = load_films(datasets, args.split, run.config.data.image_size)
    texts = load_sentences(datasets, args.split, "sentence", run.config)
    kind = "report" if _reads_reports(run) else "sentence"
    pair_texts = (
        load_sentences(datasets, args.split, kind, run.config)
        if "retrieval_exact" in protocols
        else {}
    )
    overlap = check_prompts(datasets, run.config.data.train_split)
    if not args.allow_prompt_overlap:
        prompts.require_no_overlap(overlap)

    # --- Networks -----------------------------------------------------------------
    networks = Networks(
        Embedder(
            run.method,
            _normalizer(run.config),
            run.tokenizer,
            run.config.data.text_length,
            args.batch_size,
            progress=True,
        ),
        run.variables,
        run_lib.untrained(run),
    )

    # --- Protocols ----------------------------------------------------------------
    options = Options(
        protocols=protocols,
        per_class=args.per_class,
        minimum=min(args.minimum, args.per_class),
        rule=args.rule,
        uncertain=args.uncertain,
        frontal=args.views == "frontal",
        by_view=args.by_view,
        prompts_per_class=args.prompts_per_class,
        draws=args.draws,
        pooling=getattr(run.method, "prompt_pooling", "mean"),
        not_given=run.config.data.not_given,
        max_films=args.max_films,
        seed=args.seed,
    )
    results = [
        measure(of, texts.get(of.name), pair_texts.get(of.name), networks, options)
        for of in films
    ]
    _require_rows(results)

    # --- Baselines ----------------------------------------------------------------
    with_five = {r.name: r for r in results if r.five is not None}
    if with_five:
        add_pixels(with_five, films, datasets, run.config, options)
    if with_five and ceiling is not None:
        add_ceiling(with_five, datasets, ceiling, args)

    # --- Report -------------------------------------------------------------------
    page = make_report(args, run, datasets, films, texts, results, overlap)
    path = report.write(page, args.out)
    rows = [row for row in page.rows if "/" not in row.protocol]
    print(report.plain_table(rows))
    for name, why in page.skipped.items():
        print(f"not run: {name}: {why}")
    _say(f"evaluated in {time.perf_counter() - started:.0f} s")
    print(f"report: {path}")
    return 0


def add_pixels(
    results: Mapping[str, Result],
    films: Sequence[Films],
    datasets: Sequence[Dataset],
    config,
    options: Options,
) -> None:
    """Adds logistic regression on 16 x 16 pixels, fitted on training films."""
    try:
        training = load_films(datasets, config.data.train_split, config.data.image_size)
        pixels, classes, patients = [], [], []
        for of in training:
            labels = five_class.class_of(
                of.labels_Nx14, options.rule, options.uncertain
            )
            usable = five_class.frontal(of.views) | (not options.frontal)
            chosen = five_class.choose(
                np.where(usable, labels, -1),
                of.ids,
                per_class=BASELINE_FILMS_PER_CLASS,
                seed=options.seed,
            )
            pixels += [baselines.shrink(part) for part in of.read(chosen.indices)]
            classes.append(chosen.classes)
            patients += [f"{of.name} {p}" for p in of.patients[chosen.indices]]
    except UserError as error:
        for result in results.values():
            result.skipped["pixels_logistic"] = f"training films: {error}"
        return
    fitted = baselines.fit_pixels_logistic(
        np.concatenate(pixels), np.concatenate(classes), patients
    )
    _say(f"logistic regression on {fitted.films} training films, 16 x 16 pixels")
    for of in films:
        judged = results[of.name].chosen if of.name in results else None
        if judged is not None:
            predicted = fitted.predict(of.read(judged.indices))
            _note(results[of.name], "pixels_logistic", predicted == judged.classes)


def open_ceiling(workdir: Path) -> run_lib.Run:
    """Opens a supervised run.

    Raises:
      UserError: there is none, or its method classifies nothing.
    """
    run = run_lib.open_run(workdir)
    if not isinstance(run.method, ClassifiesFilms):
        raise UserError(
            f"--ceiling {workdir} holds a run of method {run.config.method!r}; "
            "expected one that classifies films, such as supervised"
        )
    return run


def add_ceiling(
    results: Mapping[str, Result],
    datasets: Sequence[Dataset],
    run: run_lib.Run,
    args: argparse.Namespace,
) -> None:
    """Adds the accuracy of a supervised run on the same films."""
    embedder = Embedder(
        run.method,
        _normalizer(run.config),
        run.tokenizer,
        run.config.data.text_length,
        args.batch_size,
        progress=True,
    )
    for of in load_films(datasets, args.split, run.config.data.image_size):
        chosen = results[of.name].chosen if of.name in results else None
        if chosen is not None:
            logits = embedder.class_logits(
                run.variables, of.read(chosen.indices), f"{of.name}: films, supervised"
            )
            right = baselines.five_of(logits) == chosen.classes
            _note(results[of.name], "supervised", right)


def _note(
    result: Result,
    column: Literal["pixels_logistic", "supervised"],
    right: np.ndarray,
) -> None:
    """Writes a baseline's accuracy beside the headline figure."""
    for place, row in enumerate(result.rows):
        if (row.protocol, row.metric) == ("zero_shot_five", "accuracy"):
            value = float(right.mean())
            result.rows[place] = (
                replace(row, supervised=value)
                if column == "supervised"
                else replace(row, pixels_logistic=value)
            )


def make_report(
    args: argparse.Namespace,
    run: run_lib.Run,
    datasets: Sequence[Dataset],
    films: Sequence[Films],
    texts: Mapping[str, Sentences],
    results: Sequence[Result],
    overlap: Mapping[str, int],
) -> report.Report:
    """Puts what was measured into words and pictures."""
    _say("drawing the pictures")
    simulated = any(is_simulated(dataset) for dataset in datasets)
    show_text = args.show_text or all(is_simulated(dataset) for dataset in datasets)
    same = is_training_data(args.workdir, datasets)
    rows: list[Row] = [row for result in results for row in result.rows]
    parts = []
    for result, of in zip(results, films):
        parts += sections.of_result(
            result, of, texts.get(of.name), show_text, args.seed
        )
    curves = sections.training(args.workdir / "metrics.jsonl")
    skipped = {
        name
        if len(results) < 2 or result.name in name
        else f"{name} ({result.name})": why
        for result in results
        for name, why in result.skipped.items()
    }
    names = {of.name for of in films}
    absent = [dataset.name for dataset in datasets if dataset.name not in names]
    for name in absent:
        skipped[f"data set {name}"] = f"no films in the split {args.split}"
    return report.Report(
        title=f"Evaluation of {run.config.method} at step {run.step}",
        checkpoint=f"{args.workdir} step {run.step}",
        data=", ".join(f"{of.name} {args.split}" for of in films),
        rows=rows,
        facts={
            "Method": run.config.method,
            "Encoders": f"{run.config.model.image.name}, {run.config.model.text.name}",
            "Checkpoint": f"{args.workdir}, step {run.step} ({args.step})",
            "Data": "; ".join(
                f"{r.name}, {args.split} split, {r.films} films of {r.patients} patients"
                for r in results
            ),
        },
        simulated=simulated,
        sections=[*parts, *([curves] if curves else [])],
        skipped=skipped,
        details={
            "Config": run.config.to_json_best_effort(indent=1),
            "Data and programs": _provenance(args, run, datasets, overlap),
        },
        limits=sections.limits(
            rows, simulated, overlap["sentences"], overlap["checked"], same
        )
        + [
            f"{d.name}: {d.notice}"
            for d in datasets
            if not is_simulated(d) and d.notice
        ],
        extra={
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


def _require_rows(results: Sequence[Result]) -> None:
    if not any(result.rows for result in results):
        why = "\n".join(
            f"  {result.name}: {name}: {reason}"
            for result in results
            for name, reason in result.skipped.items()
        )
        raise UserError(f"no protocol could be run on these data:\n{why}")


def _reads_reports(run: run_lib.Run) -> bool:
    return run.config.data.view == "pairs" and run.config.data.text == "report"


def _normalizer(config):
    return functools.partial(
        augment.normalize, mean=config.data.mean, std=config.data.std
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
