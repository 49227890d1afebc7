"""GLoRIA: films and reports aligned as a whole, and words with regions.

Huang, Shen, Lungren, Yeung, "GLoRIA: A Multimodal Global-Local Representation Learning
Framework for Label-Efficient Medical Image Recognition", ICCV 2021. Official code:
marshuang80/gloria.

Section 3.2: the regions are a middle map of the image tower, mapped to the width of the
words; a word is the sum of its pieces over the last four layers of BERT; the text as a
whole is the mean of its words. Text has no head of its own. Section 3.3: the global loss
is InfoNCE with both directions added up; in the local one each word attends to the
regions (`losses/word_regions.py`). At inference both similarities count alike.

Where the official code is not the paper's equations, or differs between training and
inference, the way of the released weights is the default, by switches of `config.gloria`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError, check_choice
from medclip_jax.losses import WordRegions, infonce_loss, word_regions_loss
from medclip_jax.losses.similarity import similarity_logits
from medclip_jax.methods.dual_encoder import DualEncoder, joint, local
from medclip_jax.methods.interface import (
    Batch,
    Features,
    ImageEmbedding,
    Metrics,
    Spec,
    State,
    TextEmbedding,
    Variables,
)
from medclip_jax.methods.towers import build_towers
from medclip_jax.models.features import ImageFeatures, TextFeatures
from medclip_jax.models.heads import Projected, linear_head
from medclip_jax.models.words import join_pieces

Similarity = Literal["both", "global", "local"]
Window = Literal["words", "characters"]


class RegionsHead(nn.Module):
    """The pooled feature and the map of a middle stage, each by one matrix.

    Attributes:
      dim: width of the words.
      stage: whose map holds the regions, counted from 1; a tower without stages gives
        its last map.
    """

    dim: int
    stage: int

    @nn.compact
    def __call__(self, features: ImageFeatures, *, train: bool) -> Projected:
        regions_BxRxC, grid = features.map_of(self.stage)
        return Projected(
            linear_head(self.dim, bias=True, name="global")(features.trunk_BxF),
            linear_head(self.dim, name="local")(regions_BxRxC),
            grid=grid,
        )


class WordsHead(nn.Module):
    """Words from pieces, and their mean; without parameters.

    Attributes:
      layers: how many of the last layers are added up.
      unknown_id: id of [UNK]; each one then takes a word from the end of its text's
        local words, as in the official code, which counts words that do not begin with
        a bracket. -1: it is a word like others.
    """

    layers: int = 4
    unknown_id: int = -1

    @nn.compact
    def __call__(
        self, features: TextFeatures, texts: Mapping[str, jax.Array], *, train: bool
    ) -> Projected:
        slots_BxTxC, words_B = join_pieces(
            features.hidden[-self.layers :], texts["word_ids_BxT"], texts["mask_BxT"]
        )
        if self.unknown_id >= 0:
            words_B -= (texts["ids_BxT"] == self.unknown_id).sum(axis=1)
        # [CLS] takes part while training, [SEP] does not.
        mask_BxT = jnp.arange(slots_BxTxC.shape[1]) <= words_B[:, None]
        # The mean over slots, empty ones too: of cosines only the direction counts.
        return Projected(slots_BxTxC.mean(axis=1), slots_BxTxC, mask_BxT)


@dataclass(frozen=True)
class GLoRIA(DualEncoder):
    """Attributes:
    words: how words and regions are compared in training.
    scale: factor of global cosines and of local scores; the official temp3.
    global_weight, local_weight: of the two losses.
    similarity: what a film and a text are scored by.
    window: which slots a score looks at. "words": the text's words. "characters": as
      many slots as the text has characters, as in the official code, so that [SEP] and
      empty slots take part.
    """

    words: WordRegions = dataclasses.field(default_factory=WordRegions)
    scale_of_pairs: float = 10.0
    global_weight: float = 1.0
    local_weight: float = 1.0
    similarity: Similarity = "both"
    window: Window = "words"
    prompt_zscore: bool = True

    @classmethod
    def from_config(cls, config: Any) -> "GLoRIA":
        switches, model = config.gloria, config.model
        check_choice("gloria.similarity", switches.similarity, Similarity)
        check_choice("gloria.window", switches.window, Window)
        towers = build_towers(config)
        if model.embed_dim != towers["text_encoder"].feature_dim:
            raise UserError(
                "GLoRIA's words have no head: model.embed_dim must be the text tower's "
                f"width, {towers['text_encoder'].feature_dim}; found {model.embed_dim}"
            )
        most = switches.text_layers
        if not 1 <= most <= towers["text_encoder"].layers + 1:
            raise UserError(
                f"gloria.text_layers={most}: the text tower has "
                f"{towers['text_encoder'].layers} layers and its embedding"
            )
        stages = len(model.image.get("stage_sizes", ()))
        if stages and not 1 <= switches.stage <= stages:
            raise UserError(
                f"gloria.stage={switches.stage}: the image tower has {stages} stages"
            )
        return cls(
            **towers,
            image_head=RegionsHead(model.embed_dim, switches.stage),
            text_head=WordsHead(switches.text_layers, switches.unknown_id),
            prompt_pooling="max",
            words=WordRegions.of(switches.words),
            scale_of_pairs=switches.scale,
            global_weight=switches.global_weight,
            local_weight=switches.local_weight,
            resize_to=switches.resize_to,
            similarity=switches.similarity,
            window=switches.window,
        )

    @property
    def scores_locally(self) -> bool:
        """Whether `score` compares regions with words."""
        return self.similarity != "global"

    @property
    def reads_characters(self) -> bool:
        """Whether `embed_texts` wants `characters_B`, the length of each text."""
        return self.window == "characters"

    def scale(self, variables: Variables) -> jax.Array:
        return jnp.float32(self.scale_of_pairs)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = features.images, features.texts
        weights = {
            "image_weight_N": batch["image_weight_N"],
            "text_weight_M": batch["text_weight_M"],
        }
        global_loss = 2 * infonce_loss(
            *joint(images, texts), self.scale_of_pairs, **weights
        )
        to_text, to_image = word_regions_loss(
            *local(images, texts), self.scale_of_pairs, self.words, **weights
        )
        local_loss = to_text + to_image
        loss = self.global_weight * global_loss + self.local_weight * local_loss
        return loss, {"loss_global": global_loss, "loss_local": local_loss}, {}

    def embed_texts(
        self, variables: Variables, texts: Mapping[str, jax.Array]
    ) -> TextEmbedding:
        """Inference; the local words are those of a score, without [CLS]."""
        made = super().embed_texts(variables, texts)
        trained_BxW = made.local_mask_BxW
        assert trained_BxW is not None  # of `WordsHead`
        slots = jnp.arange(trained_BxW.shape[1])
        last_Bx1 = trained_BxW.sum(axis=1, keepdims=True) - 1
        if self.window == "characters":
            last_Bx1 = texts["characters_B"][:, None]
        mask_BxW = (slots >= 1) & (slots <= last_Bx1)
        return dataclasses.replace(made, local_mask_BxW=mask_BxW)

    def score(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """logits_NxM: cosines of the whole, the best of words, or the mean of both."""
        global_NxM = similarity_logits(*joint(images, texts), 1.0)
        if self.similarity == "global":
            return global_NxM
        best = dataclasses.replace(self.words, aggregate="max")
        local_NxM = best.scores(*local(images, texts))
        return local_NxM if self.similarity == "local" else (local_NxM + global_NxM) / 2

    def word_attention(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """weights_BxWxP: section 3.3, of pairs."""

        def of_pair(*pair: jax.Array) -> jax.Array:
            return self.words.attend(*(of[None] for of in pair))[0, 0]

        return jax.vmap(of_pair)(*local(images, texts))

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Besides: words with regions, and what they find, in four passes each."""
        local_1xPxD = self._shapes(spec).local_BxPxD
        assert local_1xPxD is not None  # of `RegionsHead`
        pair = local_1xPxD.size * spec.text_length
        return super().loss_flops(spec, batch) + 6 * 4 * 2 * 2.0 * batch**2 * pair
