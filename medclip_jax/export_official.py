"""The state dict of a system's official code, of an exported model that fits it."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclip_jax import export_settings
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.weights import biovil, files, gloria, layout, medclip, mgca

LAYOUTS: dict[str, Any] = {
    "biovil": biovil,
    "biovil_t": biovil,
    "clip": medclip,
    "convirt": medclip,
    "cxr_bert": biovil,
    "gloria": gloria,
    "medclip": medclip,
    "mgca": mgca,
    "siglip": medclip,
}
"""Methods to what knows the official layout, or one that may fit."""


def write(
    run: run_lib.Run, variables: Mapping[str, Any], out: Path
) -> tuple[str, list[str]]:
    """Writes the official state dict, if every parameter has a place in it.

    Args:
      run: what is exported.
      variables: its variables, on the host.
      out: the exported folder.

    Returns:
      The folder's name within `out`, "" where nothing was written; and lines about what
      does not fit, and what the official code does otherwise.
    """
    method, image = run.config.method, None
    if method not in LAYOUTS:
        return "", []
    system = LAYOUTS[method]
    name = f"{'medclip' if system is medclip else method}_official"
    if "image" in export_settings.towers_of(run):
        image = run.config.model.image.name
    try:
        state, report = system.to_torch(variables, image)
    except UserError as error:
        return "", [f"{name}: {error}"]
    if report.unexpected:
        return "", [f"{name} has no place for {key}" for key in report.unexpected]
    lines = []
    if report.missing:
        lines.append(
            f"{name} has no {', '.join(report.missing)}, which embeddings do not need: "
            "load with strict=False"
        )
    for part, tensors in _parts(system, state).items():
        lines += _write(tensors, out / name / part, f"{name}/{part}".rstrip("/"))
    if system is medclip:
        return name, [*lines, *_other_pooling(run)]
    return name, [*lines, *_other_switches(run, name, system.official(image))]


def _parts(system: Any, state: layout.StateDict) -> dict[str, layout.StateDict]:
    """By folder: the image and the text model of BioViL are two files."""
    if system is not biovil:
        return {"": state}
    parts: dict[str, layout.StateDict] = {}
    for key, value in state.items():
        part = "text_model" if biovil.is_of_text(key) else "image_model"
        parts.setdefault(part, {})[key] = value
    return parts


def _write(state: layout.StateDict, folder: Path, name: str) -> list[str]:
    folder.mkdir(parents=True)
    files.write_safetensors(state, folder / files.SAFETENSORS)
    if importlib.util.find_spec("torch"):
        files.write_torch(state, folder / files.PICKLE)
        return []
    line = (
        f"{name}/{files.PICKLE}: not written, PyTorch is not installed; "
        f"{files.SAFETENSORS} holds the same tensors"
    )
    return [line]


def _other_pooling(run: run_lib.Run) -> list[str]:
    """Where a model pools texts otherwise than MedCLIP's official code."""
    method: Any = run.method
    if method.text_head.pool == "layers_1_2_last" and method.text_head.padding:
        return []
    padding = "" if method.text_head.padding else " without padding"
    line = (
        "medclip_official: the official code pools texts by the mean of layers 1, 2 and "
        f"last over padding too; this model pools by {method.text_head.pool}{padding}, "
        "as torch_model/ does"
    )
    return [line]


def _other_switches(
    run: run_lib.Run, name: str, official: Mapping[str, Any]
) -> list[str]:
    """Where a model is computed otherwise than by the official code."""
    flat = layout.flatten(run.config.to_dict())
    found = {".".join(path): value for path, value in flat.items()}
    for tower in export_settings.towers_of(run):
        fields = export_settings.fields_of(getattr(run.method, f"{tower}_encoder"))
        found |= {f"model.{tower}.{field}": value for field, value in fields.items()}
    return [
        f"{name}: the official code has {key}={value}; this model {found[key]}, as "
        "torch_model/ does"
        for key, value in official.items()
        if found[key] != value
    ]
