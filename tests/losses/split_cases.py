"""Losses with parts (words, regions) of a batch split over 8 devices against one device.

    python -m tests.losses.split_cases

Run by test_split.py in a process of its own, since the number of forced CPU devices is
set before jax starts; prints one JSON object: case to the largest differences.
"""

import json
import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medclip_jax.losses import (
    Queue,
    masked_token_losses,
    nt_xent_loss,
    queue_loss,
    ring,
)
from medclip_jax.losses import masked_tokens as masked
from medclip_jax.losses.cycle import cycle_loss
from medclip_jax.losses.prototypes import prototype_loss
from medclip_jax.losses.token_alignment import (
    attended,
    clipped_shares,
    token_alignment_loss,
)
from medclip_jax.losses.word_regions import WordRegions, word_regions_loss
from medclip_jax.runtime.mesh import BATCH_AXES, make_mesh


def word_regions(how):
    def loss(arrays):
        return sum(
            word_regions_loss(
                arrays["regions"], arrays["words"], arrays["mask"], 10.0, how,
                image_weight_N=arrays["image_weight"],
                text_weight_M=arrays["text_weight"],
            )
        )  # fmt: skip

    return loss


def nt_xent(rounds):
    def loss(arrays):
        ring.FROM_LOGITS, ring.MOST_ROWS = 0 if rounds else 1 << 60, 3
        one, other = unit(arrays["regions"][:, 0]), unit(arrays["words"][:, 0])
        return nt_xent_loss(one, other, 10.0, weight_N=arrays["image_weight"])

    return loss


def unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def token_alignment(arrays):
    words, regions = unit(arrays["words"]), unit(arrays["regions"])
    shares = clipped_shares(jnp.abs(arrays["words"][..., 0]) * arrays["mask"])
    found = unit(attended(words, regions, 0.1))
    word = token_alignment_loss(
        words, found, shares, 0.1, weight_B=arrays["text_weight"]
    )
    found = attended(regions, words, 0.1, arrays["mask"])
    shares = jnp.full(regions.shape[:2], 1 / regions.shape[1])
    return word + token_alignment_loss(
        regions, found, shares, 0.1, weight_B=arrays["image_weight"]
    )


def prototypes(arrays):
    words, regions = unit(arrays["words"][:, 0]), unit(arrays["regions"][:, 0])
    own = jnp.eye(8)[:5]
    return prototype_loss(
        regions @ own.T, words @ own.T, weight_B=arrays["image_weight"]
    )


def cycles(arrays):
    words, regions = unit(arrays["words"][:, :4]), unit(arrays["regions"][:, :4])
    return cycle_loss(regions, words, weight_S=arrays["image_weight"])


def queue(arrays):
    words, regions = unit(arrays["words"][:, 0]), unit(arrays["regions"][:, 0])
    keys = Queue(jnp.eye(8)[:4], jnp.ones(4), jnp.int32(0))
    return queue_loss(regions, words, keys, 5.0, arrays["image_weight"])


def masked_tokens(arrays):
    masked.LOGITS = 16 * 3  # three pieces a tile, of two texts of five a device
    ids = jnp.arange(80, dtype=jnp.int32).reshape(16, 5) % 16
    losses_BxT, _ = masked_token_losses(
        arrays["words"], arrays["regions"][:, 0], arrays["regions"][:, 1, 0], ids,
        arrays["mask"] > 0,
    )  # fmt: skip
    return (losses_BxT * arrays["text_weight"][:, None]).sum()


CASES = {
    "masked tokens": masked_tokens,
    "token alignment": token_alignment,
    "prototypes": prototypes,
    "cycles": cycles,
    "queue": queue,
    "NT-Xent, one matrix": nt_xent(False),
    "NT-Xent, rounds": nt_xent(True),
    "word regions, official": word_regions(WordRegions()),
    "word regions, one softmax": word_regions(
        WordRegions("regions", "mean", unit=True)
    ),
}


def draw(batch=16, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, batch)
    return {
        "regions": rng.normal(size=(batch, 7, 8)).astype(np.float32),
        "words": rng.normal(size=(batch, 5, 8)).astype(np.float32),
        "mask": (np.arange(5) < lengths[:, None]).astype(np.int32),
        "image_weight": (rng.random(batch) > 0.2).astype(np.float32),
        "text_weight": (rng.random(batch) > 0.2).astype(np.float32),
    }


def measure(loss, arrays, mesh):
    """Value, and gradient by every float array."""

    def of_floats(floats, rest):
        if mesh is None:
            return loss({**floats, **rest})
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss({**floats, **rest})

    if mesh is not None:
        split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        arrays = {name: jax.device_put(a, split) for name, a in arrays.items()}
    floats = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    rest = {name: a for name, a in arrays.items() if name not in floats}
    return jax.jit(jax.value_and_grad(of_floats))(floats, rest)


def compare():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    found = {"devices": jax.device_count()}
    for name, loss in CASES.items():
        one, gradient_1 = measure(loss, draw(), None)
        split, gradient_8 = measure(loss, draw(), mesh)
        largest = max(np.abs(g).max() for g in gradient_1.values())
        apart = max(np.abs(gradient_1[n] - gradient_8[n]).max() for n in gradient_1)
        found[name] = [abs(float(one - split)) / abs(float(one)), apart / largest]
    return found


if __name__ == "__main__":
    print(json.dumps(compare(), default=float))
