"""What methods with one image tower and one text tower have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.losses.similarity import similarity_logits
from medclip_jax.methods.interface import (
    Batch,
    ExampleKeys,
    Features,
    ImageEmbedding,
    Spec,
    State,
    TextEmbedding,
    Variables,
)
from medclip_jax.methods.towers import init_tower, l2_normalize, merged, run_tower
from medclip_jax.models.heads import TEXT_POOLS, ImageHead, TextHead, TextPool
from medclip_jax.models.resize import resize_corners

FIRST_TOKEN = ("cls", "pooler")  # poolings that read nothing else of the last layer
MAX_LOG_SCALE = 4.605170  # log 100, the clamp of CLIP and of MedCLIP


@dataclass(frozen=True)
class DualEncoder:
    """Encoders with their heads; a method adds its objective.

    Attributes:
      image_encoder: flax module, films_BxHxWx3 -> ImageFeatures.
      text_encoder: flax module, ids_BxT, mask_BxT -> TextFeatures.
      image_head: flax module, ImageFeatures -> Projected.
      text_head: flax module, TextFeatures and the tokens -> Projected.
      view: default view of the data.
      prompt_pooling: how the logits of a class's prompts become one: their mean
        (MedCLIP's ensemble) or their maximum.
      resize_to: side that films are brought to within the model; 0 leaves them.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    image_head: nn.Module
    text_head: nn.Module
    view: str = "pairs"
    prompt_pooling: Literal["mean", "max"] = "mean"
    resize_to: int = 0

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        """Random variables, boxed with logical axis names.

        Args:
          key: PRNG key.
          spec: image size in pixels and text length in tokens.
        """
        keys = jax.random.split(key, 4)
        films = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        ids = jnp.zeros((1, spec.text_length), jnp.int32)
        texts = {"ids_BxT": ids, "mask_BxT": ids + 1, "word_ids_BxT": ids - 1}
        image, image_state = init_tower(
            "image", keys[0], self.image_encoder, self.blank_films(films),
            keys[2], self.image_head, (),
        )  # fmt: skip
        text, text_state = init_tower(
            "text", keys[1], self.text_encoder, (ids, ids + 1),
            keys[3], self.text_head, (texts,),
        )  # fmt: skip
        params = {"image": image, "text": text, **self.scalars()}
        return {"params": params, **merged(image_state, text_state)}

    def image_inputs(self, films: Mapping[str, jax.Array]) -> tuple[Any, ...]:
        """What the image encoder is called with; by default the current films."""
        films_BxHxWx3 = films["current_BxHxWx3"]
        if not self.resize_to:
            return (films_BxHxWx3,)
        return (resize_corners(films_BxHxWx3, self.resize_to),)

    def blank_films(self, films_BxHxWx3: jax.Array) -> tuple[Any, ...]:
        """All that it can be called with, to initialise it."""
        return (films_BxHxWx3,)

    def scalars(self) -> dict[str, Any]:
        """The method's own scalar parameters, boxed."""
        return {}

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        images, image_state = self._encode_images(
            variables, batch["films"], keys.images_N if keys else None, train
        )
        texts, text_state = self._encode_texts(
            variables, batch["texts"], keys.texts_M if keys else None, train
        )
        state = merged(image_state, text_state)
        return Features(images, texts), state

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        """Clamps the learned temperature, where there is one."""
        if "logit_scale" not in variables["params"]:
            return variables
        scale = jnp.clip(variables["params"]["logit_scale"], 0.0, MAX_LOG_SCALE)
        return {**variables, "params": {**variables["params"], "logit_scale": scale}}

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        return self._encode_images(variables, films, None, train=False)[0]

    def embed_texts(
        self, variables: Variables, texts: Mapping[str, jax.Array]
    ) -> TextEmbedding:
        return self._encode_texts(variables, texts, None, train=False)[0]

    def scale(self, variables: Variables) -> jax.Array:
        """The inverse temperature, exp of the learned logit scale."""
        log_scale = variables["params"]["logit_scale"]
        return jnp.exp(jnp.clip(log_scale, 0.0, MAX_LOG_SCALE))

    def score(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """logits_NxM: scaled cosines."""
        images_NxD, texts_MxD = joint(images, texts)
        return similarity_logits(images_NxD, texts_MxD, self.scale(variables))

    def forward_flops(self, spec: Spec) -> int:
        """Multiply-adds x 2 of the two encoders for one image and one text."""
        image = self.image_encoder.forward_flops(
            self.resize_to or spec.image_size, **self.asked("image", True)
        )
        return image + self.text_encoder.forward_flops(
            spec.text_length, **self.asked("text", True)
        )

    def asked(self, tower: str, train: bool) -> dict[str, bool]:
        """What is said to an encoder of which training reads the first token alone."""
        if tower == "text":
            head: Any = self.text_head
            first = isinstance(head, TextHead) and head.pool in FIRST_TOKEN
        else:
            pooling = getattr(self.image_encoder, "pooling", None)
            first = isinstance(self.image_head, ImageHead) and pooling in FIRST_TOKEN
        return {"first_only": True} if train and first else {}

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Each logit is made in the forward and again in the backward pass, and its
        derivative meets both sides: 4 products of [N, D] and [D, M] in float32."""
        joint_1xD = self._shapes(spec).joint_BxD
        assert joint_1xD is not None  # a dual encoder's
        return 6 * 4 * 2.0 * batch**2 * joint_1xD.size

    def _shapes(self, spec: Spec) -> ImageEmbedding:
        """Of one film."""
        film = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        return jax.eval_shape(
            lambda key: self.embed_images(
                nn.meta.unbox(self.init(key, spec)), {"current_BxHxWx3": film}
            ),
            jax.random.key(0),
        )

    def _encode_images(
        self,
        variables: Variables,
        films: Mapping[str, jax.Array],
        keys: jax.Array | None,
        train: bool,
    ) -> tuple[ImageEmbedding, State]:
        features, projected, state = run_tower(
            "image", variables, self.image_encoder, self.image_inputs(films),
            self.image_head, (), keys, train, **self.asked("image", train),
        )  # fmt: skip
        embedding = ImageEmbedding(
            features.trunk_BxF.astype(jnp.float32),
            l2_normalize(projected.joint_BxD),
            features.patches_BxPxC,
            projected.local_BxLxD,
            grid=projected.grid,
            local_weight_BxP=projected.weight_BxL,
        )
        return embedding, state

    def _encode_texts(
        self,
        variables: Variables,
        texts: Mapping[str, jax.Array],
        keys: jax.Array | None,
        train: bool,
    ) -> tuple[TextEmbedding, State]:
        features, projected, state = run_tower(
            "text", variables, self.text_encoder, (texts["ids_BxT"], texts["mask_BxT"]),
            self.text_head, (texts,), keys, train, **self.asked("text", train),
        )  # fmt: skip
        embedding = TextEmbedding(
            l2_normalize(projected.joint_BxD),
            features.words_BxTxC,
            texts["mask_BxT"],
            projected.local_BxLxD,
            projected.mask_BxL,
            projected.weight_BxL,
        )
        return embedding, state


def joint(
    images: ImageEmbedding | None, texts: TextEmbedding | None
) -> tuple[jax.Array, jax.Array]:
    """Both joint embeddings; a dual encoder always has them."""
    assert images is not None and images.joint_BxD is not None and texts is not None
    return images.joint_BxD, texts.joint_BxD


def local(
    images: ImageEmbedding | None, texts: TextEmbedding | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Regions, words and their mask, of a method whose heads give them."""
    assert images is not None and images.local_BxPxD is not None and texts is not None
    assert texts.local_BxWxD is not None and texts.local_mask_BxW is not None
    return images.local_BxPxD, texts.local_BxWxD, texts.local_mask_BxW


def check_text_pool(pool: Any, text: Mapping[str, Any]) -> TextPool:
    """The pooling, if the text tower can give it.

    Args:
      pool: one of TEXT_POOLS.
      text: `config.model.text`.

    Raises:
      UserError: an unknown name, or a tower without the layers or the pooler.
    """
    if pool not in TEXT_POOLS:
        raise UserError(
            f"text_pool must be one of {', '.join(TEXT_POOLS)}; found {pool!r}"
        )
    if pool == "pooler" and not text.get("pooler", True):
        raise UserError("text_pool 'pooler' needs model.text.pooler=True")
    if pool == "layers_1_2_last" and text.get("layers", 12) < 2:
        raise UserError(
            "text_pool 'layers_1_2_last' needs a text encoder of two layers or more; "
            f"model.text.layers is {text['layers']}. Take text_pool=mean"
        )
    return pool


def learned_scale(initial: float) -> dict[str, Any]:
    """The parameter `logit_scale`: the logarithm of the inverse temperature."""
    value = jnp.log(jnp.float32(initial))
    return {"logit_scale": nn.LogicallyPartitioned(value, names=())}
