"""Supervised classification of the 14 findings: the ceiling beside zero-shot figures.

One logit a finding on the image trunk, binary cross-entropy averaged over the labels
that count (U-Ignore, U-Zeros or U-Ones of the CheXpert paper, arXiv 1901.07031,
section 3.1, by `data.uncertain`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.losses.labels import label_values
from medclip_jax.losses.similarity import weighted_mean
from medclip_jax.methods.dual_encoder import apply_module, compute_dtype, tower_state
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    ImageEmbedding,
    Metrics,
    Spec,
    State,
    Variables,
)
from medclip_jax.models.heads import linear_head
from medclip_jax.models.registry import build_image_encoder


@dataclass(frozen=True)
class Supervised:
    """Attributes:
    image_encoder: flax module, films_BxHxWx3 -> ImageFeatures.
    uncertain: what a label of -1 counts as, see `label_values`.
    not_given: what a label that nobody gave counts as.
    """

    image_encoder: nn.Module
    uncertain: str = "ignore"
    not_given: str = "zero"
    view: str = "images"

    @classmethod
    def from_config(cls, config: Any) -> "Supervised":
        model = config.model
        image = {k: v for k, v in model.image.items() if k != "pretrained"}
        shared = {"dtype": compute_dtype(model.dtype), "remat": bool(model.remat)}
        return cls(
            build_image_encoder({**image, **shared}),
            config.data.uncertain,
            config.data.not_given,
        )

    @property
    def head(self) -> nn.Module:
        return linear_head(14, bias=True)

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        keys = jax.random.split(key)
        films = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        image = dict(self.image_encoder.init(keys[0], films, train=False))
        features, _ = apply_module(
            self.image_encoder, nn.meta.unbox(image), films, train=False
        )
        params = {
            "encoder": image.pop("params"),
            "classifier": self.head.init(keys[1], features.trunk_BxF)["params"],
        }
        state = {name: {"image": value} for name, value in image.items()}
        return {"params": {"image": params}, **state}

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        features, state = apply_module(
            self.image_encoder,
            {
                "params": variables["params"]["image"]["encoder"],
                **tower_state(variables, "image"),
            },
            batch["films"]["current_BxHxWx3"],
            train=train,
            keys_B=keys.images_N if keys else None,
        )
        embedding = ImageEmbedding(
            features.trunk_BxF.astype(jnp.float32),
            None,
            features.patches_BxPxC,
            grid=features.grid,
        )
        state = {name: {"image": value} for name, value in state.items()}
        return Features(embedding), state

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        logits_Nx14 = self._classify(variables, features.images)
        labels_Nx14, mask_Nx14 = label_values(
            batch["image_labels_Nx14"], self.uncertain, self.not_given
        )
        losses_Nx14 = -(
            labels_Nx14 * jax.nn.log_sigmoid(logits_Nx14)
            + (1 - labels_Nx14) * jax.nn.log_sigmoid(-logits_Nx14)
        )
        weight_Nx14 = mask_Nx14 * batch["image_weight_N"][:, None]
        return weighted_mean(losses_Nx14, weight_Nx14), {}, {}

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        return variables

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        return self.encode(variables, {"films": films}, None, train=False)[0].images

    def class_logits(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> jax.Array:
        """logits_Bx14 in the order of the 14 findings."""
        return self._classify(variables, self.embed_images(variables, films))

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 of the encoder for one image."""
        return self.image_encoder.forward_flops(spec.image_size)

    def _classify(self, variables: Variables, images: ImageEmbedding) -> jax.Array:
        params = variables["params"]["image"]["classifier"]
        logits_Bx14: Any = self.head.apply({"params": params}, images.trunk_BxF)
        return logits_Bx14
