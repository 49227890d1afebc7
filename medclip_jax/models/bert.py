"""BERT in the layout of Hugging Face's BertModel.

Reference: Devlin et al. 2019; transformers/models/bert/modeling_bert.py.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.dropout import active_keys, dropout
from medclip_jax.models.features import TextFeatures
from medclip_jax.models.layers import (
    LayerNorm,
    attention,
    dense,
    gelu,
    layer_macs,
    named,
    normal,
    run_layers,
    split_heads,
)
from medclip_jax.models.token_attention import first_token_weights

# Numbers of the dropout sites within a layer; site 0 of layer 0 is the embedding.
_SITES = 4


class BertLayer(nn.Module):
    """Post-LN self-attention and MLP.

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
        self,
        x_BxTxC: jax.Array,
        index: int | jax.Array,
        mask_BxT: jax.Array,
        keys_B: jax.Array | None,
    ) -> Any:
        dim, site = x_BxTxC.shape[-1], index * _SITES

        def linear(out: int, axes: tuple[str, str], name: str) -> nn.Dense:
            return dense(out, axes, name, dtype=self.dtype, std=self.init_std)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.epsilon, self.dtype, name=name)

        asked = x_BxTxC[:, :1] if self.first_only else x_BxTxC
        query, key, value = (
            split_heads(linear(dim, ("embed", "heads"), name)(of), self.heads)
            for name, of in (("query", asked), ("key", x_BxTxC), ("value", x_BxTxC))
        )
        y = attention(
            query,
            key,
            value,
            self.attention_dropout,
            keys_B,
            site + 1,
            mask_BxT=mask_BxT,
            name=self.attention,
        )
        y = linear(dim, ("heads", "embed"), "attention_out")(y)
        x = norm("attention_norm")(asked + dropout(y, self.dropout, keys_B, site + 2))
        y = gelu(linear(self.mlp, ("embed", "mlp"), "mlp_in")(x))
        y = linear(dim, ("mlp", "embed"), "mlp_out")(y)
        x = norm("mlp_norm")(x + dropout(y, self.dropout, keys_B, site + 3))
        return (x, first_token_weights(query, key, mask_BxT)) if self.tells else x


class Bert(nn.Module):
    """BERT-base with the vocabulary of BioClinicalBERT by default.

    Attributes:
      vocab_size: pieces of the vocabulary.
      dim, layers, heads, mlp: width, depth, attention heads, width of the MLP.
      max_positions: longest text in tokens.
      type_vocab: token types; only type 0 is used.
      pooler: whether to add the tanh pooler of the first token.
      dropout, attention_dropout: of embeddings and sublayers, of attention weights.
      pad_id: its word embedding starts at 0 and takes no gradient, as in torch.
      epsilon: of LayerNorm.
      init_std: of matrices and embeddings.
      dtype: compute dtype; parameters are float32.
      remat: recompute each layer in the backward pass.
      scan_layers: run the layers as a loop, compiled once; see `run_layers`.
      attention: "plain", or "cudnn" on a GPU in 16 bit; see `layers.attention`.
      one_position: every token has the position 0, so that the order of the pieces is
        not seen. MGCA's text tower has it by an oversight: HKU-MedAI/MGCA,
        mgca/models/backbones/encoder.py gives token types where positions are read.
      tells_attention: whether `attended_BxT` is given.
    """

    vocab_size: int = 28996
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    max_positions: int = 512
    type_vocab: int = 2
    pooler: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_id: int = 0
    epsilon: float = 1e-12
    init_std: float = 0.02
    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    attention: str = "plain"
    one_position: bool = False
    tells_attention: bool = False

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"BERT dim {self.dim} is not divisible by {self.heads}")
        super().__post_init__()

    @property
    def feature_dim(self) -> int:
        """Width C of every hidden state."""
        return self.dim

    def _embed(self, ids_BxT: jax.Array) -> jax.Array:
        def word_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
            return normal(self.init_std)(key, shape, dtype).at[self.pad_id].set(0.0)

        words = self.param(
            "word_embedding",
            named(word_init, "vocab", "embed"),
            (self.vocab_size, self.dim),
        )
        positions = self.param(
            "position_embedding",
            named(normal(self.init_std), "position", "embed"),
            (self.max_positions, self.dim),
        )
        # Every token gets type 0: drawn at random it would be common to all texts, as
        # large as a word, and their means would start at a cosine of 0.93.
        types = self.param(
            "type_embedding",
            named(nn.initializers.zeros_init(), None, "embed"),
            (self.type_vocab, self.dim),
        )
        x_BxTxC = jnp.asarray(words)[ids_BxT]
        is_pad_BxTx1 = (ids_BxT == self.pad_id)[..., None]
        x_BxTxC = jnp.where(is_pad_BxTx1, jax.lax.stop_gradient(x_BxTxC), x_BxTxC)
        used = positions[:1] if self.one_position else positions[: ids_BxT.shape[1]]
        x_BxTxC = x_BxTxC + used + types[0]
        return LayerNorm(self.epsilon, self.dtype, name="embedding_norm")(x_BxTxC)

    @nn.compact
    def __call__(
        self,
        ids_BxT: jax.Array,
        mask_BxT: jax.Array,
        *,
        train: bool,
        keys_B: jax.Array | None = None,
        first_only: bool = False,
    ) -> TextFeatures:
        """Encodes texts.

        Args:
          ids_BxT: int32 [B, T], ids of pieces in [0, vocab_size).
          mask_BxT: int32 [B, T], 1 for a token, 0 for padding.
          train: drop out.
          keys_B: typed PRNG keys [B], needed when training with a rate above 0.
          first_only: of the last layer only the first token is asked for: its states
            are then [B, 1, C], and what the others would cost is saved.

        Returns:
          The last layer, all hidden states, and the pooler's output if there is one.

        Raises:
          ValueError: a text longer than max_positions, or training without keys.
        """
        if ids_BxT.shape[1] > self.max_positions:
            raise ValueError(
                f"texts of {ids_BxT.shape[1]} tokens, but max_positions is "
                f"{self.max_positions}: shorten data.text_length or raise it"
            )
        keys_B = active_keys(train, keys_B, self.dropout, self.attention_dropout)
        x = dropout(self._embed(ids_BxT), self.dropout, keys_B, 0)
        layer = functools.partial(
            nn.remat(BertLayer) if self.remat else BertLayer,
            self.heads,
            self.mlp,
            self.dropout,
            self.attention_dropout,
            self.epsilon,
            self.init_std,
            self.attention,
            self.dtype,
        )
        names = [f"layer_{index}" for index in range(self.layers)]
        apart = first_only or self.tells_attention
        alike = names[:-1] if apart else names
        hidden, attended_BxT = [x], None
        x, outs = run_layers(
            self, [layer], alike, 1, x, mask_BxT, keys_B, scan=self.scan_layers
        )
        hidden += outs
        if apart:
            last = layer(
                first_only=first_only, tells=self.tells_attention, name=names[-1]
            )
            x = last(x, self.layers, mask_BxT, keys_B)
            if self.tells_attention:
                x, attended_BxT = x
            hidden.append(x)
        pooled_BxC = None
        if self.pooler:
            pooler = dense(
                self.dim,
                ("embed", "mlp"),
                "pooler",
                dtype=jnp.float32,
                std=self.init_std,
            )
            pooled_BxC = jnp.tanh(pooler(x[:, 0]))
        return TextFeatures(x, tuple(hidden), pooled_BxC, attended_BxT)

    def forward_flops(self, length: int, first_only: bool = False) -> int:
        """Operations of the matrix products for one text; a multiply-add counts 2."""
        macs = (self.layers - 1) * layer_macs(length, self.dim, self.mlp)
        macs += layer_macs(length, self.dim, self.mlp, first_only)
        return 2 * (macs + (self.dim**2 if self.pooler else 0))
