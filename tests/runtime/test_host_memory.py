"""The page faults of steps on a CPU, counted in processes of their own."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from medclip_jax.runtime import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed()
import jax, jax.numpy as jnp
@jax.jit
def step(x):  # the barrier makes it hold 40 MB in between
    return jax.lax.optimization_barrier(x * 2.0)[::-1] + 1.0
x = jnp.arange(10_000_000, dtype=jnp.float32)
for _ in range(20):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_step_gets_the_memory_of_the_step_before():
    assert faults("kept") < 0.2 * faults("plain")


LARGE = """
import ctypes, resource
from medclip_jax.runtime import host_memory
assert host_memory.keep_freed()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(5 << 29)
    libc.memset(block, 1, 5 << 29)
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_step_of_more_than_2_gib_gets_its_memory_too():
    """glibc gives back what is free at the heap's end above a threshold."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = map(int, done.stdout.split())
    assert second < 0.2 * first


def test_accelerators_keep_their_heaps(monkeypatch):
    from medclip_jax.runtime import host_memory

    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert not host_memory.keep_freed()
