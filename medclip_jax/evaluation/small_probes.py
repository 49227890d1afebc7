"""Linear classifiers of scikit-learn on the features of some hundred or thousand pairs."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

STRENGTH = 10.0
"""C of the logistic regression, whose features have a mean squared length of one."""

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Features [N, F] and classes [N] to fit on, features [M, F] -> classes [M]."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float64."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def compact(features_NxF: np.ndarray) -> np.ndarray:
    """The same points in at most N coordinates, around their mean.

    All distances stay, so a linear classifier with an L2 penalty and a free intercept
    predicts the same; where there are more features than points it is far faster.
    """
    features_NxF = np.asarray(features_NxF, np.float64)
    centred = features_NxF - features_NxF.mean(axis=0)
    if centred.shape[1] <= len(centred):
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors * np.sqrt(np.maximum(values, 0))


def logistic(
    features: np.ndarray,
    classes: np.ndarray,
    others: np.ndarray,
    balanced: bool = True,
) -> np.ndarray:
    """Multinomial logistic regression, all classes (if not `balanced`, pairs) alike.

    Features are moved by the mean of those it is fitted on, and divided by one number,
    so that STRENGTH means the same for every network.
    """
    middle = features.mean(axis=0)
    length = np.sqrt(np.square(features - middle).sum(axis=1).mean())
    length = max(float(length), 1e-12)
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=STRENGTH, class_weight=weight, max_iter=5000)
    with threadpool_limits(1):  # small products: two threads only wait for each other
        model.fit((features - middle) / length, classes)
        return model.predict((others - middle) / length)


def linear_svm(
    features: np.ndarray, classes: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """A linear support vector machine, one class against the rest, C of 1."""
    with threadpool_limits(1):
        model = LinearSVC(max_iter=20_000, random_state=0).fit(features, classes)
        return model.predict(others)


def out_of_fold(
    features: np.ndarray,
    classes: np.ndarray,
    patients: np.ndarray | None,
    fit: Classifier,
    seed: int,
    folds: int = 10,
) -> np.ndarray:
    """Each row's class as predicted by a classifier that was not fitted on it.

    Args:
      features: float [N, F].
      classes: int [N].
      patients: N ids, whose rows stay in one fold; None lets rows of a patient part.
      fit: the classifier.
      seed: of the folds, which are stratified.
      folds: how many.

    Returns:
      int [N].
    """
    made = np.full(len(classes), -1, classes.dtype)
    splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
    parts = splitter(folds, shuffle=True, random_state=seed)
    for fitted, rest in parts.split(features, classes, patients):
        made[rest] = fit(features[fitted], classes[fitted], features[rest])
    return made
