"""Exact gradients of a large batch whose examples are encoded a part at a time.

The loss of a contrastive method couples all examples, so gradients of parts do not add
up to that of the whole. Here each part is encoded without keeping what its backward
pass would need; the loss of all embeddings gives the derivative by each embedding; then
each part is encoded again and carries its derivatives back. Memory is that of one part's
encoders and of all embeddings.

It is exact because everything random is drawn by example (`step.example_keys`): both
passes draw what the whole batch would draw. A forward pass that looks at its whole batch
(BatchNorm) has another value in parts, so methods with such state are refused.

Reference: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup" (GradCache), arXiv 2101.06983.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medclip_jax.errors import UserError
from medclip_jax.runtime.mesh import BATCH_AXES

Encode = Callable[[Any, Any], tuple[Any, Any]]
"""(parameters, a batch with its keys) -> (features, changed collections)."""
Objective = Callable[[Any, Any], tuple[jax.Array, Any]]
"""(parameters, features) -> (loss, anything else)."""


def value_and_gradient(
    encode: Encode,
    objective: Objective,
    params: Any,
    drawn: Any,
    sizes: tuple[int, int],
    parts: int,
    mesh: Mesh,
) -> tuple[tuple[jax.Array, Any], Any]:
    """Like `jax.value_and_grad` of the objective of the encoded batch.

    Args:
      encode: of any part of the batch.
      objective: of the features of the whole batch.
      params: what to differentiate by.
      drawn: the batch with its keys; leaves lead with one of `sizes`.
      sizes: images and texts of the batch.
      parts: how many parts; each takes as many examples of every device.
      mesh: the mesh that the batch is split over.

    Returns:
      ((loss, what else the objective gives), gradient).

    Raises:
      UserError: the batch does not divide, or its encoders look at the whole of it.
    """
    pieces = split(drawn, sizes, parts, mesh)
    features, changed = jax.eval_shape(encode, params, drawn)
    if jax.tree.leaves(changed):
        raise UserError(
            f"train.micro_batches={parts}: the encoders change {sorted(changed)} from "
            "batch to batch (BatchNorm), and in parts that is another network; expected "
            "encoders without it. Set train.micro_batches=1, or take a tower with "
            "LayerNorm such as vit or swin"
        )
    used = _used(objective, params, features)

    def encode_used(params: Any, piece: Any) -> list[jax.Array]:
        leaves = jax.tree.leaves(encode(params, piece)[0])
        return [leaf for leaf, kept in zip(leaves, used, strict=True) if kept]

    def whole(kept: list[jax.Array]) -> Any:
        """The features, with zeros where nothing is used."""
        shapes, form = jax.tree.flatten(features)
        given = iter(kept)
        leaves = [
            next(given) if keep else jnp.zeros(shape.shape, shape.dtype)
            for shape, keep in zip(shapes, used, strict=True)
        ]
        return jax.tree.unflatten(form, leaves)

    _, cached = lax.scan(
        lambda _, piece: (None, encode_used(params, piece)), None, pieces
    )
    kept = join(cached, parts, mesh)

    def of_kept(params: Any, moving: list[jax.Array]):
        values = iter(moving)
        both = [next(values) if _moves(leaf) else leaf for leaf in kept]
        return objective(params, whole(both))

    moving = [leaf for leaf in kept if _moves(leaf)]
    value, (gradient, by_features) = jax.value_and_grad(
        of_kept, argnums=(0, 1), has_aux=True
    )(params, moving)

    def carry_back(gradient: Any, piece: Any):
        some, cotangents = piece

        def moved(params: Any) -> list[jax.Array]:
            return [leaf for leaf in encode_used(params, some) if _moves(leaf)]

        _, back = jax.vjp(moved, params)
        return jax.tree.map(jnp.add, gradient, back(cotangents)[0]), None

    by_features = split(by_features, sizes, parts, mesh)
    gradient, _ = lax.scan(carry_back, gradient, (pieces, by_features))
    return value, gradient


def split(tree: Any, sizes: tuple[int, int], parts: int, mesh: Mesh) -> Any:
    """Leaves [B, ...] as [parts, B / parts, ...], equal shares of every device's rows.

    Raises:
      UserError: a size does not divide.
    """
    check(sizes, parts, mesh)
    devices = _devices(mesh)

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] not in sizes:
            raise ValueError(f"expected {sizes} examples, found a leaf of {leaf.shape}")
        rows = leaf.shape[0] // (parts * devices)
        cut = leaf.reshape(devices, parts, rows, *leaf.shape[1:]).swapaxes(0, 1)
        joined = cut.reshape(parts, devices * rows, *leaf.shape[1:])
        return lax.with_sharding_constraint(
            joined, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        )

    return jax.tree.map(cut, tree)


def check(sizes: Sequence[int], parts: int, mesh: Mesh) -> None:
    """Raises UserError unless every part has as many examples of every device."""
    if parts < 1:
        raise UserError(f"train.micro_batches: expected 1 or more, found {parts}")
    devices = _devices(mesh)
    for size in sizes:
        if size % (parts * devices):
            raise UserError(
                f"train.micro_batches={parts}: expected a batch that divides by "
                f"{parts} parts x {devices} devices = {parts * devices}, found {size} "
                "examples; change train.batch_size or train.micro_batches"
            )


def join(tree: Any, parts: int, mesh: Mesh) -> Any:
    """The inverse of `split`."""
    devices = _devices(mesh)

    def paste(leaf: jax.Array) -> jax.Array:
        rows = leaf.shape[1] // devices
        apart = leaf.reshape(parts, devices, rows, *leaf.shape[2:]).swapaxes(0, 1)
        joined = apart.reshape(devices * parts * rows, *leaf.shape[2:])
        return lax.with_sharding_constraint(
            joined, NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        )

    return jax.tree.map(paste, tree)


def _devices(mesh: Mesh) -> int:
    return mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]


def _moves(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _used(objective: Objective, params: Any, features: Any) -> list[bool]:
    """For each leaf of the features whether the objective reads it at all.

    Feature maps of a whole batch do not fit; a global loss does not look at them.
    """
    made = jax.make_jaxpr(objective)(params, features).jaxpr
    read = {id(v) for equation in made.eqns for v in equation.invars}
    read |= {id(v) for v in made.outvars}
    count = len(jax.tree.leaves(features))
    return [id(variable) in read for variable in made.invars[-count:]]
