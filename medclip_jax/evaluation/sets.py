"""What is judged: films, texts and annotations, as the protocols see them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.annotations import Task


@dataclass(frozen=True)
class Films:
    """The films of one data set, of all its splits.

    Attributes:
      name: of the data set.
      ids, patients, studies, views, splits: N strings each.
      labels_Nx14: int codes of the 14 findings.
      read: positions -> arrays uint8 [b, H, W, 1], in that order.
      record: position -> the stored record without its pixels: `boxes` float [K, 4]
        (x, y, width, height) and `masks` (strings) in the frame of `original_height`
        x `original_width` pixels.
      kind: what adapter read it: "rsna", "mimic_cxr", "csv", ...
      fingerprint: of the data set.
      tasks: the questions that the source answers of its films.
      classes: task to what it says of each film.
    """

    name: str
    ids: np.ndarray
    patients: np.ndarray
    studies: np.ndarray
    views: np.ndarray
    labels_Nx14: np.ndarray
    read: Callable[[np.ndarray], Iterator[np.ndarray]]
    splits: np.ndarray
    record: Callable[[int], Mapping[str, Any]]
    kind: str = "csv"
    fingerprint: str = ""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    classes: Mapping[str, "Judged"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, split: str) -> np.ndarray:
        """Positions of the films of a split, ascending."""
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True)
class Judged:
    """What a source says of its films for one task with C labels.

    Attributes:
      films: int [K], positions of the films that were judged, ascending.
      codes_KxC: int8: 1 positive, 0 negative, -1 uncertain, -2 not judged.
    """

    films: np.ndarray
    codes_KxC: np.ndarray

    def of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of some films that were judged, and their codes [k, C]."""
        kept = positions[np.isin(positions, self.films)]
        return kept, self.codes_KxC[np.searchsorted(self.films, kept)]


@dataclass(frozen=True)
class Sentences:
    """The sentences, or whole reports, of one data set and split.

    Attributes:
      texts: M texts; protected, never logged.
      labels_Mx14: int codes.
      patients, studies: M strings each.
    """

    texts: Sequence[str]
    labels_Mx14: np.ndarray
    patients: np.ndarray
    studies: np.ndarray


@dataclass(frozen=True)
class Table:
    """A side table (`data_pipelines.annotations`): its rows, and where it is from."""

    name: str
    kind: str
    fingerprint: str
    rows: Sequence[Mapping[str, Any]]
