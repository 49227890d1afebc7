"""What an exported folder holds of each kind of method: projections and settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.findings import FINDINGS
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.methods.dual_encoder import DualEncoder
from medclip_jax.weights import biovil

FORMAT_VERSION = 2
PROGRAM = ("dtype", "remat", "scan_layers", "attention")
"""Fields of an encoder that change how it is computed, not what."""
KINDS = {
    "biovil": "biovil",
    "biovil_t": "biovil",
    "clip": "dual_encoder",
    "convirt": "dual_encoder",
    "cxr_bert": "cxr_bert",
    "gloria": "gloria",
    "medclip": "dual_encoder",
    "mgca": "mgca",
    "moco": "image_only",
    "siglip": "dual_encoder",
    "simclr": "image_only",
    "supervised": "classifier",
}
"""Methods to kinds of models, as torch_model/ tells them apart."""
WITH_PARTS = ("biovil", "gloria", "mgca")
"""Kinds that give regions, and words where the method has any."""

# Heads, as flax names them, to PyTorch's modules.
_HEADS = {
    ("image", "projection"): "image_projection",
    ("image", "projection", "global"): "image_projection",
    ("image", "projection", "local"): "region_projection",
    ("image", "classifier"): "classifier",
    ("text", "projection"): "text_projection",
    ("text", "projection", "global"): "text_projection",
    ("text", "projection", "local"): "word_projection",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def kind_of(run: run_lib.Run) -> str:
    """The kind of the run's model.

    Raises:
      UserError: torch_model/ has no model of its method.
    """
    if run.config.method not in KINDS:
        raise UserError(
            f"{run.workdir} holds a run of method {run.config.method!r}, which is not "
            f"exported: expected one of {', '.join(KINDS)}. Give the --workdir of such "
            "a run"
        )
    return KINDS[run.config.method]


def towers_of(run: run_lib.Run) -> list[str]:
    """Those of "image" and "text" that the method has."""
    return [of for of in ("image", "text") if hasattr(run.method, f"{of}_encoder")]


def image_side(run: run_lib.Run) -> int:
    """Pixels of a side, as the image encoder sees films."""
    return getattr(run.method, "resize_to", 0) or run.config.data.image_size


def fields_of(encoder: Any) -> dict[str, Any]:
    """All config fields of an encoder."""
    return {
        field.name: getattr(encoder, field.name)
        for field in dataclasses.fields(encoder)
        if field.name not in ("parent", "name", *PROGRAM)
    }


def heads(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The projections in PyTorch's layout: Linear weights are [out, in]."""
    state = {}
    for tower in ("image", "text"):
        params = variables["params"].get(tower, {})
        statistics = variables.get("batch_stats", {}).get(f"{tower}_projection", {})
        found = [(name, of) for name, of in params.items() if (tower, name) in _HEADS]
        for head, tree in (*found, ("projection", statistics)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                *names, last = (str(entry.key) for entry in path)
                module = _HEADS[tower, head]
                if names and (tower, head, names[0]) in _HEADS:
                    module = _HEADS[tower, head, names.pop(0)]
                key = ".".join([module, *names, _LEAVES.get(last, last)])
                state[key] = np.ascontiguousarray(np.asarray(leaf, np.float32).T)
    return state


def settings(run: run_lib.Run, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of the files must know beside the weights."""
    config, kind = run.config, kind_of(run)
    about = {
        "format_version": FORMAT_VERSION,
        "method": config.method,
        "kind": kind,
        "step": run.step,
        "data_fingerprint": run.fingerprint,
    }
    if "image" in towers_of(run):
        about |= _of_films(run)
    if "text" in towers_of(run):
        about |= _of_texts(run, variables)
    method: Any = run.method
    match kind:
        case "biovil":
            about["words"] = method.local_weight > 0
        case "classifier":
            about["findings"] = list(FINDINGS)
        case "dual_encoder":
            about["text_pool"] = method.text_head.pool
            about["pool_padding"] = method.text_head.padding
            about["bias"] = float(variables["params"].get("logit_bias", 0.0))
        case "gloria":
            about["gloria"] = config.gloria.to_dict()
            about["prompt_zscore"] = method.prompt_zscore
        case "mgca":
            about["shifted_words"] = method.text_head.shifted
    return about


def _of_films(run: run_lib.Run) -> dict[str, Any]:
    config = run.config
    method: Any = run.method
    return {
        "image": {"name": config.model.image.name, **fields_of(method.image_encoder)},
        "image_size": config.data.image_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "resize_to": getattr(method, "resize_to", 0),
        # Of a ResNet, whose map gives the regions: counted from 1, 0 is the last.
        "stage": getattr(getattr(method, "image_head", None), "stage", 0),
    }


def _of_texts(run: run_lib.Run, variables: Mapping[str, Any]) -> dict[str, Any]:
    config = run.config
    method: Any = run.method
    about = {
        "text": {"name": config.model.text.name, **fields_of(method.text_encoder)},
        "text_length": config.data.text_length,
        "embed_dim": config.model.embed_dim,
        "names_words": biovil.names_words(variables["params"]),
    }
    if isinstance(method, DualEncoder):
        about["prompt_pooling"] = method.prompt_pooling
        about["scale"] = float(method.scale(dict(variables)))
    else:
        about["scale"] = 1 / method.temperature
    return about
