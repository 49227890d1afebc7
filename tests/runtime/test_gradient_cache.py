"""Gradients of a batch that is encoded in parts: what is cut, and what is refused.

That they equal those of the whole batch is tested on one device and on eight in
test_eight_devices.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.assemble import assemble
from medclip_jax.errors import UserError
from medclip_jax.methods.medclip import MedCLIP
from medclip_jax.runtime import gradient_cache
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import step as step_lib
from tests.runtime import small

MESH = mesh_lib.make_mesh({"data": 1})


def test_parts_are_joined_as_they_were_cut():
    tree = {"a": np.arange(12.0).reshape(12, 1), "b": np.arange(6)}
    pieces = gradient_cache.split(tree, (12, 6), 3, MESH)
    assert pieces["a"].shape == (3, 4, 1) and pieces["b"].shape == (3, 2)
    np.testing.assert_array_equal(gradient_cache.join(pieces["a"], 3, MESH), tree["a"])
    np.testing.assert_array_equal(gradient_cache.join(pieces["b"], 3, MESH), tree["b"])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="found 10 examples; change train.batch_size"):
        gradient_cache.split({"a": np.zeros(10)}, (10, 10), 4, MESH)


@pytest.mark.parametrize("parts", [0, 3])
def test_parts_are_checked_before_anything_is_compiled(parts):
    config = small.config("tiny", batch_size=32)
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
    config.train.micro_batches = parts
    with pytest.raises(UserError, match=r"train.micro_batches.*found"):
        assemble(config, MESH)


def test_batch_statistics_are_refused():
    config = small.config("tiny")
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
    config.train.micro_batches = 2
    trainer = small.Trainer(config, 1)
    with pytest.raises(
        UserError, match=r"micro_batches=2.*\['batch_stats'\].*LayerNorm"
    ):
        jax.eval_shape(trainer.train_step, trainer.state(), trainer.place(0))


def test_a_method_that_encodes_again_is_refused_by_name():
    @dataclasses.dataclass(frozen=True)
    class Again(MedCLIP):
        reenters_encoder = True

    method = object.__new__(Again)
    with pytest.raises(UserError, match="objective of Again runs its encoders again"):
        step_lib.make_gradient(method, None, None, 0, MESH, None, micro_batches=2)
    step_lib.make_gradient(method, None, None, 0, MESH, None)


def test_features_that_no_loss_reads_are_not_kept():
    """Feature maps of a whole batch would fill the memory that parts save."""
    params = {"w": jnp.ones((3, 3)), "scale": jnp.ones(())}
    batch = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    def encode(params, part):
        hidden = jnp.tanh(part @ params["w"])
        maps = jnp.repeat(hidden[:, None], 1000, 1)
        return {"joint": hidden, "map": maps, "mask": jnp.ones(len(part), int)}, {}

    def objective(params, features):
        products = features["joint"] @ features["joint"].T * params["scale"]
        return jnp.tanh(products).sum() * features["mask"].sum(), products.max()

    def in_parts(params):
        return gradient_cache.value_and_gradient(
            encode, objective, params, batch, (8, 8), 4, MESH
        )

    (value, more), gradient = in_parts(params)
    (want, _), direct = jax.value_and_grad(
        lambda p: objective(p, encode(p, batch)[0]), has_aux=True
    )(params)
    assert float(more) > 0
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(gradient[name], direct[name], rtol=1e-5, atol=1e-5)
    compiled = jax.jit(lambda p: in_parts(p)[1]).lower(params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 1000 * 3 * 4
