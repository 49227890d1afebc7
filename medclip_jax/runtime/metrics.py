"""What a run writes of itself: metrics.jsonl, TensorBoard, the progress line.

metrics.jsonl holds one JSON object a logged step: `step`, `loss`, the rest by name.
Names under `time/` are measurements of this machine; all others are a function of
config, data and seed alone, so a step logged again after a restart gives equal values.

An object store has no appending. There both files are written to a local temporary
folder and put whole: every half minute, before each checkpoint and at the end. So what
a killed run had logged and not put yet is of steps after its newest checkpoint, which
the next start does, and logs, again.
"""

import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TextIO

from medclip_jax import storage
from medclip_jax.errors import UserError

TIME_PREFIX = "time/"
METRICS, BOARD = "metrics.jsonl", "tensorboard"
FLUSH_SECONDS = 30


class NonFiniteMetric(UserError):
    """The run has diverged, or a batch is broken: the same command would meet it again."""


def check_finite(
    step: int, metrics: Mapping[str, float], row_ids: Mapping[str, list[str]]
) -> None:
    """Stops the run at the first value that is not finite.

    Args:
      step: the update that gave the metrics (1 for the first).
      metrics: values by name.
      row_ids: ids of the rows of its batch by kind, never their content.

    Raises:
      NonFiniteMetric: naming step, metrics and rows, and what to try.
    """
    bad = {name: v for name, v in metrics.items() if not math.isfinite(v)}
    if not bad:
        return
    rows = "\n".join(f"  {kind}: {', '.join(ids)}" for kind, ids in row_ids.items())
    raise NonFiniteMetric(
        f"Step {step}: {', '.join(f'{name} is {v}' for name, v in bad.items())}. "
        "No checkpoint was made of it; the newest one is of an earlier step. Look at "
        "the rows of that batch, lower optimizer.learning_rate or "
        f"optimizer.clip_norm, or use model.dtype=float32.\n{rows}"
    )


class JsonLines:
    """Appends lines to metrics.jsonl; a line is whole or absent.

    Args:
      path: the file.
    """

    def __init__(self, path: Path):
        _drop_partial_line(path)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, `step` and `loss` first, then by name."""
        ordered: dict[str, float] = {"step": step}
        if "loss" in values:
            ordered["loss"] = values["loss"]
        ordered |= {name: values[name] for name in sorted(values)}
        line = (json.dumps(ordered) + "\n").encode()
        with storage.naming_full_disk(self._path, f"A line takes {len(line)} bytes"):
            while line:  # a disk that fills up takes a part without an error
                line = line[os.write(self._fd, line) :]

    def sync(self) -> None:
        """Until the lines would outlast a power cut."""
        with storage.naming_full_disk(self._path):  # a mount may say so only now
            os.fsync(self._fd)

    def close(self) -> None:
        with storage.naming_full_disk(self._path):
            os.close(self._fd)


def _drop_partial_line(path: Path) -> None:
    """Cuts off what a killed run left of a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, float]]:
    """All lines of a metrics.jsonl, a partial last one left out."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_values(path: Path) -> dict[str, float] | None:
    """The last logged step without its times; None where nothing was logged."""
    lines = read_lines(path) if path.is_file() else []
    values = lines[-1] if lines else {}
    return {k: v for k, v in values.items() if not k.startswith(TIME_PREFIX)} or None


def logged_at(workdir: Path, step: int) -> dict[str, float] | None:
    """What was logged of a step, without its times; None where it was not."""
    path = workdir / METRICS
    lines = read_lines(path) if path.is_file() else []
    found = [line for line in lines if line["step"] == step]
    if not found:
        return None
    drop = ("step", *(name for name in found[-1] if name.startswith(TIME_PREFIX)))
    return {name: value for name, value in found[-1].items() if name not in drop}


class Board:
    """Scalars for TensorBoard, written in this thread.

    tensorboardX's own writer has a thread and a queue of another: on a full disk the
    thread ends, the queue fills up, and the run waits for it for ever.

    Args:
      folder: of the event files.
    """

    def __init__(self, folder: Path):
        # Imported here: reading metrics needs no protobuf.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._folder, self._event, self._scalar = folder, Event, scalar
        self._flushed = time.monotonic()
        with self._naming():
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))

    def _naming(self) -> contextlib.AbstractContextManager[None]:
        return storage.naming_full_disk(self._folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one value of each name; on disk after half a minute."""
        with self._naming():
            for name, value in values.items():
                summary = self._scalar(name, value)
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._events.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        with self._naming():
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with self._naming():
            self._events.close()


class Writer:
    """JSONL and TensorBoard together; only process 0 writes.

    Args:
      workdir: holds metrics.jsonl and tensorboard/; may be remote.
      active: False on the other processes.
    """

    def __init__(self, workdir: Path, active: bool = True):
        self._workdir = workdir
        self._lines = self._board = self._spool = None
        if not active:
            return
        folder = workdir
        if storage.is_remote(workdir):
            self._spool = tempfile.TemporaryDirectory(prefix="medclip_jax_")
            self._flushed = time.monotonic()
            folder = Path(self._spool.name)
            if (workdir / METRICS).exists():
                storage.download(workdir / METRICS, folder / METRICS)
        self._lines = JsonLines(folder / METRICS)
        self._board = Board(folder / BOARD)

    def write(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float]
    ) -> None:
        """Writes one logged step.

        Args:
          step: updates done.
          values: functions of config, data and seed.
          times: of this machine; stored under `time/`.

        Raises:
          UserError: the disk is full.
        """
        if self._lines is None or self._board is None:
            return
        timed = {TIME_PREFIX + name: value for name, value in times.items()}
        self._lines.write(step, {**values, **timed})
        self._board.write(step, {**values, **timed})
        if self._spool and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts what was written so far where it lasts; call it before a checkpoint is
        saved, so that no step before it is missing from the metrics."""
        if self._lines is None or self._board is None:
            return
        self._lines.sync()
        self._board.flush()
        if self._spool is None:
            return
        storage.upload(Path(self._spool.name), self._workdir)
        self._flushed = time.monotonic()

    def close(self) -> None:
        if self._lines is None or self._board is None:
            return
        self._lines.close()
        self._board.close()
        if self._spool is not None:
            storage.upload(Path(self._spool.name), self._workdir)
            self._spool.cleanup()
        self._lines = self._board = self._spool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except UserError:
            if kind is None:  # else what ended the run is what is to be told
                raise


def _duration(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole:02d}s"


class Progress:
    """One line that says how far and how fast: rewritten on a terminal, else appended.

    Args:
      total: steps of the run.
      stream: where to.
      active: False on the other processes.
    """

    def __init__(self, total: int, stream: TextIO | None = None, active: bool = True):
        self._total = total
        self._stream = stream or sys.stderr
        self._active = active
        self._tty = self._stream.isatty()
        self._width = 0

    def update(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float]
    ) -> None:
        """Shows a logged step; `times` as `Clock.lap` gives them."""
        parts = [f"step {step}/{self._total}", f"loss {values['loss']:.4f}"]
        parts += [f"{name} {values[name]:.3f}" for name in values if "/" in name]
        if "pairs_per_second" in times:
            parts.append(f"{times['pairs_per_second']:.1f} pairs/s")
        if "input_wait_percent" in times:
            parts.append(f"input wait {times['input_wait_percent']:.0f} %")
        if "mfu_percent" in times:
            parts.append(f"MFU {times['mfu_percent']:.1f} %")
        if "eta_seconds" in times:
            parts.append(f"ETA {_duration(times['eta_seconds'])}")
        self.line("  ".join(parts), transient=self._tty)

    def line(self, text: str, transient: bool = False) -> None:
        """Prints a line; a transient one is overwritten by the next."""
        if not self._active:
            return
        clear = "\r" + " " * self._width + "\r" if self._width else ""
        self._stream.write(clear + text + ("" if transient else "\n"))
        self._stream.flush()
        self._width = len(text) if transient else 0


class Clock:
    """Time of the steps between two logged ones, without evaluation and compile.

    Args:
      batch_size: global rows of a step.
      total: steps of the run.
      flops_per_step: of all devices, forward and backward; None where unknown.
      peak_flops: a second, of all devices; None where unknown.
    """

    def __init__(
        self,
        batch_size: int,
        total: int,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
    ):
        self._batch_size, self._total = batch_size, total
        self._flops, self._peak = flops_per_step, peak_flops
        self.restart()

    def restart(self) -> None:
        """Leaves out what happened since the last lap."""
        self._started = time.perf_counter()
        self._steps = 0
        self._waited = 0.0

    def count(self, input_seconds: float) -> None:
        """Counts one step, and how long it waited for its batch."""
        self._steps += 1
        self._waited += input_seconds

    def lap(self, step: int) -> dict[str, float]:
        """Times since the last lap, and starts a new one; {} without a step."""
        elapsed = time.perf_counter() - self._started
        steps, waited = self._steps, self._waited
        self.restart()
        if not steps:
            return {}
        each = elapsed / steps
        times = {
            "step_seconds": each,
            "pairs_per_second": self._batch_size / each,
            "input_wait_seconds": waited / steps,
            "input_wait_percent": 100 * waited / elapsed,
            "eta_seconds": each * (self._total - step),
        }
        if self._flops and self._peak:
            times["mfu_percent"] = 100 * self._flops / each / self._peak
        return times
