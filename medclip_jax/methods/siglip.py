"""SigLIP on pairs of films and report texts.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343: every
image-text pair of the batch is a binary question with a learned temperature and bias
(section 3.2). Texts and films are pooled by their towers here; the paper's image
tower ends in attention pooling.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.losses import sigmoid_loss
from medclip_jax.losses.similarity import similarity_logits
from medclip_jax.methods.dual_encoder import (
    DualEncoder,
    check_text_pool,
    joint,
    learned_scale,
)
from medclip_jax.methods.interface import (
    Batch,
    Features,
    ImageEmbedding,
    Metrics,
    State,
    TextEmbedding,
    Variables,
)
from medclip_jax.methods.towers import build_towers
from medclip_jax.models.heads import ImageHead, TextHead, linear_head


@dataclass(frozen=True)
class SigLIP(DualEncoder):
    @classmethod
    def from_config(cls, config: Any) -> "SigLIP":
        dim = config.model.embed_dim
        return cls(
            **build_towers(config),
            image_head=ImageHead(linear_head(dim, bias=True)),
            text_head=TextHead(
                linear_head(dim, bias=True),
                check_text_pool(config.siglip.text_pool, config.model.text),
            ),
        )

    def scalars(self) -> dict[str, Any]:
        bias = nn.LogicallyPartitioned(jnp.float32(-10.0), names=())
        return {**learned_scale(10.0), "logit_bias": bias}

    def score(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """logits_NxM whose sigmoid is the probability of a match."""
        logits_NxM = similarity_logits(*joint(images, texts), self.scale(variables))
        return logits_NxM + variables["params"]["logit_bias"]

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        scale, bias = self.scale(variables), variables["params"]["logit_bias"]
        loss = sigmoid_loss(
            *joint(features.images, features.texts),
            scale,
            bias,
            image_weight_N=batch["image_weight_N"],
            text_weight_M=batch["text_weight_M"],
        )
        return loss, {"logit_scale": jnp.log(scale), "logit_bias": bias}, {}
