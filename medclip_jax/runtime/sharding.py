"""One table from a parameter's logical axis names to mesh axes.

Models name the axes of every parameter (`nn.with_logical_partitioning`); this table
alone says where they lie. Optimizer state lies where its parameter lies.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical name -> mesh axis. `fsdp` takes the dimension that a layer reads from,
# `tensor` the wide one that it writes to, so that an MLP needs one all-reduce a layer.
RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "conv_in": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_out": "tensor",
    "joint": None,
    "kv": None,
    "norm": None,
    "patch": None,
    "position": None,
    "table": None,
}

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every leaf of the variables lies.

    Attributes:
      shardings: a tree like the (unboxed) variables, of NamedSharding.
      replicated: "name: dimension d of size n does not divide by axis=k", one an
        entry that a rule would have split and could not.
    """

    shardings: Any
    replicated: tuple[str, ...]


def leaf_name(path: Path) -> str:
    """A tree path as `image/encoder/stem/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.Partitioned)


def _spec(
    name: str, shape: Sequence[int], names: Sequence[str | None], mesh: Mesh
) -> tuple[PartitionSpec, list[str]]:
    """The partition of one leaf, and what could not be split."""
    taken: set[str] = set()
    axes: list[str | None] = []
    failed: list[str] = []
    for dimension, (size, logical) in enumerate(zip(shape, names, strict=True)):
        axis = RULES[logical] if logical is not None else None
        ways = mesh.shape.get(axis, 1) if axis else 1
        # A mesh axis can split only one dimension; the first that asks has it.
        if axis is None or axis in taken or ways == 1:
            axes.append(None)
        elif size % ways:
            axes.append(None)
            failed.append(
                f"{name}: dimension {dimension} ({logical}) of size {size} does not "
                f"divide by {axis}={ways}"
            )
        else:
            taken.add(axis)
            axes.append(axis)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes), failed


def _name_errors(name: str, leaf: Any, is_param: bool) -> list[str]:
    """What is wrong with the logical names of one leaf."""
    if not _is_box(leaf):
        # Running statistics are unnamed vectors; anything larger must say what it is.
        if is_param or leaf.ndim > 1:
            return [f"{name} {tuple(leaf.shape)}: no logical axis names"]
        return []
    names, shape = leaf.names, leaf.unbox().shape
    if len(names) != len(shape):
        return [f"{name} {tuple(shape)}: {len(names)} names {names}"]
    return [
        f"{name} {tuple(shape)}: unknown logical axis {logical!r}"
        for logical in names
        if logical is not None and logical not in RULES
    ]


def plan(boxed: Any, mesh: Mesh) -> Plan:
    """Looks up where every leaf of abstract, boxed variables lies.

    Args:
      boxed: `jax.eval_shape` of a method's `init`: collections of boxed leaves.
      mesh: the mesh.

    Returns:
      The plan, for the unboxed variables.

    Raises:
      ValueError: leaves without names, with a wrong number of names or with unknown
        ones; all of them are listed.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_box)
    errors: list[str] = []
    for path, leaf in leaves:
        is_param = leaf_name(path).split("/")[0] == "params"
        errors += _name_errors(leaf_name(path), leaf, is_param)
    if errors:
        raise ValueError(
            "Every parameter must carry one logical axis name a dimension, out of "
            f"{sorted(RULES)} or None. Found:\n  " + "\n  ".join(errors)
        )
    shardings, replicated = [], []
    for path, leaf in leaves:
        shape = leaf.unbox().shape if _is_box(leaf) else leaf.shape
        names = leaf.names if _is_box(leaf) else (None,) * len(shape)
        spec, failed = _spec(leaf_name(path), shape, names, mesh)
        shardings.append(NamedSharding(mesh, spec))
        replicated += failed
    return Plan(jax.tree.unflatten(treedef, shardings), tuple(replicated))


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: moments lie where their parameter lies.

    Args:
      tree: abstract optimizer state.
      params: abstract parameters.
      shardings: their shardings.
      mesh: the mesh.

    Returns:
      A tree like `tree`. A leaf belongs to the parameter whose path ends its own
      path and whose shape it has; any other leaf (a count) is replicated.
    """
    by_path = {
        tuple(map(str, path)): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0],
            jax.tree.leaves(shardings),
            strict=True,
        )
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def find(path: Path, leaf: Any) -> NamedSharding:
        keys = tuple(map(str, path))
        for start in range(len(keys)):
            shape, sharding = by_path.get(keys[start:], (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(find, tree)


def summary(variables: Any, shardings: Any, mesh: Mesh) -> str:
    """For instance "86.2 M parameters, 43.4 M a device (49.7 % split)"."""
    total = split = held = 0
    for leaf, sharding in zip(
        jax.tree.leaves(variables), jax.tree.leaves(shardings), strict=True
    ):
        local = 1
        for size in sharding.shard_shape(leaf.shape):
            local *= size
        total += leaf.size
        held += local
        split += leaf.size if local < leaf.size else 0
    share = 100 * split / max(total, 1)
    return (
        f"{total / 1e6:.2f} M values, {held / 1e6:.2f} M a device ({share:.0f} % split)"
    )
