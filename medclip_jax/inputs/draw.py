"""Random draws that are a pure function of (seed, stream, position).

A host may be asked for any step at any time and must draw what every other host
would draw, so nothing here has a state. The mixing function is splitmix64's, written
on numpy's wrapping uint64: equal bits on every platform and numpy version, which
`numpy.random.Generator` does not promise.

Reference: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014 (the finaliser of Stafford's variant 13).
"""

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: str, positions: np.ndarray) -> np.ndarray:
    """64 random bits for each position.

    Args:
      seed: any integer.
      stream: name of what is drawn ("crop", "sentence", ...); streams of other
        names are independent.
      positions: integer array, the global positions.

    Returns:
      uint64 array of the shape of `positions`.
    """
    seed_bits = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
    stream_bits = np.uint64(zlib.crc32(stream.encode()))
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.atleast_1d(seed_bits) + _GOLDEN) + stream_bits * _GOLDEN)
        at = np.asarray(positions).astype(np.uint64)
        return _mix(_mix(key + (at + np.uint64(1)) * _GOLDEN) + key).reshape(at.shape)


def below(
    seed: int, stream: str, positions: np.ndarray, bound: np.ndarray | int
) -> np.ndarray:
    """A uniform integer in [0, bound) for each position.

    Args:
      seed: see `bits`.
      stream: see `bits`.
      positions: integer array.
      bound: positive integers below 2**31, broadcast against `positions`.

    Returns:
      int64 array. The bias of the multiply-and-shift is below bound / 2**32.
    """
    high = bits(seed, stream, positions) >> np.uint64(32)
    with np.errstate(over="ignore"):
        drawn = (high * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)
    return drawn.astype(np.int64)


def uniform(seed: int, stream: str, positions: np.ndarray) -> np.ndarray:
    """A float64 in [0, 1) for each position."""
    high = bits(seed, stream, positions) >> np.uint64(11)
    return high.astype(np.float64) * 2.0**-53


def derive_seed(seed: int, stream: str) -> int:
    """A 31-bit seed for a library that takes one, another for each stream name."""
    return int(bits(seed, "seed:" + stream, np.zeros((), np.int64)) >> np.uint64(33))
