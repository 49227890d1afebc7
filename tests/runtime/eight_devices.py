"""Run with 8 forced CPU devices by test_eight_devices.py; prints one JSON object.

python -m tests.runtime.eight_devices gradients swin
"""

import json
import os
import sys
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from medclip_jax.runtime.checkpoint import Checkpoints
from tests.runtime import small

SPLIT = {"data": 4, "fsdp": 2, "tensor": 1}


def _trainers(image: str, steps: int) -> tuple[small.Trainer, small.Trainer]:
    config = small.config(image, steps=steps)
    single = small.Trainer(config, 1)
    config.mesh.update(SPLIT)
    return single, small.Trainer(config, 8)


def compare(image: str, steps: int) -> dict:
    """Losses on 1 and on 8 devices, and how far the gradients of step 0 are apart."""
    single, split = _trainers(image, steps)
    grad_1, grad_8 = single.gradient(single.state()), split.gradient(split.state())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grad_1))
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), grad_1, grad_8)
    specs = [str(s.spec) for s in jax.tree.leaves(split.shardings.variables)]
    return {
        "gradient": max(jax.tree.leaves(apart)) / float(largest),
        "losses_1": single.run(single.state(), steps)[1],
        "losses_8": split.run(split.state(), steps)[1],
        "split": sum("fsdp" in spec for spec in specs),
    }


def restore(image: str) -> dict:
    """Saves on one mesh, restores on others, and goes on."""
    single, split = _trainers(image, 4)
    config = small.config(image, steps=4)
    config.mesh.update({"data": 2, "fsdp": 2})
    half = small.Trainer(config, 4)
    results = {}
    pairs = {
        "8 to 8": (split, split),
        "8 to 4": (split, half),
        "8 to 1": (split, single),
        "1 to 8": (single, split),
    }
    for name, (source, goal) in pairs.items():
        state, _ = source.run(source.state(), 2)
        saved = jax.tree.map(np.asarray, state)
        with tempfile.TemporaryDirectory() as folder:
            with Checkpoints(folder, "loss") as checkpoints:
                checkpoints.save(2, state, {"pending": None}, {})
            with Checkpoints(folder, "loss") as checkpoints:
                restored, _ = checkpoints.restore(2, goal.target)
        same = jax.tree.map(
            lambda a, b: bool((a == np.asarray(b)).all()), saved, restored
        )
        placed = jax.tree.map(lambda a, s: a.sharding == s, restored, goal.shardings)
        _, losses = goal.run(restored, 2)
        _, expected = source.run(state, 2)
        results[name] = {
            "same": all(jax.tree.leaves(same)),
            "placed": all(jax.tree.leaves(placed)),
            "losses": losses,
            "expected": expected,
        }
    return results


if __name__ == "__main__":
    what, image, *rest = sys.argv[1:]
    result = compare(image, int(rest[0])) if what == "compare" else restore(image)
    print(json.dumps(result))
