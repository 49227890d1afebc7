"""Joining the processes of a run, and the points where they wait for each other.

A run of several hosts is one process a host (or a GPU), started by the same command
everywhere. They find each other through the coordinator, a service in process 0
(docs.jax.dev, "Introduction to multi-controller JAX"). From then on no process
outlives another for long:

- one that dies or stands still sends no heartbeats, and jax ends the others after
  `heartbeat_seconds`, with the stacks that `faulthandler` prints;
- one that does not come where all must meet is named by those that wait for it, and
  these end after `meet_seconds`;
- one that hangs in its own work is ended by its own watchdog, and then the first;
- one that ends by a user's error tells the others, and they end with its status: what
  starts them again sees that this would not help.
"""

import atexit
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

from medclip_jax.errors import TryAgain, UserError
from medclip_jax.runtime.cluster import OPTIONS, Settings

# Codes that XLA's errors begin with when a collective or the coordinator fails, and
# not when a program is wrong or does not fit. TensorStore's begin with the same ones,
# of files: what a restore raises is judged by `errors.passing` and never comes here.
_LOST = re.compile(
    r"\s*(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|"
    r"FAILED_PRECONDITION)\b"
)
# jax ends a process that cannot join without a Python error; ours comes before it.
_GRACE = 30
EXIT_STATUS = 1
# Where a process that ends by a user's error says so, in the coordinator's store.
_ENDED = "medclip_jax/ended"
_leaving = threading.Event()  # this process ends, and says itself why


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
      UserError: what names the processes cannot be.
      TryAgain: they could not be joined. Where the others do not come, the process
        prints why and exits with the same status: jax offers no error to catch.
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
        os._exit(TryAgain.status)

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
        kind = UserError if isinstance(error, ValueError) else TryAgain
        raise kind(
            f"several processes: found {settings.source}, but jax could not join them: "
            f"{error}. Name them by {', '.join(OPTIONS)}, or run alone by "
            "--one_process."
        ) from error
    finally:
        timer.cancel()
    heeding = threading.Thread(
        target=_heed_others, args=(heartbeat_seconds,), name="ended", daemon=True
    )
    heeding.start()
    atexit.register(_stop, heeding, heartbeat_seconds)


def _stop(heeding: threading.Thread, seconds: float) -> None:
    """Before the interpreter ends: it aborts where a thread comes back to it then."""
    _leaving.set()
    heeding.join(seconds)


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

    Leaving as usual would wait for the lost one; what others wait for, ends now. A
    user's error of this process is told to the others.
    """
    try:
        yield
    except UserError as error:
        _leaving.set()
        _tell_others(error)
        raise
    except Exception as error:
        if not is_loss(error):
            raise
        _end(error)


def _tell_others(error: UserError) -> None:
    if not jax.distributed.is_initialized() or isinstance(error, TryAgain):
        return
    said = f"{jax.process_index()} of {jax.process_count()}: {error}"
    # Another may have told its own already; or the coordinator is no more.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        ocp.multihost.get_jax_distributed_client().key_value_set(_ENDED, said)


def _told(client: Any) -> str | None:
    """What another process said of its end."""
    try:
        return client.key_value_try_get(_ENDED)
    except jax.errors.JaxRuntimeError:  # nobody said anything, as a rule
        return None


def _heed_others(heartbeat_seconds: float) -> None:
    """Ends this process when another told that it ends by a user's error.

    The one that told waits for this one for `heartbeat_seconds`; a third of that is
    left to this one to end a save, or to come to the same error.
    """
    client = ocp.multihost.get_jax_distributed_client()
    while (said := _told(client)) is None:
        if _leaving.wait(min(5.0, heartbeat_seconds / 10)):
            return
    if _leaving.wait(heartbeat_seconds / 3):
        return
    _say_why(said)
    # Meets the one that told, or jax would end it for having lost this one.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.shutdown()
    os._exit(UserError.status)


def _say_why(said: str) -> None:
    print(
        f"\nmedclip-jax: error: this run ends, by what happened in process {said}",
        file=sys.__stderr__ or sys.stderr,
        flush=True,
    )


def _end(error: Exception) -> NoReturn:
    _leaving.set()
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
    # Asked last: where the coordinator is gone, jax ends this process meanwhile.
    said = _told(ocp.multihost.get_jax_distributed_client())
    if said is not None:
        _say_why(said)
    if jax.process_index() == 0:
        time.sleep(2)  # with the coordinator gone, jax ends the others in mid-word
    os._exit(EXIT_STATUS if said is None else UserError.status)
