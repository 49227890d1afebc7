"""Losses tile by tile: what some images and some texts add to the sums of each.

A loss serves `ring.rounds` when its derivative by a logit is known from the logit, what
the two examples are, and sums over the row and the column. The kinds of loss, `Softmax`
and `Sigmoid`, say which sums, and how. The softmax over all examples of a side is summed
up as tiles come by (online log-sum-exp).

Reference for the sums: Milakov and Gimelshein, "Online normalizer calculation for
softmax", arXiv 1805.02867.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from medclip_jax.losses.similarity import FLOOR, product

TINY = 1e-37
"""Zero, but its logarithm is finite."""


class Block(NamedTuple):
    """Examples of one side.

    Attributes:
      vectors_BxD: float32 unit vectors.
      labels_BxK: float32, of a target by labels; [B, 0] for pairs.
      weight_B: of each example as an anchor, over the sum of all: the loss is a sum.
      keep_B: bool, whether it takes part at all.
      index_B: int32, position in the batch: image i pairs with text i.
    """

    vectors_BxD: jax.Array
    labels_BxK: jax.Array
    weight_B: jax.Array
    keep_B: jax.Array
    index_B: jax.Array


class Kind(Protocol):
    """A loss. Frozen: part of what is compiled."""

    def nothing(self, count: int) -> Any:
        """The sums of `count` examples that have met nobody; a tuple of [B] arrays."""
        ...

    def meet(self, sums: Any, tile: "Tile", axis: int) -> Any:
        """The sums after a tile whose `axis` runs over the others."""
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """The sums over two parts that examples have met."""
        ...

    def value(self, block: Block, sums: Any) -> jax.Array:
        """What a block adds to the loss, float32 scalar."""
        ...

    def keep(self, sums: Any) -> Any:
        """What of the sums the backward pass needs."""
        ...

    def gradient(self, tile: "Tile", rows: Any, columns: Any) -> jax.Array:
        """The loss's derivative by each logit [R, C]; `rows`, `columns` as kept."""
        ...


class Tile(NamedTuple):
    """Some rows against the columns of a block: all [R, C] but the blocks."""

    rows: Block
    columns: Block
    logits_RxC: jax.Array

    @property
    def keep_RxC(self) -> jax.Array:
        return self.rows.keep_B[:, None] & self.columns.keep_B[None, :]

    @property
    def paired_RxC(self) -> jax.Array:
        return self.rows.index_B[:, None] == self.columns.index_B[None, :]

    @property
    def similarity_RxC(self) -> jax.Array:
        return product(self.rows.labels_BxK, self.columns.labels_BxK.T)


# --- The kinds of loss ----------------------------------------------------------------


class Online(NamedTuple):
    """A sum of exponentials: exp(high) * total, and the mean of logits under it."""

    high_B: jax.Array
    total_B: jax.Array


class SoftmaxSums(NamedTuple):
    """Of each example: its logits; those of its target; target times logit, not yet
    divided by the target's sum."""

    logits: Online
    target: Online
    expected_B: jax.Array


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of both directions' softmax to a target.

    Attributes:
      paired: the target is the own partner (InfoNCE); else the softmax of the labels'
        similarity (MedCLIP, section 3.3).
      apart: examples of like labels are none of each other's classes: labels name the
        vectors, and a vector does not meet itself (NT-Xent).
    """

    paired: bool
    apart: bool = False

    def nothing(self, count: int) -> SoftmaxSums:
        floor = jnp.full(count, FLOOR, jnp.float32)
        zero = jnp.zeros(count, jnp.float32)
        return SoftmaxSums(Online(floor, zero), Online(floor, zero), zero)

    def meet(self, sums: SoftmaxSums, tile: Tile, axis: int) -> SoftmaxSums:
        keep = self._meets(tile)
        logits, _, _ = _add(sums.logits, tile.logits_RxC, keep, axis)
        if self.paired:
            own = jnp.where(tile.paired_RxC & keep, tile.logits_RxC, 0.0).sum(axis)
            return SoftmaxSums(logits, sums.target, sums.expected_B + own)
        target, shrunk, raised = _add(sums.target, tile.similarity_RxC, keep, axis)
        expected = sums.expected_B * shrunk + (raised * tile.logits_RxC).sum(axis)
        return SoftmaxSums(logits, target, expected)

    def merge(self, one: SoftmaxSums, other: SoftmaxSums) -> SoftmaxSums:
        logits, _, _ = _merge(one.logits, other.logits)
        target, shrunk, raised = _merge(one.target, other.target)
        if self.paired:
            shrunk = raised = jnp.ones_like(shrunk)
        expected = one.expected_B * shrunk + other.expected_B * raised
        return SoftmaxSums(logits, target, expected)

    def value(self, block: Block, sums: SoftmaxSums) -> jax.Array:
        expected = sums.expected_B
        if not self.paired:
            expected = expected / jnp.maximum(sums.target.total_B, TINY)
        return (block.weight_B * (_log_sum(sums.logits) - expected)).sum()

    def keep(self, sums: SoftmaxSums) -> tuple[jax.Array, jax.Array]:
        return _log_sum(sums.logits), _log_sum(sums.target)

    def gradient(self, tile: Tile, rows: Any, columns: Any) -> jax.Array:
        keep = self._meets(tile)
        by_row, by_column = (
            (rows[0][:, None], rows[1][:, None]),
            (columns[0][None, :], columns[1][None, :]),
        )
        similarity = None if self.paired else tile.similarity_RxC
        result = jnp.zeros_like(tile.logits_RxC)
        for (logits_sum, target_sum), weight in (
            (by_row, tile.rows.weight_B[:, None]),
            (by_column, tile.columns.weight_B[None, :]),
        ):
            predicted = jnp.exp(jnp.where(keep, tile.logits_RxC - logits_sum, FLOOR))
            if similarity is None:
                target = (tile.paired_RxC & keep).astype(jnp.float32)
            else:
                target = jnp.exp(jnp.where(keep, similarity - target_sum, FLOOR))
            result += weight * (predicted - target)
        return result

    def _meets(self, tile: Tile) -> jax.Array:
        if not self.apart:
            return tile.keep_RxC
        return tile.keep_RxC & (tile.rows.labels_BxK != tile.columns.labels_BxK[:, 0])


@dataclass(frozen=True)
class Sigmoid:
    """Each pair a binary question (SigLIP, algorithm 1).

    Rows' weights are over their sum, columns' are plain.
    """

    paired: bool

    def nothing(self, count: int) -> tuple[jax.Array]:
        return (jnp.zeros(count, jnp.float32),)

    def meet(self, sums: tuple[jax.Array], tile: Tile, axis: int) -> tuple[jax.Array]:
        if axis == 0:
            return sums  # the rows hold the whole sum
        losses = -jax.nn.log_sigmoid(self._sign(tile) * tile.logits_RxC)
        return (sums[0] + (losses * tile.columns.weight_B[None, :]).sum(axis),)

    def merge(self, one: tuple[jax.Array], other: tuple[jax.Array]) -> tuple[jax.Array]:
        return (one[0] + other[0],)

    def value(self, block: Block, sums: tuple[jax.Array]) -> jax.Array:
        return (block.weight_B * sums[0]).sum()

    def keep(self, sums: tuple[jax.Array]) -> tuple:
        return ()

    def gradient(self, tile: Tile, rows: Any, columns: Any) -> jax.Array:
        sign = self._sign(tile)
        weight = tile.rows.weight_B[:, None] * tile.columns.weight_B[None, :]
        return -weight * sign * jax.nn.sigmoid(-sign * tile.logits_RxC)

    def _sign(self, tile: Tile) -> jax.Array:
        return jnp.where(tile.paired_RxC & self.paired, 1.0, -1.0)


def _add(online: Online, values: jax.Array, keep: jax.Array, axis: int):
    """The sum with a tile's values; by what the old sum shrank; the tile's terms."""
    values = jnp.where(keep, values, FLOOR)
    high = jnp.maximum(online.high_B, values.max(axis))
    shrunk = jnp.exp(online.high_B - high)
    raised = jnp.where(keep, jnp.exp(values - jnp.expand_dims(high, axis)), 0.0)
    return Online(high, online.total_B * shrunk + raised.sum(axis)), shrunk, raised


def _merge(one: Online, other: Online):
    """The sum of two; by what each of them shrank."""
    high = jnp.maximum(one.high_B, other.high_B)
    shrunk, raised = jnp.exp(one.high_B - high), jnp.exp(other.high_B - high)
    total = one.total_B * shrunk + other.total_B * raised
    return Online(high, total), shrunk, raised


def _log_sum(online: Online) -> jax.Array:
    return online.high_B + jnp.log(jnp.maximum(online.total_B, TINY))
