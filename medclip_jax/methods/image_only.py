"""What methods of one image tower and two crops have in common."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.methods.interface import (
    Features,
    ImageEmbedding,
    Spec,
    State,
    Variables,
)
from medclip_jax.methods.towers import (
    init_tower,
    l2_normalize,
    run_tower,
)
from medclip_jax.models.heads import ProjectionMLP


@dataclass(frozen=True)
class ImageOnly:
    """An encoder with its head; a method adds how crops are encoded and compared.

    What the head gives is compared in training alone. What is handed on is the trunk's
    feature before it: Chen et al. (SimCLR), section 4.2.

    Attributes:
      image_encoder: flax module, films_BxHxWx3 -> ImageFeatures.
      image_head: flax module, ImageFeatures -> Projected.
      view: default view of the data.
    """

    image_encoder: nn.Module
    image_head: ProjectionMLP
    view: str = "two_crops"

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        """Random variables, boxed with logical axis names."""
        keys = jax.random.split(key)
        films = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        image, state = init_tower(
            "image", keys[0], self.image_encoder, (films,), keys[1], self.image_head, ()
        )
        return {"params": {"image": image}, **state}

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        return variables

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        images, _ = self.embed(variables, films["current_BxHxWx3"], None, train=False)
        return dataclasses.replace(images, joint_BxD=None)

    def embed(
        self,
        variables: Variables,
        films_BxHxWx3: jax.Array,
        keys_B: jax.Array | None,
        train: bool,
    ) -> tuple[ImageEmbedding, State]:
        """Films with what the head gives, and the collections that changed."""
        features, projected, state = run_tower(
            "image", variables, self.image_encoder, (films_BxHxWx3,),
            self.image_head, (), keys_B, train,
        )  # fmt: skip
        embedding = ImageEmbedding(
            features.trunk_BxF.astype(jnp.float32),
            l2_normalize(projected.joint_BxD),
            features.patches_BxPxC,
            grid=features.grid,
        )
        return embedding, state


def two_views(features: Features) -> tuple[jax.Array, jax.Array]:
    """What both crops' heads gave; these methods always have them."""
    assert features.images is not None and features.second is not None
    assert features.images.joint_BxD is not None
    assert features.second.joint_BxD is not None
    return features.images.joint_BxD, features.second.joint_BxD
