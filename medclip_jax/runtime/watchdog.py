"""Ends a run that hangs, with the stacks of all threads."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

EXIT_STATUS = 1


class Watchdog:
    """Dumps all stacks and exits when nobody called `beat` for too long.

    The first step may compile for longer than any later one takes, so the watch
    begins with the first beat.

    Args:
      seconds: longest time between two beats; 0 switches it off.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._doing = "starting"
        self._beat: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.seconds > 0:
            self._thread = threading.Thread(
                target=self._watch, name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread is not None:
            self._thread.join()

    def beat(self, doing: str) -> None:
        """Says that the run is alive, and what it does next."""
        if self.seconds <= 0:
            return
        self._doing = doing
        self._beat = time.monotonic()
        # A native call that holds the interpreter lock would stop our own thread;
        # faulthandler's needs no lock. It comes a little later, as the last resort.
        faulthandler.dump_traceback_later(
            self.seconds * 1.1 + 5, exit=True, file=sys.__stderr__ or sys.stderr
        )

    def pause(self) -> None:
        """Stops watching until the next beat, e.g. for a compile."""
        self._beat = None
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            beat = self._beat
            if beat is not None and time.monotonic() - beat > self.seconds:
                self._end()

    def _end(self) -> None:
        stream = sys.__stderr__
        assert stream is not None
        print(
            f"\nwatchdog: nothing happened for {self.seconds:g} seconds while "
            f"{self._doing}; the stacks of all threads follow. The newest checkpoint "
            "is whole: start the same command again to go on. A slower machine may "
            "need a larger --config.train.watchdog_seconds.",
            file=stream,
            flush=True,
        )
        faulthandler.dump_traceback(file=stream, all_threads=True)
        stream.flush()
        os._exit(EXIT_STATUS)
