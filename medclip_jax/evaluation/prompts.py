"""Prompts of the zero-shot protocols: grammar, seeded draws, and the leakage check."""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from data_pipelines.findings import EVAL_FIVE, FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation.prompt_tables import (
    FINDING_FRAMES,
    FINDING_NOUNS,
    PROMPT_FIELDS,
)

DEFAULT_PER_CLASS = 10
_NOT_A_WORD = re.compile(r"[\W_]+")


def all_prompts(name: str) -> list[str]:
    """Every prompt of one class: the full Cartesian product of its fields.

    Args:
      name: a key of `PROMPT_FIELDS`, such as "Pleural Effusion" or "COVID".

    Returns:
      Prompts in the order of the product, the last field running fastest. Empty
      fields leave spaces, and a prompt may stand twice, as published.

    Raises:
      UserError: for a name that has no prompts.

    Reference: RyanWangZf/MedCLIP, medclip/prompts.py.
    """
    if name not in PROMPT_FIELDS:
        raise UserError(
            f"no prompts are known for {name!r}; expected one of {list(PROMPT_FIELDS)}"
        )
    return [" ".join(words) for words in product(*PROMPT_FIELDS[name])]


def finding_prompts(name: str) -> list[str]:
    """Prompts of any of the 14 findings.

    Args:
      name: one of FINDINGS.

    Returns:
      MedCLIP's prompts where it publishes them, else this project's own.
    """
    if name in PROMPT_FIELDS:
        return all_prompts(name)
    return [
        frame.format(noun)
        for frame, noun in product(FINDING_FRAMES, FINDING_NOUNS[name])
    ]


def draw_prompts(
    prompts: Mapping[str, Sequence[str]],
    per_class: int = DEFAULT_PER_CLASS,
    seed: int = 0,
) -> dict[str, list[int]]:
    """Draws prompts of each class without replacement.

    A class's draw depends on its name and the seed alone, so another set of classes
    draws the same prompts for it.

    Args:
      prompts: class name to its prompts.
      per_class: how many to draw; a class with fewer gives all that it has.
      seed: seed of this draw.

    Returns:
      Class name to sorted indices into its prompts.

    Reference: RyanWangZf/MedCLIP, medclip/prompts.py (10 a class; there unseeded).
    """
    if per_class < 1:
        raise UserError(f"prompts per class must be at least 1, found {per_class}")
    drawn = {}
    for name, texts in prompts.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        count = min(per_class, len(texts))
        drawn[name] = sorted(rng.choice(len(texts), count, replace=False).tolist())
    return drawn


def five_class_prompts() -> dict[str, list[str]]:
    """MedCLIP's prompts of the five CheXpert classes, in the order of EVAL_FIVE."""
    return {name: all_prompts(name) for name in EVAL_FIVE}


def fourteen_prompts() -> dict[str, list[str]]:
    """Prompts of all 14 findings, in the order of FINDINGS."""
    return {name: finding_prompts(name) for name in FINDINGS}


def normalise(text: str) -> str:
    """Lower case, and one space in place of each run of punctuation and white space."""
    return _NOT_A_WORD.sub(" ", text.lower()).strip()


def count_overlap(sentences: Iterable[str], prompts: Iterable[str]) -> dict[str, int]:
    """Counts training sentences that equal an evaluation prompt once normalised.

    Args:
      sentences: sentences that training may read; an iterator is read once.
      prompts: evaluation prompts; empty ones are left out.

    Returns:
      {"sentences": sentences that equal a prompt, "prompts": prompts that are met,
      "checked": sentences looked at}. Counts only: report text is protected.
    """
    wanted = {normalise(prompt) for prompt in prompts} - {""}
    met: set[str] = set()
    checked = equal = 0
    for sentence in sentences:
        checked += 1
        plain = normalise(sentence)
        if plain in wanted:
            equal += 1
            met.add(plain)
    return {"sentences": equal, "prompts": len(met), "checked": checked}


def require_no_overlap(counts: Mapping[str, int]) -> None:
    """Raises UserError, naming counts and no text, when training saw a prompt."""
    if counts["sentences"]:
        raise UserError(
            f"{counts['sentences']} of {counts['checked']} training sentences equal "
            f"{counts['prompts']} evaluation prompts after normalisation, so a "
            "zero-shot figure would measure what training was told. Leave those "
            "sentences out of training, or pass --allow-prompt-overlap to evaluate "
            "all the same (the report then says so)"
        )
