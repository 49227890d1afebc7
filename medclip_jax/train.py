"""Pretraining: config -> mesh -> data -> state -> loop -> checkpoints. Read downwards.

The state of a run is its step: step S always sees the same batch, draws the same
random numbers and, on the same devices, computes the same bits. A restart goes on
from the newest complete checkpoint; what it logs again, it logs equal.
"""

import collections
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.records import Dataset
from medclip_jax import cli, config_flags, initial_weights, storage, train_options
from medclip_jax import run as run_lib
from medclip_jax.assemble import assemble
from medclip_jax.errors import UserError
from medclip_jax.evaluation import in_training
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.inputs import augment as augment_lib
from medclip_jax.inputs import catalog, evalset, stage
from medclip_jax.inputs.reader import TrainInput, make_tokenizer
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.methods.interface import Method, Variables
from medclip_jax.runtime import checksum, hosts, throughput
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import sharding as sharding_lib
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.compile_cache import CompileCache
from medclip_jax.runtime.metrics import Clock, Progress, Writer, check_finite, logged_at
from medclip_jax.runtime.preemption import Preempted, Preemption
from medclip_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

# Steps that may be under way on the device before the host waits for one: enough to
# keep it busy, few enough to notice a NaN before a checkpoint is made of it.
IN_FLIGHT = 2


@hosts.end_when_lost()
def main(argv: list[str] | None = None) -> int:
    # --- Config -------------------------------------------------------------------
    args, config = train_options.parse(argv)
    if args.show_config:
        print("\n".join(f"{k} = {v!r}" for k, v in config_flags.flatten(config)))
        return 0
    train_options.set_up_logging()
    train_options.check(args, config)
    joined = train_options.join(args, config)
    meetings = hosts.Meetings(config.hosts.meet_seconds)
    is_main = jax.process_index() == 0
    workdir = args.workdir
    wanted = config_flags.to_json(config)
    workdir_lib.check_config(workdir, wanted, config_flags.differences)
    compiled = CompileCache(workdir, is_main)

    # --- Mesh ---------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh.to_dict())
    steps, batch_size = config.train.steps, config.train.batch_size
    mesh_lib.check_batch_size(batch_size, mesh.shape)
    progress = Progress(steps, active=is_main)
    layout = mesh_lib.describe(mesh)
    progress.line(layout + joined)

    # --- Data and tokenizer -------------------------------------------------------
    datasets = catalog.training_datasets(args.data, config.data.datasets)
    process = (jax.process_index(), jax.process_count())
    if args.stage is not None:
        datasets = stage.reports(datasets, args.stage, process)
    tokenizer = _tokenizer(config, workdir, datasets, is_main, meetings)
    run_lib.set_vocab_size(config, tokenizer)
    inputs = TrainInput(
        datasets,
        config.data,
        tokenizer,
        config.seed,
        batch_size,
        *mesh_lib.batch_parts(mesh),
    )
    data = {
        "fingerprint": inputs.fingerprint,
        "datasets": {dataset.name: dataset.fingerprint for dataset in datasets},
        "notices": {dataset.name: dataset.notice for dataset in datasets},
    }
    workdir_lib.check_data(workdir, data)
    hosts.check_same({"config": wanted, "data": data})
    progress.line(inputs.describe())

    # --- Method, state and step -----------------------------------------------------
    made = assemble(config, mesh)
    progress.line(
        sharding_lib.summary(made.target.variables, made.shardings.variables, mesh)
        + (f"; {len(made.whole)} dimensions do not divide and stay whole"
           if made.whole else "")
    )  # fmt: skip
    for dimension in made.whole:
        log.info("stays whole: %s", dimension)

    # --- Resume: own latest > init_from > pretrained > random ------------------------
    checkpoints = Checkpoints(
        workdir / run_lib.CHECKPOINTS,
        config.checkpoint.best_metric,
        config.checkpoint.keep_latest,
        config.checkpoint.keep_best,
        seconds=config.hosts.meet_seconds,
    )
    meta = {"layout": layout}
    pending: dict[str, float] | None = None
    if (latest := checkpoints.latest_step()) is not None:
        meetings.meet(f"restoring step {latest}")
        state, saved = checkpoints.restore(latest, made.target)
        pending = saved["pending"]
        data = {**workdir_lib.read_json(workdir / workdir_lib.DATA), **data}
        progress.line(f"going on after step {latest}")
        if (before := saved.get("layout", layout)) != layout:
            progress.line(
                f"saved on {before}; goes on on {layout}: the same batches and random "
                "numbers, and losses equal up to the order of sums"
            )
    else:
        state = made.create(config)
        variables, lines = initial_weights.load(config, made.method, state.variables)
        state = dataclasses.replace(state, variables=variables)
        for line in lines:
            progress.line(line)
        data[initial_weights.STARTED_FROM] = initial_weights.origin(config)
    if is_main:  # now that nothing the config names can be missing
        workdir_lib.write_json(
            workdir / workdir_lib.CONFIG, config_flags.to_json(config)
        )
        workdir_lib.write_json(workdir / workdir_lib.DATA, data)

    # --- Films of this host, on its own disk ------------------------------------------
    if args.stage is not None:
        wanted_I = inputs.films_of(int(state.step), steps)
        rows = stage.rows_of(inputs.catalog, wanted_I, len(datasets))
        staged = stage.films(datasets, rows, args.stage, process, progress.line)
        inputs.read_from(staged)

    # --- Evaluators and writers -------------------------------------------------------
    peak = throughput.peak(list(mesh.devices.flatten()))
    progress.line(f"MFU is a share of {peak.source}")
    flops = 3 * made.method.forward_flops(run_lib.spec(config)) * batch_size
    clock = Clock(batch_size, steps, flops, peak.flops)
    writer = Writer(workdir, active=is_main)

    # --- Loop -------------------------------------------------------------------------
    step = first = int(state.step)
    in_flight: collections.deque[tuple[int, dict]] = collections.deque()
    logged = logged_at(workdir, step)
    values: dict[str, float] = logged or {}
    stop = False
    with (
        writer,
        checkpoints,
        Preemption() as preemption,
        Watchdog(config.train.watchdog_seconds) as watchdog,
    ):
        evaluate = _evaluator(
            config, made.method, tokenizer, datasets, mesh, preemption
        )
        meetings.meet(f"going on after step {step}")
        if pending is not None:
            # The run was stopped inside the evaluation of the step it was saved at. If a
            # start since then made up for that, the step is in the log.
            try:
                if logged is None:
                    measured = evaluate(state.variables) if evaluate is not None else {}
                    values = {**pending, **measured}
                    writer.write(step, values, {})
                    writer.flush()
            except Preempted:
                stop = True
            else:
                if is_main:
                    checkpoints.add_metrics(step, values)
                meetings.meet(f"ranking step {step}")
                checkpoints.reload()
                pending = None
        if step < steps:
            progress.line("compiling the train step ...")
        batches = _placed(inputs.prefetch(step, steps), step, mesh)
        watchdog.beat("waiting for the first batch")
        while step < steps and not stop:
            waited = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waited
            if step == first:
                meetings.meet("the first step")  # the watchdog looks after the others
                watchdog.pause()  # to compile may take longer than any step
            state, metrics = made.step(state, batch)
            if step == first:
                watchdog.beat("the first step")
            step += 1
            clock.count(waited)
            in_flight.append((step, metrics))
            while len(in_flight) > IN_FLIGHT:
                values = _fetch(*in_flight.popleft(), inputs)
                watchdog.beat(f"training after step {step}")
            stop = preemption.agreed_at(step)
            due = due_after(step, config, evaluate is not None)
            if not (stop or any(due)):
                continue
            while in_flight:
                values = _fetch(*in_flight.popleft(), inputs)
            checkpoints.raise_failed()
            if step == first + 1:
                clock.restart()  # the first step compiled
            times = clock.lap(step)
            pending = None
            if due.evaluate:
                assert evaluate is not None
                watchdog.beat(f"evaluating step {step}")
                started = time.perf_counter()
                meetings.meet(f"evaluating step {step}")
                try:
                    preemption.check()
                    values = {**values, **evaluate(state.variables)}
                except Preempted:
                    pending, stop = values, True
                times["evaluation_seconds"] = time.perf_counter() - started
            if due.log and pending is None:
                times["save_seconds"] = checkpoints.blocked_seconds()
                writer.write(step, values, times)
                progress.update(step, values, times)
            if due.save or stop:
                watchdog.beat(f"saving step {step}")
                writer.flush()
                meetings.meet(f"saving step {step}")
                try:
                    checkpoints.save(step, state, {**meta, "pending": pending}, values)
                except checksum.NonFinite as error:
                    found = dict.fromkeys(error.names, math.nan)
                    check_finite(step, found, inputs.ids_of(step))
            compiled.note_whole()
            watchdog.beat(f"training after step {step}")
            clock.restart()
        watchdog.beat("ending the last save")
        checkpoints.wait()
        meetings.meet("the end")

    # --- Summary ----------------------------------------------------------------------
    if step < steps or pending is not None:
        progress.line(
            f"{preemption.signal_name}: saved step {step} of {steps}; the same command "
            "goes on from there"
        )
    else:
        progress.line(_summary(workdir, checkpoints, step, values))
    return 0


def _evaluator(
    config: ConfigDict,
    method: Method,
    tokenizer: Tokenizer,
    datasets: list[Dataset],
    mesh: Mesh,
    preemption: Preemption,
) -> Callable[[Variables], dict[str, float]] | None:
    """What is measured while training; None where the method or config has nothing.

    Raises:
      UserError: the best metric cannot be measured on this data.
    """
    reads_both = hasattr(method, "embed_texts") and hasattr(method, "embed_images")
    if config.train.eval_every_steps < 1 or not reads_both:
        return None
    try:
        films = evalset.load_images(datasets, "validate", config.data.image_size)
        chosen = in_training.choose_films(
            films.labels_Nx14, films.views, films.ids, config.train.eval_examples
        )
    except UserError as error:
        if config.checkpoint.best_metric.startswith("zero_shot"):
            reason = str(error).removesuffix(".")
            raise UserError(
                f"checkpoint.best_metric={config.checkpoint.best_metric} cannot be "
                f"measured on the validation films: {reason}. Use other data, or "
                "--config.checkpoint.best_metric=loss."
            ) from error
        log.warning("no zero-shot figures while training: %s", error)
        return None
    embedder = Embedder(
        method,
        lambda films: augment_lib.normalize(films, config.data.mean, config.data.std),
        tokenizer,
        config.data.text_length,
        between=preemption.check,  # an evaluation may outlast the grace time
    )
    size = config.data.image_size
    pixels = np.zeros((len(chosen.indices), size, size, 1), np.uint8)
    here = np.flatnonzero(embedder.placed_here(len(pixels), mesh))
    pixels[here], _ = films.read(chosen.indices[here])
    return in_training.ZeroShotInTraining(embedder, pixels, chosen.classes)


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    evaluate: bool
    save: bool


def due_after(step: int, config: ConfigDict, can_evaluate: bool) -> Due:
    """What the config asks for after a step; the last step gets everything.

    An evaluated step is saved, so that the best one is there to be used.
    """
    last = step == config.train.steps

    def every(n: int) -> bool:
        return n > 0 and step % n == 0

    evaluate = can_evaluate and (every(config.train.eval_every_steps) or last)
    log = step == 1 or every(config.train.log_every_steps)
    save = every(config.checkpoint.every_steps)
    return Due(log or evaluate or last, evaluate, save or evaluate or last)


def _tokenizer(
    config: ConfigDict,
    workdir: Path,
    datasets: list[Dataset],
    is_main: bool,
    meetings: hosts.Meetings,
) -> Tokenizer:
    """The run's tokenizer: saved by an earlier start, named, or trained."""
    folder = workdir / run_lib.TOKENIZER
    # Without a config beside it, it is of a start that failed, perhaps with others.
    is_own = folder.exists() and (workdir / workdir_lib.CONFIG).exists()
    if is_main and not is_own:
        storage.remove(folder)
        name = config.model.text.tokenizer
        made = make_tokenizer(datasets, config.data, name)
        run_lib.save_tokenizer(made, workdir)
    meetings.meet("loading the tokenizer")
    if not folder.exists():
        raise UserError(
            f"--workdir {workdir}: process {jax.process_index()} does not see what "
            "process 0 wrote there; expected storage that all hosts share, at the same "
            "path."
        )
    # Loaded even where it was just made: a restart then sees the very same one.
    return run_lib.load_tokenizer(workdir)


def _placed(
    batches: Iterator[tuple[int, Any]], first: int, mesh: Mesh
) -> Iterator[Any]:
    """Puts batches on the devices one step ahead of their use."""
    ahead: collections.deque[Any] = collections.deque()
    for expected, (step, batch) in enumerate(batches, first):
        assert step == expected, f"batch of step {step}, expected {expected}"
        ahead.append(mesh_lib.place_batch(batch, mesh))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def _fetch(step: int, metrics: dict, inputs: TrainInput) -> dict[str, float]:
    """Waits for a step's metrics; stops the run where one is not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not all(map(math.isfinite, values.values())):
        check_finite(step, values, inputs.ids_of(step))
    return values


def _summary(
    workdir: Path, checkpoints: Checkpoints, step: int, values: dict[str, float]
) -> str:
    """What the run came to."""
    best, metric = checkpoints.best_step(), checkpoints.best_metric
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
    lines = [f"done: step {step}" + (f": {figures}" if figures else "")]
    if best is not None:
        lines.append(f"best checkpoint by {metric}: step {best}")
    lines.append(f"checkpoints and metrics: {workdir}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
