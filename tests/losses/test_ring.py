"""Losses in rounds: equal to the dense form on one device and on eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax import losses
from medclip_jax.losses import ring, tiles
from medclip_jax.runtime import mesh as mesh_lib
from tests.losses import ring_cases

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def set_back():
    """What these tests set."""
    kept = ring.FROM_LOGITS, ring.MOST_ROWS, ring.TILE_LOGITS, ring.WIDE
    yield
    ring.FROM_LOGITS, ring.MOST_ROWS, ring.TILE_LOGITS, ring.WIDE = kept


@pytest.mark.parametrize(("devices", "widths"), [(8, 2), (32, 1)])
def test_devices_agree_with_the_dense_form(devices, widths):
    done = subprocess.run(
        [sys.executable, "-m", "tests.losses.ring_cases", str(devices)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == devices
    assert len(found) == widths * len(ring_cases.CASES) * len(ring_cases.LOSSES)
    assert {case: of for case, of in found.items() if max(of) > 1e-5} == {}


def test_one_device_agrees_with_the_dense_form():
    found = ring_cases.compare(None)
    assert {case: of for case, of in found.items() if max(of) > 1e-5} == {}


@pytest.mark.parametrize("name", ring_cases.LOSSES)
def test_sums_are_float32_in_64_bit_mode_too(name):
    """Where the towers are float64, the joint space and its loss are not."""
    arrays = ring_cases.draw(24, 16, True, True, False)
    with jax.enable_x64(True):
        value, gradient = ring_cases.measure(
            ring_cases.LOSSES[name], arrays, None, rounds=True
        )
    assert {np.asarray(of).dtype for of in (value, *gradient)} == {np.dtype("float32")}


def test_axes_are_those_that_split_a_batch():
    assert ring.AXES == mesh_lib.BATCH_AXES


def test_rounds_begin_at_a_size(monkeypatch):
    """Small losses keep the dense form; the threshold is a device's share."""
    monkeypatch.setattr(ring, "FROM_LOGITS", 64)
    assert not ring.goes_round(7, 9) and ring.goes_round(8, 8)
    mesh = mesh_lib.make_mesh({"data": 1})
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert ring.goes_round(8, 8)
    wide = jax.sharding.AbstractMesh((2, 2, 1), mesh_lib.AXES)
    with jax.sharding.use_abstract_mesh(wide):
        assert not ring.goes_round(8, 31) and ring.goes_round(8, 32)


def shapes_within(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of all values of a program, those inside its loops too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape")}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= shapes_within(inner)
    return found


@pytest.mark.parametrize("name", ring_cases.LOSSES)
def test_no_value_is_as_large_as_all_logits(name):
    """Neither forward nor backward, and no more of them with a longer batch."""
    ring.FROM_LOGITS, ring.MOST_ROWS = 0, 8
    loss = ring_cases.LOSSES[name]
    arrays = ring_cases.draw(96, 80, True, True, False)
    made = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
    sizes = [int(np.prod(shape)) for shape in shapes_within(made.jaxpr)]
    assert max(sizes) <= 96 * 16  # the embeddings themselves
    assert 8 * 80 in sizes  # a tile
    ring.FROM_LOGITS = 1 << 60
    made = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
    assert 96 * 80 in [int(np.prod(shape)) for shape in shapes_within(made.jaxpr)]


def test_large_logits_and_dot_targets_stay_finite():
    """Logits of +-100 and similarities of 14: sums are kept relative to their highest."""
    ring.MOST_ROWS = 4
    images = np.repeat(np.eye(2, 8, dtype=np.float32), 8, 0)
    texts = np.concatenate([images[::2], -images[::2]])
    labels = np.ones((16, 14), np.float32)
    values = []
    for ring.FROM_LOGITS in (0, 1 << 60):
        by = jax.value_and_grad(
            lambda x, y, s: losses.semantic_matching_loss(
                x, y, labels, labels, s, target="dot"
            ),
            argnums=(0, 1, 2),
        )
        values.append(by(images, texts, jnp.float32(100.0)))
    for got, want in zip(jax.tree.leaves(values[0]), jax.tree.leaves(values[1])):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_kind_is_one_program():
    """Kinds are part of what is compiled: equal ones must compare equal."""
    assert tiles.Softmax(paired=True) == tiles.Softmax(paired=True)
    assert hash(tiles.Sigmoid(paired=True)) == hash(tiles.Sigmoid(paired=True))
