"""Model FLOPs utilisation: what a step needs over what the devices could do.

MFU = 3 x forward FLOPs of a pair x pairs a second / peak FLOPs of all devices. The
backward pass counts as two forward passes; rematerialised work is not counted.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense bf16 FLOP/s a chip as jax sees it (v2, v3 and 7x: half of one), by the start of
# `device_kind`; the first that fits wins.
# Reference: cloud.google.com/tpu/docs/system-architecture-tpu-vm, NVIDIA data sheets.
PEAKS: tuple[tuple[str, float], ...] = (
    ("TPU7x", 1153.5e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v3", 61.5e12),
    ("TPU v2", 22.5e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L4", 121e12),
    ("Tesla V100", 125e12),
    ("Tesla T4", 65e12),
)


class Peak(NamedTuple):
    """Attributes:
    flops: a second, of all devices together.
    source: where the figure is from, for the log.
    """

    flops: float
    source: str


def peak(devices: list[jax.Device]) -> Peak:
    """Peak of all devices: from the table, or measured by a matrix product."""
    kind = devices[0].device_kind
    for prefix, flops in PEAKS:
        if kind.lower().startswith(prefix.lower()):
            total = flops * len(devices)
            return Peak(total, f"{total / 1e12:.0f} TFLOP/s, bf16 peak of {kind}")
    each = measure_matmul(jax.local_devices()[0])
    # Forced CPU devices share the cores that one of them already used in full.
    count = jax.process_count() if devices[0].platform == "cpu" else len(devices)
    total = each * count
    return Peak(
        total, f"{total / 1e9:.0f} GFLOP/s, measured by an f32 matmul here ({kind})"
    )


def measure_matmul(device: jax.Device, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of a float32 [size, size] product: the best of what fits in `seconds`."""
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
