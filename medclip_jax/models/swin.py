"""Swin transformer in the layout of Hugging Face's SwinModel (4.24 to 5).

Reference: Liu et al. 2021; transformers/models/swin/modeling_swin.py.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax.models.dropout import active_keys, drop_path, dropout
from medclip_jax.models.features import ImageFeatures
from medclip_jax.models.layers import (
    LayerNorm,
    PatchEmbedding,
    attention,
    check_films,
    dense,
    gelu,
    named,
    run_layers,
    sides,
    split_heads,
)

_SITES = 4


def relative_position_index(window: int, table_window: int) -> np.ndarray:
    """int [window**2, window**2]: rows of the bias table for pairs of positions.

    Args:
      window: side of the window in use, at most `table_window`.
      table_window: side that the table, (2 * side - 1)**2 rows, was made for.
    """
    axis = np.arange(window)
    coords = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    offset = coords[:, :, None] - coords[:, None, :] + table_window - 1
    return offset[0] * (2 * table_window - 1) + offset[1]


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """float32 [windows, window**2, window**2]: -100 between regions that a cyclic
    shift brought together, 0 elsewhere. Sides are multiples of the window."""

    def regions(side: int) -> np.ndarray:
        axis = np.arange(side)
        return (axis >= side - window).astype(int) + (axis >= side - shift)

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = region.reshape(height // window, window, width // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    apart = region[:, :, None] != region[:, None, :]
    return np.where(apart, np.float32(-100.0), np.float32(0.0))


def _window_and_shift(
    grid: tuple[int, int], window: int, shifted: bool
) -> tuple[int, int]:
    # A grid no larger than the window is one window and is not shifted.
    if min(grid) <= window:
        return min(grid), 0
    return window, window // 2 if shifted else 0


def _to_windows(x_BxHxWxC: jax.Array, window: int) -> jax.Array:
    """[B, H, W, C] -> [B, windows, window**2, C]."""
    batch, height, width, channels = x_BxHxWxC.shape
    x = x_BxHxWxC.reshape(
        batch, height // window, window, width // window, window, channels
    )
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def _from_windows(x: jax.Array, window: int, height: int, width: int) -> jax.Array:
    """[B, windows, window**2, C] -> [B, H, W, C]."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, height, width, channels)


class SwinBlock(nn.Module):
    """Window attention and MLP, pre-LN.

    Called with a block's place among all, from 1; it numbers the dropout sites.

    Attributes:
      shifted: whether windows are shifted by half their side.
    """

    heads: int
    window: int
    shifted: bool
    mlp_ratio: float
    drop_path: float
    dropout: float
    attention_dropout: float
    epsilon: float
    init_std: float
    dtype: Any = jnp.float32

    def _attention(
        self, x_BxNxTxC: jax.Array, mask, window: int, keys_B, site
    ) -> jax.Array:
        """Attention within windows: [B, windows, window**2, C] to the same."""
        dim = x_BxNxTxC.shape[-1]

        def linear(axes: tuple[str, str], name: str) -> nn.Dense:
            return dense(dim, axes, name, dtype=self.dtype, std=self.init_std)

        table = self.param(
            "relative_position_bias",
            named(nn.initializers.zeros_init(), "table", None),
            ((2 * self.window - 1) ** 2, self.heads),
        )
        bias_TxTxL = table[relative_position_index(window, self.window)]
        bias = bias_TxTxL.transpose(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        query, key, value = (
            split_heads(linear(("embed", "heads"), name)(x_BxNxTxC), self.heads)
            for name in ("query", "key", "value")
        )
        y = attention(
            query, key, value, self.attention_dropout, keys_B, site + 1, bias=bias
        )
        return linear(("heads", "embed"), "attention_out")(y)

    @nn.compact
    def __call__(
        self, x_BxHxWxC: jax.Array, index: int | jax.Array, keys_B: jax.Array | None
    ) -> jax.Array:
        height, width, dim = x_BxHxWxC.shape[1:]
        site = index * _SITES
        window, shift = _window_and_shift((height, width), self.window, self.shifted)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.epsilon, self.dtype, name=name)

        # Padding comes after the norm and is attended to: it is zeros, not masked.
        y = norm("attention_norm")(x_BxHxWxC)
        bottom, right = -height % window, -width % window
        y = jnp.pad(y, ((0, 0), (0, bottom), (0, right), (0, 0)))
        mask = None
        if shift:
            y = jnp.roll(y, (-shift, -shift), axis=(1, 2))
            mask = shift_mask(height + bottom, width + right, window, shift)
        y = self._attention(_to_windows(y, window), mask, window, keys_B, site)
        y = dropout(y, self.dropout, keys_B, site + 2)
        y = _from_windows(y, window, height + bottom, width + right)
        if shift:
            y = jnp.roll(y, (shift, shift), axis=(1, 2))
        x = x_BxHxWxC + drop_path(y[:, :height, :width], self.drop_path, keys_B, site)

        hidden = int(self.mlp_ratio * dim)
        mlp = {"dtype": self.dtype, "std": self.init_std}
        y = dense(hidden, ("embed", "mlp"), "mlp_in", **mlp)(norm("mlp_norm")(x))
        y = gelu(y)
        y = dense(dim, ("mlp", "embed"), "mlp_out", **mlp)(y)
        return x + dropout(y, self.dropout, keys_B, site + 3)


class PatchMerging(nn.Module):
    """Halves the grid and doubles the width."""

    init_std: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        height, width, dim = x_BxHxWxC.shape[1:]
        x = jnp.pad(x_BxHxWxC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        # Columns outside, rows inside: (0, 0), (1, 0), (0, 1), (1, 1).
        x = jnp.concatenate(
            [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1
        )
        # The published model leaves this epsilon at 1e-5 whatever its config says.
        x = LayerNorm(1e-5, self.dtype, name="norm")(x)
        return dense(
            2 * dim,
            ("mlp", "embed"),
            "reduction",
            dtype=self.dtype,
            std=self.init_std,
            bias=False,
        )(x)


class Swin(nn.Module):
    """Swin-T (patch 4, window 7) by default.

    Attributes:
      patch: side of a patch, pixels.
      embed_dim: width of the first stage; each further stage doubles it.
      depths, heads: blocks and attention heads of each stage.
      window: side of the attention window, patches; a smaller grid is one window.
      mlp_ratio: hidden width of the MLP over the stage's width.
      drop_path: stochastic depth, the same in all blocks and on the attention branch
        alone, as in transformers 4.24, which MedCLIP was trained with.
      dropout, attention_dropout: of sublayers, of attention weights.
      epsilon: of LayerNorm.
      init_std: of matrices.
      dtype: compute dtype; parameters are float32.
      remat: recompute each block in the backward pass.
      scan_layers: run a stage's pairs of blocks as a loop, compiled once; see
        `run_layers`.
      attention: taken like every encoder's, and without effect: the bias of a window's
        positions is learned, which the fused ones do not take.
    """

    patch: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    dropout: float = 0.0
    attention_dropout: float = 0.0
    epsilon: float = 1e-5
    init_std: float = 0.02
    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    attention: str = "plain"

    def __post_init__(self):
        if len(self.depths) != len(self.heads):
            raise ValueError(
                f"Swin needs one entry a stage: depths {self.depths}, heads "
                f"{self.heads}"
            )
        for stage, heads in enumerate(self.heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"Swin stage {stage} has width {self.embed_dim * 2**stage}, which "
                    f"{heads} heads do not divide"
                )
        super().__post_init__()

    @property
    def feature_dim(self) -> int:
        """Width F of the trunk feature and C of the patches."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    def _embed(self, films_BxHxWx3: jax.Array) -> jax.Array:
        height, width = check_films(films_BxHxWx3)
        x = jnp.pad(
            films_BxHxWx3.astype(self.dtype),
            ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0)),
        )
        x = PatchEmbedding(
            self.embed_dim,
            self.patch,
            self.init_std,
            dtype=self.dtype,
            name="patch_embedding",
        )(x)
        return LayerNorm(1e-5, self.dtype, name="patch_norm")(x)

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
          films_BxHxWx3: float32 [B, H, W, 3], normalised, of any size.
          train: drop out and drop paths.
          keys_B: typed PRNG keys [B], needed when training with a rate above 0.

        Returns:
          The mean of the patches as trunk, the patches after the last LayerNorm.

        Raises:
          ValueError: training with a rate above 0 without keys.
        """
        rates = (self.drop_path, self.dropout, self.attention_dropout)
        keys_B = active_keys(train, keys_B, *rates)
        x = dropout(self._embed(films_BxHxWx3), self.dropout, keys_B, 0)
        make_block = nn.remat(SwinBlock) if self.remat else SwinBlock
        done = 0
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads)):
            blocks = [
                functools.partial(
                    make_block,
                    heads,
                    self.window,
                    shifted,
                    self.mlp_ratio,
                    *rates,
                    self.epsilon,
                    self.init_std,
                    self.dtype,
                )
                for shifted in (False, True)
            ]
            names = [f"stage_{stage}_block_{block}" for block in range(depth)]
            # An odd depth does not end with a shifted block: no loop of pairs.
            scan = self.scan_layers and depth % 2 == 0
            x, _ = run_layers(self, blocks, names, done + 1, x, keys_B, scan=scan)
            done += depth
            if stage < len(self.depths) - 1:
                x = PatchMerging(self.init_std, self.dtype, name=f"merge_{stage}")(x)
        x = LayerNorm(self.epsilon, self.dtype, name="norm")(x)
        batch, height, width, channels = x.shape
        patches_BxPxC = x.reshape(batch, height * width, channels)
        trunk_BxF = patches_BxPxC.astype(jnp.float32).mean(axis=1)
        return ImageFeatures(trunk_BxF, patches_BxPxC, (height, width))

    def forward_flops(self, image_size: int | tuple[int, int]) -> int:
        """Operations of the matrix products for one film; a multiply-add counts 2."""
        height, width = (-(-side // self.patch) for side in sides(image_size))
        dim = self.embed_dim
        macs = height * width * self.patch**2 * 3 * dim
        for stage, depth in enumerate(self.depths):
            window = min(self.window, height, width)
            padded = (height + -height % window) * (width + -width % window)
            attention = padded * (4 * dim**2 + 2 * window**2 * dim)
            mlp = height * width * 2 * dim * int(self.mlp_ratio * dim)
            macs += depth * (attention + mlp)
            if stage < len(self.depths) - 1:
                height, width = -(-height // 2), -(-width // 2)
                macs += height * width * 8 * dim**2
                dim *= 2
        return 2 * macs
