"""Supervised classification: the ceiling beside zero-shot figures, and fine-tuning.

One logit a label on the image trunk. Labels that do not exclude one another have a
binary cross-entropy each, averaged over those that count (U-Ignore, U-Zeros or U-Ones of
the CheXpert paper, arXiv 1901.07031, section 3.1, by `data.uncertain`); classes have one
cross-entropy. Fine-tuning (ConVIRT, arXiv 2010.00747, appendix B) starts from another
method's image tower, first with the tower frozen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.losses.labels import label_values
from medclip_jax.losses.similarity import weighted_mean
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
from medclip_jax.methods.towers import apply_module, image_encoder_of, tower_state
from medclip_jax.models.dropout import active_keys, dropout
from medclip_jax.models.heads import linear_head

# No other dropout of an example has this number.
_DROPOUT_SITE = 1 << 20


@dataclass(frozen=True)
class Supervised:
    """Attributes:
    image_encoder: flax module, films_BxHxWx3 -> ImageFeatures.
    uncertain: what a label of -1 counts as, see `label_values`.
    not_given: what a label that nobody gave counts as.
    label_key: where a batch has its label codes, int8 [N, labels].
    labels: how many logits there are.
    exclusive: whether exactly one label of a film holds (softmax); a film with none
      does not count.
    dropout: share of the trunk's features dropped before the head, in training.
    frozen: the tower runs as in inference, without a gradient, and only the head
      learns.
    """

    image_encoder: nn.Module
    uncertain: str = "ignore"
    not_given: str = "zero"
    view: str = "images"
    label_key: str = "image_labels_Nx14"
    labels: int = 14
    exclusive: bool = False
    dropout: float = 0.0
    frozen: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "Supervised":
        return cls(
            image_encoder_of(config),
            config.data.uncertain,
            config.data.not_given,
        )

    @property
    def head(self) -> nn.Module:
        return linear_head(self.labels, bias=True)

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
            train=train and not self.frozen,
            keys_B=keys.images_N if keys else None,
        )
        trunk_BxF = features.trunk_BxF.astype(jnp.float32)
        if self.frozen:
            trunk_BxF = jax.lax.stop_gradient(trunk_BxF)
        drops = active_keys(train, keys.images_N if keys else None, self.dropout)
        embedding = ImageEmbedding(
            dropout(trunk_BxF, self.dropout, drops, _DROPOUT_SITE),
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
        assert features.images is not None
        logits_NxC = self.class_logits(variables, features.images)
        labels_NxC, mask_NxC = label_values(
            batch[self.label_key], self.uncertain, self.not_given
        )
        weight_N = batch["image_weight_N"]
        if self.exclusive:
            one_NxC = (batch[self.label_key] == 1).astype(jnp.float32)
            losses_N = -(one_NxC * jax.nn.log_softmax(logits_NxC)).sum(axis=1)
            return weighted_mean(losses_N, weight_N * one_NxC.sum(axis=1)), {}, {}
        losses_NxC = -(
            labels_NxC * jax.nn.log_sigmoid(logits_NxC)
            + (1 - labels_NxC) * jax.nn.log_sigmoid(-logits_NxC)
        )
        return weighted_mean(losses_NxC, mask_NxC * weight_N[:, None]), {}, {}

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        return variables

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        features, _ = self.encode(variables, {"films": films}, None, train=False)
        assert features.images is not None
        return features.images

    def class_logits(self, variables: Variables, images: ImageEmbedding) -> jax.Array:
        """logits_BxC, by default in the order of the 14 findings."""
        params = variables["params"]["image"]["classifier"]
        logits_BxC: Any = self.head.apply({"params": params}, images.trunk_BxF)
        return logits_BxC

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 of the encoder for one image."""
        return self.image_encoder.forward_flops(spec.image_size)

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """No two films meet."""
        return 0.0


def tower_of(variables: Variables) -> Variables:
    """The image tower of another method's variables, as this method names it."""
    state = {name: {"image": of["image"]} for name, of in variables.items()
             if name != "params" and "image" in of}  # fmt: skip
    encoder = variables["params"]["image"]["encoder"]
    return {"params": {"image": {"encoder": encoder}}, **state}
