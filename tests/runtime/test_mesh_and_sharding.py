import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from medclip_jax.errors import UserError
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import sharding


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), mesh_lib.AXES, (AxisType.Auto,) * 3)


def box(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ({"data": -1}, 8, (8, 1, 1)),
        ({"data": -1, "fsdp": 2}, 8, (4, 2, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, 8, (2, 2, 2)),
        ({"data": 1}, 1, (1, 1, 1)),
    ],
)
def test_rest_of_the_devices(sizes, devices, expected):
    assert tuple(mesh_lib.resolve_sizes(sizes, devices).values()) == expected


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        ({"data": 3, "fsdp": 2}, 8, r"3 x 2 x 1 = 6 devices, there are 8"),
        ({"data": -1, "fsdp": 3}, 8, r"8 / 3 = 2.66667"),
        ({"data": -1, "fsdp": -1}, 8, "at most one"),
        ({"data": 0}, 8, "must be positive"),
        ({"date": 8}, 8, "unknown axis"),
    ],
)
def test_sizes_that_cannot_be(sizes, devices, message):
    with pytest.raises(UserError, match=message):
        mesh_lib.resolve_sizes(sizes, devices)


def test_batch_must_divide():
    sizes = {"data": 4, "fsdp": 2, "tensor": 3}
    mesh_lib.check_batch_size(64, sizes)
    with pytest.raises(UserError, match=r"100 / 8 = 12.5.*96 or 104"):
        mesh_lib.check_batch_size(100, sizes)


def test_rules_by_name():
    boxed = {
        "params": {
            "mlp": box((64, 256), ("embed", "mlp")),
            "conv": box((3, 3, 64, 128), (None, None, "conv_in", "conv_out")),
            "square": box((64, 64), ("embed", "embed")),
            "odd": box((7, 256), ("embed", "mlp")),
            "scale": box((), ()),
        },
        "batch_stats": {"mean": jax.ShapeDtypeStruct((64,), jnp.float32)},
    }
    plan = sharding.plan(boxed, abstract_mesh(2, 2, 2))
    specs = jax.tree.map(lambda s: s.spec, plan.shardings)
    assert specs["params"] == {
        "mlp": PartitionSpec("fsdp", "tensor"),
        "conv": PartitionSpec(None, None, "fsdp", "tensor"),
        # A mesh axis splits only one dimension of an array.
        "square": PartitionSpec("fsdp"),
        "odd": PartitionSpec(None, "tensor"),
        "scale": PartitionSpec(),
    }
    assert specs["batch_stats"]["mean"] == PartitionSpec()
    (line,) = plan.replicated
    assert "params/odd" in line
    assert "7 does not divide by fsdp=2" in line


def test_every_parameter_is_named():
    boxed = {
        "params": {
            "bare": jax.ShapeDtypeStruct((3, 4), jnp.float32),
            "short": box((3, 4), ("embed",)),
            "wrong": box((3,), ("embde",)),
            "good": box((3,), ("norm",)),
        }
    }
    with pytest.raises(ValueError) as error:
        sharding.plan(boxed, abstract_mesh(1, 1, 1))
    message = str(error.value)
    for name in ("params/bare", "params/short", "params/wrong", "'embde'"):
        assert name in message
    assert "params/good" not in message


def test_moments_lie_where_their_parameter_lies():
    mesh = Mesh(jax.devices()[:1], "x")
    params = {"a": {"k": jnp.ones((2, 2))}, "k": jnp.ones((2, 2)), "s": jnp.ones(())}
    named = {name: jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
             for name, spec in (("ak", ("x",)), ("k", (None, "x")), ("s", ()))}  # fmt: skip
    shardings = {"a": {"k": named["ak"]}, "k": named["k"], "s": named["s"]}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    found = sharding.like_params(state, params, shardings, mesh)
    assert found[0].mu == shardings
    assert found[0].nu == shardings
    assert found[0].count.spec == PartitionSpec()
