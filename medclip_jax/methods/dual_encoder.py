"""What methods with one image tower and one text tower have in common."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
from medclip_jax.models.registry import build_image_encoder, build_text_encoder

TextPool = Literal["layers_1_2_last", "pooler", "cls", "max", "mean"]
TEXT_POOLS = get_args(TextPool)
COMPUTE_DTYPES = ("bfloat16", "float32", "float64", "float16")
MAX_LOG_SCALE = 4.605170  # log 100, the clamp of CLIP and of MedCLIP


@dataclass(frozen=True)
class DualEncoder:
    """Encoders, projections and pooling; a method adds its objective.

    Attributes:
      image_encoder: flax module, films_BxHxWx3 -> ImageFeatures.
      text_encoder: flax module, ids_BxT, mask_BxT -> TextFeatures.
      image_head: flax module, [B, F] -> [B, D].
      text_head: flax module, [B, C] -> [B, D].
      text_pool: how token states become one vector, see `pool_text`.
      pool_padding: averages run over padding too, as in MedCLIP's official code
        (medclip/modeling_medclip.py); a text's embedding then depends on the padded
        length.
      view: default view of the data.
      prompt_pooling: how the logits of a class's prompts become one: their mean
        (MedCLIP's ensemble) or their maximum.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    image_head: nn.Module
    text_head: nn.Module
    text_pool: TextPool = "cls"
    pool_padding: bool = False
    view: str = "pairs"
    prompt_pooling: Literal["mean", "max"] = "mean"

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        """Random variables, boxed with logical axis names.

        Args:
          key: PRNG key.
          spec: image size in pixels and text length in tokens.
        """
        keys = jax.random.split(key, 4)
        films = jnp.zeros((1, spec.image_size, spec.image_size, 3), jnp.float32)
        ids = jnp.zeros((1, spec.text_length), jnp.int32)
        image = dict(self.image_encoder.init(keys[0], films, train=False))
        image_features, _ = apply_module(
            self.image_encoder, nn.meta.unbox(image), films, train=False
        )
        text = dict(self.text_encoder.init(keys[1], ids, ids + 1, train=False))
        text_features, _ = apply_module(
            self.text_encoder, nn.meta.unbox(text), ids, ids + 1, train=False
        )
        pooled = self.pool_text(text_features, ids + 1)
        params = {
            "image": {
                "encoder": image.pop("params"),
                "projection": self.image_head.init(keys[2], image_features.trunk_BxF)[
                    "params"
                ],
            },
            "text": {
                "encoder": text.pop("params"),
                "projection": self.text_head.init(keys[3], pooled)["params"],
            },
            **self.scalars(),
        }
        state = {name: {"image": value} for name, value in image.items()}
        for name, value in text.items():
            state.setdefault(name, {})["text"] = value
        return {"params": params, **state}

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
        names = sorted({*image_state, *text_state})
        state = {
            name: {
                **({"image": image_state[name]} if name in image_state else {}),
                **({"text": text_state[name]} if name in text_state else {}),
            }
            for name in names
        }
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
        images = self._encode_images(variables, films, None, train=False)[0]
        # A patch goes through the head as the pooled feature does. Of a linear head
        # on a mean this takes the joint vector apart exactly (Zhou et al. 2016, class
        # activation maps); BioViL's inference does the same with its MLP.
        local_BxPxD: Any = self.image_head.apply(
            {"params": variables["params"]["image"]["projection"]},
            images.patches_BxPxC,
        )
        return dataclasses.replace(images, local_BxPxD=l2_normalize(local_BxPxD))

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
        image = self.image_encoder.forward_flops(spec.image_size)
        return image + self.text_encoder.forward_flops(spec.text_length)

    def pool_text(self, features: Any, mask_BxT: jax.Array) -> jax.Array:
        """One vector a text from the states of its tokens.

        Args:
          features: TextFeatures.
          mask_BxT: 1 for a token, 0 for padding.

        Returns:
          float32 [B, C]: "cls" the first token of the last layer; "pooler" BERT's
          tanh pooler; "mean" and "max" over the tokens of the last layer;
          "layers_1_2_last" the mean over tokens of layers 1, 2 and the last
          (MedCLIP's released ViT model, medclip/modeling_medclip.py).
        """
        if self.text_pool == "cls":
            return features.words_BxTxC[:, 0].astype(jnp.float32)
        if self.text_pool == "pooler":
            return features.pooler_BxC.astype(jnp.float32)
        keep_BxTx1 = mask_BxT[..., None] > 0
        if self.pool_padding:
            keep_BxTx1 = jnp.ones_like(keep_BxTx1)
        if self.text_pool == "max":
            words = features.words_BxTxC.astype(jnp.float32)
            return jnp.where(keep_BxTx1, words, -jnp.inf).max(1)
        layers = (
            [features.hidden[i] for i in (1, 2, -1)]
            if self.text_pool == "layers_1_2_last"
            else [features.words_BxTxC]
        )
        words = sum(layer.astype(jnp.float32) for layer in layers) / len(layers)
        count = jnp.maximum(keep_BxTx1.sum(1), 1)
        return jnp.where(keep_BxTx1, words, 0.0).sum(1) / count

    def _encode_images(
        self,
        variables: Variables,
        films: Mapping[str, jax.Array],
        keys: jax.Array | None,
        train: bool,
    ) -> tuple[ImageEmbedding, State]:
        params = variables["params"]["image"]
        features, state = apply_module(
            self.image_encoder,
            {"params": params["encoder"], **tower_state(variables, "image")},
            films["current_BxHxWx3"],
            train=train,
            keys_B=keys,
        )
        joint_BxD: Any = self.image_head.apply(
            {"params": params["projection"]}, features.trunk_BxF
        )
        embedding = ImageEmbedding(
            features.trunk_BxF.astype(jnp.float32),
            l2_normalize(joint_BxD),
            features.patches_BxPxC,
            grid=features.grid,
        )
        return embedding, state

    def _encode_texts(
        self,
        variables: Variables,
        texts: Mapping[str, jax.Array],
        keys: jax.Array | None,
        train: bool,
    ) -> tuple[TextEmbedding, State]:
        params = variables["params"]["text"]
        features, state = apply_module(
            self.text_encoder,
            {"params": params["encoder"], **tower_state(variables, "text")},
            texts["ids_BxT"],
            texts["mask_BxT"],
            train=train,
            keys_B=keys,
        )
        pooled = self.pool_text(features, texts["mask_BxT"])
        joint_BxD: Any = self.text_head.apply({"params": params["projection"]}, pooled)
        embedding = TextEmbedding(
            l2_normalize(joint_BxD), features.words_BxTxC, texts["mask_BxT"]
        )
        return embedding, state


def l2_normalize(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1, float32; a zero one stays zero, its gradient finite."""
    vectors = vectors.astype(jnp.float32)
    square = (vectors * vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def joint(
    images: ImageEmbedding, texts: TextEmbedding | None
) -> tuple[jax.Array, jax.Array]:
    """Both joint embeddings; a dual encoder always has them."""
    assert images.joint_BxD is not None and texts is not None
    return images.joint_BxD, texts.joint_BxD


def tower_state(variables: Variables, tower: str) -> State:
    """The collections besides the parameters that belong to one tower."""
    return {
        name: value[tower]
        for name, value in variables.items()
        if name != "params" and tower in value
    }


def apply_module(
    module: nn.Module, variables: Variables, *args: Any, **kwargs: Any
) -> tuple[Any, State]:
    """Applies a module; gives its output and the collections that it changed."""
    changing = [name for name in variables if name != "params"]
    if not kwargs["train"] or not changing:
        return module.apply(variables, *args, **kwargs), {}
    features, state = module.apply(variables, *args, mutable=changing, **kwargs)
    return features, dict(state)


def build_towers(config: Any) -> dict[str, Any]:
    """The two encoders of `config.model`.

    Args:
      config: with `model.image`, `model.text`, and what `shared_fields` reads.
    """
    model, shared = config.model, shared_fields(config.model)
    image = {k: v for k, v in model.image.items() if k != "pretrained"}
    text = {k: v for k, v in model.text.items() if k not in ("pretrained", "tokenizer")}
    return {
        "image_encoder": build_image_encoder({**image, **shared}),
        "text_encoder": build_text_encoder({**text, **shared}),
    }


def shared_fields(model: Any) -> dict[str, Any]:
    """What every encoder of a config has alike.

    Args:
      model: with `dtype`, `remat` and `scan_layers`.
    """
    return {
        "dtype": compute_dtype(model.dtype),
        "remat": bool(model.remat),
        "scan_layers": bool(model.get("scan_layers", False)),  # not in older runs
    }


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that `config.model.dtype` names.

    Raises:
      UserError: it names none that encoders compute in.
    """
    if name not in COMPUTE_DTYPES:
        raise UserError(
            f"model.dtype must be one of {', '.join(COMPUTE_DTYPES)}; found {name!r}"
        )
    return jnp.dtype(name)


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
