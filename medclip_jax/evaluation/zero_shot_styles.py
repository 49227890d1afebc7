"""Ways to make a class's score of its prompts, side by side.

    mean_of_logits      the mean of the prompts' logits (MedCLIP's ensemble)
    mean_of_embeddings  the cosine with the mean of their embeddings, normalised again
                        (CLIP's ensemble)
    max_zscore          the largest logit, each class standardised over the units
                        judged (GLoRIA)
    own                 the rule of the method in question

Scores of the films of a unit are averaged before anything is standardised.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medclip_jax.evaluation import prompts, zero_shot
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Abilities, Options
from medclip_jax.evaluation.sets import Films
from medclip_jax.evaluation.tasks import Asked

STYLES = ("mean_of_logits", "mean_of_embeddings", "max_zscore")
OWN = "own"


def draw(
    texts: Mapping[str, Sequence[str]], options: Options
) -> list[list[np.ndarray]]:
    """For each draw, the columns of each class's prompts.

    Where no class has more prompts than a draw takes, there is one draw: all.
    """
    columns = zero_shot.columns_of(texts)
    most = max(len(of) for of in texts.values())
    count = options.draws if most > options.prompts_per_class else 1
    made = []
    for number in range(count):
        picked = prompts.draw_prompts(
            texts, options.prompts_per_class, options.seed + number
        )
        made.append([columns[name][picked[name]] for name in texts])
    return made


def scores(
    network: Network,
    films: Films,
    asked: Asked,
    texts: Mapping[str, Sequence[str]],
    options: Options,
    abilities: Abilities,
) -> dict[str, np.ndarray]:
    """Style to scores_DxUxC: draws, units, classes.

    Args:
      network: one that reads text.
      films: the data set.
      asked: its units.
      texts: class name to prompts, in the order of the class numbers.
      options: number and size of draws, seed.
      abilities: the method's own rule.

    Returns:
      STYLES that the method can give, and "own".

    Reference: RyanWangZf/MedCLIP, medclip/modeling_medclip.py PromptClassifier;
    openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb; marshuang80/gloria,
    gloria/gloria.py.
    """
    every = [text for of in texts.values() for text in of]
    draws = draw(texts, options)
    logits = network.logits(films, asked.positions, every)

    def pooled(pooling: str, zscore: bool) -> np.ndarray:
        made = [
            asked.pool(zero_shot.class_scores(logits, columns, pooling))
            for columns in draws
        ]
        return np.stack([zero_shot.standardise(s) if zscore else s for s in made])

    made = {
        "mean_of_logits": pooled("mean", False),
        "max_zscore": pooled("max", True),
        OWN: pooled(abilities.pooling, abilities.zscore),
    }
    images_KxD = network.images(films, asked.positions).joint_BxD
    if images_KxD is not None:
        words_PxD = np.asarray(network.texts(every).joint_BxD)
        made["mean_of_embeddings"] = np.stack(
            [
                asked.pool(ensemble(np.asarray(images_KxD), words_PxD, columns))
                for columns in draws
            ]
        )
    return made


def ensemble(
    images_KxD: np.ndarray, texts_PxD: np.ndarray, columns: Sequence[np.ndarray]
) -> np.ndarray:
    """Cosines float [K, C] with the normalised mean embedding of each class."""
    means = np.stack([texts_PxD[of].mean(axis=0) for of in columns])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return images_KxD @ (means / np.maximum(norms, 1e-12)).T


def margin(scores_DxUxC: np.ndarray) -> np.ndarray:
    """Positive less negative of a binary question, float [D, U]."""
    return scores_DxUxC[..., 1] - scores_DxUxC[..., 0]
