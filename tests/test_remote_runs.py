"""Runs, reports and shards on a bucket: the same as on a disk, and after a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from array_record.python import array_record_module

from data_pipelines import records
from medclip_jax import compare, evaluate, export, storage, train
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.metrics import read_lines
from tests.test_import_weights import official, run_import
from tests.test_train import STEPS, TINY, without_times

pytestmark = pytest.mark.slow

# More than chance in which films are held: every step of it is compared.
SAVES = ["--config.checkpoint.every_steps=2", "--config.checkpoint.keep_latest=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(tiny_data, cache):
    """Starts a run in a process of its own; compiled code is shared between them."""

    def start(workdir, *more):
        argv = [*TINY, *SAVES, f"--data={tiny_data}", f"--workdir={workdir}", *more]
        return subprocess.Popen(
            [sys.executable, "-m", "medclip_jax.train", *argv],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The workdir of a run on the disk that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "work"
    assert start(workdir).wait() == 0
    return workdir


@pytest.fixture(scope="module")
def remote(start, bucket):
    """The workdir of the same run on the bucket."""
    workdir = storage.path(f"{bucket}/runs/whole")
    assert start(workdir).wait() == 0
    return workdir


@pytest.fixture(scope="module")
def shards(bucket, tiny_data):
    """The shards of `tiny_data` on the bucket."""
    folder = storage.path(f"{bucket}/shards")
    storage.upload(tiny_data, folder)
    return folder


def assert_same(workdir, whole):
    expected = {line["step"]: line for line in without_times(whole)}
    found = without_times(workdir)
    for line in found:
        assert line == expected[line["step"]]
    assert {line["step"] for line in found} == set(expected)


def names(folder):
    return {child.name for child in folder.iterdir()}


def test_a_run_on_a_bucket_is_the_run_on_a_disk(whole, remote):
    assert_same(remote, whole)
    assert len(without_times(remote)) == STEPS
    assert names(remote) == names(whole)
    assert names(remote / "checkpoints") == names(whole / "checkpoints")
    assert names(remote / "tokenizer") == names(whole / "tokenizer")
    for name in ("config.json", "data.json"):
        assert json.loads((remote / name).read_text()) == json.loads(
            (whole / name).read_text()
        )
    here, there = run_lib.open_run(whole, "latest"), run_lib.open_run(remote, "latest")
    assert here.step == there.step == STEPS
    same = jax.tree.map(np.array_equal, here.variables, there.variables)
    assert all(jax.tree.leaves(same))
    assert here.tokenizer.fingerprint == there.tokenizer.fingerprint


def test_tensorboard_of_a_bucket_is_whole(remote):
    from tensorboardX.proto import event_pb2

    (file,) = (remote / "tensorboard").iterdir()
    content, steps = file.read_bytes(), set()
    while content:
        size = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        steps |= {event.step for value in event.summary.value if value.tag == "loss"}
        content = content[16 + size :]
    assert steps == set(range(1, STEPS + 1))


def test_sigkill_on_a_bucket(start, whole, bucket):
    workdir = storage.path(f"{bucket}/runs/killed")
    metrics = workdir / "metrics.jsonl"
    process = start(workdir)
    while not metrics.exists() or len(read_lines(metrics)) < 5:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    # What had been put reaches at least to the newest checkpoint.
    logged = max(line["step"] for line in read_lines(metrics))
    with Checkpoints(workdir / "checkpoints", "loss", read_only=True) as checkpoints:
        assert 0 < checkpoints.latest_step() <= logged < STEPS
    assert start(workdir).wait() == 0
    assert_same(workdir, whole)


def test_two_processes_with_all_on_a_bucket(start, whole, bucket, shards, tmp_path):
    """Two hosts that share nothing but the bucket: each stages its part."""
    workdir = storage.path(f"{bucket}/runs/two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [
        start(workdir, f"--coordinator=localhost:{port}",
              "--num_processes=2", f"--process_id={index}", f"--data={shards}",
              f"--stage={tmp_path / str(index)}")
        for index in range(2)
    ]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    expected = {line["step"]: line["loss"] for line in without_times(whole)}
    found = {line["step"]: line["loss"] for line in without_times(workdir)}
    assert found == pytest.approx(expected, rel=1e-5)
    for index in range(2):
        (images,) = (tmp_path / str(index)).glob("mimic_cxr-*/*/images")
        assert images.parent.name == f"{index}_of_2"
    # What two hosts wrote, one host reads.
    assert run_lib.open_run(workdir, "latest").step == STEPS


def test_evaluate_compare_and_export_on_a_bucket(
    whole, remote, shards, bucket, tmp_path, capsys
):
    """The same figures from the bucket as from the disk, and all that is written."""
    few = ["--minimum=1", "--split=validate", "--step=latest", "--protocols=zero_shot"]
    there, here = storage.path(f"{bucket}/report"), tmp_path / "report"
    flags = ["--workdir", str(remote), "--data", str(shards), "--out", str(there)]
    assert evaluate.main([*flags, *few]) == 0
    flags = ["--workdir", str(whole), "--data", str(shards), "--out", str(here)]
    assert evaluate.main([*flags, *few]) == 0
    assert names(there) == names(here)
    rows = [json.loads((f / "results.json").read_text())["rows"] for f in (there, here)]
    assert rows[0] == rows[1] and rows[0]
    assert (remote / "features").is_dir()  # kept for the next evaluation

    out = storage.path(f"{bucket}/compared")
    assert compare.main([str(there), str(here), "--out", str(out)]) == 0
    made = json.loads((out / "compare.json").read_text())
    assert made["differences"] and all(d["value"] == 0 for d in made["differences"])

    exported = storage.path(f"{bucket}/exported")
    flags = ["--workdir", str(remote), "--step=latest", "--results", str(there)]
    for _ in range(2):  # the second one replaces the first
        assert export.main([*flags, "--out", str(exported)]) == 0
    assert export.main([*flags, "--out", str(tmp_path / "exported")]) == 0
    with storage.local(exported) as copy:
        files = sorted(f.relative_to(copy) for f in copy.rglob("*") if f.is_file())
        for file in files:
            same = (copy / file).read_bytes() == (
                tmp_path / "exported" / file
            ).read_bytes()
            assert same, file
    assert len(files) >= 9
    assert "zero_shot_five" in (exported / "README.md").read_text()
    (exported / export.MARKER).unlink()
    with pytest.raises(UserError, match="is no earlier export"):
        export.main([*flags, "--out", str(exported)])


def test_training_on_a_bucket_of_shards_asks_for_a_local_disk(shards, tmp_path):
    flags = [*TINY, f"--data={shards}", f"--workdir={tmp_path}/work"]
    with pytest.raises(UserError, match="Add --stage DIR"):
        train.main(flags)


def test_starting_from_a_run_on_a_bucket(remote, tiny_data, tmp_path, capsys):
    """The data that the first run's weights come from stay with the second."""
    argv = [*TINY, f"--config.init_from={remote}", f"--data={tiny_data}"]
    notice = json.loads((remote / "data.json").read_text())["notices"]["mimic_cxr"]
    for steps in (1, 2):  # started, and gone on with
        flags = [f"--config.train.steps={steps}", f"--workdir={tmp_path}/work"]
        assert train.main([*argv, *flags]) == 0
        data = json.loads((tmp_path / "work" / "data.json").read_text())
        assert data["started_from"]["mimic_cxr (init_from)"]["notice"] == notice
    said = capsys.readouterr().err
    assert f"starting from {remote}" in said and "going on after step 1" in said


def test_importing_to_a_bucket(bucket, tmp_path):
    official("resnet", tmp_path)
    out = storage.path(f"{bucket}/imported")
    # Of two options of a name the last one counts.
    assert run_import("resnet", tmp_path, f"--out={out}") == 0
    assert run_import("resnet", tmp_path) == 0
    here, there = run_lib.open_run(tmp_path / "workdir"), run_lib.open_run(out)
    same = jax.tree.map(np.array_equal, here.variables, there.variables)
    assert all(jax.tree.leaves(same)) and here.fingerprint == there.fingerprint
    with pytest.raises(UserError, match="is a workdir already"):
        run_import("resnet", tmp_path, f"--out={out}")


# --- what the libraries do with a bucket -----------------------------------------------


def test_shards_on_a_bucket_are_those_on_the_disk(shards, tiny_data):
    """ArrayRecord's reader takes gs:// by a client of its own."""
    (path,) = records.find_datasets(shards)
    there = records.open_dataset(path)
    here = records.open_dataset(records.find_datasets(tiny_data)[0])
    assert there.fingerprint == here.fingerprint
    assert there.table.equals(here.table)
    for row in (0, 70, len(here.images) - 1):
        assert there.images[row]["film"] == here.images[row]["film"]
    assert there.reports[3]["sentences"] == here.reports[3]["sentences"]


@pytest.mark.parametrize("url", ["s3://bucket/x", "http://localhost/x", "memory://x"])
def test_array_record_takes_other_addresses_for_local_files(url):
    """It says nothing when it opens one, and has no records: hence `storage.path`."""
    reader = array_record_module.ArrayRecordReader(url, "")
    assert reader.num_records() == 0
    with pytest.raises(RuntimeError, match="No such file or directory"):
        reader.read([0])


def test_array_record_writes_to_no_bucket(bucket):
    """Which is why `prepare` writes to a disk, and the shards are copied."""
    writer = array_record_module.ArrayRecordWriter(f"{bucket}/x.array_record", "")
    with pytest.raises(RuntimeError, match="No such file or directory"):
        writer.write(b"record")
        writer.close()
