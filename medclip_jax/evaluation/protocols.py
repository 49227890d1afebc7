"""The protocols by name, in the order of the report."""

import importlib
from types import ModuleType

from medclip_jax.errors import UserError
from medclip_jax.evaluation.protocol import About

_ROOM = "medclip_jax.evaluation"

PROTOCOLS: dict[str, str] = {
    "zero_shot_five": "zero_shot_five",
    "zero_shot_findings": "zero_shot_findings",
    "zero_shot_multiclass": "zero_shot_multiclass",
    "zero_shot_binary": "zero_shot_binary",
    "zero_shot_multilabel": "zero_shot_multilabel",
    "retrieval_image_to_text": "retrieval_by_class",
    "retrieval_text_to_image": "retrieval_by_class",
    "retrieval_image_to_image": "retrieval_image_to_image",
    "retrieval_exact": "retrieval_exact",
    "grounding": "grounding",
    "linear_probe": "linear_probe",
    "fine_tuning": "fine_tuning",
    "embeddings": "embeddings",
    "segmentation": "segmentation",
    "temporal_image_classification": "temporal_image_classification",
    "temporal_sentence_similarity": "temporal_sentence_similarity",
    "radnli": "radnli",
}
"""Name to module; rows may add a suffix to the name after a slash."""


def module_of(name: str) -> ModuleType:
    """The module of a protocol, or of a row's protocol with its suffix."""
    return importlib.import_module(f"{_ROOM}.{PROTOCOLS[name.split('/')[0]]}")


def select(wanted: str) -> tuple[str, ...]:
    """Protocols whose names begin with one of the comma-separated words.

    Args:
      wanted: beginnings of names, or "all".

    Raises:
      UserError: for a word that no protocol begins with.
    """
    if wanted.strip() == "all":
        return tuple(PROTOCOLS)
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        hits = [name for name in PROTOCOLS if name.startswith(word)]
        if not hits:
            raise UserError(
                f"--protocols: no protocol begins with {word!r}; the protocols are "
                f"{', '.join(PROTOCOLS)}, or all"
            )
        chosen.update(hits)
    if not chosen:
        raise UserError(f"--protocols names none; there are {', '.join(PROTOCOLS)}")
    return tuple(name for name in PROTOCOLS if name in chosen)


def abouts() -> dict[str, About]:
    """Protocol to what it measures, in the order of the report."""
    return {name: module_of(name).ABOUT for name in PROTOCOLS}
