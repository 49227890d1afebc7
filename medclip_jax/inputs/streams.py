"""An endless, shuffled, randomly accessible order over the items of a view."""

from collections.abc import Mapping

import grain
import numpy as np

from medclip_jax.inputs import draw


class Stream:
    """Positions 0, 1, 2, ... to items; each pass over the items is shuffled anew.

    Parts of equal weight are shuffled together, so that one pass sees each item
    once. Otherwise each part has its own order and pass, and is met in proportion to
    weight times size.

    Args:
      parts: name to (items, weight): int array, and a factor on its natural share.
        Empty parts and parts of weight 0 are left out.
      seed: of the run; each part draws its own from it and its name, since two
        sources of one length and one seed would be shuffled alike.
    """

    def __init__(self, parts: Mapping[str, tuple[np.ndarray, float]], seed: int):
        used = {k: (i, w) for k, (i, w) in parts.items() if len(i) and w > 0}
        self.shares: dict[str, float] = {}
        total = sum(len(items) * weight for items, weight in used.values())
        for name, (items, weight) in used.items():
            self.shares[name] = len(items) * weight / total
        if len({weight for _, weight in used.values()}) == 1:
            name = "+".join(used)
            used = {name: (np.concatenate([i for i, _ in used.values()]), 1.0)}
        self._items = np.concatenate(
            [i for i, _ in used.values()] or [np.zeros(0, int)]
        )
        self._order = _order(used, seed) if used else None

    def __len__(self) -> int:
        """Number of different items."""
        return len(self._items)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The items at global positions (int array), in that order."""
        assert self._order is not None, "an empty stream has no positions"
        return self._items[[self._order[int(p)] for p in positions]]


def _order(used: dict[str, tuple[np.ndarray, float]], seed: int) -> grain.MapDataset:
    sources, weights, first = [], [], 0
    for name, (items, weight) in used.items():
        part = grain.MapDataset.range(first, first + len(items))
        part = part.seed(draw.derive_seed(seed, "order:" + name)).shuffle()
        # Repeated before any slice by host: all hosts have equally many positions.
        sources.append(part.repeat())
        weights.append(len(items) * weight)
        first += len(items)
    if len(sources) == 1:
        return sources[0]
    total = sum(weights)
    return grain.MapDataset.mix(sources, weights=[w / total for w in weights])
