"""A checksum of each array of a state, computed where the array lies.

What Orbax writes has no checksum of the arrays: a bit that turned in a file is read as
another number (tests/runtime/test_damaged_checkpoint.py turns one). So the sums are
taken on the devices before a save, stored beside it, and taken again after a restore:
everything between the two is covered, on any number of hosts and on any mesh, because
sums of integers modulo 2^32 do not depend on their order.

Each word of an array is hashed with its place, and the hashes are added. To another word
at the same place belongs another hash, for every step of it has an inverse, so one word
that changed changes the sum for certain; several leave it as it was once in about 4
billion times, whichever bits they are. (A sum of words times factors would not do: the
highest bit stays the highest bit, and two turned signs would cancel.)
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax.runtime.sharding import leaf_name

# 2^32 divided by the golden ratio, as in Knuth's multiplicative hashing (The Art of
# Computer Programming, vol. 3, section 6.4): no pattern in its bits.
_PLACE = 0x9E3779B1


class NonFinite(FloatingPointError):
    """A state that must not be saved.

    Attributes:
      names: of the arrays that hold NaN or infinity.
    """

    def __init__(self, names: list[str]):
        super().__init__(f"not finite: {', '.join(names)}")
        self.names = names


def of(tree: Any) -> dict[str, int]:
    """The checksum of each array of a tree.

    Every process of a run must call it, with the same tree of global arrays.

    Args:
      tree: arrays of any numeric type.

    Returns:
      Name of the leaf to a number in [0, 2^32).

    Raises:
      NonFinite: an array holds NaN or infinity.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    # One at a time: a program for each shape is compiled fast, and a backend whose
    # devices are threads cannot hold many sums across them at once.
    found = {leaf_name(path): jax.device_get(_sum(leaf)) for path, leaf in flat}
    if bad := [name for name, (_, good) in found.items() if not good]:
        raise NonFinite(bad)
    return {name: int(total) for name, (total, _) in found.items()}


def differing(tree: Any, expected: Mapping[str, int]) -> list[str]:
    """Names of the arrays whose checksum is not the expected one.

    Args:
      tree: arrays, as given to `of`; or a part of that tree, by the same names.
      expected: what `of` gave.
    """
    try:
        found = of(tree)
    except NonFinite as error:  # what is saved is finite
        return error.names
    return [name for name, total in found.items() if expected.get(name) != total]


@jax.jit
def _sum(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """uint32 [], and whether all numbers are finite."""
    good = jnp.array(True)
    if jnp.issubdtype(array.dtype, jnp.floating):
        good = jnp.isfinite(array).all()
    words = _words(array)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * np.uint32(size) + along
    hashes = _scrambled(words ^ _scrambled(place * np.uint32(_PLACE)))
    return jnp.sum(hashes, dtype=jnp.uint32), good


def _scrambled(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby): each bit comes to count in all others."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as uint32, one word for each number."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = array.dtype.itemsize * 8
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}"))
    if bits == 64:
        words ^= words >> 32  # so that every bit counts
    return words.astype(jnp.uint32)
