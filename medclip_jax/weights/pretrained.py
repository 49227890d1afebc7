"""Published weights for one encoder, from a folder or a file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, files, huggingface, hybrid, resnet, swin, vit
from medclip_jax.weights.layout import Report, Variables

CONVERTERS: dict[str, ModuleType] = {
    "hybrid": hybrid,
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
        pytorch_model.bin), a torchvision .pth or .safetensors file, or the official
        file of MedCLIP or of BioViL-T's image model, of which the tower that fits is
        taken.
      name: "hybrid", "resnet", "swin", "vit" or "bert".
      fields: all fields of the encoder, to hold against config.json.
      target: the encoder's variables by collection, unboxed (shapes are enough).

    Returns:
      Variables like the target, float32, and what was ignored.

    Raises:
      UserError: nothing readable, another model, or keys that do not fit (all named).
    """
    path = Path(path)
    config_path = path / "config.json" if path.is_dir() else None
    known = name in huggingface.KNOWN
    if known and config_path and config_path.is_file():
        try:
            config = json.loads(config_path.read_text())
        except ValueError as error:
            raise UserError(f"{config_path} is no JSON: {error}") from error
        huggingface.require_equal(name, config, fields, str(path))
    variables, report = converter(name).from_torch(files.read(path), target)
    report.require(str(path))
    return variables, report


def load_into(
    variables: Mapping[str, Any], method: Any, model: Mapping[str, Any]
) -> tuple[Variables, list[str]]:
    """Replaces the encoders of a method by those that its config names.

    Args:
      variables: of the method, unboxed, with params/{image,text}/encoder.
      method: with `image_encoder` and, where it has a text tower, `text_encoder`.
      model: `config.model`; the entries image.name, image.pretrained and the same of
        text. An empty or absent `pretrained` leaves the encoder as it is.

    Returns:
      Variables like those given, float32 numpy arrays where they were replaced, and
      one line for the log about each tower that was.

    Raises:
      UserError: as `load_encoder`.
    """
    variables, lines = dict(variables), []
    for tower in ("image", "text"):
        source = model[tower].get("pretrained", "") if tower in model else ""
        if not source:
            continue
        encoder = getattr(method, f"{tower}_encoder", None)
        if encoder is None:
            raise UserError(
                f"model.{tower}.pretrained is set, but this method has no {tower} tower"
            )
        fields = {f.name: getattr(encoder, f.name) for f in dataclasses.fields(encoder)}
        target = {"params": variables["params"][tower]["encoder"]}
        for collection, value in variables.items():
            if collection != "params" and tower in value:
                target[collection] = value[tower]
        loaded, report = load_encoder(source, model[tower]["name"], fields, target)
        for collection, value in loaded.items():
            towers = dict(variables[collection])
            if collection == "params":
                value = {**towers[tower], "encoder": value}
            variables[collection] = {**towers, tower: value}
        ignored = f", left out {len(report.ignored)}" if report.ignored else ""
        lines.append(f"{tower} encoder from {source}{ignored}")
    return variables, lines
