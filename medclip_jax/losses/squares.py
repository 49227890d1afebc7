"""Where devices stand that pass blocks round, and what neighbours put together."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from medclip_jax.losses.tiles import Kind

AXES = ("data", "fsdp")
"""Axes of the mesh that split a batch: the ring, in this order."""


@dataclass(frozen=True)
class Square:
    """Devices in squares of side x side, by their order in the ring.

    Those of a square's row hold the images of all of them, those of its column the
    texts. Place by place a block goes from square to square, so that each device meets
    the texts of its own column of every square: 1 / side of all, with side times the
    images. Each image and text meet on one device.

    Attributes:
      devices: of the ring; side * side divides it.
      side: 1 where a device's own examples make a block.
    """

    devices: int
    side: int

    @property
    def stops(self) -> int:
        """Blocks that a device meets."""
        return self.devices // self.side**2

    @property
    def rows(self) -> list[list[int]]:
        """The devices of each row of a square, which hold the same images."""
        each = range(0, self.devices, self.side)
        return [list(range(at, at + self.side)) for at in each]

    @property
    def columns(self) -> list[list[int]]:
        """The devices of each column of a square, which hold the same texts."""
        side = self.side
        return [
            list(range(at + place, at + side**2, side))
            for at in range(0, self.devices, side**2)
            for place in range(side)
        ]

    def pass_on(self, tree: Any) -> Any:
        """To the same place of the next square, from the one before."""
        if self.stops == 1:
            return tree
        away = self.side**2
        along = [
            (place, (place + away) % self.devices) for place in range(self.devices)
        ]
        return jax.tree.map(lambda leaf: lax.ppermute(leaf, AXES, along), tree)

    def together(self, tree: Any, groups: list[list[int]]) -> Any:
        """Blocks of all devices of a group, on each of them."""
        if self.side == 1:
            return tree
        return jax.tree.map(
            lambda leaf: lax.all_gather(
                leaf, AXES, axis_index_groups=groups, tiled=True
            ),
            tree,
        )

    def merged(self, kind: Kind, sums: Any, groups: list[list[int]]) -> Any:
        """The sums of a device's own examples, of what its group made of them."""
        if self.side == 1:
            return sums
        apart = jax.tree.map(
            lambda leaf: lax.all_to_all(
                leaf.reshape(self.side, -1), AXES, 0, 0, axis_index_groups=groups
            ),
            sums,
        )
        each = [
            jax.tree.map(lambda leaf, at=at: leaf[at], apart) for at in range(self.side)
        ]
        return functools.reduce(kind.merge, each)

    def added(self, gradient_BxD: jax.Array, groups: list[list[int]]) -> jax.Array:
        """The gradient of a device's own examples, of what its group made of them."""
        if self.side == 1:
            return gradient_BxD
        return lax.psum_scatter(
            gradient_BxD, AXES, axis_index_groups=groups, tiled=True
        )
