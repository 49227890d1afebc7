"""BioViL-T's transformer over a film and the one before it.

Bannur et al., "Learning to Exploit Temporal Structure for Biomedical Vision-Language
Processing", CVPR 2023, section 3.1; microsoft/hi-ml,
health_multimodal/image/model/transformer.py (VisionTransformerPooler). Released weights
carry no table of positions: it is computed.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax.models.dropout import active_keys, drop_path, dropout
from medclip_jax.models.layers import (
    LayerNorm,
    attention,
    dense,
    gelu,
    named,
    normal,
    split_heads,
)

# Dropout sites of a block: attention weights, its output, its path, two of the MLP, path.
_SITES = 6


class TemporalBlock(nn.Module):
    """Pre-LN attention and MLP over the tokens of both films.

    Called with what is added to the tokens before attention: where they lie and which
    film they are of.
    """

    heads: int
    mlp: int
    dropout: float
    attention_dropout: float
    drop_path: float
    positions_in_values: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BxTxC: jax.Array,
        index: int,
        place_TxC: jax.Array,
        keys_B: jax.Array | None,
    ) -> jax.Array:
        dim, site = x_BxTxC.shape[-1], 1 + index * _SITES

        def linear(out: int, axes: tuple[str, str], name: str, bias: bool = True):
            return dense(out, axes, name, dtype=self.dtype, bias=bias)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(1e-6, self.dtype, name=name)

        y = norm("attention_norm")(x_BxTxC)
        placed = y + place_TxC.astype(self.dtype)
        of_values = placed if self.positions_in_values else y
        query, key, value = (
            split_heads(linear(dim, ("embed", "heads"), name, False)(of), self.heads)
            for name, of in (("query", placed), ("key", placed), ("value", of_values))
        )
        y = attention(query, key, value, self.attention_dropout, keys_B, site)
        y = linear(dim, ("heads", "embed"), "attention_out")(y)
        y = dropout(y, self.dropout, keys_B, site + 1)
        x = x_BxTxC + drop_path(y, self.drop_path, keys_B, site + 2)
        y = gelu(linear(self.mlp, ("embed", "mlp"), "mlp_in")(norm("mlp_norm")(x)))
        y = dropout(y, self.dropout, keys_B, site + 3)
        y = linear(dim, ("mlp", "embed"), "mlp_out")(y)
        y = dropout(y, self.dropout, keys_B, site + 4)
        return x + drop_path(y, self.drop_path, keys_B, site + 5)


class TemporalPooler(nn.Module):
    """What changed since the film before, by patch of the current one.

    Attributes:
      blocks, heads: how many.
      dropout, attention_dropout, drop_path: rates; the last is that of every block.
      positions_in_values: whether values hear of positions too, as in the official
        code; its docstring, and DETR, which it follows, add them to queries and keys
        alone.
      dtype: compute dtype; parameters are float32.
    """

    blocks: int = 3
    heads: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.25
    positions_in_values: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        current_BxHxWxC: jax.Array,
        previous_BxHxWxC: jax.Array,
        *,
        train: bool,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Compares two maps, which need not be registered.

        Args:
          current_BxHxWxC: patches of the current film.
          previous_BxHxWxC: of the one before, of the same shape.
          train: drop out.
          keys_B: typed PRNG keys [B], needed when training with a rate above 0.

        Returns:
          [B, H, W, C] in the compute dtype: the current film's tokens after the blocks.

        Raises:
          ValueError: maps of different shapes, or training without keys.
        """
        if current_BxHxWxC.shape != previous_BxHxWxC.shape:
            raise ValueError(
                "expected maps of one shape; found "
                f"{current_BxHxWxC.shape} (current) and {previous_BxHxWxC.shape} (previous)"
            )
        keys_B = active_keys(
            train, keys_B, self.dropout, self.attention_dropout, self.drop_path
        )
        batch, height, width, dim = current_BxHxWxC.shape
        count = height * width
        types_2xC = self.param(
            "type_embedding", named(normal(0.02), None, "embed"), (2, dim)
        )
        positions_PxC = jnp.asarray(sine_positions(height, width, dim))
        place_TxC = jnp.concatenate([positions_PxC + of for of in types_2xC])
        x = jnp.concatenate(
            [
                of.reshape(batch, count, dim).astype(self.dtype)
                for of in (current_BxHxWxC, previous_BxHxWxC)
            ],
            axis=1,
        )
        x = dropout(x, self.dropout, keys_B, 0)
        for index in range(self.blocks):
            x = TemporalBlock(
                self.heads,
                dim,
                self.dropout,
                self.attention_dropout,
                self.drop_path,
                self.positions_in_values,
                self.dtype,
                name=f"block_{index}",
            )(x, index, place_TxC, keys_B)
        x = LayerNorm(1e-6, self.dtype, name="norm")(x)
        return x[:, :count].reshape(batch, height, width, dim)


def sine_positions(height: int, width: int, dim: int) -> np.ndarray:
    """Where each patch lies, as sines and cosines of row and column.

    Args:
      height, width: of the map, in patches.
      dim: a multiple of 4; the first half tells the row, the second the column.

    Returns:
      float32 [height * width, dim], row by row.

    Reference: Carion et al. (DETR), arXiv 2005.12872; hi-ml, transformer.py
    (SinePositionEmbedding, normalised to a turn).
    """
    half = dim // 2
    period = 10000.0 ** (2 * (np.arange(half) // 2) / half)

    def of(size: int) -> np.ndarray:
        turn = 2 * np.pi * np.arange(1, size + 1) / (size + 1e-6)
        angle = turn[:, None] / period
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    rows = np.repeat(of(height), width, axis=0)
    columns = np.tile(of(width), (height, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32)
