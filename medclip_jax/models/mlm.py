"""Masked language modelling: which words are hidden, and the head that names them.

References: Devlin et al. (BERT), arXiv 1810.04805, section 3.1; Liu et al. (RoBERTa),
arXiv 1907.11692, section 4.1, which draws anew each time; Boecking et al. (CXR-BERT),
arXiv 2204.09817, section 2.1, which hides whole words.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.layers import (
    LayerNorm,
    attention,
    dense,
    gelu,
    named,
    split_heads,
)

HIDDEN, REPLACED = 0.8, 0.1
"""Of the chosen pieces, how many become [MASK] and how many another; the rest stay."""


def mask_words(
    ids_BxT: jax.Array,
    word_ids_BxT: jax.Array,
    keys_B: jax.Array,
    rate: float,
    mask_id: int,
    vocab_size: int,
    whole_words: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Hides words of each text; what a text draws depends on its own key alone.

    Args:
      ids_BxT: int32.
      word_ids_BxT: int32, the number of the word that a piece belongs to, below T; -1
        for special tokens and padding, which are never chosen.
      keys_B: typed PRNG keys [B].
      rate: share of the words, or of the pieces, that are chosen.
      mask_id: of [MASK].
      vocab_size: other pieces are drawn from all of them.
      whole_words: a word's pieces are chosen together.

    Returns:
      ids to encode, int32 [B, T], and which pieces are to be named, bool [B, T].
    """
    length = ids_BxT.shape[1]

    def one(key: jax.Array, ids_T: jax.Array, word_ids_T: jax.Array):
        choose, change, other = jax.random.split(key, 3)
        drawn_T = jax.random.uniform(choose, (length,))
        if whole_words:
            drawn_T = drawn_T[jnp.maximum(word_ids_T, 0)]
        chosen_T = (drawn_T < rate) & (word_ids_T >= 0)
        how_T = jax.random.uniform(change, (length,))
        others_T = jax.random.randint(other, (length,), 0, vocab_size)
        changed_T = jnp.where(how_T < HIDDEN + REPLACED, others_T, ids_T)
        changed_T = jnp.where(how_T < HIDDEN, mask_id, changed_T)
        return jnp.where(chosen_T, changed_T, ids_T), chosen_T

    return jax.vmap(one)(keys_B, ids_BxT, word_ids_BxT)


class ReadsPatches(nn.Module):
    """Adds to each token what it finds among a film's patches: cross-attention.

    Bannur et al. (BioViL-T), arXiv 2301.04558, section 3.2, name hidden words with the
    film's help; how is not published, nor are weights. Here it is one pre-LN layer.

    Attributes:
      heads: of the attention.
      epsilon: of LayerNorm.
      dtype: compute dtype.
    """

    heads: int
    epsilon: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, states_BxTxC: jax.Array, patches_BxPxD: jax.Array) -> jax.Array:
        """float [B, T, C] and [B, P, D] -> [B, T, C] in the compute dtype."""
        dim = states_BxTxC.shape[-1]
        norm = LayerNorm(self.epsilon, self.dtype, name="norm")
        patches = LayerNorm(self.epsilon, self.dtype, name="patch_norm")(patches_BxPxD)
        query, key, value = (
            split_heads(dense(dim, ("embed", "heads"), name, dtype=self.dtype)(of),
                        self.heads)
            for name, of in (("query", norm(states_BxTxC)), ("key", patches),
                             ("value", patches))
        )  # fmt: skip
        found = attention(query, key, value, 0.0, None, 0)
        out = dense(dim, ("heads", "embed"), "attention_out", dtype=self.dtype)
        return states_BxTxC + out(found)


class MaskedTokens(nn.Module):
    """BERT's head: a layer, before products with the table of words and a bias.

    Reference: transformers/models/bert/modeling_bert.py (BertLMPredictionHead).

    Attributes:
      vocab_size: pieces of the vocabulary.
      epsilon: of LayerNorm.
      dtype: compute dtype.
      patch_heads: heads of the attention to a film's patches; 0: words alone.
    """

    vocab_size: int
    epsilon: float = 1e-12
    dtype: Any = jnp.float32
    patch_heads: int = 0

    @nn.compact
    def __call__(
        self, states_BxTxC: jax.Array, patches_BxPxD: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What `losses.masked_token_losses` takes.

        Args:
          states_BxTxC: of the text encoder, of the ids that were hidden.
          patches_BxPxD: of the texts' films, for a head that reads them.

        Returns:
          [B, T, C] in the compute dtype, and the bias of each word, float32 [V].
        """
        dim = states_BxTxC.shape[-1]
        if self.patch_heads:
            assert patches_BxPxD is not None
            reads = ReadsPatches(
                self.patch_heads, self.epsilon, self.dtype, name="film"
            )
            states_BxTxC = reads(states_BxTxC, patches_BxPxD)
        hidden = dense(dim, ("embed", "mlp"), "hidden", dtype=self.dtype)(states_BxTxC)
        hidden_BxTxC = LayerNorm(self.epsilon, self.dtype, name="norm")(gelu(hidden))
        bias_V = self.param(
            "bias", named(nn.initializers.zeros_init(), "vocab"), (self.vocab_size,)
        )
        return hidden_BxTxC, jnp.asarray(bias_V)
