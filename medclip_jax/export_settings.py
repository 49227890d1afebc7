"""What an exported folder holds of each kind of method: projections and settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.methods.dual_encoder import DualEncoder
from medclip_jax.methods.gloria import GLoRIA
from medclip_jax.methods.image_only import ImageOnly
from medclip_jax.models.heads import ImageHead, TextHead

FORMAT_VERSION = 2
PROGRAM = ("dtype", "remat", "scan_layers", "attention")
"""Fields of an encoder that change how it is computed, not what."""
DUAL_ENCODER, GLORIA, IMAGE_ONLY = "dual_encoder", "gloria", "image_only"
"""Kinds of methods, as torch_model.py tells them apart."""

# Projections and leaves, as flax names them, to PyTorch's.
_PROJECTIONS = {
    ("image", "global"): "image_projection",
    ("image", "local"): "region_projection",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def method_of(run: run_lib.Run) -> DualEncoder | ImageOnly:
    """The run's method.

    Raises:
      UserError: torch_model.py has no model of it.
    """
    method = run.method
    if isinstance(method, (GLoRIA, ImageOnly)):
        return method
    if (
        isinstance(method, DualEncoder)
        and isinstance(method.image_head, ImageHead)
        and isinstance(method.text_head, TextHead)
    ):
        return method
    raise UserError(
        f"{run.workdir} holds a run of method {run.config.method!r}, which is not "
        "exported: expected an image and a text encoder whose heads take one vector of "
        "a film and of a text, GLoRIA, or an image encoder trained on crops (SimCLR, "
        "MoCo). Give the --workdir of such a run"
    )


def kind_of(method: DualEncoder | ImageOnly) -> str:
    """One of the kinds."""
    if isinstance(method, ImageOnly):
        return IMAGE_ONLY
    return GLORIA if isinstance(method, GLoRIA) else DUAL_ENCODER


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
    for tower, params in variables["params"].items():
        if not isinstance(params, Mapping) or "projection" not in params:
            continue
        statistics = variables.get("batch_stats", {}).get(f"{tower}_projection", {})
        for tree in (params["projection"], statistics):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                *names, last = (str(entry.key) for entry in path)
                projection = f"{tower}_projection"
                if names and (tower, names[0]) in _PROJECTIONS:
                    projection = _PROJECTIONS[tower, names.pop(0)]
                key = ".".join([projection, *names, _LEAVES.get(last, last)])
                state[key] = np.ascontiguousarray(np.asarray(leaf, np.float32).T)
    return state


def settings(run: run_lib.Run, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of the files must know beside the weights."""
    config, method = run.config, method_of(run)
    about = {
        "format_version": FORMAT_VERSION,
        "method": config.method,
        "kind": kind_of(method),
        "step": run.step,
        "image": {
            "name": config.model.image.name,
            **fields_of(method.image_encoder),
        },
        "embed_dim": config.model.embed_dim,
        "image_size": config.data.image_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "data_fingerprint": run.fingerprint,
    }
    if isinstance(method, ImageOnly):
        return about
    about["text"] = {"name": config.model.text.name, **fields_of(method.text_encoder)}
    about["text_length"] = config.data.text_length
    about["prompt_pooling"] = method.prompt_pooling
    if isinstance(method, GLoRIA):
        return {
            **about,
            "gloria": config.gloria.to_dict(),
            "prompt_zscore": method.prompt_zscore,
        }
    head: Any = method.text_head
    return {
        **about,
        "text_pool": head.pool,
        "pool_padding": head.padding,
        "scale": float(method.scale(dict(variables))),
        "bias": float(variables["params"].get("logit_bias", 0.0)),
    }
