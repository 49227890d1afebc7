"""Segmentation by fine-tuning: an image tower and a decoder of masks on its patches.

The loss is that of GLoRIA (Huang et al., ICCV 2021, section 4.4; marshuang80/gloria,
gloria/loss/segmentation_loss.py); the decoder and the loss are given from outside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
from medclip_jax.methods.supervised import Supervised


@dataclass(frozen=True)
class Segmenter:
    """Attributes:
    tower: whose image tower it is; its classifier is not used.
    decoder: flax module, patches_BxPxF -> logits_BxSxS.
    loss: (logits_BxSxS, masks_BxSxS of 0 and 1) -> float32 scalar.
    """

    tower: Supervised
    decoder: nn.Module
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    view: str = "images"
    label_key: str = "masks_BxSxS"

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        keys = jax.random.split(key)
        variables = self.tower.init(keys[0], spec)
        films = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        images = self.tower.embed_images(
            nn.meta.unbox(variables), {"current_BxHxWx3": films}
        )
        decoder: Any = self.decoder.init(keys[1], images.patches_BxPxC)["params"]
        image = {
            "encoder": variables["params"]["image"]["encoder"],
            # It is small: every device holds the whole of it.
            "decoder": jax.tree.map(
                lambda leaf: nn.LogicallyPartitioned(leaf, (None,) * leaf.ndim), decoder
            ),
        }
        return {**variables, "params": {"image": image}}

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        return self.tower.encode(variables, batch, keys, train)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        assert features.images is not None
        logits_BxSxS = self.class_logits(variables, features.images)
        masks_BxSxS = batch[self.label_key].astype(jnp.float32)
        return self.loss(logits_BxSxS, masks_BxSxS), {}, {}

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        return variables

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        return self.tower.embed_images(variables, films)

    def class_logits(self, variables: Variables, images: ImageEmbedding) -> jax.Array:
        """logits_BxSxS: one a pixel."""
        params = variables["params"]["image"]["decoder"]
        logits_BxSxS: Any = self.decoder.apply({"params": params}, images.patches_BxPxC)
        return logits_BxSxS

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 of the encoder for one image."""
        return self.tower.forward_flops(spec)
