"""What a figure is held against: logistic regression on 16 x 16 pixels, and labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from medclip_jax.errors import UserError
from medclip_jax.evaluation.five_class import FIVE_COLUMNS

SIDE = 16
STRENGTHS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 3


def shrink(films_BxHxWx1: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Mean brightness over a grid of `side` x `side` fields, float [B, side * side].

    Args:
      films_BxHxWx1: uint8, at least `side` pixels each way.
    """
    _, height, width, _ = films_BxHxWx1.shape
    if min(height, width) < side:
        raise ValueError(f"films of {height} x {width} cannot give {side} x {side}")
    rows = np.arange(side) * height // side
    columns = np.arange(side) * width // side
    sums = np.add.reduceat(films_BxHxWx1[..., 0].astype(np.float64), rows, axis=1)
    sums = np.add.reduceat(sums, columns, axis=2)
    areas = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return (sums / areas).reshape(len(films_BxHxWx1), side * side)


@dataclass(frozen=True)
class PixelsLogistic:
    """Attributes:
    model: standardisation and multinomial logistic regression.
    strength: inverse regularisation chosen by cross-validation over patients.
    films: how many films it was fitted on.
    """

    model: Pipeline
    strength: float
    films: int

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Class of each film, int [N]."""
        return self.model.predict(np.concatenate([shrink(b) for b in batches]))


def fit_pixels_logistic(
    pixels: np.ndarray, classes: np.ndarray, patients: Sequence[str]
) -> PixelsLogistic:
    """Fits the pixel baseline on films of the training split.

    Its regularisation is chosen by cross-validation over patients, so that it is as
    strong a baseline as 256 numbers allow.

    Args:
      pixels: float [N, 256], as from `shrink`.
      classes: int [N], by the same five-class rule as the films it is judged on.
      patients: N patient ids.
    """
    classes = np.asarray(classes)
    strength = STRENGTHS[1]
    if len(set(patients)) >= FOLDS and len(pixels) >= 10 * FOLDS:
        folds = list(GroupKFold(FOLDS).split(pixels, classes, np.asarray(patients)))
        right = [
            sum(
                (_model(c).fit(pixels[a], classes[a]).predict(pixels[b]) == classes[b])
                .sum()
                for a, b in folds
            )
            for c in STRENGTHS
        ]  # fmt: skip
        strength = STRENGTHS[int(np.argmax(right))]
    model = _model(strength).fit(pixels, classes)
    return PixelsLogistic(model, strength, len(pixels))


def _model(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))


def five_of(logits_Nx14: np.ndarray) -> np.ndarray:
    """Class of each film from a classifier of the 14 findings, int [N]."""
    if logits_Nx14.ndim != 2 or logits_Nx14.shape[1] != 14:
        raise UserError(
            "the ceiling needs a method that gives one logit for each of the 14 "
            f"findings; found an array of shape {logits_Nx14.shape}"
        )
    return logits_Nx14[:, FIVE_COLUMNS].argmax(axis=1)
