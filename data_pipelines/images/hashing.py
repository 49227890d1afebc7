"""A hash of what a film looks like, by which copies are found in other data sets.

RSNA's films are NIH's under other names, and the COVID collections reuse both, scaled
down and compressed anew: ids do not tell, pixels do.
"""

import numpy as np
import simplejpeg
from PIL import Image

SIDE = 16
HASH_BYTES = SIDE * SIDE // 8
SAME = 20
"""Two films whose hashes differ in at most so many of the 256 bits are one film."""


def film_hash(jpeg: bytes) -> bytes:
    """The difference hash of a stored film.

    Args:
      jpeg: 8-bit gray JPEG.

    Returns:
      32 bytes: for each field of a grid of 16 x 16, whether it is brighter than its
      left neighbour. Scaling, compression and gain change few of these bits.
    """
    small_HxWx1 = simplejpeg.decode_jpeg(
        jpeg, "GRAY", min_height=SIDE * 4, min_width=SIDE * 4, min_factor=1
    )
    image = Image.fromarray(small_HxWx1[..., 0])
    fields = np.asarray(image.resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return np.packbits(fields[:, 1:] > fields[:, :-1]).tobytes()


def find_copies(hashes_N: list[bytes], among_M: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of films that look the same.

    Args:
      hashes_N, among_M: of `film_hash`.

    Returns:
      (position in the first, position in the second) of each pair whose hashes differ
      in at most SAME bits, in order.
    """
    if not hashes_N or not among_M:
        return []
    first = np.frombuffer(b"".join(hashes_N), np.uint64).reshape(len(hashes_N), -1)
    second = np.frombuffer(b"".join(among_M), np.uint64).reshape(len(among_M), -1)
    block = max(1, 8_000_000 // len(second))
    found = []
    for start in range(0, len(first), block):
        differ = np.zeros((len(first[start : start + block]), len(second)), np.uint16)
        for word in range(first.shape[1]):
            part = first[start : start + block, word, None] ^ second[None, :, word]
            differ += np.bitwise_count(part)
        found += [(start + int(i), int(j)) for i, j in np.argwhere(differ <= SAME)]
    return found
