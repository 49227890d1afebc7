"""Contrastive losses in memory linear in the batch: no matrix of all logits anywhere.

The batch lies split over the devices. Each device keeps its images; the blocks of texts
go round from device to device, and every device meets every block once, tile by tile.
Where a device holds few, side x side neighbours stand in a square: those of a row of it
put their images together, those of a column their texts, and what then goes round meets
`side` times as many images at each stop; see `squares.Square`.

The backward pass goes round again: from the embeddings and the log-sums alone it makes
each tile anew, and the gradient of a text block travels with the block. Differentiating
through the forward scan, even rematerialised, would keep every block that passed by; so
the gradient is written here by hand. Value and gradient equal the dense form but for the
order of additions.

Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), arXiv
2303.15343, section 3.3, passes blocks between devices in this way.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from medclip_jax.losses.similarity import product
from medclip_jax.losses.squares import AXES, Square
from medclip_jax.losses.tiles import Block, Kind, Tile

FROM_LOGITS = 1 << 20
"""Logits a device from which a loss goes round: 4 MiB, of which several are alive, and
besides every device would gather all embeddings."""
TILE_LOGITS, MOST_ROWS = 1 << 22, 256
"""A tile has as many rows as have so many logits, and not more than so many."""
WIDE = 2048
"""Examples to a block, of either side. Where a device holds fewer, neighbours put theirs
together first: a text is read once for all their images, which on thousands of devices
is what takes the time, and the products are large enough for the device."""


def goes_round(images: int, texts: int) -> bool:
    """Whether a loss over so many examples is computed in rounds."""
    return images * texts >= FROM_LOGITS * _ring_of(batch_mesh())


def rounds(
    kind: Kind,
    rows: Block,
    columns: Block,
    scale: jax.Array | float,
    bias: jax.Array | float = 0.0,
) -> jax.Array:
    """The loss of all rows with all columns; differentiable in vectors, scale and bias.

    Within `jax.sharding.use_abstract_mesh` the examples are split over its axes AXES,
    and blocks go round them; elsewhere one device holds all of them.

    Args:
      kind: the loss.
      rows: the images, N.
      columns: the texts, M.
      scale: inverse temperature.
      bias: added to each logit.

    Returns:
      float32 scalar.
    """
    mesh = batch_mesh()
    devices = _ring_of(mesh)
    rows, columns = _padded(rows, devices), _padded(columns, devices)
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    return _loss(kind, mesh, rows, columns, scale, bias)


def block(
    vectors_BxD: jax.Array,
    weight_B: jax.Array,
    keep_B: jax.Array,
    labels_BxK: jax.Array | None = None,
) -> Block:
    """A block of a whole batch's side."""
    count = len(vectors_BxD)
    if labels_BxK is None:
        labels_BxK = jnp.zeros((count, 0), jnp.float32)
    index_B = jnp.arange(count, dtype=jnp.int32)
    return Block(vectors_BxD.astype(jnp.float32), labels_BxK, weight_B, keep_B, index_B)


def batch_mesh() -> Any:
    """The mesh around, if it splits a batch; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not set(AXES) <= set(mesh.axis_names) else mesh


def split_over_devices(leaf: jax.Array) -> jax.Array:
    """Says that the first axis lies split as a batch does, where there is a mesh."""
    if batch_mesh() is None:
        return leaf
    return lax.with_sharding_constraint(leaf, PartitionSpec(AXES))


def _ring_of(mesh: Any) -> int:
    """Devices that the blocks go round."""
    return 1 if mesh is None else mesh.shape[AXES[0]] * mesh.shape[AXES[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(kind, mesh, rows, columns, scale, bias):
    return _forward(kind, mesh, rows, columns, scale, bias)[0]


def _forward(kind, mesh, rows, columns, scale, bias):
    one_way = functools.partial(_meet_all, kind, _ring_of(mesh))
    if mesh is not None:
        split, whole = PartitionSpec(AXES), PartitionSpec()
        one_way = jax.shard_map(
            one_way,
            mesh=mesh,
            in_specs=(split, split, whole, whole),
            out_specs=(whole, split, split),
            check_vma=False,
        )
    value, kept_rows, kept_columns = one_way(rows, columns, scale, bias)
    return value, (rows, columns, scale, bias, kept_rows, kept_columns)


def _backward(kind, mesh, kept, gradient):
    one_way = functools.partial(_derive_all, kind, _ring_of(mesh))
    if mesh is not None:
        split, whole = PartitionSpec(AXES), PartitionSpec()
        one_way = jax.shard_map(
            one_way,
            mesh=mesh,
            in_specs=(split, split, whole, whole, split, split),
            out_specs=(split, split, whole, whole),
            check_vma=False,
        )
    d_rows, d_columns, d_scale, d_bias = one_way(*kept)
    rows, columns = (
        _only_vectors(of, gradient * d)
        for of, d in zip(kept[:2], (d_rows, d_columns), strict=True)
    )
    return rows, columns, gradient * d_scale, gradient * d_bias


_loss.defvjp(_forward, _backward)


def _only_vectors(of: Block, gradient_BxD: jax.Array) -> Block:
    """The cotangent of a block: labels and weights are data."""
    return Block(
        gradient_BxD,
        jnp.zeros_like(of.labels_BxK),
        jnp.zeros_like(of.weight_B),
        *(jnp.zeros(leaf.shape, jax.dtypes.float0) for leaf in of[3:]),  # type: ignore[arg-type]
    )


def _meet_all(kind, devices, rows, columns, scale, bias):
    """One device's part of the forward pass: the loss, and what `keep` gives."""
    square = _square_of(rows, columns, devices)
    own_rows, own_columns = rows, columns
    rows = square.together(rows, square.rows)
    columns = square.together(columns, square.columns)
    count, size = len(rows.index_B), _tile_rows(rows, columns)
    parts = _parts(_padded(rows, size), size)

    def meet_block(carry, _):
        row_sums, columns, column_sums = carry
        # Begun first, so that it can run beside the tiles.
        coming = square.pass_on(columns)

        def meet_part(column_sums, part):
            some, sums = part
            tile = _tile(some, columns, scale, bias)
            return kind.meet(column_sums, tile, 0), kind.meet(sums, tile, 1)

        column_sums, row_sums = lax.scan(meet_part, column_sums, (parts, row_sums))
        return (row_sums, coming, square.pass_on(column_sums)), None

    row_sums = _parts(kind.nothing(len(parts.index_B) * size), size)
    column_sums = kind.nothing(len(columns.index_B))
    # After as many steps as squares each block is home again.
    (row_sums, _, column_sums), _ = lax.scan(
        meet_block, (row_sums, columns, column_sums), length=square.stops
    )
    row_sums = square.merged(kind, _whole(row_sums, count), square.rows)
    column_sums = square.merged(kind, column_sums, square.columns)
    value = kind.value(own_rows, row_sums) + kind.value(own_columns, column_sums)
    return _total(value, devices), kind.keep(row_sums), kind.keep(column_sums)


def _derive_all(kind, devices, rows, columns, scale, bias, kept_rows, kept_columns):
    """One device's part of the backward pass: by its vectors, by scale and bias."""
    square = _square_of(rows, columns, devices)
    rows, kept_rows = square.together((rows, kept_rows), square.rows)
    columns, kept_columns = square.together((columns, kept_columns), square.columns)
    count, size = len(rows.index_B), _tile_rows(rows, columns)
    parts = _parts(_padded(rows, size), size)
    kept_parts = _parts(_padded(kept_rows, size), size)

    def derive_block(carry, _):
        d_parts, d_scale, d_bias, columns, kept_columns, d_columns = carry
        coming = square.pass_on((columns, kept_columns))

        def derive_part(carry, part):
            d_columns, d_scale, d_bias = carry
            some, kept, d_some = part
            tile = _tile(some, columns, scale, bias)
            by_logit = kind.gradient(tile, kept, kept_columns)
            by_product = product(by_logit, columns.vectors_BxD)
            d_scale += (some.vectors_BxD * by_product).sum()
            d_bias += by_logit.sum()
            d_columns += scale * product(by_logit.T, some.vectors_BxD)
            return (d_columns, d_scale, d_bias), d_some + scale * by_product

        (d_columns, d_scale, d_bias), d_parts = lax.scan(
            derive_part, (d_columns, d_scale, d_bias), (parts, kept_parts, d_parts)
        )
        home = square.pass_on(d_columns)
        return (d_parts, d_scale, d_bias, *coming, home), None

    zero = jnp.zeros((), jnp.float32)
    start = (
        jnp.zeros_like(parts.vectors_BxD),
        zero,
        zero,
        columns,
        kept_columns,
        jnp.zeros_like(columns.vectors_BxD),
    )
    (d_parts, d_scale, d_bias, _, _, d_columns), _ = lax.scan(
        derive_block, start, length=square.stops
    )
    d_rows = square.added(_whole(d_parts, count), square.rows)
    d_columns = square.added(d_columns, square.columns)
    return d_rows, d_columns, _total(d_scale, devices), _total(d_bias, devices)


def _tile(rows: Block, columns: Block, scale: jax.Array, bias: jax.Array) -> Tile:
    logits_RxC = scale * product(rows.vectors_BxD, columns.vectors_BxD.T) + bias
    return Tile(rows, columns, logits_RxC)


def _square_of(rows: Block, columns: Block, devices: int) -> Square:
    """The largest square whose blocks are not above WIDE."""
    most, side = max(len(rows.index_B), len(columns.index_B)), 1
    while devices % (2 * side) ** 2 == 0 and 2 * side * most <= WIDE:
        side *= 2
    return Square(devices, side)


def _total(value: jax.Array, devices: int) -> jax.Array:
    return value if devices == 1 else lax.psum(value, AXES)


def _tile_rows(rows: Block, columns: Block) -> int:
    count, others = len(rows.index_B), len(columns.index_B)
    return max(1, min(MOST_ROWS, TILE_LOGITS // max(1, others), count))


def _parts(tree: Any, size: int) -> Any:
    """Leaves [B, ...] as [B / size, size, ...]."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf) // size, size, *leaf.shape[1:]), tree
    )


def _whole(tree: Any, count: int) -> Any:
    """What `_parts` cut, less what `_padded` added."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], tree)


def _padded(tree: Any, size: int) -> Any:
    """Leaves filled up with zeros to a multiple of `size`: such rows are not kept."""
    missing = -len(jax.tree.leaves(tree)[0]) % size if jax.tree.leaves(tree) else 0
    if not missing:
        return tree
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]), tree
    )
