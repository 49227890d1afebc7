"""ConVIRT: contrastive learning from paired films and report sentences.

Zhang, Jiang, Miura, Manning, Langlotz, "Contrastive Learning of Medical Visual
Representations from Paired Images and Text", arXiv 2010.00747. There is no official
training code.

A text is one sentence drawn from the report (section 3.3); its vector is the maximum
over BERT's output vectors. The paper does not say whether padding takes part; here
it does not. Both projections have one hidden layer. The temperature is fixed.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medclip_jax.losses import infonce_loss
from medclip_jax.methods.dual_encoder import DualEncoder, check_text_pool, joint
from medclip_jax.methods.interface import Batch, Features, Metrics, State, Variables
from medclip_jax.methods.towers import build_towers
from medclip_jax.models.heads import ImageHead, MLPHead, TextHead


@dataclass(frozen=True)
class ConVIRT(DualEncoder):
    """Attributes:
    temperature: tau, 0.1 in the paper, never learned.
    image_to_text: lambda, the weight of the image-to-text direction (equation 4).
    """

    temperature: float = 0.1
    image_to_text: float = 0.75

    @classmethod
    def from_config(cls, config: Any) -> "ConVIRT":
        switches = config.convirt
        dim = config.model.embed_dim
        return cls(
            **build_towers(config),
            image_head=ImageHead(MLPHead(dim)),
            text_head=TextHead(
                MLPHead(dim), check_text_pool(switches.text_pool, config.model.text)
            ),
            temperature=switches.temperature,
            image_to_text=switches.image_to_text,
        )

    def scale(self, variables: Variables) -> jax.Array:
        return jnp.float32(1 / self.temperature)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        loss = infonce_loss(
            *joint(features.images, features.texts),
            self.scale(variables),
            image_to_text=self.image_to_text,
            image_weight_N=batch["image_weight_N"],
            text_weight_M=batch["text_weight_M"],
        )
        return loss, {}, {}
