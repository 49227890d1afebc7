"""config.json of Hugging Face models <-> fields of our encoders."""

from collections.abc import Mapping
from typing import Any

from medclip_jax.errors import UserError

# Encoder -> its field -> name in config.json. What shapes the function computed.
_STRUCTURE: dict[str, dict[str, str]] = {
    "swin": {
        "patch": "patch_size",
        "embed_dim": "embed_dim",
        "depths": "depths",
        "heads": "num_heads",
        "window": "window_size",
        "mlp_ratio": "mlp_ratio",
        "epsilon": "layer_norm_eps",
    },
    "vit": {
        "patch": "patch_size",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "epsilon": "layer_norm_eps",
    },
    "bert": {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "type_vocab": "type_vocab_size",
        "epsilon": "layer_norm_eps",
        "pad_id": "pad_token_id",
    },
}
# Rates of training: written, never compared.
_RATES: dict[str, dict[str, str]] = {
    "swin": {
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "drop_path": "drop_path_rate",
        "init_std": "initializer_range",
    },
    "vit": {
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "init_std": "initializer_range",
    },
    "bert": {
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "init_std": "initializer_range",
    },
}
# What our encoders always are.
_FIXED: dict[str, dict[str, Any]] = {
    "swin": {
        "hidden_act": "gelu",
        "num_channels": 3,
        "qkv_bias": True,
        "use_absolute_embeddings": False,
    },
    "vit": {"hidden_act": "gelu", "num_channels": 3, "qkv_bias": True},
    "bert": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
}
_CLASSES = {"swin": "SwinModel", "vit": "ViTModel", "bert": "BertModel"}
KNOWN = tuple(_CLASSES)
"""The encoders that transformers has."""


def to_config(
    name: str, fields: Mapping[str, Any], image_size: int | None = None
) -> dict[str, Any]:
    """The config.json of an encoder.

    Args:
      name: "swin", "vit" or "bert".
      fields: all fields of the encoder.
      image_size: side in pixels, of an image encoder.

    Returns:
      A dict that `AutoConfig` and `AutoModel` open.

    Raises:
      UserError: an encoder that they do not have.
    """
    if fields.get("one_position"):
        raise UserError(
            "transformers' BertModel numbers its positions; a text tower of "
            "model.text.one_position=True is not written for it"
        )
    config: dict[str, Any] = {
        "architectures": [_CLASSES[name]],
        "model_type": name,
        "torch_dtype": "float32",
        **_FIXED[name],
    }
    for field, key in {**_STRUCTURE[name], **_RATES[name]}.items():
        value = fields[field]
        config[key] = list(value) if isinstance(value, tuple) else value
    if image_size is not None:
        config["image_size"] = image_size
    return config


def differences(
    name: str, config: Mapping[str, Any], fields: Mapping[str, Any]
) -> list[str]:
    """How a config.json differs from the fields of an encoder, one line an entry.

    What a config does not mention is at the default, which is ours too.
    """
    lines = []
    if config.get("model_type", name) != name:
        return [f"model_type is {config['model_type']}, the encoder is {name}"]
    for key, value in _FIXED[name].items():
        if config.get(key, value) != value:
            lines.append(f"{key} is {config[key]!r}; only {value!r} is known here")
    for field, key in _STRUCTURE[name].items():
        if key not in config:
            continue
        found, ours = _plain(config[key]), _plain(fields[field])
        if found != ours:
            lines.append(f"{key} is {found}, the model's {field} is {ours}")
    return lines


def require_equal(
    name: str, config: Mapping[str, Any], fields: Mapping[str, Any], what: str
) -> None:
    """Refuses a config.json of another model.

    Raises:
      UserError: naming every entry that differs.
    """
    if lines := differences(name, config, fields):
        raise UserError(
            f"{what} is another model than the config's {name}. Set the fields to "
            "those of the weights:\n  " + "\n  ".join(lines)
        )


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(value)
    return float(value) if isinstance(value, (int, float)) else value
