"""A small real method whose answer is known: it reads a finding from bright bands.

A film shows finding f as a bright band number f; a text tells it by a keyword. The
trained variables compare the two; the untrained ones project both at random.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from data_pipelines.findings import EVAL_FIVE, FINDINGS
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.five_class import FIVE_COLUMNS
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.sets import Films, Sentences
from medclip_jax.methods.interface import ImageEmbedding, TextEmbedding

WORDS = ("atelectasis", "cardi", "consolidation", "edema", "effusion")
SIDE = 20


@dataclass(frozen=True)
class Planted:
    """Method protocol on a single matrix."""

    head: nn.Module | None = None

    def embed_images(self, variables, films):
        bands_Bx5 = films["current_BxHxWx3"][..., 0].reshape(-1, 5, 4 * SIDE).mean(2)
        joint = (bands_Bx5 - bands_Bx5.mean(1, keepdims=True)) @ variables["mix"]
        # A patch a row of pixels: it tells the finding whose band it lies in.
        rows_BxP = films["current_BxHxWx3"][..., 0].mean(2)
        own_Px5 = jnp.repeat(jnp.eye(5), SIDE // 5, 0)
        patches_BxPx5 = rows_BxP[..., None] * own_Px5
        return ImageEmbedding(
            bands_Bx5,
            _unit(joint),
            patches_BxPx5,
            _unit(patches_BxPx5 @ variables["mix"]),
            (SIDE, 1),
        )

    def embed_texts(self, variables, texts):
        return TextEmbedding(_unit(texts["ids_BxT"].astype(jnp.float32) + 1e-3))

    def score(self, variables, images, texts):
        return images.joint_BxD @ texts.joint_BxD.T


@dataclass(frozen=True)
class PlantedLocal(Planted):
    """Scores a film by its best patch."""

    scores_locally: bool = True

    def score(self, variables, images, texts):
        return jnp.einsum("npd,md->npm", images.local_BxPxD, texts.joint_BxD).max(1)


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-9)


class Keywords:
    """Ids are the counts of the five keywords."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), 5), np.int32)
        for row, text in enumerate(texts):
            for column, word in enumerate(WORDS):
                ids[row, column] = word in text.lower() or (
                    column == 1 and "heart" in text.lower()
                )
        return {"ids_BxT": ids, "mask_BxT": np.ones_like(ids)}


def networks(cache=None, method=Planted()) -> dict[str, Network]:
    embedder = Embedder(
        method, lambda x: jnp.repeat(x / 255.0, 3, -1), Keywords(), 5, 16
    )
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    return {
        "trained": Network(
            "trained", embedder, {"mix": np.eye(5, dtype=np.float32)}, cache=cache
        ),
        "untrained": Network(
            "untrained", embedder, {"mix": np.roll(mix, 1, 0)}, cache=cache
        ),
    }


def bench(of: Films, texts: Sentences | None = None, **options) -> Bench:
    """One data set, its sentences and what its reports are compared by."""
    told = {} if texts is None else {of.name: texts}
    return Bench([of], told, told, options=Options(**options))


def films(count=100, name="toy", lateral=0) -> Films:
    """Films with one of the five findings each, two of a patient; some lateral."""
    rng = np.random.default_rng(1)
    classes = np.arange(count) % 5
    labels = np.zeros((count, len(FINDINGS)), np.int8)
    labels[np.arange(count), np.asarray(FIVE_COLUMNS)[classes]] = 1
    labels[::7, FINDINGS.index("Support Devices")] = 1
    pixels = rng.integers(0, 80, (count, SIDE, SIDE, 1)).astype(np.uint8)
    for film, c in enumerate(classes):
        pixels[film, c * 4 : c * 4 + 4] += 60
    views = np.array(["AP", "PA"] * (count // 2), dtype="U8")
    views[: 5 * lateral] = "LATERAL"

    def read(positions):
        for start in range(0, len(positions), 7):
            yield pixels[positions[start : start + 7]]

    return Films(
        name,
        np.array([f"film{i:03d}" for i in range(count)]),
        np.array([f"p{i // 2:03d}" for i in range(count)]),
        np.array([f"s{i:03d}" for i in range(count)]),
        views,
        labels,
        read,
        np.full(count, "test"),
        lambda position: {"boxes": np.zeros((0, 4)), "masks": []},
        fingerprint=f"of {name} {count}",
    )


def sentences(count=100) -> Sentences:
    """One sentence a study that tells its finding, and an unrelated one."""
    texts, labels, studies = [], [], []
    for study in range(count):
        c = study % 5
        vector = np.full(len(FINDINGS), -2, np.int8)
        vector[FIVE_COLUMNS[c]] = 1
        texts += [f"There is {EVAL_FIVE[c]}, secret{study}.", "The bones are intact."]
        labels += [vector, np.full(len(FINDINGS), -2, np.int8)]
        studies += [f"s{study:03d}"] * 2
    patients = [f"p{int(study[1:]) // 2:03d}" for study in studies]
    return Sentences(texts, np.array(labels), np.array(patients), np.array(studies))
