"""ResNet in torchvision's layout (v1.5: the stride sits on the 3x3 convolution).

Reference: He et al. 2016; torchvision/models/resnet.py for padding, order and names.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.features import ImageFeatures
from medclip_jax.models.layers import check_films, named, sides

EXPANSION = {"bottleneck": 4, "basic": 1}


def _conv(dim: int, kernel: int, stride: int, name: str, dtype: Any) -> nn.Conv:
    # Explicit padding: SAME pads a strided convolution on the other side than torch.
    pad = kernel // 2
    return nn.Conv(
        dim,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=named(
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            *(None, None, "conv_in", "conv_out"),
        ),
        name=name,
    )


def _norm(name: str, train: bool, dtype: Any) -> nn.BatchNorm:
    # Momentum 0.9 is torch's 0.1. The running variance takes the biased variance of
    # the batch where torch takes the unbiased one: a factor n / (n - 1), n counting
    # pixels of all examples.
    # Two passes for the variance: E[x^2] - E[x]^2 cancels where the mean is large
    # (films are), and then 1 and 8 devices differ by 5e-4 in the gradient, not 2e-6.
    return nn.BatchNorm(
        use_fast_variance=False,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=named(nn.initializers.ones_init(), "norm"),
        bias_init=named(nn.initializers.zeros_init(), "norm"),
        name=name,
    )


class ResNetBlock(nn.Module):
    """One residual block.

    Attributes:
      dim: width of its inner convolutions.
      stride: 2 where it halves the map.
      kind: "bottleneck" (1x1, 3x3, 1x1 of four times the width) or "basic" (3x3, 3x3).
      project: whether the shortcut is a 1x1 convolution.
    """

    dim: int
    stride: int
    kind: str
    project: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        x, out_dim = x_BxHxWxC, self.dim * EXPANSION[self.kind]
        plan: tuple[tuple[int, int, int], ...]
        if self.kind == "bottleneck":
            plan = ((self.dim, 1, 1), (self.dim, 3, self.stride), (out_dim, 1, 1))
        else:
            plan = ((self.dim, 3, self.stride), (out_dim, 3, 1))
        y = x
        for number, (dim, kernel, stride) in enumerate(plan, start=1):
            y = _conv(dim, kernel, stride, f"conv{number}", self.dtype)(y)
            y = _norm(f"bn{number}", train, self.dtype)(y)
            if number < len(plan):
                y = nn.relu(y)
        if self.project:
            x = _conv(out_dim, 1, self.stride, "downsample_conv", self.dtype)(x)
            x = _norm("downsample_bn", train, self.dtype)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-50 by default; smaller by its fields.

    Attributes:
      stage_sizes: blocks of each stage.
      width: channels of the stem; stage s has width * 2**s inside its blocks.
      block: "bottleneck" or "basic".
      dtype: compute dtype; parameters and batch statistics are float32.
      remat: recompute each block in the backward pass.
      scan_layers: taken like every encoder's, and without effect: the blocks of a
        stage change their batch statistics, which a loop would have to carry.
      attention: taken like every encoder's, and without effect.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    block: str = "bottleneck"
    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    attention: str = "plain"

    def __post_init__(self):
        if self.block not in EXPANSION:
            raise ValueError(
                f"ResNet block {self.block!r} is none of {sorted(EXPANSION)}"
            )
        super().__post_init__()

    @property
    def feature_dim(self) -> int:
        """Width F of the trunk feature and C of the patches."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * EXPANSION[self.block]

    def block_plan(self) -> list[tuple[str, int, int, bool]]:
        """(name, inner width, stride, whether the shortcut is projected) by block."""
        plan, channels = [], self.width
        for stage, blocks in enumerate(self.stage_sizes):
            dim = self.width * 2**stage
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                out = dim * EXPANSION[self.block]
                project = stride != 1 or channels != out
                plan.append((f"layer{stage + 1}_{index}", dim, stride, project))
                channels = out
        return plan

    @nn.compact
    def __call__(
        self,
        films_BxHxWx3: jax.Array,
        *,
        train: bool,
        keys_B: jax.Array | None = None,
    ) -> ImageFeatures:
        """Encodes films.

        Args:
          films_BxHxWx3: float32 [B, H, W, 3], normalised.
          train: use and update batch statistics ("batch_stats" must be mutable).
          keys_B: not used; a ResNet drops nothing.

        Returns:
          The global average as trunk, the last stage's map as patches, all maps.
        """
        check_films(films_BxHxWx3)
        x = _conv(self.width, 7, 2, "conv1", self.dtype)(
            films_BxHxWx3.astype(self.dtype)
        )
        x = nn.relu(_norm("bn1", train, self.dtype)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        block = ResNetBlock
        if self.remat:
            block = nn.remat(ResNetBlock, static_argnums=(2,))
        stages: list[jax.Array] = []
        for name, dim, stride, project in self.block_plan():
            if name.endswith("_0") and name != "layer1_0":
                stages.append(x)
            x = block(dim, stride, self.block, project, self.dtype, name=name)(x, train)
        stages.append(x)
        batch, height, width, channels = x.shape
        patches_BxPxC = x.reshape(batch, height * width, channels)
        trunk_BxF = patches_BxPxC.astype(jnp.float32).mean(axis=1)
        return ImageFeatures(trunk_BxF, patches_BxPxC, (height, width), tuple(stages))

    def forward_flops(self, image_size: int | tuple[int, int]) -> int:
        """Operations of the convolutions for one film; a multiply-add counts 2."""

        def halve(side: int) -> int:
            return (side - 1) // 2 + 1

        height, width = (halve(side) for side in sides(image_size))
        macs = height * width * 49 * 3 * self.width
        height, width, channels = halve(height), halve(width), self.width
        for _, dim, stride, project in self.block_plan():
            out, before = dim * EXPANSION[self.block], height * width
            if stride == 2:
                height, width = halve(height), halve(width)
            after = height * width
            if self.block == "bottleneck":
                macs += before * channels * dim + after * dim * (9 * dim + out)
            else:
                macs += after * 9 * dim * (channels + out)
            if project:
                macs += after * channels * out
            channels = out
        return 2 * macs
