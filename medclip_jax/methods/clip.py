"""CLIP on pairs of films and report texts.

Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020, section 2.3 and figure 3: linear projections,
symmetric InfoNCE with a learned temperature, clamped at 100. The text tower here is
BERT and its first token stands for the text; CLIP's own is a causal transformer.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medclip_jax.losses import infonce_loss
from medclip_jax.methods.dual_encoder import (
    DualEncoder,
    check_text_pool,
    joint,
    learned_scale,
)
from medclip_jax.methods.interface import Batch, Features, Metrics, State, Variables
from medclip_jax.methods.towers import build_towers
from medclip_jax.models.heads import ImageHead, TextHead, linear_head


@dataclass(frozen=True)
class CLIP(DualEncoder):
    @classmethod
    def from_config(cls, config: Any) -> "CLIP":
        dim = config.model.embed_dim
        return cls(
            **build_towers(config),
            image_head=ImageHead(linear_head(dim)),
            text_head=TextHead(
                linear_head(dim),
                check_text_pool(config.clip.text_pool, config.model.text),
            ),
        )

    def scalars(self) -> dict[str, Any]:
        return learned_scale(1 / 0.07)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        scale = self.scale(variables)
        loss = infonce_loss(
            *joint(features.images, features.texts),
            scale,
            image_weight_N=batch["image_weight_N"],
            text_weight_M=batch["text_weight_M"],
        )
        return loss, {"logit_scale": jnp.log(scale)}, {}
