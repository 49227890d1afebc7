"""The row: one measured figure beside chance and beside the untrained network."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medclip_jax.errors import UserError
from medclip_jax.evaluation import metrics

PROTOCOLS: tuple[str, ...] = (
    "zero_shot_five",
    "zero_shot_findings",
    "retrieval_image_to_text",
    "retrieval_text_to_image",
    "retrieval_exact",
)
"""What can be asked for; rows may add a suffix after a slash."""

_ALWAYS = (
    "protocol",
    "dataset",
    "metric",
    "value",
    "n",
    "chance",
    "untrained",
    "low",
    "high",
)


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      protocol: one of PROTOCOLS, or one with a suffix such as "/Edema".
      dataset: the data set it was measured on.
      metric: "accuracy", "auroc", "precision_at_5", ...
      value: the figure of the trained network.
      n: films (or query texts) that it is a mean over.
      chance: what guessing gives on the same films.
      untrained: the figure of the same network before training.
      low, high: 95 % interval over patients; None where there is none.
      std: over prompt draws.
      pixels_logistic: logistic regression on 16 x 16 pixels, same films.
      supervised: a network trained on the labels, same films.
      note: one line that the reader of the figure needs.
    """

    protocol: str
    dataset: str
    metric: str
    value: float
    n: int
    chance: float
    untrained: float | None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    pixels_logistic: float | None = None
    supervised: float | None = None
    note: str = ""

    def as_json(self) -> dict:
        """A dict of plain values; NaN becomes None, optional fields only when set."""
        plain = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                value = float(value) if math.isfinite(value) else None
            if field.name in _ALWAYS or value not in (None, ""):
                plain[field.name] = value
        return plain


def select_protocols(wanted: str) -> tuple[str, ...]:
    """Protocols whose names begin with one of the comma-separated words.

    Raises:
      UserError: for a word that no protocol begins with.
    """
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        hits = [name for name in PROTOCOLS if name.startswith(word)]
        if not hits:
            raise UserError(
                f"--protocols: no protocol begins with {word!r}; the protocols are "
                f"{', '.join(PROTOCOLS)}"
            )
        chosen.update(hits)
    if not chosen:
        raise UserError(f"--protocols names none; there are {', '.join(PROTOCOLS)}")
    return tuple(name for name in PROTOCOLS if name in chosen)


def measured(
    protocol: str,
    dataset: str,
    metric: str,
    both: Sequence[metrics.Statistic],
    patients: metrics.Strings,
    chance: float,
    *,
    seed: int = 0,
    std: float | None = None,
    note: str = "",
) -> Row:
    """A row from the trained and the untrained statistic on the same films.

    Args:
      protocol, dataset, metric, chance, std, note: as in `Row`.
      both: statistic of the trained and of the untrained network, as functions of
        film weights.
      patients: patient id of each film, for the bootstrap.
      seed: seed of the bootstrap.
    """
    trained, untrained = both
    interval = metrics.bootstrap(trained, patients, seed)
    before = metrics.bootstrap(untrained, patients, samples=0)
    return Row(
        protocol,
        dataset,
        metric,
        interval.value,
        len(patients),
        chance,
        before.value,
        interval.low,
        interval.high,
        std=std,
        note=note,
    )
