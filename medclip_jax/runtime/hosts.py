"""Joining the processes of a run, and the points where they wait for each other.

A run of several hosts is one process a host (or a GPU), started by the same command
everywhere. They find each other through the coordinator, a service in process 0
(docs.jax.dev, "Introduction to multi-controller JAX"). From then on no process
outlives another for long:

- one that dies or stands still sends no heartbeats, and jax ends the others after
  `heartbeat_seconds`, with the stacks that `faulthandler` prints;
- one that does not come where all must meet is named by those that wait for it, and
  these end after `meet_seconds`;
- one that hangs in its own work is ended by its own watchdog, and then the first.
"""

import contextlib
import faulthandler
import hashlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from medclip_jax.errors import UserError
from medclip_jax.runtime.cluster import OPTIONS, Settings

# Codes that XLA's errors begin with when a collective or the coordinator fails, and
# not when a program is wrong or does not fit.
_LOST = re.compile(
    r"\s*(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|"
    r"FAILED_PRECONDITION)\b"
)
# jax ends a process that cannot join without a Python error; ours comes before it.
_GRACE = 30
EXIT_STATUS = 1


class Lost(RuntimeError):
    """Another process did not come, or is no more."""


def join(settings: Settings, join_seconds: float, heartbeat_seconds: float) -> None:
    """Waits for the other processes, before jax is asked for its devices.

    Args:
      settings: of `cluster.find`.
      join_seconds: how long to wait for them.
      heartbeat_seconds: how long one may be silent before jax ends the others; also
        how long one that leaves with an error waits for the others to leave too.

    Raises:
      UserError: jax cannot tell what is missing. Where the others do not come, the
        process prints why and exits with status 2: jax offers no error to catch.
    """
    stream = sys.__stderr__ or sys.stderr
    # jax ends a process by SIGABRT when another is lost: this prints its stacks.
    faulthandler.enable(file=stream, all_threads=True)
    # Ours saves on SIGTERM; jax's own would keep it from ending a run that starts.
    jax.config.update("jax_enable_preemption_service", False)
    where = settings.coordinator or "the address that the cluster names"
    which = f"process {settings.index}" if settings.index is not None else "this one"

    def give_up() -> None:
        print(
            f"medclip-jax: error: several processes: found {settings.source}; {which} "
            f"waited {join_seconds:g} seconds at {where} for "
            f"{settings.count or 'all'} of them to join. Check that the same command "
            "runs on every host, each with its own index, that process 0 runs where "
            "the address points, and that its port is free and reachable; a slow "
            "start may need a larger --config.hosts.join_seconds. --one_process runs "
            "alone.",
            file=stream,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(join_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.count,
            settings.index,
            local_device_ids=settings.gpus,
            initialization_timeout=int(join_seconds) + _GRACE,
            heartbeat_timeout_seconds=int(heartbeat_seconds),
            shutdown_timeout_seconds=int(heartbeat_seconds),
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"several processes: found {settings.source}, but jax could not join them: "
            f"{error}. Name them by {', '.join(OPTIONS)}, or run alone by "
            "--one_process."
        ) from error
    finally:
        timer.cancel()


class Meetings:
    """Points that every process comes to, in the same order.

    Args:
      seconds: how long one waits for the others.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._number = 0

    def meet(self, what: str) -> None:
        """Waits until all processes are here; at once in a run of one.

        Args:
          what: what they are about to do together, for the message.

        Raises:
          Lost: some did not come in time; those that jax can tell are named.
        """
        self._number += 1
        if jax.process_count() == 1:
            return
        wait = ocp.multihost.get_barrier_sync_fn()
        started = time.monotonic()
        try:
            wait(key=f"{self._number}: {what}", timeout_ms=int(self._seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise Lost(
                f"waited {time.monotonic() - started:.0f} seconds for "
                f"{_absent(str(error))} before {what}. What they do instead is in their own logs; where they are "
                "only slow, set a larger --config.hosts.meet_seconds"
            ) from error


def _absent(text: str) -> str:
    """The processes that a barrier's error names, one a line."""
    _, found, rest = text.partition("timed out task names:")
    names = re.findall(r"(\d+)\s*$", rest.strip().split("\n\n")[0], re.MULTILINE)
    if not found or not names:
        return f"the other processes ({text.splitlines()[0][:200]})"
    several = "processes" if len(names) > 1 else "process"
    return f"{several} {', '.join(names)} of {jax.process_count()}"


def check_same(facts: Mapping[str, Any]) -> None:
    """Compares between all processes what must be the same; they must all call it.

    Args:
      facts: JSON data by name.

    Raises:
      UserError: naming what differs, and in which processes.
    """
    if jax.process_count() == 1:
        return
    digests = [
        hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest()
        for fact in facts.values()
    ]
    mine_FxB = np.array([list(digest) for digest in digests], np.uint8)
    all_PxFxB = multihost_utils.process_allgather(mine_FxB)
    for number, name in enumerate(facts):
        other = np.flatnonzero((all_PxFxB[:, number] != all_PxFxB[0, number]).any(1))
        if len(other):
            raise UserError(
                f"the processes of this run have not the same {name}: "
                f"{', '.join(map(str, other))} of {jax.process_count()} differ from "
                "process 0. Start the same command, with the same program and the same "
                "shards, on every host."
            )


def is_loss(error: BaseException | None) -> bool:
    """Whether an error means that another process of the run is lost."""
    if isinstance(error, Lost):
        return True
    return (
        isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        and not isinstance(error, UserError)
        and jax.distributed.is_initialized()
        and _LOST.match(str(error)) is not None
    )


@contextlib.contextmanager
def end_when_lost() -> Iterator[None]:
    """Ends this process, with all stacks, when another is lost.

    Leaving as usual would wait for the lost one; what others wait for, ends now.
    """
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            raise
        _end(error)


def _end(error: Exception) -> NoReturn:
    stream = sys.__stderr__ or sys.stderr
    traceback.print_exception(error, file=stream)
    print(
        f"\nmedclip-jax: process {jax.process_index()} of {jax.process_count()} ends, "
        "because another is lost or what they do together failed: "
        f"{str(error).strip().splitlines()[0]}. The newest complete checkpoint is "
        "whole: start the same command again on every host to go on from there. The "
        "stacks of all threads follow.",
        file=stream,
        flush=True,
    )
    faulthandler.dump_traceback(file=stream, all_threads=True)
    stream.flush()
    if jax.process_index() == 0:
        time.sleep(2)  # with the coordinator gone, jax ends the others in mid-word
    os._exit(EXIT_STATUS)
