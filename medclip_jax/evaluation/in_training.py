"""A cheap zero-shot figure while training, on validation films.

Its prompts are drawn once, so the figures of one run can be compared; it chooses the
best checkpoint, which is why it never sees the test split.
"""

import numpy as np

from medclip_jax.evaluation import five_class, metrics, prompts, zero_shot
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.methods.interface import Variables


def choose_films(
    labels_Nx14: np.ndarray,
    views: metrics.Strings,
    ids: metrics.Strings,
    limit: int,
    seed: int = 0,
) -> five_class.FiveClassSet:
    """Chooses validation films by the loose five-class rule, before any is decoded.

    Args:
      labels_Nx14: int codes.
      views: N views; lateral ones are left out.
      ids: N image ids; the choice goes by them.
      limit: the most films in all; at least five.
      seed: seed of the choice.

    Raises:
      UserError: when a class has no film.
    """
    classes = five_class.class_of(labels_Nx14)
    classes = np.where(five_class.frontal(views), classes, -1)
    return five_class.choose(classes, ids, per_class=max(1, limit // 5), seed=seed)


class ZeroShotInTraining:
    """Zero-shot accuracy and AUROC over five classes, of any variables of one method.

    Args:
      embedder: compiled inference; shared between calls, so it compiles once.
      films_NxHxWx1: uint8, the chosen films.
      classes: int [N], as chosen.
      seed: seed of the prompt draw.
    """

    def __init__(
        self,
        embedder: Embedder,
        films_NxHxWx1: np.ndarray,
        classes: np.ndarray,
        seed: int = 0,
    ):
        five = prompts.five_class_prompts()
        drawn = prompts.draw_prompts(five, seed=seed)
        self._prompts = {name: [five[name][i] for i in drawn[name]] for name in five}
        self._embedder = embedder
        self._films = films_NxHxWx1
        self._classes = classes

    def __call__(self, variables: Variables) -> dict[str, float]:
        """Measures; the same variables always give the same figures.

        Returns:
          {"zero_shot/accuracy", "zero_shot/auroc"}; chance is 0.2 and 0.5.
        """
        texts = [text for of in self._prompts.values() for text in of]
        logits_NxP = self._embedder.logits(
            variables,
            self._embedder.films(variables, [self._films]),
            self._embedder.texts(variables, texts),
        )
        scores = zero_shot.class_scores(
            logits_NxP, list(zero_shot.columns_of(self._prompts).values())
        )
        against = zero_shot.against_rest(scores)
        areas = [
            metrics.auroc(self._classes == c, against[:, c])
            for c in range(scores.shape[1])
        ]
        return {
            "zero_shot/accuracy": float(np.mean(scores.argmax(1) == self._classes)),
            "zero_shot/auroc": float(np.mean(areas)),
        }
