"""Run by test_eight_devices.py in a process of its own; prints one JSON object.

python -m tests.runtime.eight_devices compare swin 200
"""

import json
import os
import sys
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from medclip_jax.losses import ring
from medclip_jax.runtime import checkpoint as checkpoint_lib
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import state as state_lib
from tests.runtime import small


def compare(image: str, steps: int, method: str = "medclip") -> dict:
    """1 device against data 4 x fsdp 2: the gradient of step 0, and the losses."""
    config = small.config(image, steps=200, method=method)
    config.optimizer.clip_norm = 0.0
    single = small.Trainer(config, 1)
    config.mesh.update({"data": 4, "fsdp": 2, "tensor": 1})
    split = small.Trainer(config, 8)
    gradient_1, _ = single.first_gradient()
    split.initial = single.initial
    gradient_8, _ = split.first_gradient()
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient_1))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradient_1, gradient_8)
    specs = [str(s.spec) for s in jax.tree.leaves(split.shardings.variables)]
    return {
        "gradient": float(max(jax.tree.leaves(apart)) / largest),
        "losses_1": single.run(single.state(), steps)[1],
        "losses_8": split.run(split.state(), steps)[1],
        "split": sum("fsdp" in spec for spec in specs),
    }


def cached(image: str, parts: int) -> dict:
    """The gradient of step 0 in parts against the whole, on 1 device and on 8."""
    found = {}
    initial = None
    for devices, sizes in ((1, {"data": 1}), (8, {"data": 4, "fsdp": 2})):
        gradients = []
        for micro_batches in (1, parts):
            config = small.config(image, batch_size=64)
            config.optimizer.clip_norm = 0.0
            config.train.micro_batches = micro_batches
            config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, **sizes})
            trainer = small.Trainer(config, devices)
            trainer.initial = initial
            gradients.append(trainer.first_gradient())
            initial = trainer.initial
        (whole, loss), (in_parts, same_loss) = gradients
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole, in_parts)
        found[str(devices)] = {
            "gradient": float(max(jax.tree.leaves(apart)) / largest),
            "losses": [loss, same_loss],
        }
    return found


def gradient_in_float64(image: str, seed: int) -> float:
    """1 device against data 4 x fsdp 2: the gradient of step 0, the towers in float64.

    In float32 a ReLU whose input lies within rounding of 0 passes its gradient on one
    side and blocks it on the other: for some seeds the two differ by 1e-3 and both are
    right. In float64 no input lies so near, and only the sharding can differ.
    """
    gradients, initial = [], None
    for devices, sizes in ((1, {"data": 1}), (8, {"data": 4, "fsdp": 2})):
        config = small.config(image)
        config.seed, config.model.dtype = seed, "float64"
        config.optimizer.clip_norm = 0.0
        config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, **sizes})
        trainer = small.Trainer(config, devices)
        trainer.initial = initial
        gradients.append(trainer.first_gradient()[0])
        initial = trainer.initial
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), *gradients)
    return float(max(jax.tree.leaves(apart)) / largest)


def spec_of(array: jax.Array) -> list:
    """The mesh axis of each dimension; its repr differs between versions of jax."""
    axes = list(array.sharding.spec)
    return axes + [None] * (array.ndim - len(axes))


def _toy(sizes: dict, devices: int):
    """A state with parameters that split, ones that do not, and statistics."""
    mesh = mesh_lib.make_mesh(sizes, jax.devices()[:devices])

    def box(value, names):
        return nn.LogicallyPartitioned(value, names=names)

    def init(key):
        draw = jax.random.normal
        return {
            "params": {
                "wide": box(draw(key, (8, 16)), ("embed", "mlp")),
                "odd": box(draw(key, (5, 3)), ("embed", None)),
                "scale": box(jnp.ones(()), ()),
            },
            "batch_stats": {"mean": jnp.arange(4.0)},
        }

    target, shardings, optimizer, _ = state_lib.abstract_state(
        init, lambda _: optax.adamw(1e-3), mesh
    )
    state = state_lib.create(jax.random.key(0), init, optimizer, shardings)

    @jax.jit
    def update(state):
        params = state.variables["params"]
        updates, opt_state = optimizer.update(params, state.opt_state, params)
        new = optax.apply_updates(params, updates)
        return state.replace(
            step=state.step + 1,
            variables={**state.variables, "params": new},
            opt_state=opt_state,
        )

    return update(state), target, shardings


def restore() -> dict:
    """Saves on one mesh and restores on another."""
    meshes = {
        "8": ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
        "4": ({"data": 1, "fsdp": 4}, 4),
        "1": ({"data": 1}, 1),
    }
    results = {}
    for source, goal in (("8", "8"), ("8", "4"), ("4", "8"), ("1", "8"), ("8", "1")):
        state, _, _ = _toy(*meshes[source])
        _, target, shardings = _toy(*meshes[goal])
        with tempfile.TemporaryDirectory() as folder:
            with checkpoint_lib.Checkpoints(folder, "loss") as checkpoints:
                checkpoints.save(1, state, {"pending": None}, {})
            with checkpoint_lib.Checkpoints(folder, "loss") as checkpoints:
                restored, _ = checkpoints.restore(1, target)
                variables = checkpoints.restore_variables(1, target.variables)
        same = jax.tree.map(
            lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state, restored
        )
        placed = jax.tree.map(lambda a, s: a.sharding == s, restored, shardings)
        alone = jax.tree.map(
            lambda a, b: bool((a == b).all()), variables, restored.variables
        )
        results[f"{source} to {goal}"] = {
            "same": all(jax.tree.leaves((same, alone))),
            "placed": all(jax.tree.leaves(placed)),
            "types": jax.tree.structure(restored) == jax.tree.structure(state),
            "split": spec_of(restored.variables["params"]["wide"]),
            "moment": spec_of(restored.opt_state[0].mu["wide"]),
            "whole": spec_of(restored.variables["params"]["odd"]),
        }
    return results


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        result = compare(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    elif sys.argv[1] == "rounds":
        ring.FROM_LOGITS, ring.MOST_ROWS = 0, 3
        result = compare(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "cached":
        result = cached(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "float64":
        jax.config.update("jax_enable_x64", True)
        image, *seeds = sys.argv[2:]
        result = {seed: gradient_in_float64(image, int(seed)) for seed in seeds}
    else:
        result = restore()
    print(json.dumps(result))
