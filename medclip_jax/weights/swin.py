"""Swin <-> the state dict of Hugging Face's SwinModel, as its files spell it.

Reference: transformers/models/swin/modeling_swin.py. transformers 5 spells the keys of
a model in memory differently from those of its files; both are read.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import layout
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "layernorm_after",
}
_TOP = {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "patch_norm": "embeddings.norm",
    "norm": "layernorm",
}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
}
IN_MEMORY_NAMES = (
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# Tables that are computed, other heads, and in MedCLIP's layout the other tower.
IGNORED = (
    r".*\.relative_position_index$",
    r"embeddings\.mask_token$",
    r"(classifier|decoder|text_model|vision_model\.projection_head)\.",
    r"logit_scale$",
)
PREFIXES = ("", "swin.", "vision_model.model.")
ANCHOR = "embeddings.patch_embeddings.projection.weight"


def rule(path: Path) -> Place:
    """Where a leaf lies, e.g. params/stage_0_block_1/query/kernel in
    encoder.layers.0.blocks.1.attention.self.query.weight."""
    _, *modules, leaf = path
    ending, kind = _LEAVES.get(leaf, ("", ""))
    if len(modules) == 1 and modules[0] in _TOP:
        if (modules[0], leaf) == ("patch_embedding", "kernel"):
            kind = "conv"
        return Place(f"{_TOP[modules[0]]}.{ending}", kind)
    if block := re.fullmatch(r"stage_(\d+)_block_(\d+)", modules[0] if modules else ""):
        prefix = f"encoder.layers.{block[1]}.blocks.{block[2]}"
        if modules[1:] == [] and leaf == "relative_position_bias":
            return Place(f"{prefix}.attention.self.relative_position_bias_table")
        if len(modules) == 2 and modules[1] in _MODULES and ending:
            return Place(f"{prefix}.{_MODULES[modules[1]]}.{ending}", kind)
    merge = re.fullmatch(r"merge_(\d+)", modules[0] if modules else "")
    if merge and len(modules) == 2 and ending:
        name = f"encoder.layers.{merge[1]}.downsample.{modules[1]}.{ending}"
        return Place(name, kind)
    raise layout.unknown_leaf("Swin", path)


def relative_position_index(window: int) -> np.ndarray:
    """int64 [window**2, window**2], the table that older transformers save."""
    axis = np.arange(window)
    coords = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    offset = coords[:, :, None] - coords[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Variables from a state dict of SwinModel, or of a model that holds one.

    Args:
      state: arrays by key.
      target: {"params"} of the encoder, unboxed.

    Returns:
      Variables like the target, and what did not fit.
    """
    state = layout.respell(state, IN_MEMORY_NAMES)
    state = layout.strip_prefix(state, PREFIXES, ANCHOR)
    return layout.from_torch(state, target, rule, IGNORED)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """A state dict in SwinModel's layout.

    Args:
      variables: {"params"}, unboxed.
    """
    return layout.to_torch(variables, rule)
