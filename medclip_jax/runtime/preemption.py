"""SIGTERM and SIGINT: save and leave with status 0."""

import signal
import threading
from types import FrameType
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

# Asking all processes costs a small collective and a wait for the device.
ASK_EVERY_STEPS = 10


class Preempted(Exception):
    """Raised out of an evaluator, to save at once."""


class Preemption:
    """Catches the signals while it is entered; a second SIGINT interrupts for real.

    Attributes:
      requested: whether this process got a signal.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self.signal_name = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only (tests may run in another).
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.signal_name = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether any process got a signal: every process must ask at this point.

        Saving is a collective act, so all processes must stop at the same step.
        """
        if jax.process_count() == 1:
            return self.requested
        flags = multihost_utils.process_allgather(np.int32(self.requested))
        self.requested = bool(np.any(flags))
        return self.requested

    def agreed_at(self, step: int) -> bool:
        """As `agreed`, but several processes ask each other only now and then.

        Args:
          step: the same on all processes when they call this.
        """
        if jax.process_count() > 1 and step % ASK_EVERY_STEPS:
            return False
        return self.agreed()

    def check(self) -> None:
        """Raises `Preempted` when `agreed`; for the inside of evaluators."""
        if self.agreed():
            raise Preempted
