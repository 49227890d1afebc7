"""A host that dies, stands still or differs: all end, soon, and nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launcher import by_options, free_port

from medclip_jax.runtime.metrics import read_lines

HEARTBEAT = 8
# jax looks for heartbeats as often as they come; loading a machine takes its time.
SOON = 3 * HEARTBEAT
STEPS = 20
SHORT = [
    f"--config.hosts.heartbeat_seconds={HEARTBEAT}",
    f"--config.train.steps={STEPS}",
    "--config.checkpoint.every_steps=2",
]


def without_times(workdir):
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_lines(workdir / "metrics.jsonl")
    ]


def complete(workdir):
    """Steps with a complete checkpoint."""
    folders = (workdir / "checkpoints").glob("*/commit_success.txt")
    return sorted(int(found.parent.name) for found in folders)


def went_on_after(log):
    return [int(step) for step in re.findall(r"going on after step (\d+)\n", log)]


@pytest.fixture(scope="module")
def untouched(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("untouched") / "work"
    with start(workdir, 2, 1, *SHORT) as running:
        running.succeed()
    return without_times(workdir)


@pytest.mark.slow
def test_a_host_that_dies_or_stands_still(start, untouched, tmp_path):
    """One process of two, the coordinator or the other, at any step."""
    workdir = tmp_path / "work"
    lines, kept = 0, []
    for index, number in (
        (1, signal.SIGKILL),
        (0, signal.SIGKILL),
        (1, signal.SIGSTOP),
        (0, signal.SIGSTOP),
    ):
        lines += 3
        with start(workdir, 2, 1, *SHORT) as running:
            running.wait_for_lines(workdir / "metrics.jsonl", lines)
            assert went_on_after(running.log(0)) == kept[-1:]
            running[index].send_signal(number)
            saved = complete(workdir)
            started = time.monotonic()
            (status,) = running.ends(SOON, of=[1 - index])
            print(number.name, index, status, f"{time.monotonic() - started:.1f} s")
            assert status not in (0, 2)  # to be started again
            if number == signal.SIGSTOP:  # and when it moves again, it ends too
                running[index].send_signal(signal.SIGCONT)
                assert running.ends(SOON, of=[index])[0] not in (0, 2)
            log = running.log(1 - index)
        assert re.search(r'File ".*train.py", line \d+,? in main', log), log[-3000:]
        assert "Traceback" in log or "Fatal Python error: Aborted" in log
        kept = complete(workdir)
        assert max(kept, default=0) >= max(saved, default=0), "a checkpoint is lost"
        lines = len(without_times(workdir))
    with start(workdir, 2, 1, *SHORT) as running:
        running.succeed()
        assert went_on_after(running.log(0)) == kept[-1:] != []
    found = without_times(workdir)
    expected = {line["step"]: line for line in untouched}
    assert all(line == expected[line["step"]] for line in found), "other bits"
    assert {line["step"] for line in found} == set(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "step", "options", "message"),
    [
        # The heartbeats go on: only the work of one process has stopped.
        (
            "input",
            3,
            ["--config.train.watchdog_seconds=10"],
            "watchdog: nothing happened for 10 seconds while training after step",
        ),
        (
            "before_save",
            3,
            ["--config.hosts.meet_seconds=20"],
            r"waited 2\d seconds for process 1 of 2 before saving step 4\..*start the same",
        ),
        (
            "input",
            0,
            ["--config.hosts.meet_seconds=20"],
            r"waited 2\d seconds for process 1 of 2 before the first step",
        ),
    ],
)
def test_a_host_that_stops_working(start, tmp_path, where, step, options, message):
    workdir = tmp_path / "work"
    with start(
        workdir, 2, 1, *SHORT, *options,
        module="stalling_train", environ={"STALL": where, "FROM_STEP": str(step)},
    ) as running:  # fmt: skip
        if step:
            running.wait_for_lines(workdir / "metrics.jsonl", 2)
        statuses = running.ends(20 + SOON if step else 240)
        logs = [running.log(index) for index in range(2)]
    assert not {0, 2} & set(statuses), statuses  # to be started again
    # Where each has a watchdog, either may be first; the other then ends as well.
    assert re.search(message, "".join(logs), re.DOTALL), logs[0][-3000:]
    ends = "watchdog: nothing|because another is lost|Fatal Python error: Aborted"
    for log in logs:
        assert re.search(ends, log), log[-3000:]
        assert re.search(r'File ".*train.py", line \d+,? in main', log), log[-3000:]
    # The stack of the one that stalls tells where.
    assert "in wait_for_ever" in logs[1], logs[1][-3000:]
    assert complete(workdir) == ([2] if step else [])


@pytest.mark.slow
def test_a_user_s_error_of_one_host_ends_all_with_its_status(
    start, tiny_data, tmp_path
):
    """A shard that is cut short on one host's own disk; the other waits for it."""
    workdir = tmp_path / "work"
    copies = [shutil.copytree(tiny_data, tmp_path / f"shards{n}") for n in range(2)]

    def own_shards(index, count, port):
        options, _ = by_options(index, count, port)
        return [*options, f"--data={copies[index]}"], {}

    with start(
        workdir, 2, 1, *SHORT, "--config.data.max_bad_rate=0.0", named=own_shards,
        environ={"PYTHONFAULTHANDLER": "1"},
    ) as running:  # fmt: skip
        running.wait_for_lines(workdir / "metrics.jsonl", 2)
        (shard,) = (copies[1] / "mimic_cxr" / "images").glob("*-train.array_record*")
        os.truncate(shard, 65536)
        started = time.monotonic()
        assert running.ends(SOON) == [2, 2], running.log(0)[-3000:]
        print(f"{time.monotonic() - started:.1f} s")
        own, other = running.log(1), running.log(0)
    assert f"copy {shard} again" in own.splitlines()[-1]
    assert re.search(f"what happened in process 1 of 2: .*copy {shard} again", other)
    assert "Traceback" not in own
    assert complete(workdir)


def test_no_other_comes(start, tmp_path):
    started = time.monotonic()
    with start(
        tmp_path / "work", 1, 1, "--config.hosts.join_seconds=3",
        "--coordinator=localhost:9", "--num_processes=2", "--process_id=1",
    ) as running:  # fmt: skip
        assert running.ends(60) == [1]  # the others may be there at the next try
        log = running.log(0)
    assert "found --coordinator, --num_processes, --process_id" in log
    assert "process 1 waited 3 seconds at localhost:9 for 2" in log
    assert "Traceback" not in log
    assert time.monotonic() - started < 45


LEAVING = """
import atexit, sys, threading
atexit.register(lambda: print("left:", [t.name for t in threading.enumerate()]))
from medclip_jax.runtime import cluster, hosts
hosts.join(cluster.Settings("here", sys.argv[1], 1, 0), 30, 100)
assert "ended" in [thread.name for thread in threading.enumerate()]
"""


def test_no_thread_outlives_the_run():
    """One inside a call of C++ comes back to an interpreter that ends: SIGABRT."""
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING, f"localhost:{free_port()}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == "left: ['MainThread']\n"


@pytest.mark.slow
def test_hosts_with_another_config_or_workdir(start, tmp_path):
    def differ(index, count, port):
        options = ["--coordinator", f"localhost:{port}", "--num_processes", str(count)]
        return [*options, "--process_id", str(index), f"--seed={index}"], {}

    with start(tmp_path / "work", 2, 1, named=differ) as running:
        assert running.ends(120) == [2, 2]
        for index in range(2):
            assert "not the same config: 1 of 2 differ" in running.log(index)
            assert "Traceback" not in running.log(index)

    def apart(index, count, port):
        options, _ = differ(index, count, port)
        return [*options[:-1], f"--workdir={tmp_path / str(index)}"], {}

    with start(
        tmp_path / "apart", 2, 1, f"--config.hosts.heartbeat_seconds={HEARTBEAT}",
        named=apart,
    ) as running:  # fmt: skip
        assert running.ends(180) == [2, 2]  # also the one that has nothing wrong
        said = "process 1 does not see what process 0 wrote there"
        assert said in running.log(1)
        assert re.search(f"what happened in process 1 of 2: .*{said}", running.log(0))
