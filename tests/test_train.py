"""`medclip-jax train` on small real shards: what is refused, and exact restarts."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from medclip_jax import cli, train
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation import in_training
from medclip_jax.runtime.metrics import NonFiniteMetric, read_lines

STEPS = 12
TINY = [
    "--config=medclip.py:demo",
    "--config.model.image.stage_sizes=(1,)",
    "--config.model.image.width=8",
    "--config.model.text.layers=1",
    "--config.medclip.text_pool=cls",
    "--config.data.image_size=32",
    "--config.data.crop_from=36",
    "--config.data.min_patients=2",
    "--config.data.vocab_size=200",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.train.log_every_steps=1",
    "--config.train.eval_every_steps=6",
    "--config.train.eval_examples=10",
    "--config.checkpoint.every_steps=4",
]


@pytest.fixture(autouse=True)
def _undo_logging():
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def arguments(data, workdir, *more):
    return [*TINY, f"--data={data}", f"--workdir={workdir}", *more]


def without_times(workdir):
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_lines(workdir / "metrics.jsonl")
    ]


# --- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.train.step=3"], r"Did you mean --config.train.steps\?"),
        (["--config.mesh.data=3"], r"3 x 1 x 1 = 3 devices, there are 1"),
        (["--config.train.log_every_steps=0"], "at least 1"),
        (["--config.data.datasets=nih"], "nih, not found.*mimic_cxr"),
        (["--confg.train.steps=3"], "unknown option"),
        (["--config=medclip.py:swim"], "swin"),
    ],
)
def test_refusals(tiny_data, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train.main(arguments(tiny_data, tmp_path / "work", *more))


def test_missing_data(tmp_path):
    with pytest.raises(UserError, match="medclip-jax prepare"):
        train.main(arguments(tmp_path / "nowhere", tmp_path / "work"))
    with pytest.raises(UserError, match="--data is required"):
        train.main([*TINY, f"--workdir={tmp_path}"])


def test_shards_of_another_schema(tiny_data, tmp_path):
    data = tmp_path / "shards"
    shutil.copytree(tiny_data, data)
    file = data / "mimic_cxr" / "fingerprint.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "schema_version": 99}))
    with pytest.raises(UserError, match="99"):
        train.main(arguments(data, tmp_path / "work"))


def test_a_failed_start_leaves_nothing_that_a_better_one_meets(tiny_data, tmp_path):
    work = tmp_path / "work"
    wrong = ["--config.model.image.pretrained=/none", "--config.data.vocab_size=60"]
    with pytest.raises(UserError, match="/none"):
        train.main(arguments(tiny_data, work, *wrong))
    once = ["--config.train.steps=1", "--config.checkpoint.best_metric=loss"]
    once += ["--config.train.eval_every_steps=0"]
    assert train.main(arguments(tiny_data, work, *once)) == 0
    assert run_lib.open_run(work, "latest").tokenizer.vocab_size > 60


def test_a_batch_that_the_mesh_does_not_divide(tiny_data, tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "medclip_jax.train",
         *arguments(tiny_data, tmp_path, "--config.train.batch_size=12")],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "12 / 8 = 1.5" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 30


def test_show_config(capsys):
    assert train.main([*TINY, "--show_config"]) == 0
    assert f"train.steps = {STEPS}" in capsys.readouterr().out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert "--config medclip.py:demo" in shown
    assert "siglip" in shown


def test_what_is_due():
    config = train.train_options.parse([*TINY, "--workdir=w", "--data=d"])[1]
    config.train.log_every_steps = 5
    due = {step: train.due_after(step, config, True) for step in range(1, STEPS + 1)}
    assert [s for s in due if due[s].log] == [1, 5, 6, 10, 12]
    assert [s for s in due if due[s].evaluate] == [6, 12]
    assert [s for s in due if due[s].save] == [4, 6, 8, 12]
    assert not train.due_after(6, config, False).evaluate


# --- exact restarts -----------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tiny_data, cache):
    """Starts a run in a process of its own; compiled code is shared between them."""

    def start(workdir, *more):
        log = (workdir.parent / f"{workdir.name}.log").open("a")
        return subprocess.Popen(
            [sys.executable, "-m", "medclip_jax.train",
             *arguments(tiny_data, workdir, *more)],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            stderr=log, stdout=log,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def whole(tiny_data, cache, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "work"
    subprocess.run(
        [sys.executable, "-m", "medclip_jax.train", *arguments(tiny_data, workdir)],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        check=True,
    )  # fmt: skip
    return workdir


def wait_for(workdir, lines, process):
    """Until a run has logged so many lines."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < lines:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.005)


def assert_same(workdir, whole):
    """Every line of the disturbed run stands in the whole one, and none is missing."""
    expected = {line["step"]: line for line in without_times(whole)}
    found = without_times(workdir)
    for line in found:
        assert line == expected[line["step"]]
    assert {line["step"] for line in found} == set(expected)


@pytest.mark.slow
def test_sigkill_at_any_step(start, whole, tmp_path):
    workdir = tmp_path / "killed"
    draw = random.Random(0)
    for step in sorted(draw.sample(range(1, STEPS), 5)):
        process = start(workdir)
        while not (workdir / "metrics.jsonl").exists() or all(
            line["step"] < step for line in without_times(workdir)
        ):
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(workdir).wait() == 0
    assert_same(workdir, whole)
    assert len(without_times(workdir)) > STEPS, "no step was done twice"
    # Started once more, a finished run has nothing to do.
    assert start(workdir).wait() == 0
    assert_same(workdir, whole)


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_0(start, whole, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(workdir)
    wait_for(workdir, 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    stopped = len(without_times(workdir))
    assert stopped < STEPS
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert start(workdir).wait() == 0
    assert_same(workdir, whole)
    assert len(without_times(workdir)) == STEPS, "a step was done twice"


@pytest.mark.slow
def test_sigterm_inside_an_evaluation(tiny_data, whole, tmp_path, monkeypatch, cache):
    jax.config.update("jax_compilation_cache_dir", str(cache))
    workdir = tmp_path / "work"
    measure = in_training.ZeroShotInTraining.__call__

    def stopped(self, variables):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, variables)

    with monkeypatch.context() as patched:
        patched.setattr(in_training.ZeroShotInTraining, "__call__", stopped)
        assert train.main(arguments(tiny_data, workdir)) == 0
    assert [line["step"] for line in without_times(workdir)] == [1, 2, 3, 4, 5]
    assert train.main(arguments(tiny_data, workdir)) == 0
    assert_same(workdir, whole)


@pytest.mark.slow
def test_opens_what_was_trained(whole):
    best, latest = run_lib.open_run(whole), run_lib.open_run(whole, "latest")
    accuracy = {
        line["step"]: line["zero_shot/accuracy"]
        for line in without_times(whole)
        if "zero_shot/accuracy" in line
    }
    assert set(accuracy) == {6, 12}
    assert accuracy[best.step] == max(accuracy.values())
    assert latest.step == STEPS
    assert latest.config.train.steps == STEPS
    assert latest.config.model.text.vocab_size == latest.tokenizer.vocab_size
    first = run_lib.untrained(latest)
    assert jax.tree.structure(first) == jax.tree.structure(latest.variables)
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
        first["params"]["image"],
        latest.variables["params"]["image"],
    )
    assert all(jax.tree.leaves(moved))
    with pytest.raises(UserError, match="steps"):
        run_lib.open_run(whole, "newest")


@pytest.mark.slow
def test_opens_where_the_attention_of_its_training_is_not(whole, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(whole, work)
    config = json.loads((work / "config.json").read_text())
    config["model"]["attention"] = "cudnn"
    (work / "config.json").write_text(json.dumps(config))
    assert run_lib.open_run(work).config.model.attention == "plain"


@pytest.mark.slow
def test_another_config_or_other_data_is_refused(whole, tiny_data, tmp_path):
    with pytest.raises(UserError, match="train.batch_size: 8 -> 16"):
        train.main(arguments(tiny_data, whole, "--config.train.batch_size=16"))
    about = json.loads((whole / "data.json").read_text())
    changed = tmp_path / "work"
    shutil.copytree(whole, changed)
    about["fingerprint"] = about["datasets"]["mimic_cxr"] = "other"
    (changed / "data.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="mimic_cxr: other ->"):
        train.main(arguments(tiny_data, changed))


@pytest.mark.slow
def test_nan_stops_the_run(tiny_data, tmp_path, capsys):
    argv = arguments(
        tiny_data,
        tmp_path / "work",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=0",
        "--config.checkpoint.every_steps=1",
        "--config.train.eval_every_steps=0",
        "--config.checkpoint.best_metric=loss",
    )
    with pytest.raises(NonFiniteMetric, match=r"Step \d+: .*(nan|inf)") as error:
        train.main(argv)
    message = str(error.value)
    assert "films: " in message
    assert "reports of studies: " in message
    step = int(message.split(":")[0].removeprefix("Step "))
    saved = [int(path.name) for path in (tmp_path / "work/checkpoints").glob("[0-9]*")]
    assert saved
    assert max(saved) < step
    capsys.readouterr()
    assert cli.run(train.main, argv) == 2  # a restart would meet it again
    told = capsys.readouterr().err
    assert f"medclip-jax: error: Step {step}: " in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_two_processes_and_a_signal_to_one(start, whole, tmp_path):
    """Two hosts: the losses of one, and both stop at the step where one is asked to."""
    workdir = tmp_path / "two"

    def start_two():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return [
            start(
                workdir,
                f"--coordinator=localhost:{port}",
                "--num_processes=2",
                f"--process_id={index}",
            )
            for index in range(2)
        ]

    first, second = start_two()
    wait_for(workdir, 2, first)
    second.send_signal(signal.SIGTERM)
    assert (first.wait(), second.wait()) == (0, 0)
    # All processes ask each other at every tenth step, and before an evaluation,
    # which the restart then makes up for.
    assert len(without_times(workdir)) in (5, 10)
    assert [process.wait() for process in start_two()] == [0, 0]
    expected = {line["step"]: line["loss"] for line in without_times(whole)}
    found = {line["step"]: line["loss"] for line in without_times(workdir)}
    assert found == pytest.approx(expected, rel=1e-5)
