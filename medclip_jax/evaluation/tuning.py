"""What a protocol asks of whoever trains a network's image tower further.

The trainer is given from outside (`Bench.tune`): this room knows methods by their
interface alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.mask_decoder import Decoder
from medclip_jax.evaluation.sets import Films


@dataclass(frozen=True)
class Labels:
    """A linear layer on the trunk: one logit a label.

    Attributes:
      count: labels.
      exclusive: whether exactly one label of a film holds.
    """

    count: int
    exclusive: bool


@dataclass(frozen=True)
class Tuning:
    """One training that is asked for.

    Attributes:
      start: the network whose image tower it starts from.
      films: the data set.
      train, validate, test: int, positions of films.
      targets: of the training films: label codes int8 [T, C], or masks bool [T, S, S].
      head: what reads the tower: labels, or the decoder of masks.
      score: what is told of the validation films, as `Tuned.told` -> what is to be
        high.
      steps: the most steps.
      seed: of the head, the order of the films and the dropout.
      head_params: what the head starts from; None: it is new, and learns first, alone.
      number, of: which training of how many, for progress.
    """

    start: Network
    films: Films
    train: np.ndarray
    validate: np.ndarray
    test: np.ndarray
    targets: np.ndarray
    head: Labels | Decoder
    score: Callable[[np.ndarray], float]
    steps: int
    seed: int
    head_params: Mapping[str, Any] | None = None
    number: int = 1
    of: int = 1


@dataclass(frozen=True)
class Tuned:
    """Attributes:
    told: of the test films by the best checkpoint: probabilities float [K, C], or
      masks bool [K, S, S].
    score: its validation figure.
    steps: steps done.
    best_step: that of the checkpoint.
    """

    told: np.ndarray
    score: float
    steps: int
    best_step: int
