"""An endless, shuffled, randomly accessible order over the items of a view."""

from collections.abc import Mapping

import numpy as np

from medclip_jax.inputs import draw

# Shares are counted in these, so that the interleaving is exact integer arithmetic.
_SHARE_UNIT = 1 << 20


class Stream:
    """Positions 0, 1, 2, ... to items; each pass over the items is shuffled anew.

    Parts of equal weight are shuffled together, so that one pass sees each item
    once. Otherwise each part has its own order and passes, and the parts are
    interleaved evenly, in proportion to weight times size.

    Args:
      parts: name to (items, weight): int array, and a factor on its natural share.
        Empty parts and parts of weight 0 are left out.
      seed: of the run. The order also depends on the names, since two sources of one
        length and one seed would be shuffled alike.
    """

    def __init__(self, parts: Mapping[str, tuple[np.ndarray, float]], seed: int):
        used = {k: (i, w) for k, (i, w) in parts.items() if len(i) and w > 0}
        self._seed = seed
        total = sum(len(items) * weight for items, weight in used.values())
        self.shares: dict[str, float] = {
            name: len(items) * weight / total for name, (items, weight) in used.items()
        }
        if len({weight for _, weight in used.values()}) == 1:
            joined = np.concatenate([items for items, _ in used.values()])
            self._parts = {"+".join(used): joined}
        else:
            self._parts = {name: items for name, (items, _) in used.items()}

    def __len__(self) -> int:
        """Number of different items."""
        return sum(len(items) for items in self._parts.values())

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The items at global positions (int array), in that order."""
        assert self._parts, "an empty stream has no positions"
        positions = np.asarray(positions, np.int64)
        found = np.zeros(positions.shape, np.int64)
        rest = np.ones(positions.shape, bool)
        rest_share = 1.0
        for name, items in self._parts.items():
            share = self.shares.get(name, 1.0)
            mine, place = _interleave(positions[rest], share / rest_share)
            order = draw.shuffled(self._seed, "order:" + name, place[mine], len(items))
            at = np.flatnonzero(rest)
            found[at[mine]] = items[order]
            positions = positions.copy()
            positions[at[~mine]] -= place[~mine]
            rest[at[mine]] = False
            rest_share -= share
            if not rest.any():
                break
        return found


def _interleave(positions: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which positions belong to a part with this share of all.

    Returns:
      bool, and the number of positions of the part before each.
    """
    units = min(max(round(share * _SHARE_UNIT), 1), _SHARE_UNIT)
    before = positions * units // _SHARE_UNIT
    return (positions + 1) * units // _SHARE_UNIT > before, before
