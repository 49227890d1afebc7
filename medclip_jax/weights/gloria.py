"""GLoRIA's variables <-> the official state dict.

Reference: marshuang80/gloria, gloria/models (gloria_model.py, vision_model.py,
text_model.py): `chexpert_resnet50.ckpt` holds them under "gloria.". Its file also pickles
settings, which are never read here; what is to be imported is a file of its
`state_dict` alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, layout, resnet
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

IMAGE, TEXT = "img_encoder.", "text_encoder.model."
ANCHOR = f"{IMAGE}global_embedder.weight"
POOLER = f"{TEXT}pooler.dense.weight"
NOTICE = (
    "Published GLoRIA weights, trained on CheXpert films and reports, whose data-use "
    "agreement applies."
)
_IGNORED = (r".*\.(position_ids|num_batches_tracked)$",)
_HEADS: dict[Path, Place] = {
    ("global", "kernel"): Place(f"{IMAGE}global_embedder.weight", "linear"),
    ("global", "bias"): Place(f"{IMAGE}global_embedder.bias"),
    ("local", "kernel"): Place(f"{IMAGE}local_embedder.weight", "pointwise"),
}


def recognises(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is GLoRIA's."""
    return any(key.endswith(ANCHOR) for key in state)


def recipe(state: Mapping[str, np.ndarray]) -> str:
    """The shipped config that the weights go with."""
    return "gloria.py:paper"


def options(state: Mapping[str, np.ndarray]) -> list[str]:
    """What the recipe needs to fit the weights: `KEY=VALUE` of the config."""
    # Never read, but an export that is to load in the official code needs it.
    return [f"model.text.pooler={any(key.endswith(POOLER) for key in state)}"]


def official(image: str) -> dict[str, Any]:
    """What the official code and its settings score with, by key of the config.

    Args:
      image: the image encoder's name.
    """
    return {
        "gloria.resize_to": 299,
        "gloria.stage": 3,
        "gloria.text_layers": 4,
        "gloria.words.attention": "words_then_regions",
        "gloria.words.unit": False,
        "gloria.words.sharpness": 4.0,
        "gloria.words.focus": 5.0,
        "gloria.window": "characters",
    }


def rule(path: Path) -> Place:
    """Where a leaf of the method's variables lies, without "gloria." before it."""
    collection, *rest = path
    match rest:
        case ["image", "encoder", *inner] if collection == "params":
            place = resnet.rule((collection, *inner))
            return Place(f"{IMAGE}model.{place.key}", place.kind)
        case ["image", *inner] if collection == "batch_stats":
            place = resnet.rule((collection, *inner))
            return Place(f"{IMAGE}model.{place.key}", place.kind)
        case ["image", "projection", *inner] if tuple(inner) in _HEADS:
            return _HEADS[tuple(inner)]
        case ["text", "encoder", *inner]:
            place = bert.rule((collection, *inner))
            return Place(f"{TEXT}{place.key}", place.kind)
    raise layout.unknown_leaf("GLoRIA", path)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """The method's variables from an official state dict.

    Args:
      state: arrays by key; what stands before "gloria." is taken off.
      target: variables of the method, unboxed; shapes are enough.
    """
    state = {key.rpartition("gloria.")[2]: value for key, value in state.items()}
    ignored: tuple[str, ...] = _IGNORED
    if "pooler" not in target["params"]["text"]["encoder"]:
        ignored = (*_IGNORED, r"text_encoder\.model\.pooler\.")
    return layout.from_torch(state, target, rule, ignored)


def to_torch(variables: Mapping[str, Any], image: str) -> tuple[StateDict, Report]:
    """The official state dict, with "gloria." before each key.

    Args:
      variables: of the method, unboxed; sizes may be other than the published ones.
      image: the image encoder's name.

    Returns:
      Arrays by key, with the tables that its versions of transformers and torchvision
      save; and a report whose `missing` names what a strict load asks for besides.

    Raises:
      UserError: an image encoder that the layout does not know.
    """
    if image != "resnet":
        raise UserError(
            f"GLoRIA's layout has a ResNet, no {image!r}; the encoder is exported as a "
            "Hugging Face folder alone"
        )
    state = layout.to_torch(variables, rule)
    state.update({**bert.position_ids(state, TEXT), **resnet.counters(state)})
    pooler = (POOLER, POOLER.replace("weight", "bias"))
    missing = tuple(f"gloria.{key}" for key in pooler if key not in state)
    return {f"gloria.{key}": value for key, value in state.items()}, Report(missing)
