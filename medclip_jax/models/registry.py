"""The encoders by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.models.bert import Bert
from medclip_jax.models.hybrid import Hybrid
from medclip_jax.models.resnet import ResNet
from medclip_jax.models.swin import Swin
from medclip_jax.models.vit import ViT

IMAGE_ENCODERS: dict[str, type[nn.Module]] = {
    "hybrid": Hybrid,
    "resnet": ResNet,
    "swin": Swin,
    "vit": ViT,
}
TEXT_ENCODERS: dict[str, type[nn.Module]] = {"bert": Bert}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Entries of a tower's config that say where things come from, not what it is.
_SOURCES = ("pretrained", "tokenizer")


def fields_of(encoder: type[nn.Module]) -> dict[str, Any]:
    """The config fields of an encoder with their defaults."""
    return {
        field.name: field.default
        for field in dataclasses.fields(encoder)
        if field.name not in ("name", "parent")
    }


def build_image_encoder(config: Mapping[str, Any]) -> nn.Module:
    """An image encoder.

    Args:
      config: "name" of IMAGE_ENCODERS and any of its fields; `dtype` may be a string,
        lists stand for tuples, "pretrained" is left to who loads weights.

    Raises:
      UserError: an unknown name or field (the valid ones are listed), or fields that
        do not fit each other.
    """
    return _build("image", IMAGE_ENCODERS, config)


def build_text_encoder(config: Mapping[str, Any]) -> nn.Module:
    """A text encoder; as `build_image_encoder`, of TEXT_ENCODERS."""
    return _build("text", TEXT_ENCODERS, config)


def _build(
    kind: str, encoders: Mapping[str, type[nn.Module]], config: Mapping[str, Any]
) -> nn.Module:
    fields = {key: config[key] for key in config if key not in _SOURCES}
    name = fields.pop("name", None)
    if name not in encoders:
        raise UserError(
            f"unknown {kind} encoder {name!r}; the names are {', '.join(encoders)}"
        )
    valid = fields_of(encoders[name])
    unknown = sorted(set(fields) - set(valid))
    if unknown:
        raise UserError(
            f"the {kind} encoder {name!r} has no field {', '.join(unknown)}; its "
            f"fields are {', '.join(valid)}"
        )
    values = {key: _value(key, value) for key, value in fields.items()}
    try:
        return encoders[name](**values)
    except ValueError as error:
        raise UserError(f"config of the {kind} encoder: {error}") from error


def _value(key: str, value: Any) -> Any:
    if key == "dtype" and isinstance(value, str):
        if value not in DTYPES:
            raise UserError(f"dtype {value!r} is none of {', '.join(DTYPES)}")
        return DTYPES[value]
    return tuple(value) if isinstance(value, list) else value
