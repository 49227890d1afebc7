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
_ROUNDS = 8


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


def shuffled(seed: int, stream: str, positions: np.ndarray, n: int) -> np.ndarray:
    """An endless order of n items: every pass over them is a permutation of its own.

    A Feistel network on the next power of four, walked until it lands below n. Grain's
    shuffle is of the same kind, but for one index at a time and on at least 2**16: an
    item costs 12 us of many and 1 ms of forty (grain 0.2.18), and its order may
    change with its version, which would break the resume of a run.

    Args:
      seed: see `bits`.
      stream: see `bits`.
      positions: integer array, 0, 1, 2, ...; pass k is [k * n, (k + 1) * n).
      n: number of items, below 2**62.

    Returns:
      int64 array, in [0, n).

    Reference: Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002
    (cycle walking).
    """
    positions = np.asarray(positions, np.int64)
    key = bits(seed, stream, positions // n)
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    place = (positions % n).astype(np.uint64)
    walking = np.ones(place.shape, bool)
    while walking.any():
        place[walking] = _feistel(place[walking], key[walking], half)
        walking = place >= np.uint64(n)
    return place.astype(np.int64)


def _feistel(place: np.ndarray, key: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = place >> half, place & mask
    with np.errstate(over="ignore"):
        for number in range(1, _ROUNDS + 1):
            salt = key + np.uint64(number) * _GOLDEN
            left, right = right, left ^ (_mix(_mix(salt) + right) & mask)
    return (left << half) | right
