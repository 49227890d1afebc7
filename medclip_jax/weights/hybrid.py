"""BioViL-T's image encoder <-> the names of the official code.

Reference: microsoft/hi-ml, hi-ml-multimodal/src/health_multimodal/image/model
(encoder.py, MultiImageEncoder, and transformer.py): what stands there after "encoder.".
The table of positions is computed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import layout, resnet
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

RESNET, POOLER = "encoder.", "vit_pooler."
_MODULES = {
    "attention_norm": "norm1",
    "query": "attn.proj_q",
    "key": "attn.proj_k",
    "value": "attn.proj_v",
    "attention_out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
}
# ImageNet's classifier, never used; counters; and in a whole model the projection.
IGNORED = (r"encoder\.fc\.", r".*num_batches_tracked$", r"projector\.")
PREFIXES = ("", "encoder.")
ANCHOR = f"{POOLER}type_embed"


def rule(path: Path) -> Place:
    """Where a leaf lies, e.g. params/pooler/block_0/query/kernel in
    vit_pooler.blocks.0.attn.proj_q.weight."""
    collection, *inner = path
    ending, kind = _LEAVES.get(path[-1], ("", ""))
    match inner:
        case ["missing"]:
            return Place("missing_previous_emb", "channels")
        case ["to_patch", "kernel"]:
            return Place("backbone_to_vit.weight", "pointwise")
        case ["pooler", "type_embedding"]:
            return Place(f"{POOLER}type_embed", "rows")
        case ["pooler", "norm", _]:
            return Place(f"{POOLER}norm_post.{ending}", kind)
        case ["pooler", block, module, _] if module in _MODULES:
            number = re.fullmatch(r"block_(\d+)", block)
            assert number is not None
            return Place(
                f"{POOLER}blocks.{number[1]}.{_MODULES[module]}.{ending}", kind
            )
        case ["resnet", *of_resnet]:
            place = resnet.rule((collection, *of_resnet))
            return Place(f"{RESNET}{place.key}", place.kind)
    raise layout.unknown_leaf("BioViL-T's image encoder", path)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Variables from a state dict of the encoder, or of a model that holds one.

    Args:
      state: arrays by key.
      target: {"params", "batch_stats"} of the encoder, unboxed.

    Returns:
      Variables like the target, and what did not fit.
    """
    state = layout.strip_prefix(state, PREFIXES, ANCHOR)
    return layout.from_torch(state, target, rule, IGNORED)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """A state dict with the official names, without ImageNet's classifier.

    Args:
      variables: {"params", "batch_stats"}, unboxed.
    """
    state = layout.to_torch(variables, rule)
    return {**state, **resnet.counters(state)}
