"""Published weights for one encoder, from a folder or a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, files, huggingface, resnet, swin, vit
from medclip_jax.weights.layout import Report, Variables

CONVERTERS: dict[str, ModuleType] = {
    "resnet": resnet,
    "swin": swin,
    "vit": vit,
    "bert": bert,
}


def converter(name: str) -> ModuleType:
    """The module with `from_torch` and `to_torch` of an encoder.

    Raises:
      UserError: there is none of that name.
    """
    if name not in CONVERTERS:
        raise UserError(
            f"no weights are known for the encoder {name!r}; there are "
            f"{', '.join(CONVERTERS)}"
        )
    return CONVERTERS[name]


def load_encoder(
    path: str | Path, name: str, fields: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Reads an encoder's weights.

    Args:
      path: a Hugging Face folder (config.json beside model.safetensors or
        pytorch_model.bin), a torchvision .pth or .safetensors file, or MedCLIP's
        official pytorch_model.bin, of which the tower that fits is taken.
      name: "resnet", "swin", "vit" or "bert".
      fields: all fields of the encoder, to hold against config.json.
      target: the encoder's variables by collection, unboxed (shapes are enough).

    Returns:
      Variables like the target, float32, and what was ignored.

    Raises:
      UserError: nothing readable, another model, or keys that do not fit (all named).
    """
    path = Path(path)
    config_path = path / "config.json" if path.is_dir() else None
    if config_path and config_path.is_file() and name != "resnet":
        try:
            config = json.loads(config_path.read_text())
        except ValueError as error:
            raise UserError(f"{config_path} is no JSON: {error}") from error
        huggingface.require_equal(name, config, fields, str(path))
    variables, report = converter(name).from_torch(files.read(path), target)
    report.require(str(path))
    return variables, report
