"""A run that goes on elsewhere: the same batches, the same losses, the same state."""

import json
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from medclip_jax.runtime.metrics import read_lines

STEPS = 8
# processes, devices of each, mesh and the rest; the run was saved on 1 x 8, data 8.
ELSEWHERE = {
    "2 x 4": (2, 4, []),
    "4 x 2, data 2, fsdp 4": (4, 2, ["mesh.data=2", "mesh.fsdp=4"]),
    "1 x 8, fsdp 2, tensor 2": (1, 8, ["mesh.fsdp=2", "mesh.tensor=2"]),
    "1 x 4, in two parts": (1, 4, ["mesh.fsdp=2", "train.micro_batches=2"]),
    "2 x 1, tensor 2": (2, 1, ["mesh.data=1", "mesh.tensor=2"]),
}


@pytest.fixture(scope="module")
def untouched(start, tmp_path_factory):
    """Workdir, and rows of each step, of a run of 1 x 8 that nothing disturbed."""
    root = tmp_path_factory.mktemp("untouched")
    with start(root / "work", 1, 8, notes=root / "notes") as running:
        running.succeed()
    return root / "work", json.loads((root / "notes" / "0.json").read_text())["rows"]


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """Workdir of a run of 1 x 8 that was stopped after a few steps."""
    workdir = tmp_path_factory.mktemp("stopped") / "work"
    with start(workdir, 1, 8) as running:
        running.wait_for_lines(workdir / "metrics.jsonl", 2)
        running[0].send_signal(signal.SIGTERM)
        running.succeed()
    assert 2 <= len(read_lines(workdir / "metrics.jsonl")) < STEPS - 2
    return workdir


def state_of(workdir):
    """The newest train state, as host arrays by name."""
    folder = (workdir / "checkpoints" / str(STEPS) / "state").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        leaves = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves
        )
        saved = reader.restore(
            folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    flat = jax.tree_util.tree_flatten_with_path(saved)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_goes_on_elsewhere(start, untouched, stopped, tmp_path, name):
    processes, devices, keys = ELSEWHERE[name]
    whole, rows = untouched
    workdir, notes = tmp_path / "work", tmp_path / "notes"
    shutil.copytree(stopped, workdir)
    first = len(read_lines(workdir / "metrics.jsonl"))
    options = [f"--config.{key}" for key in keys]
    with start(workdir, processes, devices, *options, notes=notes) as running:
        running.succeed()
        log = running.log(0)
    assert f"going on after step {first}\n" in log
    assert "saved on 8 cpu devices: data 8 x fsdp 1 x tensor 1; goes on on" in log

    noted = [json.loads((notes / f"{p}.json").read_text()) for p in range(processes)]
    for step in map(str, range(first, STEPS)):
        for leaf, expected in rows[step].items():
            found: dict = {}
            for process in noted:
                for row, digest in process["rows"][step][leaf].items():
                    assert found.setdefault(row, digest) == digest
            assert found == expected, f"step {step}: {leaf}"

    lines, expected = (
        read_lines(workdir / "metrics.jsonl"),
        read_lines(whole / "metrics.jsonl"),
    )
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for metric, rtol in (("loss", 1e-5), ("grad_norm", 1e-4)):
        np.testing.assert_allclose(
            [line[metric] for line in lines],
            [line[metric] for line in expected],
            rtol=rtol,
        )
    # The moments of Adam too, each against the largest entry of its array.
    found_state, expected_state = state_of(workdir), state_of(whole)
    assert found_state.keys() == expected_state.keys()
    assert sum("mu" in leaf for leaf in found_state) > 10
    worst = {}
    for leaf, value in expected_state.items():
        if "['key']['bias']" in leaf:
            continue  # a softmax does not see it: its gradient is rounding alone
        apart = np.abs(found_state[leaf] - value).max(initial=0)
        worst[leaf] = apart / max(np.abs(value).max(initial=0), 1e-8)
    print(name, max(worst.items(), key=lambda item: item[1]))
    assert max(worst.values()) < 2e-4, worst
