"""What goes wrong for real while a run is under way: the run says what to do, and then
ends with the metrics of one that nothing disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from medclip_jax import train
from medclip_jax.errors import UserError
from medclip_jax.evaluation import in_training
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.metrics import NonFiniteMetric
from tests.test_train import STEPS, arguments, assert_same, wait_for, without_times

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture
def run(tiny_data, cache):
    """Runs to the end in a process of its own; what it said."""

    def run(workdir, *more, data=None, module=("-m", "medclip_jax.train"), **environ):
        return subprocess.run(
            [sys.executable, *module, *arguments(data or tiny_data, workdir, *more)],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                 "PYTHONPATH": os.pathsep.join(sys.path), **environ},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    return run


def unfinished(workdir):
    """Saves that are under way, or were when the process ended."""
    folder = workdir / "checkpoints"
    return [p for p in folder.glob("*orbax-checkpoint-tmp*")] if folder.exists() else []


def finished(workdir):
    folders = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in folders if path.name.isdigit())


# --- signals in the middle of a save --------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_save(start, whole, tmp_path, number):
    for attempt in range(5):
        workdir = tmp_path / f"work{attempt}"
        process = start(workdir)
        while not unfinished(workdir):
            assert process.poll() is None, "no save was seen"
            time.sleep(0.001)
        process.send_signal(number)
        status = process.wait()
        if number == signal.SIGTERM:
            assert status == 0
            assert not unfinished(workdir)
            break
        assert status == -signal.SIGKILL
        if unfinished(workdir):
            break
    else:
        pytest.fail("no save was hit in its middle")
    before = len(without_times(workdir))
    assert before < STEPS
    assert start(workdir).wait() == 0
    assert_same(workdir, whole)
    assert not unfinished(workdir)


# --- a full disk ----------------------------------------------------------------------


def test_a_disk_that_fills_up_in_a_save(run, whole, small_disk, tmp_path):
    small_disk.make("3m")
    # The checkpoints alone: a save fills the disk from threads of its own, and where the
    # metrics were on it too, either could be the first to meet its end.
    workdir = tmp_path / "work"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(small_disk.path)
    done = run(workdir)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"medclip-jax: error: {workdir}/checkpoints could not")
    assert "No space left on device" in message
    assert "MB are free" in message
    assert "A checkpoint takes up to 2.4 MB" in message
    (kept,) = finished(workdir)
    assert f"those of the steps [{kept}] are whole" in message
    assert "Make room there, then start the same command again" in message
    assert "Traceback" not in done.stderr
    assert "Event loop" not in done.stderr
    small_disk.grow("50m")
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    assert f"going on after step {kept}" in done.stderr
    assert_same(workdir, whole)


def test_a_disk_that_fills_up_under_the_metrics(start, whole, small_disk, tmp_path):
    small_disk.make("20m")
    workdir = small_disk.path / "work"
    # No save comes before the end, and none for an evaluation.
    late = ["--config.checkpoint.every_steps=1000", "--config.train.eval_every_steps=0"]
    late.append("--config.checkpoint.best_metric=loss")
    # Its words go to another disk: TMP/work.log.
    workdir.mkdir()
    (tmp_path / "work").symlink_to(workdir)
    process = start(tmp_path / "work", *late)
    wait_for(workdir, 2, process)
    small_disk.fill()
    assert process.wait() == 2
    message = (tmp_path / "work.log").read_text().splitlines()[-1]
    # Whichever of the two reaches the end of its last page first.
    assert re.search(f"{tmp_path}/work/(metrics.jsonl|tensorboard) could not", message)
    assert "written: No space left on device (0.0 MB are free)" in message
    text = (workdir / "metrics.jsonl").read_text()
    assert len(without_times(workdir)) < STEPS
    (small_disk.path / "filler").unlink()
    assert start(tmp_path / "work", *late).wait() == 0
    expected = {line["step"]: line for line in without_times(whole)}
    for line in without_times(workdir):
        assert line.items() <= expected.pop(line["step"], line).items()
    assert not expected
    assert (
        (workdir / "metrics.jsonl").read_text().startswith(text[: text.rfind("\n") + 1])
    )
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


# --- damaged shards -------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_shard_that_is_damaged_while_it_is_read(
    start, run, whole, tiny_data, tmp_path, damage
):
    data, workdir = tmp_path / "shards", tmp_path / "work"
    shutil.copytree(tiny_data, data)
    (shard,) = (data / "mimic_cxr" / "images").glob("*-train.array_record*")
    content = shard.read_bytes()
    strict = ["--config.data.max_bad_rate=0.0", "--config.data.cache_bytes=0"]
    process = start(workdir, *strict, f"--data={data}")
    wait_for(workdir, 2, process)
    if damage == "cut":
        os.truncate(shard, 65536)
    else:
        flipped = bytearray(content)
        for at in range(1000, 200_000, 2000):  # about one in each film
            flipped[at] ^= 1
        with shard.open("r+b") as file:  # the same file, which is open
            file.write(flipped)
    assert process.wait() == 2
    message = (tmp_path / "work.log").read_text().splitlines()[-1]
    said = "cut short meanwhile" if damage == "cut" else "differs from its checksum"
    assert said in message
    assert f"copy {shard} again" in message
    steps = len(without_times(workdir))
    assert steps < STEPS
    if damage == "cut":  # and it does not start with it
        done = run(workdir, *strict, data=data)
        assert done.returncode == 2
        assert f"copy {shard} again" in done.stderr.splitlines()[-1]
    shard.write_bytes(content)
    assert start(workdir, *strict, f"--data={data}").wait() == 0
    assert_same(workdir, whole)


# --- damaged checkpoints --------------------------------------------------------------


def test_a_damaged_checkpoint_is_left_for_an_earlier_one(whole, tiny_data, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(whole, workdir)
    files = (workdir / "checkpoints" / str(STEPS) / "state").rglob("d/*")
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    earlier = finished(workdir)[-2]
    with pytest.raises(
        UserError,
        match=f"step {STEPS} is damaged.*delete {workdir}/checkpoints/{STEPS} to go on "
        f"from step {earlier}",
    ):
        train.main(arguments(tiny_data, workdir))
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    assert train.main(arguments(tiny_data, workdir)) == 0
    lines = [line["step"] for line in without_times(workdir)]
    assert lines[STEPS:] == list(range(earlier + 1, STEPS + 1))
    assert_same(workdir, whole)


# --- hangs, NaN, evaluations that are stopped -----------------------------------------


@pytest.mark.parametrize(("films", "doing"), [(0, "the first batch"), (60, "step")])
def test_an_input_that_stands_still(run, whole, tmp_path, films, doing):
    workdir, pipe = tmp_path / "work", tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run(
        workdir,
        "--config.train.watchdog_seconds=4",
        module=(str(HERE / "stalling_train.py"),),
        FILMS=str(films),
        PIPE=str(pipe),
    )
    assert done.returncode == 1
    assert "watchdog: nothing happened for 4 seconds" in done.stderr
    assert doing in done.stderr
    assert 'stalling_train.py", line' in done.stderr
    assert "in film" in done.stderr
    assert "start the same command again" in done.stderr
    if films:
        assert finished(workdir)
    assert run(workdir).returncode == 0
    assert_same(workdir, whole)


def test_an_input_that_stands_still_after_a_restart(run, whole, tmp_path):
    """Where nothing is logged for long after the first step, which compiles."""
    workdir, pipe = tmp_path / "work", tmp_path / "pipe"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    os.mkfifo(pipe)
    done = run(
        workdir,
        "--config.train.watchdog_seconds=4",
        "--config.train.log_every_steps=100",
        "--config.data.workers=1",  # so that the first films are the first batch's
        module=(str(HERE / "stalling_train.py"),),
        FILMS="20",
        PIPE=str(pipe),
    )
    assert done.returncode == 1
    assert (
        "watchdog: nothing happened for 4 seconds while the first step" in done.stderr
    )


def test_no_checkpoint_holds_nan(tiny_data, tmp_path):
    """An update that overflows: the loss of its step is still a number."""
    workdir = tmp_path / "work"
    argv = arguments(
        tiny_data,
        workdir,
        "--config.optimizer.learning_rate=1e38",
        "--config.optimizer.weight_decay=1e8",
        "--config.optimizer.schedule=constant",
        "--config.optimizer.warmup_fraction=0",
        "--config.checkpoint.every_steps=1",
        "--config.train.eval_every_steps=0",
        "--config.checkpoint.best_metric=loss",
    )
    with pytest.raises(NonFiniteMetric, match=r"Step \d+: ") as error:
        train.main(argv)
    message = str(error.value)
    assert "variables/params/" in message
    assert "films: " in message
    step = int(message.split(":")[0].removeprefix("Step "))
    with Checkpoints(workdir / "checkpoints", "loss", read_only=True) as checkpoints:
        assert step not in checkpoints.steps()
        assert not unfinished(workdir)


def test_stopped_in_the_evaluation_that_makes_up_for_one(
    tiny_data, whole, tmp_path, monkeypatch, cache
):
    jax.config.update("jax_compilation_cache_dir", str(cache))
    workdir = tmp_path / "work"
    measure = in_training.ZeroShotInTraining.__call__

    def stopped(self, variables):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, variables)

    with monkeypatch.context() as patched:
        patched.setattr(in_training.ZeroShotInTraining, "__call__", stopped)
        for _ in range(2):
            assert train.main(arguments(tiny_data, workdir)) == 0
            assert [line["step"] for line in without_times(workdir)] == [1, 2, 3, 4, 5]
            assert 6 in finished(workdir)
    assert train.main(arguments(tiny_data, workdir)) == 0
    assert_same(workdir, whole)
    ranks = []
    for folder in (workdir, whole):
        with Checkpoints(
            folder / "checkpoints", "zero_shot/accuracy", read_only=True
        ) as checkpoints:
            ranks.append((checkpoints.best_step(), checkpoints.steps()))
    assert ranks[0] == ranks[1]


def test_what_was_made_up_for_is_not_evaluated_again(
    tiny_data, whole, tmp_path, monkeypatch, cache, capsys
):
    """As by a chain of jobs, of which the last find the run finished."""
    jax.config.update("jax_compilation_cache_dir", str(cache))
    workdir = tmp_path / "work"
    measure = in_training.ZeroShotInTraining.__call__
    calls = []

    def counted(self, variables):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, variables)

    monkeypatch.setattr(in_training.ZeroShotInTraining, "__call__", counted)
    for evaluations in (2, 3, 3, 3):  # at 6 and, stopped, at 12; at 12; none; none
        assert train.main(arguments(tiny_data, workdir)) == 0
        assert len(calls) == evaluations
    assert_same(workdir, whole)
    assert "done: step 12: grad_norm" in capsys.readouterr().err.splitlines()[-3]


# --- compiled programs ----------------------------------------------------------------


def test_kept_programs_give_the_same_bits(run, whole, tmp_path):
    """A run that compiles anew each time, and one on what the first start kept."""
    without = run(tmp_path / "a", JAX_ENABLE_COMPILATION_CACHE="false")
    assert without.returncode == 0
    assert not (tmp_path / "a" / "compiled").exists()
    assert_same(tmp_path / "a", whole)
    workdir = tmp_path / "b"
    own = {"JAX_COMPILATION_CACHE_DIR": ""}
    assert run(workdir, **own).returncode == 0
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "metrics.jsonl").unlink()
    kept = workdir / "compiled"
    before = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert [name for name in before if name.startswith("jit_train_step")]
    assert run(workdir, **own).returncode == 0
    assert {f.name: f.stat().st_mtime_ns for f in kept.iterdir()} == before
    assert_same(workdir, whole)


# --- memory ---------------------------------------------------------------------------

SAVES = """
import gc, os, sys, jax, jax.numpy as jnp, numpy as np
from medclip_jax.runtime.checkpoint import Checkpoints
folder, leak = sys.argv[1], sys.argv[2] == "leak"
state = {f"a{i}": jax.random.normal(jax.random.key(i), (500, 1000)) for i in range(15)}
size = sum(x.nbytes for x in state.values())
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
held, seen = [], []
with Checkpoints(folder, "loss", keep_latest=1, keep_best=0) as checkpoints:
    for number in range(1, 51):
        state = step(state)
        checkpoints.save(number, state, {"pending": None}, {})
        checkpoints.wait()
        if leak:
            held.append({k: np.array(v[: len(v) // 8]) for k, v in state.items()})
        seen.append(rss())
print(size, max(seen[5:15]), max(seen[40:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("leak", ["none", "leak"])
def test_memory_is_flat_over_fifty_saves(tmp_path, leak):
    """Grows by less than one state; an eighth of a state held a save is seen."""
    done = subprocess.run(
        [sys.executable, "-c", SAVES, str(tmp_path / "checkpoints"), leak],
        # Else glibc gives each new thread an arena, and levels off after 100 saves.
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size, early, late = map(int, done.stdout.split())
    assert size == 30_000_000
    assert (late - early > size) == (leak == "leak"), (early, late)
