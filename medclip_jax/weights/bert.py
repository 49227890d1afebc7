"""BERT <-> the state dict of Hugging Face's BertModel.

Reference: transformers/models/bert/modeling_bert.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.weights import layout
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

_EMBEDDINGS = {
    "word_embedding": "embeddings.word_embeddings.weight",
    "position_embedding": "embeddings.position_embeddings.weight",
    "type_embedding": "embeddings.token_type_embeddings.weight",
}
_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_TOP = {"embedding_norm": "embeddings.LayerNorm", "pooler": "pooler.dense"}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
}
# Heads of pretraining and classification, and in MedCLIP's layout the other tower.
IGNORED = (
    r"embeddings\.(position_ids|token_type_ids)$",
    r"(cls|classifier|dropout|vision_model|text_model\.projection_head)\.",
    r"logit_scale$",
)
PREFIXES = ("", "bert.", "text_model.model.")
ANCHOR = "embeddings.word_embeddings.weight"


def rule(path: Path) -> Place:
    """Where a leaf lies, e.g. params/layer_3/query/kernel in
    encoder.layer.3.attention.self.query.weight."""
    _, *modules, leaf = path
    if not modules and leaf in _EMBEDDINGS:
        return Place(_EMBEDDINGS[leaf])
    ending, kind = _LEAVES.get(leaf, ("", ""))
    if len(modules) == 1 and modules[0] in _TOP:
        return Place(f"{_TOP[modules[0]]}.{ending}", kind)
    if len(modules) == 2 and modules[1] in _MODULES:
        layer = re.fullmatch(r"layer_(\d+)", modules[0])
        if layer and ending:
            name = _MODULES[modules[1]]
            return Place(f"encoder.layer.{layer[1]}.{name}.{ending}", kind)
    raise layout.unknown_leaf("BERT", path)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """Variables from a state dict of BertModel, or of a model that holds one.

    Args:
      state: arrays by key; LayerNorm may be spelled gamma and beta.
      target: {"params"} of the encoder, unboxed. Where it has no pooler, one in the
        state dict is ignored.

    Returns:
      Variables like the target, and what did not fit.
    """
    state = layout.respell(state, layout.OLD_NORM_NAMES)
    state = layout.strip_prefix(state, PREFIXES, ANCHOR)
    ignored = IGNORED if "pooler" in target["params"] else (*IGNORED, r"pooler\.")
    return layout.from_torch(state, target, rule, ignored)


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """A state dict in BertModel's layout.

    Args:
      variables: {"params"}, unboxed.
    """
    return layout.to_torch(variables, rule)


def position_ids(state: StateDict, prefix: str) -> StateDict:
    """The table that older transformers save, by key.

    Args:
      state: that holds a BertModel.
      prefix: before its keys.
    """
    rows = state[f"{prefix}embeddings.position_embeddings.weight"].shape[0]
    return {f"{prefix}embeddings.position_ids": np.arange(rows)[None]}


def same_positions(state: StateDict) -> StateDict:
    """The state dict with the first row of the table of positions in every row.

    Args:
      state: that holds a BertModel, with or without "bert." before its keys.
    """
    (key,) = (key for key in state if key.endswith(_EMBEDDINGS["position_embedding"]))
    rows = np.broadcast_to(state[key][:1], state[key].shape)
    return {**state, key: np.ascontiguousarray(rows)}
