"""CXR-BERT's, BioViL's and BioViL-T's variables <-> the official state dicts.

Reference: microsoft/hi-ml, hi-ml-multimodal/src/health_multimodal: image/model (model.py,
encoder.py, modules.py, transformer.py) and text/model/modelling_cxrbert.py. Each system
is published as two files, of the image model and of the text model; their keys do not
meet, so both are given together. What BioViL-T names hidden words with, beyond the text
model, and its table of positions are in neither.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.weights import bert, hybrid, layout, resnet
from medclip_jax.weights.layout import Path, Place, Report, StateDict, Variables

IMAGE = "encoder."
RESNET, POOLER = f"{IMAGE}{hybrid.RESNET}", f"{IMAGE}{hybrid.POOLER}"
PROJECTOR = "projector.model."
IMAGE_ENCODERS = ("resnet", "hybrid")
IMAGENET = 1000  # classes
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
    made: list[str] = []
    if f"{POOLER}type_embed" in state:
        made.append("biovil_t.mlm_reads_film=false")
    # What `to_torch` leaves out where words are named with a film's help.
    if f"{PREDICTIONS}bias" not in state:
        method = recipe(state).partition(".")[0]
        made.append(f"{method}.mlm_weight=0.0")
    return made


def official(image: str) -> dict[str, Any]:
    """What the official code embeds with, by key of the config.

    Args:
      image: the image encoder's name.
    """
    return {"model.image.positions_in_values": True} if image == "hybrid" else {}


def rule(path: Path) -> Place:
    """Where a leaf of a method's variables lies."""
    collection, *rest = path
    match rest:
        case ["image", *inner] if collection == "batch_stats":
            return _of_image((collection, *inner))
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


def to_torch(
    variables: Mapping[str, Any], image: str | None = None
) -> tuple[StateDict, Report]:
    """The official state dicts: of the image model and of the text model, together.

    Args:
      variables: of a method, unboxed; sizes may be other than the published ones.
      image: the image encoder's name; None where there is none.

    Returns:
      Arrays by key, with what the official code holds and never reads: counters, and
      ImageNet's classifier, as zeros. And a report whose `missing` names the module that
      a strict load asks for besides: the head that names words, where there is none, or
      one that needs a film.

    Raises:
      UserError: an image encoder that the layout does not know.
    """
    if image not in (None, *IMAGE_ENCODERS):
        raise UserError(
            f"the layout of microsoft/hi-ml has a {' or a '.join(IMAGE_ENCODERS)}, no "
            f"{image!r}; the encoder is exported as a Hugging Face folder alone"
        )
    params = _read_at_inference(variables["params"])
    state = layout.to_torch({**variables, "params": params}, rule)
    state.update(resnet.counters(state))
    if "image" in params:
        pair = f"{IMAGE}backbone_to_vit.weight"
        width = state.get(pair, state[f"{PROJECTOR}0.weight"]).shape[1]
        state[f"{RESNET}fc.weight"] = np.zeros((IMAGENET, width), np.float32)
        state[f"{RESNET}fc.bias"] = np.zeros(IMAGENET, np.float32)
    if "masked_words" not in params:
        return state, Report((PREDICTIONS.removesuffix("."),))
    # PyTorch saves what is tied twice.
    table = state[f"bert.{bert.ANCHOR}"]
    state[f"{PREDICTIONS}decoder.weight"] = table
    state[f"{PREDICTIONS}decoder.bias"] = state[f"{PREDICTIONS}bias"]
    return state, Report()


def names_words(params: Mapping[str, Any]) -> bool:
    """Whether a method has a head that names hidden words, from words alone."""
    return "masked_words" in params and "film" not in params["masked_words"]


def masked_words(params: Mapping[str, Any]) -> StateDict:
    """The text tower with its head in the layout of transformers' BertForMaskedLM.

    Args:
      params: of a method that `names_words`.

    Returns:
      Arrays by key, without the head's last matrix: it is the table of words.
    """
    params = _read_at_inference(params)
    text = {"encoder": params["text"]["encoder"]}
    tree = {"text": text, "masked_words": params["masked_words"]}
    return layout.to_torch({"params": tree}, rule)


def is_of_text(key: str) -> bool:
    """Whether a key is of the text model's file; else of the image model's."""
    return key.startswith(("bert.", "cls.", CLS_HEAD))


def _read_at_inference(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without BERT's pooler, which no method here reads, and a head that reads films."""
    encoder = {k: v for k, v in params["text"]["encoder"].items() if k != "pooler"}
    made = {**params, "text": {**params["text"], "encoder": encoder}}
    if not names_words(params):
        made.pop("masked_words", None)
    return made


def _of_image(path: Path) -> Place:
    """Of BioViL's ResNet, or of BioViL-T's encoder."""
    is_hybrid = path[1] in ("resnet", "to_patch", "pooler", "missing")
    place = hybrid.rule(path) if is_hybrid else resnet.rule(path)
    return Place(f"{IMAGE if is_hybrid else RESNET}{place.key}", place.kind)


def _under(module: str, leaf: str) -> Place:
    ending, kind = _LEAVES[leaf]
    return Place(f"{module}.{ending}", kind)
