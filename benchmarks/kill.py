"""Kills a run again and again, and compares it with one that nobody touched.

    python -m benchmarks.kill --out runs/kill

Films and reports are simulated and prepared, then the demo's model is trained twice on
them for 300 steps, with a checkpoint every 5: once untouched, once with SIGKILL at 40
moments drawn at random over its steps, and 10 times on purpose while it compiles,
restores and saves. After each kill the same command is started again. At the end every
line of metrics.jsonl that the killed run ever wrote must be, to the bit, the line of
the untouched run, no step may be missing, and the arrays of the last checkpoints must
be the same. The compiled programs are kept, as `train` does by itself, so that a start
takes what a process, its imports and the data take: the whole takes about an hour on
two cores.

Every kill is a line of OUT/kills.jsonl. When it is interrupted itself, the same
command goes on.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from medclip_jax import cli
from medclip_jax.errors import UserError
from medclip_jax.runtime.metrics import TIME_PREFIX, read_lines

ON_PURPOSE = ("compile",) * 4 + ("restore",) * 3 + ("save",) * 3
# Longer than any start on a loaded machine, shorter than a night.
PATIENCE_SECONDS = 900
COMPILING, SHOWN_BEFORE_RESTORE, RESTORED = (
    "compiling the",
    "a device (",
    "restored step",
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all of it")
    parser.add_argument("--steps", type=int, default=300, help="default 300")
    parser.add_argument(
        "--random", type=int, default=40, help="kills at random moments (default 40)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.steps < 20 or args.random < 0:
        raise UserError("--steps: at least 20; --random: at least 0.")
    args.out.mkdir(parents=True, exist_ok=True)
    data = make_data(args.out)
    command = train_command(data, args.steps)
    whole, killed = args.out / "whole", args.out / "killed"
    if not is_done(whole, args.steps):
        say("the untouched run")
        run_whole(command, whole)
    log = KillLog(args.out / "kills.jsonl")
    started = time.monotonic()
    for number, target in enumerate(plan(args.steps, args.random, args.seed)):
        if number < len(log.kills):
            continue
        while not log.add(number, target, kill_once(command, killed, target)):
            pass  # the phase was over sooner: once more
    say("no more kills: the run goes on to its end")
    run_whole(command, killed)
    minutes = (time.monotonic() - started) / 60
    print(table(log.kills))
    print(f"{compare(killed, whole, args.steps)} ({minutes:.0f} minutes)")
    return 0


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# --- the two runs -------------------------------------------------------------------


def make_data(out: Path) -> Path:
    """Simulated and prepared data, made by the product's own verbs."""
    raw, shards = out / "raw", out / "shards"
    if not (shards / "mimic_cxr" / "fingerprint.json").exists():
        say("simulating and preparing data")
        shutil.rmtree(raw, ignore_errors=True)
        size = ["--patients", "120", "--chexpert-patients", "0", "--size", "96"]
        split = ["--validate-fraction", "0.3", "--test-fraction", "0.1"]
        verbs = (
            ["simulate", "--out", str(raw), "--seed", "0", *size, *split],
            ["prepare", "--dataset", "mimic_cxr", "--raw", str(raw / "mimic-cxr"),
             "--out", str(shards)],
        )  # fmt: skip
        for verb in verbs:
            subprocess.run(
                [sys.executable, "-m", "medclip_jax.cli", *verb],
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return shards


def train_command(data: Path, steps: int) -> list[str]:
    """The command of both runs, but for --workdir."""
    config = {
        "train.steps": steps,
        "train.batch_size": 16,
        "train.log_every_steps": 1,
        "train.eval_every_steps": 50,
        "train.eval_examples": 40,
        "checkpoint.every_steps": 5,
    }
    options = [f"--config.{key}={value}" for key, value in config.items()]
    verb = [sys.executable, "-m", "medclip_jax.cli", "train"]
    return [*verb, "--config=medclip.py:demo", f"--data={data}", *options]


def start(command: list[str], workdir: Path) -> subprocess.Popen:
    """Starts the run, or goes on with it; its words go to WORKDIR.log."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # each keeps programs of its own
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], stdout=log, stderr=log, env=environment
        )


def run_whole(command: list[str], workdir: Path) -> None:
    process = start(command, workdir)
    try:
        while process.poll() is None:
            time.sleep(5)
            say(f"{workdir.name}: step {last_step(workdir)}")
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(
            f"{workdir} ended with {process.returncode}; see {workdir}.log"
        )


def is_done(workdir: Path, steps: int) -> bool:
    return (workdir / "checkpoints" / str(steps)).is_dir()


def last_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, 0 without one."""
    file = workdir / "metrics.jsonl"
    lines = read_lines(file) if file.exists() else []
    return int(lines[-1]["step"]) if lines else 0


# --- kills --------------------------------------------------------------------------


def plan(steps: int, count: int, seed: int) -> list[str | float]:
    """What to kill at, in order: a phase, or a moment in steps.

    The kills while it compiles come first, when there is no compiled program yet;
    those while it restores and saves are spread over the run.
    """
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0, steps - 1) for _ in range(count))
    made: list[str | float] = list(moments)
    rest = [phase for phase in ON_PURPOSE if phase != "compile"]
    for number, phase in enumerate(rest, 1):
        made.insert(number * len(made) // (len(rest) + 1) + 1, phase)
    return ["compile"] * ON_PURPOSE.count("compile") + made


def kill_once(
    command: list[str], workdir: Path, target: str | float
) -> dict[str, object]:
    """Starts the run and kills it; what was going on then."""
    before = last_step(workdir)
    log, saves = workdir.with_suffix(".log"), workdir / "checkpoints"
    process = start(command, workdir)
    began = time.monotonic()
    try:
        for phase in watch(process, workdir, log, saves):
            if is_reached(phase, target, workdir):
                break
    finally:
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    text = log.read_text()
    if status != -signal.SIGKILL:
        raise RuntimeError(f"the run ended by itself with {status}:\n{text[-3000:]}")
    return {
        "phase": phase_of(text, saves),
        "after_seconds": round(time.monotonic() - began, 1),
        "step_before": before,
        "step": last_step(workdir),
    }


def watch(
    process: subprocess.Popen, workdir: Path, log: Path, saves: Path
) -> Iterator[str]:
    """The phase that a run is in, again and again."""
    began = time.monotonic()
    while process.poll() is None:
        yield phase_of(log.read_text(), saves)
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise RuntimeError(f"nothing to kill for {PATIENCE_SECONDS} s; see {log}")
        time.sleep(0.002)


def phase_of(text: str, saves: Path) -> str:
    """The phase by what the run said last, and by what stands in its checkpoints."""
    if COMPILING in text and "\nstep " not in text:
        return "compile"
    if "\nstep " not in text:
        if RESTORED in text:
            return "start, after the restore"
        has_steps = any(path.name.isdigit() for path in list_of(saves))
        return "restore" if SHOWN_BEFORE_RESTORE in text and has_steps else "start"
    if any("orbax-checkpoint-tmp" in path.name for path in list_of(saves)):
        return "save"
    return "training"


def list_of(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def is_reached(phase: str, target: str | float, workdir: Path) -> bool:
    """Whether to kill now; waits for the random part of the moment."""
    if isinstance(target, str):
        if phase != target:
            return False
        # Compiling takes seconds, the others a part of one.
        time.sleep(random.uniform(0, 3.0 if target == "compile" else 0.05))
        return True
    if phase not in ("training", "save") or last_step(workdir) < int(target):
        return False
    lines = read_lines(workdir / "metrics.jsonl")[-1]
    time.sleep((target % 1) * lines.get(TIME_PREFIX + "step_seconds", 0.0))
    return True


class KillLog:
    """The kills so far, one a line of a file."""

    def __init__(self, path: Path):
        self._path = path
        self.kills = [json.loads(line) for line in list_lines(path)]

    def add(self, number: int, target: str | float, found: dict) -> bool:
        """Whether a kill was at its target; if so it counts, and is written down."""
        hit = not isinstance(target, str) or found["phase"] == target
        say(
            f"kill {number + 1}: wanted "
            f"{target if isinstance(target, str) else f'step {target:.2f}'}, was in "
            f"{found['phase']} after step {found['step']}"
            + ("" if hit else "; does not count")
        )
        if hit:
            self.kills.append({"target": target, **found})
            with self._path.open("a") as file:
                file.write(json.dumps(self.kills[-1]) + "\n")
        return hit


def list_lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


# --- what came of it ----------------------------------------------------------------


def table(kills: list[dict]) -> str:
    """Kills by phase, in Markdown."""
    rows = ["| killed while | at random | on purpose |", "| --- | --- | --- |"]
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for kill in kills:
        counts[kill["phase"]][isinstance(kill["target"], str)] += 1
    rows += [f"| {phase} | {a} | {b} |" for phase, (a, b) in sorted(counts.items())]
    return "\n".join(rows)


def compare(killed: Path, whole: Path, steps: int) -> str:
    """Says how far the runs are the same.

    Raises:
      RuntimeError: they are not, naming the first step that differs.
    """
    expected = {line["step"]: line for line in lines_of(whole)}
    found = lines_of(killed)
    for line in found:
        if line != expected[line["step"]]:
            raise RuntimeError(
                f"step {line['step']} differs: {line}, not {expected[line['step']]}"
            )
    missing = set(range(1, steps + 1)) - {line["step"] for line in found}
    if missing:
        raise RuntimeError(f"steps missing from the metrics: {sorted(missing)}")
    sums = [checksums(workdir, steps) for workdir in (killed, whole)]
    if sums[0] != sums[1]:
        raise RuntimeError(f"the arrays of step {steps} differ")
    values = sum(map(len, expected.values())) - len(expected)
    return (
        f"{len(found)} lines of the killed run, {len(found) - len(expected)} of them of "
        f"steps done again: all equal to the {len(expected)} of the untouched run, "
        f"{values} values, to the bit; {len(sums[0])} arrays of the last checkpoint too"
    )


def lines_of(workdir: Path) -> list[dict[str, float]]:
    """All lines without the times of this machine."""
    return [
        {name: v for name, v in line.items() if not name.startswith(TIME_PREFIX)}
        for line in read_lines(workdir / "metrics.jsonl")
    ]


def checksums(workdir: Path, step: int) -> dict[str, int]:
    """The checksum of each array of a checkpoint, as stored with it."""
    meta = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(meta.read_text())["checksums"]


if __name__ == "__main__":
    sys.exit(cli.run(main))
