"""The whole model <-> the official MedCLIP state dict.

Reference: RyanWangZf/MedCLIP, medclip/modeling_medclip.py (MedCLIPModel with
MedCLIPVisionModelViT or MedCLIPVisionModel, and MedCLIPTextModel). Saved under
transformers 4.24 it has 434 keys with Swin and 521 with ResNet-50.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, resnet, swin
from medclip_jax.weights.layout import (
    Path,
    Place,
    Report,
    StateDict,
    Variables,
    flatten,
    unflatten,
)
from medclip_jax.weights.layout import from_torch as fill
from medclip_jax.weights.layout import to_torch as write

NOTICE = (
    "Published MedCLIP weights, trained on MIMIC-CXR and CheXpert, whose data-use "
    "agreements apply; they came without a stated licence."
)
VISION, TEXT, SCALE = "vision_model.", "text_model.", "logit_scale"
TEXT_BIAS = f"{TEXT}projection_head.bias"
IMAGE_ENCODERS = {"swin": swin, "resnet": resnet}
# What the released weights were trained with; the official code pools both alike.
TEXT_POOL = {"swin": "layers_1_2_last", "resnet": "pooler"}
ANCHOR = f"{VISION}model.{swin.ANCHOR}"
_IGNORED = (r".*\.(position_ids|relative_position_index|num_batches_tracked)$",)


def recognises(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is MedCLIP's."""
    return any(f"{VISION}model.{of.ANCHOR}" in state for of in IMAGE_ENCODERS.values())


def recipe(state: Mapping[str, np.ndarray]) -> str:
    """The shipped config that the weights go with."""
    return f"medclip.py:{image_encoder_of(state)}"


def options(state: Mapping[str, np.ndarray]) -> list[str]:
    """What the recipe needs to fit the weights: `KEY=VALUE` of the config."""
    return [
        f"medclip.text_pool={TEXT_POOL[image_encoder_of(state)]}",
        "medclip.pool_padding=True",
        "medclip.target=dot",
        # An early official checkpoint has a bias in the text projection.
        f"medclip.text_bias={TEXT_BIAS in state}",
    ]


def image_encoder_of(state: Mapping[str, np.ndarray]) -> str:
    """Which image encoder a state dict holds: "swin" or "resnet".

    Raises:
      UserError: it is no MedCLIP state dict.
    """
    for name, module in IMAGE_ENCODERS.items():
        if f"{VISION}model.{module.ANCHOR}" in state:
            return name
    raise UserError(
        "expected MedCLIP's official state dict, with keys such as "
        f"{VISION}model.{swin.ANCHOR} or {VISION}model.{resnet.ANCHOR}; found "
        f"{len(state)} keys, the first of which are {sorted(state)[:3]}"
    )


def rule(path: Path, image: str) -> Place | None:
    """Where a leaf of the method's variables lies; None where it has no place.

    Args:
      path: e.g. params/image/encoder/norm/scale, batch_stats/image/bn1/mean.
      image: "swin" or "resnet".
    """
    collection, *rest = path
    if collection == "batch_stats" and rest[0] == "image" and image == "resnet":
        return _within(VISION, resnet.rule((collection, *rest[1:])))
    if collection != "params":
        return None
    match rest:
        case ["logit_scale"]:
            return Place(SCALE)
        case ["image", "encoder", *inner]:
            module = IMAGE_ENCODERS[image]
            return _within(VISION, module.rule((collection, *inner)))
        case ["text", "encoder", *inner]:
            return _within(TEXT, bert.rule((collection, *inner)))
        case ["image", "projection", "kernel"]:
            head = "model.fc" if image == "resnet" else "projection_head"
            return Place(f"{VISION}{head}.weight", "linear")
        case ["text", "projection", "kernel"]:
            return Place(f"{TEXT}projection_head.weight", "linear")
        case ["text", "projection", "bias"]:
            return Place(TEXT_BIAS)
    return None


def _within(tower: str, place: Place) -> Place:
    return Place(f"{tower}model.{place.key}", place.kind)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """The method's variables from an official state dict.

    Args:
      state: arrays by key. The text projection may have a bias, as an early internal
        checkpoint had; the target must then have one too.
      target: variables of a two-tower method, unboxed; shapes are enough.

    Returns:
      Variables like the target, and what did not fit. Leaves of the target that the
      layout has no place for are reported as missing, by path.

    Raises:
      UserError: it is no MedCLIP state dict, or the target's image encoder is another.
    """
    image = image_encoder_of(state)
    anchor = {"swin": "patch_norm", "resnet": "bn1"}[image]
    if anchor not in target["params"]["image"]["encoder"]:
        raise UserError(
            f"these weights hold a {image} as image encoder; the configured model has "
            f"another: set model.image.name to {image!r}"
        )
    ignored: tuple[str, ...] = _IGNORED
    if "pooler" not in target["params"]["text"]["encoder"]:
        ignored = (*_IGNORED, r"text_model\.model\.pooler\.")

    return fill(
        state,
        target,
        lambda path: rule(path, image) or Place("/".join(path)),
        ignored,
    )


def to_torch(variables: Mapping[str, Any], image: str) -> tuple[StateDict, Report]:
    """The official state dict of a two-tower method.

    Args:
      variables: unboxed arrays; sizes may be other than the published ones.
      image: the image encoder's name.

    Returns:
      Arrays by key, with the tables that transformers 4.24 saves; and a report whose
      `unexpected` names the leaves that the layout has no place for.

    Raises:
      UserError: an image encoder that the layout does not know.
    """
    if image not in IMAGE_ENCODERS:
        raise UserError(
            f"MedCLIP's layout has a Swin or a ResNet, no {image!r}; the encoder is "
            "exported as a Hugging Face folder alone"
        )
    leaves = flatten(variables)
    places = {path: rule(path, image) for path in leaves}
    fitting = {path: place for path, place in places.items() if place is not None}
    unfit = [path for path in leaves if path not in fitting]
    state = write(
        unflatten({path: leaves[path] for path in fitting}), fitting.__getitem__
    )
    state.update(_computed_tables(state))
    return state, Report(unexpected=tuple("/".join(path) for path in unfit))


def _computed_tables(state: StateDict) -> StateDict:
    """The integer tables that transformers 4.24 and torchvision save as well."""
    tables = {**bert.position_ids(state, f"{TEXT}model."), **resnet.counters(state)}
    for key, value in state.items():
        if key.endswith(".relative_position_bias_table"):
            window = (math.isqrt(value.shape[0]) + 1) // 2
            index = key.replace("bias_table", "index")
            tables[index] = swin.relative_position_index(window)
    return tables
