"""Vision transformer in the layout of Hugging Face's ViTModel.

Reference: Dosovitskiy et al. 2021; transformers/models/vit/modeling_vit.py.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.dropout import active_keys, dropout
from medclip_jax.models.features import ImageFeatures
from medclip_jax.models.layers import (
    LayerNorm,
    PatchEmbedding,
    attention,
    check_films,
    dense,
    gelu,
    layer_macs,
    named,
    normal,
    run_layers,
    sides,
    split_heads,
)
from medclip_jax.models.token_attention import first_token_weights

POOLINGS = ("cls", "mean", "pooler")
_SITES = 4


class ViTLayer(nn.Module):
    """Pre-LN self-attention and MLP.

    Called with a layer's place in the stack, from 1; it numbers the dropout sites.

    Attributes:
      first_only: gives the first token alone, [B, 1, C]; the others are attended to.
      tells: gives besides how much the first token attends to each, [B, T].
    """

    heads: int
    mlp: int
    dropout: float
    attention_dropout: float
    epsilon: float
    init_std: float
    attention: str
    dtype: Any = jnp.float32
    first_only: bool = False
    tells: bool = False

    @nn.compact
    def __call__(
        self, x_BxTxC: jax.Array, index: int | jax.Array, keys_B: jax.Array | None
    ) -> Any:
        dim, site = x_BxTxC.shape[-1], index * _SITES

        def linear(out: int, axes: tuple[str, str], name: str) -> nn.Dense:
            return dense(out, axes, name, dtype=self.dtype, std=self.init_std)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.epsilon, self.dtype, name=name)

        y = norm("attention_norm")(x_BxTxC)
        x, asked = x_BxTxC, y
        if self.first_only:
            x, asked = x_BxTxC[:, :1], y[:, :1]
        query, key, value = (
            split_heads(linear(dim, ("embed", "heads"), name)(of), self.heads)
            for name, of in (("query", asked), ("key", y), ("value", y))
        )
        y = attention(
            query,
            key,
            value,
            self.attention_dropout,
            keys_B,
            site + 1,
            name=self.attention,
        )
        y = linear(dim, ("heads", "embed"), "attention_out")(y)
        x = x + dropout(y, self.dropout, keys_B, site + 2)
        y = linear(self.mlp, ("embed", "mlp"), "mlp_in")(norm("mlp_norm")(x))
        y = linear(dim, ("mlp", "embed"), "mlp_out")(gelu(y))
        x = x + dropout(y, self.dropout, keys_B, site + 3)
        return (x, first_token_weights(query, key)) if self.tells else x


class ViT(nn.Module):
    """ViT-B/16 by default.

    Attributes:
      patch: side of a patch, pixels.
      dim, depth, heads, mlp: width, layers, attention heads, width of the MLP.
      pooling: trunk from "cls" (first token after the last LayerNorm), "mean" (of the
        patches) or "pooler" (tanh of a linear map of the first token).
      dropout, attention_dropout: of embeddings and sublayers, of attention weights.
      epsilon: of LayerNorm.
      init_std: of matrices and embeddings.
      dtype: compute dtype; parameters are float32.
      remat: recompute each layer in the backward pass.
      scan_layers: run the layers as a loop, compiled once; see `run_layers`.
      attention: "plain", or "cudnn" on a GPU in 16 bit; see `layers.attention`.
      tells_attention: whether `attended_BxP` is given.
    """

    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    pooling: str = "cls"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    epsilon: float = 1e-12
    init_std: float = 0.02
    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    attention: str = "plain"
    tells_attention: bool = False

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"ViT pooling {self.pooling!r} is none of {POOLINGS}")
        if self.dim % self.heads:
            raise ValueError(f"ViT dim {self.dim} is not divisible by {self.heads}")
        super().__post_init__()

    @property
    def feature_dim(self) -> int:
        """Width F of the trunk feature and C of the patches."""
        return self.dim

    def _embed(self, films_BxHxWx3: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        x = PatchEmbedding(
            self.dim,
            self.patch,
            self.init_std,
            dtype=self.dtype,
            name="patch_embedding",
        )(films_BxHxWx3.astype(self.dtype))
        batch, height, width, _ = x.shape
        cls = self.param(
            "cls_token", named(normal(self.init_std), None, "embed"), (1, self.dim)
        )
        positions = self.param(
            "position_embedding",
            named(normal(self.init_std), "position", "embed"),
            (1 + height * width, self.dim),
        )
        cls_Bx1xC = jnp.broadcast_to(cls.astype(self.dtype), (batch, 1, self.dim))
        patches_BxPxC = x.reshape(batch, height * width, self.dim)
        x = jnp.concatenate([cls_Bx1xC, patches_BxPxC], axis=1)
        return x + positions.astype(self.dtype), (height, width)

    @nn.compact
    def __call__(
        self,
        films_BxHxWx3: jax.Array,
        *,
        train: bool,
        keys_B: jax.Array | None = None,
        first_only: bool = False,
    ) -> ImageFeatures:
        """Encodes films.

        Args:
          films_BxHxWx3: float32 [B, H, W, 3], normalised; sides divisible by `patch`,
            and of the size the position table was made for.
          train: drop out.
          keys_B: typed PRNG keys [B], needed when training with a rate above 0.
          first_only: of the last layer only the first token is asked for, as pooling
            "cls" and "pooler" need: there are no patches then, and what they would
            cost in that layer is saved.

        Returns:
          The pooled trunk and the patches after the last LayerNorm.

        Raises:
          ValueError: a side that the patch does not divide, or training without keys.
        """
        height, width = check_films(films_BxHxWx3)
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"films of {height} x {width} pixels do not split into patches of "
                f"{self.patch}: choose data.image_size as a multiple of it"
            )
        keys_B = active_keys(train, keys_B, self.dropout, self.attention_dropout)
        x, grid = self._embed(films_BxHxWx3)
        x = dropout(x, self.dropout, keys_B, 0)
        layer = functools.partial(
            nn.remat(ViTLayer) if self.remat else ViTLayer,
            self.heads,
            self.mlp,
            self.dropout,
            self.attention_dropout,
            self.epsilon,
            self.init_std,
            self.attention,
            self.dtype,
        )
        names = [f"layer_{index}" for index in range(self.depth)]
        apart, attended_BxP = first_only or self.tells_attention, None
        alike = names[:-1] if apart else names
        x, _ = run_layers(self, [layer], alike, 1, x, keys_B, scan=self.scan_layers)
        if apart:
            last = layer(
                first_only=first_only, tells=self.tells_attention, name=names[-1]
            )
            x = last(x, self.depth, keys_B)
            if self.tells_attention:
                x, attended_BxT = x
                attended_BxP = attended_BxT[:, 1:]
        x = LayerNorm(self.epsilon, self.dtype, name="norm")(x)
        return ImageFeatures(self._pool(x), x[:, 1:], grid, attended_BxP=attended_BxP)

    def _pool(self, x_BxTxC: jax.Array) -> jax.Array:
        x_BxTxC = x_BxTxC.astype(jnp.float32)
        if self.pooling == "mean":
            return x_BxTxC[:, 1:].mean(axis=1)
        if self.pooling == "cls":
            return x_BxTxC[:, 0]
        pooler = dense(
            self.dim, ("embed", "mlp"), "pooler", dtype=jnp.float32, std=self.init_std
        )
        return jnp.tanh(pooler(x_BxTxC[:, 0]))

    def forward_flops(
        self, image_size: int | tuple[int, int], first_only: bool = False
    ) -> int:
        """Operations of the matrix products for one film; a multiply-add counts 2."""
        height, width = sides(image_size)
        patches = (height // self.patch) * (width // self.patch)
        tokens = patches + 1
        macs = patches * self.patch**2 * 3 * self.dim
        macs += (self.depth - 1) * layer_macs(tokens, self.dim, self.mlp)
        macs += layer_macs(tokens, self.dim, self.mlp, first_only)
        if self.pooling == "pooler":
            macs += self.dim**2
        return 2 * macs
