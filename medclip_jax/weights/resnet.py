"""ResNet <-> torchvision's state dict.

Reference: torchvision/models/resnet.py, names of `ResNet.state_dict()`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import layout
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

_LEAVES = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# The classifier (`fc`) and, in MedCLIP's layout, the other tower.
IGNORED = (
    r".*num_batches_tracked$",
    r"fc\.",
    r"(text_model|vision_model\.projection_head)\.",
    r"logit_scale$",
)
PREFIXES = ("", "vision_model.model.", "module.", "model.", "backbone.")
ANCHOR = "conv1.weight"


def rule(path: Path) -> Place:
    """Where a leaf lies, e.g. params/layer1_0/conv1/kernel in layer1.0.conv1.weight."""
    collection, *modules, leaf = path
    parts: list[str] = []
    for name in modules:
        if block := re.fullmatch(r"(layer\d+)_(\d+)", name):
            parts += block.groups()
        else:
            parts.append(
                {
                    "downsample_conv": "downsample.0",
                    "downsample_bn": "downsample.1",
                }.get(name, name)
            )
    if leaf == "kernel":
        return Place(".".join([*parts, "weight"]), "conv")
    if (collection, leaf) not in _LEAVES:
        raise layout.unknown_leaf("ResNet", path)
    return Place(".".join([*parts, _LEAVES[collection, leaf]]))


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Variables from a state dict of torchvision, or of a model that holds one.

    Args:
      state: arrays by key.
      target: {"params", "batch_stats"} of the encoder, unboxed.

    Returns:
      Variables like the target, and what did not fit.
    """
    state = layout.strip_prefix(state, PREFIXES, ANCHOR)
    return layout.from_torch(state, target, rule, IGNORED)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """A state dict in torchvision's layout, without `fc`.

    Args:
      variables: {"params", "batch_stats"}, unboxed.
    """
    state = layout.to_torch(variables, rule)
    return {**state, **counters(state)}


def counters(state: StateDict) -> StateDict:
    """The counters of batches that PyTorch saves beside running statistics.

    They are read only where momentum is None; strict loading wants them.
    """
    return {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in state
        if key.endswith("running_mean")
    }
