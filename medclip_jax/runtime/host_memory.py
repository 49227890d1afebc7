"""How this process keeps the memory that a step on a CPU frees."""

import contextlib
import ctypes
import importlib.util
import os
from importlib import metadata

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Lets glibc hand a step the memory of the step before; call it before jax starts.

    XLA on a CPU takes hundreds of MB anew for each step. glibc maps blocks of that size
    one by one and unmaps them when they are freed, so the kernel clears them all again:
    up to a quarter of a small step. One heap that never shrinks holds them instead;
    it is one for all threads, since those of others cannot grow to that size.

    Returns:
      Whether it was done: False where there may be an accelerator, whose host threads
      rather have heaps of their own, or where the C library is not glibc.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        if platforms != "cpu":
            return False
    elif importlib.util.find_spec("libtpu") or metadata.entry_points(
        group="jax_plugins"
    ):
        return False
    # -1: never, where the largest number that it takes, 2 GiB, is less than a step's.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        return all(libc.mallopt(name, value) == 1 for name, value in settings)
    return False
