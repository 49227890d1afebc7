"""MGCA's variables <-> the official state dict.

Reference: HKU-MedAI/MGCA, mgca/models/mgca/mgca_module.py and mgca/models/backbones
(encoder.py, vits.py, med.py). Its checkpoints pickle settings beside the `state_dict`,
which are never read here; what is to be imported is a file of that alone.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, layout, resnet, vit
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

IMAGE_ENCODERS = ("vit", "resnet")
TOWERS = {"image": "img_encoder_q.", "text": "text_encoder_q."}
ANCHOR = "prototype_layer.weight"
NOTICE = (
    "Published MGCA weights, trained on MIMIC-CXR films and reports, whose data-use "
    "agreement applies."
)
_TYPES = "text_encoder_q.model.embeddings.token_type_embeddings.weight"
_POSITIONS = "text_encoder_q.model.embeddings.position_embeddings.weight"
# Counters, and blocks that the official code has and never calls.
_IGNORED = (
    r".*\.(position_ids|num_batches_tracked)$",
    r"text_encoder_q\.model\.encoder\.layer\.\d+\.crossattention\.",
)
_ATTENTION = {
    "words_find": "word_local_atten_layer",
    "patches_find": "patch_local_atten_layer",
}
_HEAD = {"hidden": "0", "norm": "1", "out": "3", "out_norm": "4"}
_LEAVES = {
    "kernel": ("weight", "linear"),
    "scale": ("weight", "same"),
    "bias": ("bias", "same"),
    "mean": ("running_mean", "same"),
    "var": ("running_var", "same"),
}


def recognises(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is MGCA's."""
    return any(key.endswith(ANCHOR) for key in state)


def recipe(state: Mapping[str, np.ndarray]) -> str:
    """The shipped config that the weights go with."""
    is_vit = any(key.endswith(f"{TOWERS['image']}model.pos_embed") for key in state)
    return f"mgca.py:{'paper' if is_vit else 'resnet'}"


def options(state: Mapping[str, np.ndarray]) -> list[str]:
    """What the recipe needs to be the official code: `KEY=VALUE` of the config."""
    return [
        "model.text.one_position=True",
        "mgca.attention=cosines",
        "mgca.shifted_words=True",
        "mgca.sum_directions=True",
        "mgca.local_weight=1.0",
        "mgca.prototype_weight=1.0",
    ]


def official(image: str) -> dict[str, Any]:
    """What the official code embeds with, by key of the config.

    Args:
      image: the image encoder's name.
    """
    of_image = {"model.image.pooling": "cls", "model.image.epsilon": 1e-6}
    if image == "resnet":
        of_image = {"mgca.resize_to": 299, "mgca.stage": 3}
    return {"model.text.one_position": True, "mgca.shifted_words": True, **of_image}


def rule(path: Path) -> Place:
    """Where a leaf of the method's variables lies; of fused tensors in which part."""
    ending, kind = _LEAVES.get(path[-1], ("", ""))
    match path:
        case ("params", "prototypes"):
            return Place(ANCHOR)
        case ("params", name, part, _) if name in _ATTENTION:
            if part == "out":
                return Place(f"{_ATTENTION[name]}.out_proj.{ending}", kind)
            return Place(f"{_ATTENTION[name]}.in_proj_{ending}/{part}", kind)
        case (
            ("params", tower, "projection", of, layer, _)
            | ("batch_stats", ("image_projection" | "text_projection") as tower, of,
               layer, _)
        ) if layer in _HEAD:  # fmt: skip
            tower = TOWERS[tower.removesuffix("_projection")]
            if (of, kind) == ("local", "linear"):
                kind = "pointwise_1d"
            return Place(f"{tower}{of}_embed.head.{_HEAD[layer]}.{ending}", kind)
        case ("params", "image", "encoder", *inner) | ("batch_stats", "image", *inner):
            is_resnet = re.fullmatch(r"conv1|bn1|layer\d+_\d+", inner[0])
            within = resnet.rule if is_resnet else vit.timm_rule
            return _within("image", within((path[0], *inner)))
        case ("params", "text", "encoder", *inner):
            return _within("text", bert.rule((path[0], *inner)))
    raise layout.unknown_leaf("MGCA", path)


def _within(tower: str, place: Place) -> Place:
    return Place(f"{TOWERS[tower]}model.{place.key}", place.kind)


def from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> tuple[Variables, Report]:
    """The method's variables from an official state dict.

    The official text tower has no types of tokens: their table becomes 0. Prototypes
    come at length 1, as the official code brings them to before each use.

    Args:
      state: arrays by key; what stands before all of them is taken off.
      target: variables of the method, unboxed; shapes are enough. Where it has no
        learned attention, that of the state dict is ignored.
    """
    before = next((k.removesuffix(ANCHOR) for k in state if k.endswith(ANCHOR)), "")
    state = {key.removeprefix(before): value for key, value in state.items()}
    state = layout.parted(state)
    types = target["params"]["text"]["encoder"]["type_embedding"]
    state[_TYPES] = np.zeros(types.shape, np.float32)
    ignored: tuple[str, ...] = _IGNORED
    if not _ATTENTION.keys() & target["params"].keys():
        ignored = (*_IGNORED, r"(word|patch)_local_atten_layer\.")
    variables, report = layout.from_torch(state, target, rule, ignored)
    if ANCHOR in state:
        found_KxD = variables["params"]["prototypes"]
        lengths_Kx1 = np.linalg.norm(found_KxD, axis=1, keepdims=True)
        # What has it already stays as it is, to the bit.
        lengths_Kx1[np.abs(lengths_Kx1 - 1) < 1e-6] = 1.0
        variables["params"]["prototypes"] = found_KxD / np.maximum(lengths_Kx1, 1e-12)
    return variables, report


def to_torch(variables: Mapping[str, Any], image: str) -> tuple[StateDict, Report]:
    """The official state dict; the type of tokens goes into their positions.

    Args:
      variables: of the method, unboxed; sizes may be other than the published ones.
      image: the image encoder's name.

    Returns:
      Arrays by key, with the tables that the official code saves; and a report whose
      `missing` names the modules that a strict load asks for besides and that the
      official code, as it is run, never calls.

    Raises:
      UserError: an image encoder, or a pooler, that the layout does not know.
    """
    if image not in IMAGE_ENCODERS:
        raise UserError(
            f"MGCA's layout has a {' or a '.join(IMAGE_ENCODERS)}, no {image!r}; the "
            "encoder is exported as a Hugging Face folder alone"
        )
    params = variables["params"]
    if poolers := [of for of in TOWERS if "pooler" in params[of]["encoder"]]:
        raise UserError(
            f"MGCA's layout has no pooler; this model has one in its {poolers[0]} encoder"
        )
    state = layout.to_torch(variables, rule)
    state[_POSITIONS] = state[_POSITIONS] + state.pop(_TYPES)[0]
    state = {**layout.rejoined(state), **resnet.counters(state)}
    state.update(bert.position_ids(state, f"{TOWERS['text']}model."))
    layers = (name for name in params["text"]["encoder"] if name.startswith("layer_"))
    missing = [
        f"{TOWERS['text']}model.encoder.layer.{name.removeprefix('layer_')}.crossattention"
        for name in layers
    ]
    if not _ATTENTION.keys() & params.keys():
        missing += _ATTENTION.values()
    return state, Report(tuple(missing))
