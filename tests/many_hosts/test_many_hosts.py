"""One run as 1, 2 and 4 real processes: the same batches, the same losses."""

import json
from collections import Counter

import numpy as np
import pytest
from launcher import Processes, by_environment, by_options, by_slurm

from medclip_jax.runtime.metrics import read_lines

LAYOUTS = {1: (1, 4), 2: (2, 2), 4: (4, 1)}
STEPS = 8


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory):
    """count -> (workdir, notes of each process), each layout of 4 devices trained."""
    root = tmp_path_factory.mktemp("layouts")
    made = {}
    for count, (processes, devices) in LAYOUTS.items():
        workdir, notes = root / str(count), root / f"{count}.notes"
        named = {1: by_options, 2: by_slurm, 4: by_environment}[count]
        with start(
            workdir, processes, devices, "--config.train.eval_every_steps=8",
            notes=notes, named=named,
        ) as running:  # fmt: skip
            running.succeed()
            logs = [running.log(index) for index in range(processes)]
        noted = [json.loads((notes / f"{p}.json").read_text()) for p in range(count)]
        made[count] = (workdir, noted, logs)
    return made


def joined_rows(noted, step):
    """leaf -> digests of the rows of the global batch, in order; and who had each."""
    joined = {}
    for process in noted:
        for leaf, rows in process["rows"][str(step)].items():
            for row, digest in rows.items():
                joined.setdefault(leaf, {}).setdefault(int(row), []).append(digest)
    return joined


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_same_batches_bit_for_bit(runs, count):
    _, whole, _ = runs[1]
    for step in range(STEPS):
        expected, found = joined_rows(whole, step), joined_rows(runs[count][1], step)
        assert set(found) == set(expected) and len(found) == 8
        for leaf, rows in expected.items():
            assert sorted(rows) == list(range(8))
            # Each row is on one process alone: no two read the same.
            assert found[leaf] == rows, f"step {step}: {leaf}"
    assert len({str(joined_rows(whole, step)) for step in range(STEPS)}) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_no_process_reads_records_of_another(runs, count):
    """Films are read anew for each row; of texts, tokens are kept."""
    alone = runs[1][1][0]["reads"]
    several = [process["reads"] for process in runs[count][1]]
    for step in map(str, range(STEPS)):
        films = [Counter(reads[step]["images"]) for reads in several]
        assert [films_of.total() for films_of in films] == [8 // count] * count
        assert sum(films, Counter()) == Counter(alone[step]["images"])

    def texts(reads):
        return {
            row for step in range(STEPS) for row in reads[str(step)].get("reports", [])
        }

    # One process reads all; several read as much between them, and none reads all.
    assert set().union(*map(texts, several)) == texts(alone)
    assert all(len(texts(reads)) < len(texts(alone)) for reads in several)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_validation_films_are_read_once(runs, count):
    """At the start: the validation films in parts, and the checks of the shards."""
    alone = Counter(runs[1][1][0]["reads"]["start"]["images"])
    several = [Counter(p["reads"]["start"]["images"]) for p in runs[count][1]]
    checked = set.intersection(*map(set, several))
    own = [{row for row in films if row not in checked} for films in several]
    assert sum(map(len, own)) == len(set.union(*own)) > 0
    assert set(alone) == checked | set.union(*own)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_same_losses(runs, count):
    lines = {
        n: read_lines(workdir / "metrics.jsonl") for n, (workdir, *_) in runs.items()
    }
    steps = [line["step"] for line in lines[count]]
    assert steps == list(range(1, STEPS + 1)), "written by more than one process"
    for name in ("loss", "grad_norm", "zero_shot/accuracy", "zero_shot/auroc"):
        expected = [line[name] for line in lines[1] if name in line]
        found = [line[name] for line in lines[count] if name in line]
        assert len(found) == len(expected) > 0
        # The same four devices sum in another order. A float32 sum is off by 6e-8;
        # the gradient is a difference of near things and Adam divides by its moments.
        rtol = 1e-5 if name == "loss" else 1e-4
        np.testing.assert_allclose(found, expected, rtol=rtol)


def test_rows_go_where_the_mesh_has_them(tmp_path):
    """The order of devices is not that of the hosts; hosts share rows along tensor."""
    with Processes([], 2, 2, tmp_path, module="place_rows") as running:
        running.succeed()


@pytest.mark.slow
def test_the_log_says_who_joined(runs):
    assert "joined by SLURM (SLURM_STEP_NUM_TASKS=2" in runs[2][2][0]
    assert "joined by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES" in runs[4][2][0]
    assert "of 4 processes: data 4 x fsdp 1" in runs[4][2][0]
    assert "joined" not in runs[1][2][0]
    assert "step 8/8" not in runs[4][2][1], "a second process shows progress"
