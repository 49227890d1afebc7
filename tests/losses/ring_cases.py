"""Losses in rounds against the dense form, on 8 devices or as many as are asked for.

    python -m tests.losses.ring_cases DEVICES

Run by test_ring.py in a process of its own, since the number of forced CPU devices is
set before jax starts; prints one JSON object: case to the largest differences.
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={sys.argv[1]}"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medclip_jax import losses
from medclip_jax.losses import ring
from medclip_jax.runtime.mesh import BATCH_AXES, make_mesh

LOSSES = {
    "infonce": lambda x, y, s, b, k, m, w, v: losses.infonce_loss(
        x, y, s, image_to_text=0.75, image_weight_N=w, text_weight_M=v
    ),
    "sigmoid": lambda x, y, s, b, k, m, w, v: losses.sigmoid_loss(
        x, y, s, b, image_weight_N=w, text_weight_M=v
    ),
    "sigmoid of others": lambda x, y, s, b, k, m, w, v: losses.sigmoid_loss(
        x, y, s, b, image_weight_N=w, text_weight_M=v, paired=False
    ),
    "semantic": lambda x, y, s, b, k, m, w, v: losses.semantic_matching_loss(
        x, y, k, m, s, image_weight_N=w, text_weight_M=v
    ),
    "semantic, dot": lambda x, y, s, b, k, m, w, v: losses.semantic_matching_loss(
        x, y, k, m, s, target="dot", image_weight_N=w, text_weight_M=v
    ),
}
CASES = {
    # images, texts, weights vary, labels of -1, blocks of weight 0
    "plain": (64, 64, False, False, False),
    "more texts": (40, 64, True, False, False),
    "more images": (64, 40, True, True, False),
    "uncertain labels": (64, 64, False, True, False),
    "a tile masked whole": (64, 64, True, True, True),
    "no multiple of the devices": (61, 50, True, True, False),
}


def draw(n, m, weights, uncertain, masked, dim=16, labels=14):
    """Embeddings, scale, bias, labels and weights of a case, float32."""
    rng = np.random.default_rng(n + m)

    def side(count, first):
        vectors = rng.normal(size=(count, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        codes = 1.0 * (rng.random((count, labels)) < 0.15)
        if uncertain:
            codes -= rng.random((count, labels)) < 0.1
        weight = np.ones(count)
        if weights:
            weight = rng.random(count) * (rng.random(count) > 0.2)
        if masked:
            weight[first : first + count // 8] = 0  # one device's share
        return [of.astype(np.float32) for of in (vectors, codes, weight)]

    (images, image_labels, w), (texts, text_labels, v) = side(n, 0), side(m, m // 2)
    scale, bias = np.float32(14), np.float32(-3)
    return images, texts, scale, bias, image_labels, text_labels, w, v


def measure(loss, arrays, mesh, rounds):
    """The loss and its gradient by embeddings, scale and bias."""
    ring.FROM_LOGITS, ring.MOST_ROWS = 0 if rounds else 1 << 60, 3

    def value(*args):
        if mesh is None:
            return loss(*args)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss(*args)

    if mesh is not None:
        split = PartitionSpec(BATCH_AXES)
        devices = len(mesh.devices.ravel())
        arrays = [
            jax.device_put(
                of,
                NamedSharding(
                    mesh,
                    split if of.ndim and len(of) % devices == 0 else PartitionSpec(),
                ),
            )
            for of in arrays
        ]
    by = jax.value_and_grad(value, argnums=(0, 1, 2, 3))
    return jax.device_get(jax.jit(by)(*arrays))


def apart(got, want) -> float:
    """The largest difference, over the largest entry of what is wanted."""
    scale = max(float(np.abs(want).max()), 1e-6)
    return float(np.abs(np.asarray(got) - want).max()) / scale


def compare(mesh, wide=(ring.WIDE,)) -> dict[str, list[float]]:
    """Case to the differences of value and gradients.

    Args:
      mesh: of the rounds; None is one device.
      wide: widths of the blocks that go round.
    """
    found = {}
    for case, shape in CASES.items():
        arrays = draw(*shape)
        for name, loss in LOSSES.items():
            want = measure(loss, arrays, None, rounds=False)
            for ring.WIDE in wide:
                got = measure(loss, arrays, mesh, rounds=True)
                pairs = [(got[0], want[0]), *zip(got[1], want[1], strict=True)]
                key = f"{name}: {case}, blocks of {ring.WIDE}"
                found[key] = [apart(*pair) for pair in pairs]
    return found


if __name__ == "__main__":
    count = int(sys.argv[1])
    mesh = make_mesh({"data": count // 2, "fsdp": 2})
    # Each alone, as many stops as devices; and two squares, of 2 x 2 or 4 x 4.
    found = compare(mesh, wide=(1, 1024) if count == 8 else (1024,))
    print(json.dumps({"devices": jax.device_count(), **found}))
