"""CXR-BERT's, BioViL's and BioViL-T's variables <-> the official state dicts.

Reference: microsoft/hi-ml, hi-ml-multimodal/src/health_multimodal: image/model (model.py,
encoder.py, modules.py, transformer.py) and text/model/modelling_cxrbert.py. Each system
is published as two files, of the image model and of the text model; their keys do not
meet, so both are given together. What BioViL-T names hidden words with, beyond the text
model, and its table of positions are in neither.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import bert, layout, resnet
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

RESNET, PROJECTOR, POOLER = (
    "encoder.encoder.",
    "projector.model.",
    "encoder.vit_pooler.",
)
PREDICTIONS, CLS_HEAD = "cls.predictions.", "cls_projection_head."
ANCHOR = f"{CLS_HEAD}dense_to_hidden.weight"
NOTICE = (
    "Published weights of microsoft/hi-ml, trained on MIMIC-CXR films and reports and for "
    "research use."
)
_IGNORED = (
    r"encoder\.encoder\.fc\.",  # ImageNet's classifier, never used
    r".*(num_batches_tracked|position_ids)$",
    r"cls\.predictions\.decoder\.",  # the table of words, and the bias again
    r"bert\.pooler\.",
)
_PROJECTION: dict[Path, Place] = {
    ("hidden", "kernel"): Place(f"{PROJECTOR}0.weight", "pointwise"),
    ("norm", "scale"): Place(f"{PROJECTOR}1.weight"),
    ("norm", "bias"): Place(f"{PROJECTOR}1.bias"),
    ("norm", "mean"): Place(f"{PROJECTOR}1.running_mean"),
    ("norm", "var"): Place(f"{PROJECTOR}1.running_var"),
    ("out", "kernel"): Place(f"{PROJECTOR}3.weight", "pointwise"),
    ("out", "bias"): Place(f"{PROJECTOR}3.bias"),
}
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
_TEXT_MODULES = {
    "projection": {
        "hidden": f"{CLS_HEAD}dense_to_hidden",
        "norm": f"{CLS_HEAD}LayerNorm",
        "out": f"{CLS_HEAD}dense_to_output",
    },
    "masked_words": {
        "hidden": f"{PREDICTIONS}transform.dense",
        "norm": f"{PREDICTIONS}transform.LayerNorm",
    },
}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
}


def recognises(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is of one of these systems."""
    return ANCHOR in state or f"{PROJECTOR}0.weight" in state


def recipe(state: Mapping[str, np.ndarray]) -> str:
    """The shipped config that the weights go with."""
    if f"{POOLER}type_embed" in state:
        return "biovil_t.py:paper"
    if f"{PROJECTOR}0.weight" in state:
        return "biovil.py:paper"
    return "cxr_bert.py:general"


def options(state: Mapping[str, np.ndarray]) -> list[str]:
    """What the recipe needs to fit the weights: `KEY=VALUE` of the config."""
    if f"{POOLER}type_embed" in state:
        return ["biovil_t.mlm_reads_film=false"]
    return []


def rule(path: Path) -> Place:
    """Where a leaf of a method's variables lies."""
    collection, *rest = path
    match rest:
        case ["image", *inner] if collection == "batch_stats":
            return _of_resnet((collection, *inner))
        case ["image", "encoder", *inner]:
            return _of_image((collection, *inner))
        case ["image_projection" | "image", *inner] if tuple(inner[-2:]) in _PROJECTION:
            return _PROJECTION[inner[-2], inner[-1]]
        case ["text", "encoder", *inner]:
            place = bert.rule((collection, *inner))
            return Place(f"bert.{place.key}", place.kind)
        case ["text", "projection", module, leaf]:
            return _under(_TEXT_MODULES["projection"][module], leaf)
        case ["masked_words", "bias"]:
            return Place(f"{PREDICTIONS}bias")
        case ["masked_words", module, leaf] if module in _TEXT_MODULES["masked_words"]:
            return _under(_TEXT_MODULES["masked_words"][module], leaf)
    raise layout.unknown_leaf("BioViL", path)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """The method's variables from official state dicts.

    Args:
      state: arrays by key, of both files together.
      target: variables of the method, unboxed; shapes are enough.
    """
    return layout.from_torch(state, target, rule, _IGNORED)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """Both official state dicts together, but for ImageNet's classifier."""
    state = layout.to_torch(variables, rule)
    for key in [key for key in state if key.endswith("running_mean")]:
        counter = key.replace("running_mean", "num_batches_tracked")
        state[counter] = np.zeros((), np.int64)
    if f"{PREDICTIONS}bias" in state:
        words = state["bert.embeddings.word_embeddings.weight"]
        state[f"{PREDICTIONS}decoder.weight"] = words
        state[f"{PREDICTIONS}decoder.bias"] = state[f"{PREDICTIONS}bias"]
    return state


def _of_image(path: Path) -> Place:
    """Of BioViL's ResNet, or of what BioViL-T has besides."""
    match path[1:]:
        case ("missing",):
            return Place("encoder.missing_previous_emb", "channels")
        case ("to_patch", "kernel"):
            return Place("encoder.backbone_to_vit.weight", "pointwise")
        case ("pooler", "type_embedding"):
            return Place(f"{POOLER}type_embed", "rows")
        case ("pooler", "norm", leaf):
            return _under(f"{POOLER}norm_post", leaf)
        case ("pooler", block, module, leaf) if module in _MODULES:
            number = re.fullmatch(r"block_(\d+)", block)
            assert number is not None
            return _under(f"{POOLER}blocks.{number[1]}.{_MODULES[module]}", leaf)
    return _of_resnet(path)


def _of_resnet(path: Path) -> Place:
    collection, *inner = path
    if inner[0] == "resnet":  # within BioViL-T's encoder
        inner = inner[1:]
    place = resnet.rule((collection, *inner))
    return Place(f"{RESNET}{place.key}", place.kind)


def _under(module: str, leaf: str) -> Place:
    ending, kind = _LEAVES[leaf]
    return Place(f"{module}.{ending}", kind)
