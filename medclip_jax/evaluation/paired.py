"""Whether two networks differ on the same units: a paired bootstrap over patients.

The same resamples of patients are drawn for both networks, so that what is hard for
both cancels; the interval is of the difference. With many figures some differ by
chance: p values are also given after Holm's correction.

Reference: Efron and Tibshirani 1993, chapter 16 (bootstrap tests of a difference);
Holm 1979, Scand. J. Statist. 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.samples import Kept, Key

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """One figure of two networks.

    Attributes:
      key: protocol, data set, metric.
      first, second: the two values.
      value: second less first, with its 95 % interval `low`, `high`.
      p: two-sided, of no difference; `p_holm` corrected for all figures compared.
      n: units.
      patients: whom they are of.
    """

    key: Key
    first: float
    second: float
    value: float
    low: float
    high: float
    p: float
    n: int
    patients: int
    p_holm: float = float("nan")


def difference(
    key: Key, first: Kept, second: Kept, resamples: int = RESAMPLES, seed: int = 0
) -> Difference | str:
    """Compares one figure.

    Args:
      key: names it.
      first, second: as read from the two reports.
      resamples: of patients.
      seed: of the resamples.

    Returns:
      The difference; or, as a string, why the two cannot be compared.
    """
    a, b = first.sample, second.sample
    if first.data != second.data:
        return "measured on other data (their fingerprints differ)"
    if not np.array_equal(a.units, b.units):
        return f"measured on other units ({len(a.units)} and {len(b.units)})"
    _, owner = np.unique(a.patients, return_inverse=True)
    count = int(owner.max()) + 1
    if count < 2:
        return "all units are of one patient"
    ones = np.ones((1, len(owner)))
    values = [float(of.statistic(ones)[0]) for of in (a, b)]
    drawn = np.concatenate(
        [
            b.statistic(weights) - a.statistic(weights)
            for weights in metrics.resample(owner, resamples, seed)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < metrics.LEAST_SHARE * resamples:
        return "too few resamples of the patients give a value"
    below = (np.sum(drawn <= 0) + 1) / (len(drawn) + 1)
    above = (np.sum(drawn >= 0) + 1) / (len(drawn) + 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(
        key,
        values[0],
        values[1],
        values[1] - values[0],
        float(low),
        float(high),
        float(min(1.0, 2 * min(below, above))),
        len(owner),
        count,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the order given."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected.tolist()


def all_differences(
    first: Mapping[Key, Kept],
    second: Mapping[Key, Kept],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[list[Difference], dict[str, str]]:
    """Compares every figure that both reports have.

    Returns:
      (differences in the order of the first report, `p_holm` over those whose
      protocol has no suffix, and over the others apart; what was left out and why).
    """
    found: list[Difference] = []
    left_out: dict[str, str] = {}
    for key in dict.fromkeys([*first, *second]):
        name = " ".join(key)
        if key not in first or key not in second:
            left_out[name] = (
                f"only in the {'first' if key in first else 'second'} report"
            )
            continue
        made = difference(key, first[key], second[key], resamples, seed)
        if isinstance(made, str):
            left_out[name] = made
        else:
            found.append(made)
    for headline in (True, False):
        places = [i for i, d in enumerate(found) if ("/" not in d.key[0]) == headline]
        for place, p in zip(places, holm([found[i].p for i in places])):
            found[place] = Difference(**{**vars(found[place]), "p_holm": p})
    return found, left_out
