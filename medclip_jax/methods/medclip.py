"""MedCLIP: contrastive learning from unpaired films and texts.

Wang, Wu, Agarwal, Sun, "MedCLIP: Contrastive Learning from Unpaired Medical Images
and Text", EMNLP 2022, arXiv 2210.10163; code RyanWangZf/MedCLIP.

Images and texts of a batch are not paired. What ties image i to text j is how much
their findings agree: the softmax over that similarity is the target of the softmax
over their scaled cosines, in both directions.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError, check_choice
from medclip_jax.losses import semantic_matching_loss
from medclip_jax.losses.labels import label_values
from medclip_jax.losses.semantic_matching import Target
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
class MedCLIP(DualEncoder):
    """Attributes:
    target: "cosine" of the label vectors (paper, section 3.3) or their "dot"
      product (official code, medclip/losses.py).
    uncertain: what a label of -1 counts as, see `label_values`.
    not_given: what a label that nobody gave counts as.
    initial_scale: inverse temperature at the start; it is learned.
    """

    target: Target = "cosine"
    uncertain: str = "zero"
    not_given: str = "zero"
    initial_scale: float = 1 / 0.07

    @classmethod
    def from_config(cls, config: Any) -> "MedCLIP":
        switches = config.medclip
        dim = config.model.embed_dim
        check_choice("medclip.target", switches.target, Target)
        if not 1 <= switches.initial_scale <= 100:
            raise UserError(
                "medclip.initial_scale must be in [1, 100], where the learned scale is "
                f"kept; found {switches.initial_scale}"
            )
        return cls(
            **build_towers(config),
            image_head=ImageHead(linear_head(dim)),
            text_head=TextHead(
                linear_head(dim, bias=switches.text_bias),
                check_text_pool(switches.text_pool, config.model.text),
                switches.pool_padding,
            ),
            view="unpaired",
            target=switches.target,
            uncertain=config.data.uncertain,
            not_given=config.data.not_given,
            initial_scale=switches.initial_scale,
        )

    def scalars(self) -> dict[str, Any]:
        return learned_scale(self.initial_scale)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        scale = self.scale(variables)
        image_labels, _ = label_values(
            batch["image_labels_Nx14"], self.uncertain, self.not_given
        )
        text_labels, _ = label_values(
            batch["text_labels_Mx14"], self.uncertain, self.not_given
        )
        loss = semantic_matching_loss(
            *joint(features.images, features.texts),
            image_labels,
            text_labels,
            scale,
            target=self.target,
            image_weight_N=batch["image_weight_N"],
            text_weight_M=batch["text_weight_M"],
        )
        return loss, {"logit_scale": jnp.log(scale)}, {}
