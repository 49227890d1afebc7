"""CXR-BERT: a text tower of its own for radiology, before any film is seen.

Boecking et al., "Making the Most of Text Semantics to Improve Biomedical Vision-Language
Processing", ECCV 2022, arXiv 2204.09817, section 2.1. Official code, of inference alone:
microsoft/hi-ml, hi-ml-multimodal.

Phase I makes a vocabulary of the corpus (every run without a named tokenizer does).
Phase II names hidden words. In phase III a report's findings also look for its impression
among those of the batch, and the other way: InfoNCE of both directions, added up, of the
projected first token. A run of the next phase starts from this one's by `init_from`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.losses import infonce_loss
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    Metrics,
    Spec,
    State,
    TextEmbedding,
    Variables,
)
from medclip_jax.methods.masked_words import MaskedWords, named_loss
from medclip_jax.methods.towers import (
    init_tower,
    keys_of_two,
    l2_normalize,
    run_tower,
    side_by_side,
    text_encoder_of,
)
from medclip_jax.models.heads import TextHead, TokenMLP


@dataclass(frozen=True)
class CXRBERT:
    """Attributes:
    text_encoder: flax module, ids_BxT, mask_BxT -> TextFeatures.
    text_head: flax module, TextFeatures and the tokens -> Projected.
    masked_words: names hidden words.
    temperature: tau of the sections' matching, never learned.
    matching_weight: of the sections' matching; 0 in phase II.
    mlm_weight: of the masked language loss; 0.1 in phase III.
    view: default view of the data.
    """

    text_encoder: nn.Module
    text_head: TextHead
    masked_words: MaskedWords
    temperature: float = 0.5
    matching_weight: float = 1.0
    mlm_weight: float = 0.1
    view: str = "sections"

    @classmethod
    def from_config(cls, config: Any) -> "CXRBERT":
        switches = config.cxr_bert
        matches = switches.matching_weight > 0
        if matches != (config.data.view == "sections"):
            raise UserError(
                f"cxr_bert.matching_weight={switches.matching_weight} with "
                f"data.view={config.data.view}: findings and impression are matched with "
                "data.view=sections; with a weight of 0 take data.view=reports"
            )
        encoder = text_encoder_of(config)
        return cls(
            encoder,
            TextHead(TokenMLP(config.model.embed_dim), "cls"),
            MaskedWords.of(config.mlm, encoder),
            temperature=switches.temperature,
            matching_weight=switches.matching_weight,
            mlm_weight=switches.mlm_weight,
            view=config.data.view,
        )

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        """Random variables, boxed with logical axis names."""
        keys = jax.random.split(key, 3)
        ids = jnp.zeros((1, spec.text_length), jnp.int32)
        texts = {"ids_BxT": ids, "mask_BxT": ids + 1, "word_ids_BxT": ids - 1}
        text, state = init_tower(
            "text", keys[0], self.text_encoder, (ids, ids + 1),
            keys[1], self.text_head, (texts,),
        )  # fmt: skip
        words = self.masked_words.init(keys[2])
        return {"params": {"text": text, "masked_words": words}, **state}

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        texts, keys_M = batch["texts"], keys.texts_M if keys else None
        if not self.matching_weight:
            named = self.masked_words.run(variables, texts, keys_M, train)
            return Features(None, named=named), {}
        # Both sections of a report in one pass: a gradient of the table, not two.
        both = {name: side_by_side(texts[name], texts[f"second_{name}"])
                for name in texts if not name.startswith("second_")}  # fmt: skip
        keys_B = None if keys_M is None else keys_of_two(keys_M)
        embedded = self._embed(variables, both, keys_B, train)
        named = self.masked_words.run(variables, both, keys_B, train)
        one, other = (jax.tree.map(lambda a, n=n: a[n::2], embedded) for n in range(2))
        length = named.named_BxT.shape[1]
        named = jax.tree.map(lambda a: a.reshape(-1, 2 * length), named)
        return Features(None, one, second_texts=other, named=named), {}

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        weight_M = batch["text_weight_M"]
        mlm_loss, metrics = named_loss(features.named, weight_M)
        loss = self.mlm_weight * mlm_loss
        if self.matching_weight:
            assert features.texts is not None and features.second_texts is not None
            matching = 2 * infonce_loss(
                features.texts.joint_BxD,
                features.second_texts.joint_BxD,
                1 / self.temperature,
                image_weight_N=weight_M,
                text_weight_M=weight_M,
            )
            loss += self.matching_weight * matching
            metrics = {"loss_matching": matching, **metrics}
        return loss, metrics, {}

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        return variables

    def embed_texts(
        self, variables: Variables, texts: Mapping[str, jax.Array]
    ) -> TextEmbedding:
        """Inference on `ids_BxT` and `mask_BxT`."""
        return self._embed(variables, texts, None, train=False)

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 for one example: a report, or two sections of one."""
        once = self.masked_words.forward_flops(spec.text_length)
        if not self.matching_weight:
            return once
        encoder: Any = self.text_encoder
        return 2 * (once + encoder.forward_flops(spec.text_length, first_only=True))

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """As a dual encoder's: 4 products of both sections' vectors in float32."""
        dim = self.masked_words.text_encoder.feature_dim
        return 6 * 4 * 2.0 * batch**2 * dim if self.matching_weight else 0.0

    def _embed(
        self,
        variables: Variables,
        texts: Mapping[str, jax.Array],
        keys_M: jax.Array | None,
        train: bool,
    ) -> TextEmbedding:
        features, projected, _ = run_tower(
            "text", variables, self.text_encoder, (texts["ids_BxT"], texts["mask_BxT"]),
            self.text_head, (texts,), keys_M, train, first_only=train,
        )  # fmt: skip
        return TextEmbedding(
            l2_normalize(projected.joint_BxD), features.words_BxTxC, texts["mask_BxT"]
        )
