"""MGCA: films and reports aligned as wholes, by their tokens, and by prototypes.

Wang, Zhou, Wang, Vardhanabhuti, Yu, "Multi-Granularity Cross-modal Alignment for
Generalized Medical Visual Representation Learning", NeurIPS 2022, arXiv 2210.06044.
Official code: HKU-MedAI/MGCA, mgca/models/mgca/mgca_module.py and
mgca/models/backbones/encoder.py.

Section 3.2: InfoNCE of [CLS] and the film. Section 3.3: each word attends to the patches
of its own film and each patch to the words of its own report; a token is to know what it
found among what the others found, and counts as much as the first token of its tower
attends to it. Section 3.4: film and report are to fall to the same prototypes. The
prototypes have length 1 after each update and stay as they are at first.

Where the official code is not the paper, switches of `config.mgca` say so. Negatives, the
balance of the prototypes and batch statistics are of the whole batch here; in the
official code of one GPU's part.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError, check_choice
from medclip_jax.losses import infonce_loss
from medclip_jax.losses.prototypes import prototype_loss
from medclip_jax.losses.similarity import similarity_logits
from medclip_jax.losses.token_alignment import (
    attended,
    clipped_shares,
    token_alignment_loss,
)
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
from medclip_jax.methods.towers import build_towers, l2_normalize
from medclip_jax.models.heads import FilmAndPatchesHead, ReportAndWordsHead
from medclip_jax.models.token_attention import CrossAttention

Attention = Literal["learned", "cosines"]
PatchWeights = Literal["attention", "alike"]
FINDS = ("words_find", "patches_find")
"""Parameters of each direction's attention, where it is learned."""


@dataclass(frozen=True)
class MGCA(DualEncoder):
    """Attributes:
    temperature: tau of films and reports, never learned.
    local_temperature: of tokens, and of their attention where it is of cosines.
    attention: by which tokens find others. "learned": a head with matrices, section
      3.3. "cosines": of the tokens themselves, as the official code is run.
    patch_weights: how much patches count. "attention": as the image tower's first token
      attends to them. "alike": all the same, as in the official code with a ResNet.
    unit_patches: what patches find is brought to length 1 as what words find is; in the
      official code with a ResNet alone.
    sum_directions: both directions of the global loss are added up, as in the official
      code; else their mean.
    prototypes: how many.
    prototype_temperature: of the predictions.
    epsilon, iterations: see `losses.prototypes.sinkhorn`.
    frozen_steps: for so many steps prototypes get no gradient.
    global_weight, local_weight, prototype_weight: of the three losses.
    """

    temperature: float = 0.07
    local_temperature: float = 0.1
    attention: Attention = "learned"
    patch_weights: PatchWeights = "attention"
    unit_patches: bool = False
    sum_directions: bool = False
    prototypes: int = 500
    prototype_temperature: float = 0.2
    epsilon: float = 0.05
    iterations: int = 3
    frozen_steps: int = 0
    global_weight: float = 1.0
    local_weight: float = 0.7
    prototype_weight: float = 0.5

    @classmethod
    def from_config(cls, config: Any) -> "MGCA":
        switches, dim = dict(config.mgca), config.model.embed_dim
        check_choice("mgca.attention", switches["attention"], Attention)
        check_choice("mgca.patch_weights", switches["patch_weights"], PatchWeights)
        towers = build_towers(config)
        towers["text_encoder"] = towers["text_encoder"].clone(tells_attention=True)
        if switches["patch_weights"] == "attention":
            if not hasattr(towers["image_encoder"], "tells_attention"):
                raise UserError(
                    "mgca.patch_weights=attention needs an image tower with a first "
                    f"token, such as vit; found {config.model.image.name}. Set "
                    "mgca.patch_weights=alike"
                )
            towers["image_encoder"] = towers["image_encoder"].clone(
                tells_attention=True
            )
        stage = switches.pop("stage")
        stages = len(config.model.image.get("stage_sizes", ()))
        if stages and not 0 <= stage <= stages:
            raise UserError(f"mgca.stage={stage}: the image tower has {stages} stages")
        hidden = switches.pop("hidden")
        shifted = switches.pop("shifted_words")
        return cls(
            **towers,
            image_head=FilmAndPatchesHead(dim, hidden, stage=stage),
            text_head=ReportAndWordsHead(dim, hidden, shifted=shifted),
            **switches,
        )

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        variables, dim = super().init(key, spec), self.image_head.dim
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        made: dict[str, Any] = {}
        if self.attention == "learned":
            token_1x1xD = jnp.zeros((1, 1, dim))
            made = {
                name: CrossAttention().init(of, token_1x1xD, token_1x1xD)["params"]
                for name, of in zip(FINDS, keys[:2], strict=True)
            }
        first_KxD = l2_normalize(jax.random.normal(keys[2], (self.prototypes, dim)))
        made["prototypes"] = nn.LogicallyPartitioned(first_KxD, (None, "joint"))
        return {**variables, "params": {**variables["params"], **made}}

    def scale(self, variables: Variables) -> jax.Array:
        return jnp.float32(1 / self.temperature)

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = features.images, features.texts
        assert images is not None and texts is not None  # a dual encoder's
        rows, columns = batch["image_weight_N"], batch["text_weight_M"]
        pair_B = rows * columns
        global_loss = infonce_loss(
            *joint(images, texts),
            1 / self.temperature,
            image_weight_N=rows,
            text_weight_M=columns,
        )
        if self.sum_directions:
            global_loss *= 2
        of_words, of_patches = self.local_losses(variables, images, texts, pair_B)
        of_prototypes = self.prototype_loss(variables, images, texts, pair_B, step)
        loss = (
            self.global_weight * global_loss
            + self.local_weight * (of_words + of_patches)
            + self.prototype_weight * of_prototypes
        )
        metrics = {
            "loss_global": global_loss,
            "loss_words": of_words,
            "loss_patches": of_patches,
            "loss_prototypes": of_prototypes,
        }
        return loss, metrics, {}

    def local_losses(
        self,
        variables: Variables,
        images: ImageEmbedding,
        texts: TextEmbedding,
        pair_B: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Of words and of patches, each with what it finds: section 3.3.

        Args:
          variables: of the method.
          images, texts: of `encode`.
          pair_B: float [B], 0 removes a pair.

        Returns:
          Two float32 scalars.
        """
        patches_BxPxD, words_BxWxD, mask_BxW = local(images, texts)
        patches_BxPxD, words_BxWxD = map(l2_normalize, (patches_BxPxD, words_BxWxD))
        assert texts.local_weight_BxW is not None  # `from_config` asked
        of_words = token_alignment_loss(
            words_BxWxD,
            l2_normalize(self._found(variables, 0, words_BxWxD, patches_BxPxD)),
            clipped_shares(texts.local_weight_BxW),
            self.local_temperature,
            weight_B=pair_B,
        )
        found_BxPxD = self._found(variables, 1, patches_BxPxD, words_BxWxD, mask_BxW)
        of_patches = token_alignment_loss(
            patches_BxPxD,
            l2_normalize(found_BxPxD) if self.unit_patches else found_BxPxD,
            self._patch_shares(images),
            self.local_temperature,
            weight_B=pair_B,
        )
        return of_words, of_patches

    def prototype_loss(
        self,
        variables: Variables,
        images: ImageEmbedding,
        texts: TextEmbedding,
        pair_B: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """Of films and reports that are to fall to the same prototypes: section 3.4."""
        prototypes_KxD = variables["params"]["prototypes"]
        prototypes_KxD = jnp.where(
            step < self.frozen_steps,
            jax.lax.stop_gradient(prototypes_KxD),
            prototypes_KxD,
        )
        images_BxD, texts_BxD = joint(images, texts)
        return prototype_loss(
            similarity_logits(images_BxD, prototypes_KxD, 1.0),
            similarity_logits(texts_BxD, prototypes_KxD, 1.0),
            self.prototype_temperature,
            self.epsilon,
            self.iterations,
            weight_B=pair_B,
        )

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        """Brings the prototypes back to length 1."""
        params = variables["params"]
        unit_KxD = l2_normalize(params["prototypes"])
        return {**variables, "params": {**params, "prototypes": unit_KxD}}

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Besides, of each pair: tokens with others and what they find, and these with
        the tokens, for words and patches; and the prototypes with both sides. Each
        product is made in the forward pass and differentiated by both sides."""
        local_1xPxD = self._shapes(spec).local_BxPxD
        assert local_1xPxD is not None  # of `FilmAndPatchesHead`
        _, patches, dim = local_1xPxD.shape
        words = spec.text_length - 1
        tokens = 4 * words * patches + words**2 + patches**2
        once = 6 * 3 * 2.0 * batch * dim * (tokens + 2 * self.prototypes)
        return super().loss_flops(spec, batch) + once

    def _found(
        self,
        variables: Variables,
        direction: int,
        tokens_BxLxD: jax.Array,
        others_BxRxD: jax.Array,
        mask_BxR: jax.Array | None = None,
    ) -> jax.Array:
        if self.attention == "cosines":
            return attended(
                tokens_BxLxD, others_BxRxD, self.local_temperature, mask_BxR
            )
        params = {"params": variables["params"][FINDS[direction]]}
        found_BxLxD: Any = CrossAttention().apply(
            params, tokens_BxLxD, others_BxRxD, mask_BxR
        )
        return found_BxLxD

    def _patch_shares(self, images: ImageEmbedding) -> jax.Array:
        if self.patch_weights == "attention":
            assert images.local_weight_BxP is not None  # `from_config` asked
            return clipped_shares(images.local_weight_BxP)
        assert images.local_BxPxD is not None  # of `FilmAndPatchesHead`
        batch, patches, _ = images.local_BxPxD.shape
        return jnp.full((batch, patches), 1 / patches, jnp.float32)
