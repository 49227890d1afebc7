"""BioViL-T's image encoder: a ResNet, and a transformer over a film and the one before.

Bannur et al., "Learning to Exploit Temporal Structure for Biomedical Vision-Language
Processing", CVPR 2023, section 3.1; microsoft/hi-ml,
health_multimodal/image/model/encoder.py (MultiImageEncoder).

A patch is what the current film shows there, beside what changed since the film before.
Where there is none, the second half is one learned vector and the transformer is not
asked. Unlike the official code a batch may hold films of both kinds.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.features import ImageFeatures
from medclip_jax.models.layers import named, normal, sides
from medclip_jax.models.resnet import ResNet
from medclip_jax.models.temporal_pooler import TemporalPooler


class Hybrid(nn.Module):
    """Attributes:
    stage_sizes, width, block: of the ResNet.
    dim: channels of a patch, of each half.
    blocks, heads: of the transformer.
    dropout, attention_dropout, drop_path: of the transformer.
    positions_in_values: see `TemporalPooler`.
    dtype: compute dtype; parameters are float32.
    remat: recompute each block of the ResNet in the backward pass.
    scan_layers, attention: taken like every encoder's, and without effect.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    block: str = "bottleneck"
    dim: int = 256
    blocks: int = 3
    heads: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.25
    positions_in_values: bool = True
    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    attention: str = "plain"

    def __post_init__(self):
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(
                f"dim {self.dim} is not divisible by 4 and by {self.heads} heads"
            )
        super().__post_init__()

    @property
    def feature_dim(self) -> int:
        """Width F of the trunk feature and C of the patches."""
        return 2 * self.dim

    @nn.compact
    def __call__(
        self,
        films_BxHxWx3: jax.Array,
        prior_BxHxWx3: jax.Array | None = None,
        has_prior_B: jax.Array | None = None,
        *,
        train: bool,
        keys_B: jax.Array | None = None,
    ) -> ImageFeatures:
        """Encodes films, each with the film before or without one.

        Args:
          films_BxHxWx3: float32 [B, H, W, 3], normalised.
          prior_BxHxWx3: of the same shape, what it holds of no matter where there is
            none before; None: no film has one.
          has_prior_B: bool [B]; where there is one.
          train: use and update batch statistics, and drop out.
          keys_B: typed PRNG keys [B], needed when training with a rate above 0.

        Returns:
          The mean of the patches as trunk; patches of both halves.
        """
        resnet = ResNet(
            self.stage_sizes,
            self.width,
            self.block,
            self.dtype,
            self.remat,
            name="resnet",
        )
        to_patch = nn.Dense(
            self.dim,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=named(nn.initializers.lecun_normal(), "embed", "mlp"),
            name="to_patch",
        )
        missing = jnp.asarray(
            self.param("missing", named(normal(0.02), "embed"), (self.dim,))
        ).astype(self.dtype)

        def patches(films_BxHxWx3: jax.Array) -> jax.Array:
            return to_patch(resnet(films_BxHxWx3, train=train).stages[-1])

        if prior_BxHxWx3 is None:
            current = patches(films_BxHxWx3)
            changed = jnp.broadcast_to(missing, current.shape)
        else:
            assert has_prior_B is not None
            here_Bx1x1x1 = has_prior_B[:, None, None, None]
            # A film that is not there would count in the batch statistics: the current
            # one stands in for it.
            prior_BxHxWx3 = jnp.where(here_Bx1x1x1, prior_BxHxWx3, films_BxHxWx3)
            # Side by side in an example, so that both stay on its device.
            both_Bx2xHxWx3 = jnp.stack([films_BxHxWx3, prior_BxHxWx3], axis=1)
            maps = patches(both_Bx2xHxWx3.reshape(-1, *films_BxHxWx3.shape[1:]))
            maps_Bx2xHxWxC = maps.reshape(-1, 2, *maps.shape[1:])
            current, previous = maps_Bx2xHxWxC[:, 0], maps_Bx2xHxWxC[:, 1]
            pooler = TemporalPooler(
                self.blocks,
                self.heads,
                self.dropout,
                self.attention_dropout,
                self.drop_path,
                self.positions_in_values,
                self.dtype,
                name="pooler",
            )
            changed = pooler(current, previous, train=train, keys_B=keys_B)
            changed = jnp.where(here_Bx1x1x1, changed, missing)
        map_BxHxWxC = jnp.concatenate([current, changed], axis=-1)
        batch, height, width, channels = map_BxHxWxC.shape
        patches_BxPxC = map_BxHxWxC.reshape(batch, height * width, channels)
        trunk_BxF = patches_BxPxC.astype(jnp.float32).mean(axis=1)
        return ImageFeatures(trunk_BxF, patches_BxPxC, (height, width))

    def forward_flops(self, image_size: int | tuple[int, int]) -> int:
        """Operations for one film with the film before; a multiply-add counts 2."""
        resnet = ResNet(self.stage_sizes, self.width, self.block, parent=None)
        stride = 2 ** (len(self.stage_sizes) + 1)
        height, width = (-(-side // stride) for side in sides(image_size))
        patches = height * width
        tokens = 2 * patches
        mapped = tokens * resnet.feature_dim * self.dim
        layer = tokens * 6 * self.dim**2 + 2 * tokens**2 * self.dim
        once = resnet.forward_flops(image_size)
        return 2 * once + 2 * (mapped + self.blocks * layer)
