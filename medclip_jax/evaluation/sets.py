"""What the protocols are given, how they are to measure, and what they return."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from medclip_jax.evaluation import five_class, prompts, zero_shot
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.rows import PROTOCOLS, Row
from medclip_jax.methods.interface import Variables


@dataclass(frozen=True)
class Films:
    """The films of one data set and split.

    Attributes:
      name: of the data set.
      ids, patients, studies, views: N strings each.
      labels_Nx14: int codes.
      read: positions -> arrays uint8 [b, H, W, 1], in that order.
    """

    name: str
    ids: np.ndarray
    patients: np.ndarray
    studies: np.ndarray
    views: np.ndarray
    labels_Nx14: np.ndarray
    read: Callable[[np.ndarray], Iterator[np.ndarray]]


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
class Networks:
    """The network and itself before its first step."""

    embedder: Embedder
    trained: Variables
    untrained: Variables


@dataclass(frozen=True)
class Options:
    """How to measure; see the command line for what each means."""

    protocols: Sequence[str] = PROTOCOLS
    per_class: int = 200
    minimum: int = 10
    rule: str = "loose"
    uncertain: str = "disqualify"
    frontal: bool = True
    by_view: bool = False
    prompts_per_class: int = prompts.DEFAULT_PER_CLASS
    draws: int = zero_shot.DRAWS
    pooling: str = "mean"
    not_given: str = "zero"
    max_films: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class FiveResult:
    """What the pictures of the five-class protocol need.

    Attributes:
      scores: float [N, 5] of the trained network, the mean over prompt draws.
      recall, untrained_recall: share named right by class, the mean over draws.
    """

    scores: np.ndarray
    recall: list[float]
    untrained_recall: list[float]


@dataclass
class Result:
    """What was measured on one data set.

    Attributes:
      name: of the data set.
      rows: the figures.
      skipped: protocol to reason.
      chosen: the five-class set; None where the split gives none.
      five: what was seen in its films, where that was asked for.
      embeddings: joint vectors of those films, untrained and trained.
      found: for each class, a query sentence's position in the sentences and the
        positions of the films it finds, best first.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    chosen: five_class.FiveClassSet | None = None
    five: FiveResult | None = None
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    found: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    films: int = 0
    patients: int = 0
