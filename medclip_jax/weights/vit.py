"""ViT <-> the state dict of Hugging Face's ViTModel, as its files spell it.

Reference: transformers/models/vit/modeling_vit.py. transformers 5 spells the keys of a
model in memory differently from those of its files; both are read.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import layout
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

_SINGLE = {
    "cls_token": "embeddings.cls_token",
    "position_embedding": "embeddings.position_embeddings",
}
_MODULES = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "layernorm_after",
}
_TOP = {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "pooler": "pooler.dense",
}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
}
IN_MEMORY_NAMES = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
IGNORED = (r"classifier\.", r"embeddings\.mask_token$", r"decoder\.")
PREFIXES = ("", "vit.")
ANCHOR = "embeddings.patch_embeddings.projection.weight"


def rule(path: Path) -> Place:
    """Where a leaf lies, e.g. params/layer_3/query/kernel in
    encoder.layer.3.attention.attention.query.weight."""
    _, *modules, leaf = path
    if not modules and leaf in _SINGLE:
        return Place(_SINGLE[leaf], "batched")
    ending, kind = _LEAVES.get(leaf, ("", ""))
    if len(modules) == 1 and modules[0] in _TOP:
        if (modules[0], leaf) == ("patch_embedding", "kernel"):
            kind = "conv"
        return Place(f"{_TOP[modules[0]]}.{ending}", kind)
    if len(modules) == 2 and modules[1] in _MODULES:
        layer = re.fullmatch(r"layer_(\d+)", modules[0])
        if layer and ending:
            name = _MODULES[modules[1]]
            return Place(f"encoder.layer.{layer[1]}.{name}.{ending}", kind)
    raise layout.unknown_leaf("ViT", path)


_TIMM_SINGLE = {"cls_token": "cls_token", "position_embedding": "pos_embed"}
_TIMM_TOP = {"patch_embedding": "patch_embed.proj", "norm": "norm"}
_TIMM_MODULES = {
    "attention_out": "attn.proj",
    "attention_norm": "norm1",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
    "mlp_norm": "norm2",
}


def timm_rule(path: Path) -> Place:
    """Where a leaf lies in timm's VisionTransformer, e.g. params/layer_3/query/kernel in
    blocks.3.attn.qkv.weight/query: of a fused tensor, see `layout.parted`.

    Reference: timm/models/vision_transformer.py.
    """
    _, *modules, leaf = path
    if not modules and leaf in _TIMM_SINGLE:
        return Place(_TIMM_SINGLE[leaf], "batched")
    ending, kind = _LEAVES.get(leaf, ("", ""))
    if len(modules) == 1 and modules[0] in _TIMM_TOP and ending:
        if (modules[0], leaf) == ("patch_embedding", "kernel"):
            kind = "conv"
        return Place(f"{_TIMM_TOP[modules[0]]}.{ending}", kind)
    layer = re.fullmatch(r"layer_(\d+)", modules[0]) if len(modules) == 2 else None
    if layer and ending and modules[1] in ("query", "key", "value"):
        return Place(f"blocks.{layer[1]}.attn.qkv.{ending}/{modules[1]}", kind)
    if layer and ending and modules[1] in _TIMM_MODULES:
        name = _TIMM_MODULES[modules[1]]
        return Place(f"blocks.{layer[1]}.{name}.{ending}", kind)
    raise layout.unknown_leaf("timm's ViT", path)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Variables from a state dict of ViTModel, or of a model that holds one.

    Args:
      state: arrays by key.
      target: {"params"} of the encoder, unboxed. Where it has no pooler, one in the
        state dict is ignored.

    Returns:
      Variables like the target (["cls_token"] is [1, 1, C] in torch, [1, C] here),
      and what did not fit.
    """
    state = layout.respell(state, IN_MEMORY_NAMES)
    state = layout.strip_prefix(state, PREFIXES, ANCHOR)
    ignored = IGNORED if "pooler" in target["params"] else (*IGNORED, r"pooler\.")
    return layout.from_torch(state, target, rule, ignored)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """A state dict in ViTModel's layout.

    Args:
      variables: {"params"}, unboxed.
    """
    return layout.to_torch(variables, rule)
