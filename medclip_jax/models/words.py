"""Pieces of words joined into words, for methods that align words with regions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def join_pieces(
    layers_BxTxC: Sequence[jax.Array], word_ids_BxT: jax.Array, mask_BxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums the states of each word's pieces, over layers too.

    Slot 0 is the first token ([CLS]), slots 1 to W the words in their order, slot W + 1
    the token after them ([SEP]); the slots after that are zero.

    Args:
      layers_BxTxC: hidden states, each [B, T, C]; they are added up.
      word_ids_BxT: int32, the number of the word that a piece belongs to, counted from
        0 without gaps; -1 for special tokens and padding.
      mask_BxT: 1 for a token, 0 for padding.

    Returns:
      slots_BxTxC float32, and how many words each text has, int32 [B].

    Reference: marshuang80/gloria, gloria/models/text_model.py (aggregate_tokens).
    """
    states_BxTxC = sum(
        (layer.astype(jnp.float32) for layer in layers_BxTxC[1:]),
        start=layers_BxTxC[0].astype(jnp.float32),
    )
    length = word_ids_BxT.shape[1]
    words_B = word_ids_BxT.max(axis=1) + 1
    after_BxT = jnp.where(jnp.arange(length) > 0, words_B[:, None] + 1, 0)
    slot_BxT = jnp.where(word_ids_BxT >= 0, word_ids_BxT + 1, after_BxT)
    # Slots as a product, not a scatter: a TPU multiplies matrices.
    takes_BxSxT = (slot_BxT[:, None] == jnp.arange(length)[:, None]) & (
        mask_BxT[:, None] > 0
    )
    slots_BxSxC = jnp.einsum(
        "bst,btc->bsc",
        takes_BxSxT.astype(jnp.float32),
        states_BxTxC,
        precision=lax.Precision.HIGHEST,
    )
    return slots_BxSxC, words_B


def whole_words(
    states_BxTxC: jax.Array,
    word_ids_BxT: jax.Array,
    mask_BxT: jax.Array,
    attended_BxT: jax.Array | None = None,
    shifted: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Words as sums of their pieces, and how much the first token attends to each.

    Slots are those of `join_pieces`.

    Args:
      states_BxTxC: hidden states of the last layer.
      word_ids_BxT, mask_BxT: as of `join_pieces`.
      attended_BxT: how much the first token attends to each; None where that is not
        asked.
      shifted: as in the official code, where a piece has the attention that its
        successor gets, [SEP] has none, and a text that fills all T tokens loses its
        last word and [SEP].

    Returns:
      words_BxTxC float32; mask_BxT, True for [CLS], words and [SEP]; and the sums of
      `attended_BxT` over the pieces of each, or None.

    Reference: HKU-MedAI/MGCA, mgca/models/backbones/encoder.py (aggregate_tokens, to
    which the attention is given from the second token on).
    """
    words_BxTxC, words_B = join_pieces([states_BxTxC], word_ids_BxT, mask_BxT)
    last_B = words_B + 1
    if shifted:
        last_B = jnp.where(mask_BxT[:, -1] > 0, words_B - 1, last_B)
    keep_BxT = jnp.arange(words_BxTxC.shape[1]) <= last_B[:, None]
    words_BxTxC = jnp.where(keep_BxT[..., None], words_BxTxC, 0.0)
    if attended_BxT is None:
        return words_BxTxC, keep_BxT, None
    if shifted:
        attended_BxT = jnp.pad(attended_BxT[:, 1:], ((0, 0), (0, 1)))
    joined_BxTx1, _ = join_pieces([attended_BxT[..., None]], word_ids_BxT, mask_BxT)
    return words_BxTxC, keep_BxT, jnp.where(keep_BxT, joined_BxTx1[..., 0], 0.0)
