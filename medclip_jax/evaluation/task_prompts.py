"""The words that each task is asked in.

Published prompts stand where there are any; their source is named beside them. All
others are this project's own, or CheXzero's pair "LABEL" and "no LABEL".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.findings import FINDINGS, NO_FINDING, POSITIVE, UNCERTAIN
from medclip_jax.evaluation import prompts
from medclip_jax.evaluation.protocol import Bench
from medclip_jax.evaluation.retrieval import first_of_each

BIOVIL = (
    "microsoft/hi-ml, hi-ml-multimodal/test_multimodal/vlp/"
    "test_zero_shot_classification.py"
)
CHEXZERO = "Tiu et al. (CheXzero, Nat. Biomed. Eng. 2022): LABEL, no LABEL"
MEDCLIP = "RyanWangZf/MedCLIP, medclip/constants.py; Normal: sentences of No Finding"
OWN = "this project's own prompts"
NORMAL_SENTENCES = 200
"""At most so many sentences may be drawn as prompts of a normal film."""

Prompts = Mapping[str, Sequence[str]]
"""Class name to prompts, in the order of the class numbers."""


@dataclass(frozen=True)
class PromptSet:
    """Attributes:
    name: "biovil", "medclip", "pair" or "own".
    prompts: of each class; of a binary question "negative", then "positive".
    source: where the words are from.
    """

    name: str
    prompts: Prompts
    source: str


RSNA_BIOVIL = {
    "negative": (
        "There is no pneumonia",
        "No evidence of pneumonia",
        "No evidence of acute pneumonia",
        "No signs of pneumonia",
    ),
    "positive": (
        "Findings consistent with pneumonia",
        "Findings suggesting pneumonia",
        "This opacity can represent pneumonia",
        "Findings are most compatible with pneumonia",
    ),
}
MURA_OWN = {
    "negative": ("normal bone radiograph", "the bones and joints are normal"),
    "positive": (
        "abnormal bone radiograph",
        "the bone shows a fracture, hardware or degenerative change",
    ),
}
NORMAL = (
    "normal chest radiograph",
    "no acute cardiopulmonary abnormality",
    "the lungs are clear and the heart is normal in size",
)
PNEUMONIA = (
    "pneumonia",
    "bacterial pneumonia",
    "findings consistent with pneumonia",
)
OPACITY = ("lung opacity", "opacity in the lung", "airspace opacity in the lung")

CLASS_PROMPTS: dict[str, tuple[str, ...]] = {
    "normal": NORMAL,
    "lung opacity": OPACITY,
    "no lung opacity / not normal": (
        "abnormal chest radiograph without lung opacity",
        "no lung opacity, but the film is not normal",
        "clear lungs with an enlarged heart or a device",
    ),
    "pneumonia": PNEUMONIA,
    "viral pneumonia": (
        "viral pneumonia",
        "diffuse interstitial opacities of viral pneumonia",
        "findings consistent with viral pneumonia",
    ),
}
"""Own prompts of the classes of multi-class tasks, by the label in lower case."""

_COVID = ("covid", "covid-19")
_PUBLISHED = {"rsna_target": "RSNA Pneumonia"}


def words(label: str) -> str:
    """A source's label as it is said: no underscores or doubled spaces."""
    return " ".join(label.replace("_", " ").split())


def pair(label: str) -> dict[str, tuple[str, ...]]:
    """CheXzero's pair of prompts of one label."""
    said = words(label)
    return {"negative": (f"no {said}",), "positive": (said,)}


def of_classes(labels: Sequence[str]) -> PromptSet:
    """Prompts of the classes of a multi-class task."""
    made = {}
    for label in labels:
        said = words(label)
        if said.lower() in _COVID:
            made[label] = prompts.all_prompts("COVID")
        else:
            made[label] = list(CLASS_PROMPTS.get(said.lower(), (said,)))
    own = all(words(label).lower() not in _COVID for label in labels)
    source = OWN if own else f"{OWN}; COVID-19: RyanWangZf/MedCLIP, constants.py"
    return PromptSet("own", made, source)


def of_binary(task: str, label: str, normal: Sequence[str]) -> list[PromptSet]:
    """The prompt sets of a binary question, the one of the headline first.

    Args:
      task: its name.
      label: its label.
      normal: sentences of films without a finding; MedCLIP's way needs some.
    """
    sets = [PromptSet("pair", pair(label), CHEXZERO)]
    if task == "mura_abnormal":
        sets = [PromptSet("own", MURA_OWN, OWN)]
    if task == "rsna_target":
        sets.insert(0, PromptSet("biovil", RSNA_BIOVIL, BIOVIL))
    published = _PUBLISHED.get(task, "COVID" if words(label).lower() in _COVID else "")
    if published and normal:
        both = {"negative": normal, "positive": prompts.all_prompts(published)}
        sets.append(PromptSet("medclip", both, MEDCLIP))
    return sets


def normal_sentences(bench: Bench) -> list[str]:
    """Distinct sentences labelled No Finding and nothing else, drawn by the seed.

    MedCLIP draws its prompts of normal films from such sentences, of more than four
    characters. They are report text: they are embedded and never shown.

    Reference: RyanWangZf/MedCLIP, examples/eval_zeroshot_classification.py at June
    2022.
    """
    found: list[str] = []
    others = np.arange(len(FINDINGS)) != NO_FINDING
    for name in sorted(bench.sentences):
        of = bench.sentences[name]
        codes = np.asarray(of.labels_Mx14).reshape(-1, len(FINDINGS))
        normal = codes[:, NO_FINDING] == POSITIVE
        normal &= ~np.isin(codes[:, others], (POSITIVE, UNCERTAIN)).any(axis=1)
        told = [of.texts[i] for i in np.flatnonzero(normal).tolist()]
        found += [text for text in told if len(text) > 4]
    first, _ = first_of_each(found)
    rng = np.random.default_rng([bench.options.seed, 41])
    chosen = np.sort(rng.permutation(first)[:NORMAL_SENTENCES])
    return [found[int(i)] for i in chosen]
