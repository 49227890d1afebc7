"""BioViL: films and reports aligned as a whole, and hidden words named.

Boecking et al., "Making the Most of Text Semantics to Improve Biomedical Vision-Language
Processing", ECCV 2022, arXiv 2204.09817. Official code, of inference alone:
microsoft/hi-ml, hi-ml-multimodal.

Section 2.2: a film is the mean of its patches, each projected by an MLP with batch norm;
a text is the first token of CXR-BERT, projected. The loss is InfoNCE of both directions,
added up and halved, and the masked language loss of the texts. BioViL-L (section 4) adds
a loss of words with patches, as GLoRIA's; its weight and form are not published.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.losses import WordRegions, infonce_loss, word_regions_loss
from medclip_jax.methods.dual_encoder import DualEncoder, joint, local
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    Metrics,
    Spec,
    State,
    Variables,
)
from medclip_jax.methods.masked_words import MaskedWords, named_loss
from medclip_jax.methods.towers import build_towers
from medclip_jax.models.heads import PatchMLP, TextHead, TokenHead, TokenMLP


@dataclass(frozen=True)
class BioViL(DualEncoder):
    """Attributes:
    masked_words: names hidden words.
    words: how words and patches are compared, by BioViL-L.
    temperature: tau, never learned.
    global_weight: of the two directions' sum; 0.5 in the paper.
    local_weight: of the loss of words with patches; 0 is BioViL, above it BioViL-L.
    local_scale: factor of its scores; the official temp3 of GLoRIA.
    mlm_weight: of the masked language loss.
    """

    masked_words: MaskedWords | None = None
    words: WordRegions = dataclasses.field(default_factory=WordRegions)
    temperature: float = 0.5
    global_weight: float = 0.5
    local_weight: float = 0.0
    local_scale: float = 10.0
    mlm_weight: float = 1.0

    @classmethod
    def from_config(cls, config: Any) -> Self:
        switches, dim = config[config.method], config.model.embed_dim
        for name in ("global_weight", "local_weight", "mlm_weight"):
            if switches[name] < 0:
                raise UserError(
                    f"{config.method}.{name} must not be negative; found {switches[name]}"
                )
        towers = build_towers(config)
        hides, of_words = switches.mlm_weight > 0, switches.local_weight > 0
        layer = TokenMLP(dim)
        return cls(
            **towers,
            image_head=PatchMLP(dim),
            text_head=TokenHead(layer) if of_words else TextHead(layer, "cls"),
            masked_words=cls.masked(config, towers["text_encoder"]) if hides else None,
            words=WordRegions.of(switches.words),
            temperature=switches.temperature,
            global_weight=switches.global_weight,
            local_weight=switches.local_weight,
            local_scale=switches.local_scale,
            mlm_weight=switches.mlm_weight,
        )

    @classmethod
    def masked(cls, config: Any, text_encoder: Any) -> MaskedWords:
        """The part that names hidden words, of `config.mlm`: from words alone."""
        return MaskedWords.of(config.mlm, text_encoder)

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        variables = super().init(key, spec)
        if self.masked_words is not None:
            made = self.masked_words.init(
                jax.random.fold_in(key, 1), self.image_head.dim
            )
            variables["params"]["masked_words"] = made
        return variables

    def scale(self, variables: Variables) -> jax.Array:
        return jnp.float32(1 / self.temperature)

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        features, state = super().encode(variables, batch, keys, train)
        if self.masked_words is None:
            return features, state
        assert features.images is not None  # a dual encoder's
        named = self.masked_words.run(
            variables,
            batch["texts"],
            keys.texts_M if keys else None,
            train,
            features.images.local_BxPxD,
        )
        return dataclasses.replace(features, named=named), state

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts, scale = features.images, features.texts, 1 / self.temperature
        weights = {
            "image_weight_N": batch["image_weight_N"],
            "text_weight_M": batch["text_weight_M"],
        }
        global_loss = 2 * infonce_loss(*joint(images, texts), scale, **weights)
        loss, metrics = self.global_weight * global_loss, {"loss_global": global_loss}
        if self.local_weight:
            to_text, to_image = word_regions_loss(
                *local(images, texts), self.local_scale, self.words, **weights
            )
            metrics["loss_local"] = to_text + to_image
            loss += self.local_weight * metrics["loss_local"]
        if self.masked_words is not None:
            mlm_loss, of_words = named_loss(features.named, batch["text_weight_M"])
            loss, metrics = loss + self.mlm_weight * mlm_loss, {**metrics, **of_words}
        return loss, metrics, {}

    def forward_flops(self, spec: Spec) -> int:
        once = super().forward_flops(spec)
        if self.masked_words is None:
            return once
        return once + self.masked_words.forward_flops(spec.text_length)

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Besides: words with patches, and what they find, in four passes each."""
        pairs = super().loss_flops(spec, batch)
        if not self.local_weight:
            return pairs
        local_1xPxD = self._shapes(spec).local_BxPxD
        assert local_1xPxD is not None  # of `PatchMLP`
        pair = local_1xPxD.size * spec.text_length
        return pairs + 6 * 4 * 2 * 2.0 * batch**2 * pair
