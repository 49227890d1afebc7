"""Starts a command as several real processes, for tests of runs of many hosts."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def by_options(index: int, count: int, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line names the processes."""
    options = ["--coordinator", f"localhost:{port}", "--num_processes", str(count)]
    return [*options, "--process_id", str(index)], {}


def by_environment(index: int, count: int, port: int):
    """Variables of jax name them."""
    return [], {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }


def by_slurm(index: int, count: int, port: int):
    """What srun sets for a task, as far as jax and we read it."""
    return [], {
        # jax makes the port of the number of the job.
        "SLURM_JOB_ID": str(port % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_TASKS_PER_NODE": str(count),
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


class Processes(list[subprocess.Popen]):
    """Running processes of one command; leaves none behind.

    Args:
      argv: of the module, after its name.
      processes: how many.
      devices: CPU devices of each.
      logs: folder; process P writes its output to P.log.
      module: what `python -m` runs.
      named: how each learns of the others; None starts one process that has none.
      environ: more variables.
    """

    def __init__(
        self,
        argv: Sequence[str],
        processes: int,
        devices: int,
        logs: Path,
        module: str = "medclip_jax.train",
        named=by_options,
        environ: dict[str, str] | None = None,
    ):
        super().__init__()
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        flags = f"--xla_force_host_platform_device_count={devices}"
        for index in range(processes):
            options, variables = [], {}
            if processes > 1 or named is not by_options:
                options, variables = named(index, processes, port)
            with (logs / f"{index}.log").open("w") as log:
                self.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, *argv, *options],
                        cwd=ROOT,
                        env={
                            **os.environ,
                            "JAX_PLATFORMS": "cpu",
                            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
                            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
                            **variables,
                            **(environ or {}),
                        },
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self:
            if process.poll() is None:
                process.kill()
                process.wait()

    def log(self, index: int) -> str:
        """Without the long list that `faulthandler` prints last."""
        text = (self.logs / f"{index}.log").read_text(errors="replace")
        return re.sub(r"^Extension modules: .*\n", "", text, flags=re.MULTILINE)

    def ends(self, seconds: float = 300, of: Sequence[int] | None = None) -> list[int]:
        """Exit statuses; fails where one does not end in that time."""
        until = time.monotonic() + seconds
        found = []
        for index in range(len(self)) if of is None else of:
            try:
                left = max(0.01, until - time.monotonic())
                found.append(self[index].wait(left))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"process {index} still runs after {seconds} seconds:\n"
                    + self.log(index)[-3000:]
                ) from None
        return found

    def succeed(self, seconds: float = 300) -> None:
        """Waits for all, and fails with the log of one that failed."""
        for index, status in enumerate(self.ends(seconds)):
            assert status == 0, f"process {index}: {status}\n{self.log(index)[-4000:]}"

    def wait_for_lines(self, path: Path, lines: int, seconds: float = 240) -> None:
        """Until a file has so many lines."""
        until = time.monotonic() + seconds
        while not path.exists() or path.read_text().count("\n") < lines:
            assert all(p.poll() is None for p in self), self.log(0)[-3000:]
            assert time.monotonic() < until, self.log(0)[-3000:]
            time.sleep(0.02)
