"""Naming hidden words: the part that methods with a masked language loss share.

A second pass of the text tower, over texts with words hidden, beside the one whose
embeddings are compared. The head lies in the parameters under "masked_words", next to
the towers; its products with words are those with the tower's own table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.losses import masked_token_losses
from medclip_jax.methods.interface import Metrics, NamedWords, Variables
from medclip_jax.methods.towers import apply_module, tower_state
from medclip_jax.models.mlm import MaskedTokens, mask_words

# What the second pass draws for, within a text's key.
_HIDE, _DROP = 201, 202


@dataclass(frozen=True)
class MaskedWords:
    """Attributes:
    text_encoder: the method's own.
    head: names hidden words.
    rate: share of the words that are hidden.
    mask_id: id of [MASK].
    whole_words: a word's pieces are hidden together.
    """

    text_encoder: Any
    head: MaskedTokens
    rate: float
    mask_id: int
    whole_words: bool

    @classmethod
    def of(
        cls, switches: Mapping[str, Any], text_encoder: Any, patch_heads: int = 0
    ) -> "MaskedWords":
        """From `config.mlm`.

        Args:
          switches: with `rate`, `mask_id`, `whole_words`.
          text_encoder: a `Bert`.
          patch_heads: see `MaskedTokens`.

        Raises:
          UserError: a rate or an id out of range.
        """
        size = text_encoder.vocab_size
        if not 0 < switches["rate"] < 1:
            raise UserError(f"mlm.rate must be in (0, 1); found {switches['rate']}")
        if not 0 <= switches["mask_id"] < size:
            raise UserError(
                f"mlm.mask_id={switches['mask_id']} is none of the {size} ids of "
                "model.text.vocab_size"
            )
        head = MaskedTokens(size, text_encoder.epsilon, text_encoder.dtype, patch_heads)
        return cls(
            text_encoder,
            head,
            switches["rate"],
            switches["mask_id"],
            switches["whole_words"],
        )

    def init(self, key: jax.Array, patches_dim: int = 0) -> Any:
        """Boxed parameters of the head.

        Args:
          key: PRNG key.
          patches_dim: width of the patches, for a head that reads them.
        """
        dim = self.text_encoder.feature_dim
        patches = jnp.zeros((1, 1, patches_dim)) if patches_dim else None
        return self.head.init(key, jnp.zeros((1, 1, dim)), patches)["params"]

    def run(
        self,
        variables: Variables,
        texts: Mapping[str, jax.Array],
        keys_M: jax.Array | None,
        train: bool,
        patches_BxPxD: jax.Array | None = None,
    ) -> NamedWords:
        """Hides words and names them; without keys every text draws alike.

        Args:
          variables: of the method.
          texts: `ids_BxT`, `mask_BxT`, `word_ids_BxT`.
          keys_M: typed keys of the texts.
          train: drop out.
          patches_BxPxD: of the texts' films, for a head that reads them.
        """
        params, ids_BxT = variables["params"], texts["ids_BxT"]
        if keys_M is None:
            keys_M = jnp.broadcast_to(jax.random.key(0), (len(ids_BxT),))
        hide_M, drop_M = (
            jax.vmap(lambda key, use=use: jax.random.fold_in(key, use))(keys_M)
            for use in (_HIDE, _DROP)
        )
        hidden_BxT, named_BxT = mask_words(
            ids_BxT,
            texts["word_ids_BxT"],
            hide_M,
            self.rate,
            self.mask_id,
            self.head.vocab_size,
            self.whole_words,
        )
        tower = params["text"]["encoder"]
        features, _ = apply_module(
            self.text_encoder,
            {"params": tower, **tower_state(variables, "text")},
            hidden_BxT,
            texts["mask_BxT"],
            train=train,
            keys_B=drop_M,
        )
        said: Any = self.head.apply(
            {"params": params["masked_words"]}, features.words_BxTxC, patches_BxPxD
        )
        losses_BxT, right_BxT = masked_token_losses(
            said[0], tower["word_embedding"], said[1], ids_BxT, named_BxT
        )
        return NamedWords(losses_BxT, right_BxT, named_BxT)

    def forward_flops(self, length: int) -> int:
        """Operations of the second pass and of the head, for one text."""
        dim = self.text_encoder.feature_dim
        head = 2 * length * dim * (dim + self.head.vocab_size)
        return self.text_encoder.forward_flops(length) + head


def named_loss(
    named: NamedWords | None, weight_M: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The mean cross-entropy of the hidden pieces of all texts, and how many were named.

    Args:
      named: of `MaskedWords.run`.
      weight_M: of the texts; one of weight 0 does not count.
    """
    assert named is not None  # of a method that hides words
    weight_BxT = weight_M[:, None] * named.named_BxT
    count = jnp.maximum(weight_BxT.sum(), 1.0)
    loss = (named.losses_BxT * weight_BxT).sum() / count
    accuracy = (named.right_BxT * weight_BxT).sum() / count
    return loss, {"loss_mlm": loss, "mlm_accuracy": accuracy}
