"""SimCLR: two crops of each film find each other. Films alone, no text.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", arXiv 2002.05709. Official code: google-research/simclr. As the baseline
of ConVIRT (arXiv 2010.00747, appendix E) it is sthalles/SimCLR, without BatchNorm in its
head: the variant `convirt` of its config.

Both crops go through the tower in one batch, so that BatchNorm sees all 2N of all
devices.
"""

from dataclasses import dataclass
from typing import Any

import jax

from medclip_jax.losses import nt_xent_loss
from medclip_jax.methods.image_only import ImageOnly, two_views
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    Metrics,
    Spec,
    State,
    Variables,
)
from medclip_jax.methods.towers import image_encoder_of, keys_of_two, side_by_side
from medclip_jax.models.heads import ProjectionMLP


@dataclass(frozen=True)
class SimCLR(ImageOnly):
    """Attributes:
    temperature: tau, never learned.
    sum_of_views: the two views' means are added up, as in the official code
      (objective.py), which is twice the paper's mean over all 2N.
    """

    temperature: float = 0.1
    sum_of_views: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "SimCLR":
        switches = config.simclr
        return cls(
            image_encoder_of(config),
            ProjectionMLP(
                switches.hidden,
                config.model.embed_dim,
                switches.layers,
                switches.batch_norm,
            ),
            temperature=switches.temperature,
            sum_of_views=switches.sum_of_views,
        )

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        films = batch["films"]
        keys_B = None if keys is None else keys_of_two(keys.images_N)
        both_BxHxWx3 = side_by_side(films["current_BxHxWx3"], films["second_BxHxWx3"])
        images, state = self.embed(variables, both_BxHxWx3, keys_B, train)
        one, other = (jax.tree.map(lambda a, n=n: a[n::2], images) for n in range(2))
        return Features(one, second=other), state

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        loss = nt_xent_loss(
            *two_views(features), 1 / self.temperature, weight_N=batch["image_weight_N"]
        )
        return (2 * loss if self.sum_of_views else loss), {}, {}

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 of the encoder for both crops of one film."""
        return 2 * self.image_encoder.forward_flops(spec.image_size)

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """As of a dual encoder, of 2N views with each other."""
        return 6 * 4 * 2.0 * (2 * batch) ** 2 * self.image_head.dim
