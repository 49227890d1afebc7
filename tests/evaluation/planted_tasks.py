"""Films of sets with tasks of their own, for the planted method.

A film of class c has a bright band number c; a text means class c when rule c holds.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import planted

from data_pipelines.annotations import Task
from data_pipelines.findings import FINDINGS
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.sets import Films, Judged

SIDE = planted.SIDE
SPLITS = ("train", "validate", "test")


class Rules:
    """A tokenizer whose ids tell which rules hold for a text."""

    def __init__(self, *rules):
        self.rules = rules

    def encode(self, texts, length):
        ids = np.zeros((len(texts), 5), np.int32)
        for row, text in enumerate(texts):
            for column, rule in enumerate(self.rules):
                ids[row, column] = rule(text.lower())
        return {"ids_BxT": ids, "mask_BxT": np.ones_like(ids)}


class Mixed(planted.Planted):
    """The planted method, whose trunk depends on its variables too."""

    def embed_images(self, variables, films):
        images = super().embed_images(variables, films)
        return images.replace(trunk_BxF=images.joint_BxD)


def networks(*rules) -> dict[str, Network]:
    embedder = Embedder(
        Mixed(), lambda x: jnp.repeat(x / 255.0, 3, -1), Rules(*rules), 5, 64
    )
    blind = np.zeros((5, 5), np.float32)
    blind[:, 4] = [0.02, -0.01, 0.015, 0.01, 1.0]  # sees band 4 alone, which is noise
    mix = {"trained": np.eye(5, dtype=np.float32), "untrained": blind}
    return {name: Network(name, embedder, {"mix": of}) for name, of in mix.items()}


def films(
    codes_NxC: np.ndarray,
    task: Task,
    name: str = "question",
    kind: str = "csv",
    noise: int = 80,
    spread: float = 0.0,
    per_patient: int = 2,
    per_study: int = 1,
    bands: np.ndarray | None = None,
    seed: int = 1,
) -> Films:
    """Films whose bands tell the codes; patients in turn to the three splits.

    Args:
      codes_NxC: label codes of each film.
      bands: the band of each film; by default the positive label's, of a binary task 1
        for positive and 0 for negative.
      spread: deviation of a band's brightness, which is 60 in the mean.
    """
    count, rng = len(codes_NxC), np.random.default_rng(seed)
    if bands is None:
        positive = codes_NxC == 1
        bands = positive[:, 0] if task.kind == "binary" else positive.argmax(1)
    bright = rng.integers(0, noise, (count, SIDE, SIDE, 1)).astype(float)
    for film, band in enumerate(bands.astype(int)):
        bright[film, band * 4 : band * 4 + 4] += 60 + spread * rng.normal()
    pixels = bright.clip(0, 255).astype(np.uint8)
    patient = np.arange(count) // per_patient

    def read(positions):
        for start in range(0, len(positions), 50):
            yield pixels[positions[start : start + 50]]

    return Films(
        "set",
        np.array([f"film{i:04d}" for i in range(count)]),
        np.array([f"p{i:04d}" for i in patient]),
        np.array([f"s{i // per_study:04d}" for i in range(count)]),
        np.full(count, "PA", dtype="U8"),
        np.full((count, len(FINDINGS)), -2, np.int8),
        read,
        np.array([SPLITS[i % 3] for i in patient]),
        lambda position: {"boxes": np.zeros((0, 4)), "masks": []},
        kind,
        f"of {name}",
        {name: task},
        {name: Judged(np.arange(count), codes_NxC.astype(np.int8))},
    )


def relabelled(of: Films, split: str, codes_NxC: np.ndarray) -> Films:
    """The same films with other labels in one split."""
    (name,) = of.classes
    codes = of.classes[name].codes_KxC.copy()
    chosen = of.where(split)
    codes[chosen] = codes_NxC[chosen]
    judged = {name: Judged(of.classes[name].films, codes)}
    return dataclasses.replace(of, classes=judged)
