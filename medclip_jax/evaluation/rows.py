"""The row: one measured figure beside chance and beside the untrained network."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medclip_jax.evaluation import metrics

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
class Sample:
    """What a figure was computed from.

    Attributes:
      statistic: of the trained network.
      patients, units: N strings each, the patient and the id of each unit.
    """

    statistic: metrics.Statistic
    patients: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      protocol: a protocol, or one with a suffix such as "/Edema".
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
      imagenet: the image tower with ImageNet weights, same films.
      note: one line that the reader of the figure needs.
      definition: what the figure measures.
      data: fingerprint of the data it was measured on.
      kind: what adapter read them: "rsna", "mimic_cxr", ...
      sample: what it was computed from, where it has an interval.
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
    imagenet: float | None = None
    note: str = ""
    definition: str = ""
    data: str = ""
    kind: str = ""
    sample: Sample | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict:
        """A dict of plain values; NaN becomes None, optional fields only when set."""
        plain = {}
        for name in (f.name for f in dataclasses.fields(self) if f.name != "sample"):
            value = getattr(self, name)
            if isinstance(value, float):
                value = float(value) if math.isfinite(value) else None
            if name in _ALWAYS or value not in (None, ""):
                plain[name] = value
        return plain


def measured(
    protocol: str,
    dataset: str,
    metric: str,
    of: Mapping[str, metrics.Statistic],
    patients: metrics.Strings,
    chance: float,
    *,
    units: metrics.Strings | None = None,
    seed: int = 0,
    std: float | None = None,
    note: str = "",
) -> Row:
    """A row from the same statistic of several networks on the same units.

    Args:
      protocol, dataset, metric, chance, std, note: as in `Row`.
      of: network ("trained", and any of "untrained", "imagenet", "supervised") to its
        statistic.
      patients: patient id of each unit, for the bootstrap.
      units: id of each unit (a film, a phrase, a pair), by which two checkpoints are
        compared; by default its patient and position.
      seed: seed of the bootstrap.
    """
    trained = of["trained"]
    interval = metrics.bootstrap(trained, patients, seed)
    others = {
        name: metrics.bootstrap(statistic, patients, samples=0).value
        for name, statistic in of.items()
        if name != "trained"
    }
    if units is None:
        units = [f"{patient} {place}" for place, patient in enumerate(patients)]
    return Row(
        protocol,
        dataset,
        metric,
        interval.value,
        len(patients),
        chance,
        others.get("untrained"),
        interval.low,
        interval.high,
        std=std,
        supervised=others.get("supervised"),
        imagenet=others.get("imagenet"),
        note=note,
        sample=Sample(trained, np.asarray(patients), np.asarray(units)),
    )
