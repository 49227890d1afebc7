"""RadNLI of the simulated MIMIC-CXR: does one sentence of a report entail another?

Labels follow from the state that the sentences tell, not from their words:

    entailment     a finding and how it changed, and then that it is there
    contradiction  that it is there, and that it is not
    neutral        findings that say nothing of each other, the same on the other side,
                   and entailment the other way round: what is there need not have changed

Each two sentences stand there in both orders, as in the real set, which has more than
half of its pairs neutral. Sentences are in lower case with the marks apart. Dev and test
are of different patients, both of MIMIC's test split.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.findings import POSITIVE
from data_pipelines.hospital.benchmarks.ms_cxr_t import read_studies
from data_pipelines.hospital.course import draw_patient, stream
from data_pipelines.hospital.grammar import evaluation_prompts, expand, normalize
from data_pipelines.hospital.state import Finding, Study
from data_pipelines.hospital.teller import Teller
from data_pipelines.hospital.writer import Settings

PAIRS_A_PATIENT = 8
"""Of each file, for each patient of --benchmarks; 60 give as many as the real files."""

PROPORTIONS: dict[str, int] = {"entailment": 93, "contradiction": 53, "neutral": 94}
"""Of every 240 couples of sentences, by the label of the first order."""

NOUNS: dict[str, str] = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
}
"""Findings whose every kind goes by one noun, so that a sentence on it entails the noun."""

RELATED: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "Atelectasis",
            "Consolidation",
            "Edema",
            "Pneumonia",
            "Lung Opacity",
            "Lung Lesion",
        }
    ),
    frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum"}),
)
"""One of these may say something of another; all others are strangers."""

PRESENT = (
    "there is {a}{noun}",
    "{a}{noun} is [present|seen|noted]",
    "findings include {a}{noun}",
)
ABSENT = (
    "there is no {noun}",
    "no {noun} is [seen|identified]",
    "no [evidence of|] {noun} on this [study|radiograph]",
)


@dataclass(frozen=True)
class Told:
    """A finding of a later study, with the study before."""

    study: Study
    before: Study
    finding: Finding


def write_tables(folder: Path, settings: Settings, root: Path) -> None:
    """Writes both files, of the test patients of the simulation below `root`."""
    studies = [study for study in read_studies(root) if study["split"] == "test"]
    numbers = sorted({study["number"] for study in studies})
    for at, split in enumerate(("dev", "test")):
        rng = stream(settings.seed, "radnli", split)
        told = tell(settings, "mimic_cxr", numbers[at::2] or numbers)
        pairs = _pairs(rng, told, PAIRS_A_PATIENT * settings.benchmarks) if told else []
        lines = [
            json.dumps({"pair_id": f"{split}-{number:04d}", **pair}) + "\n"
            for number, pair in enumerate(pairs)
        ]
        if lines:
            path = folder / f"radnli_{split}_v1.jsonl"
            path.write_text("".join(lines), "utf-8")


def tell(settings: Settings, dataset: str, numbers: Sequence[int]) -> list[Told]:
    """The findings of NOUNS in all later studies of some patients."""
    told = []
    for number in numbers:
        patient = draw_patient(
            settings.seed,
            number,
            dataset=dataset,
            prevalence=settings.prevalence,
            difficulty=settings.difficulty,
        )
        for before, study in zip(patient.studies, patient.studies[1:]):
            for finding in study.findings:
                if finding.name in NOUNS:
                    told.append(Told(study, before, finding))
    return told


def _pairs(rng: random.Random, told: list[Told], total: int) -> list[dict[str, str]]:
    pairs: list[dict[str, str]] = []
    for label, share in PROPORTIONS.items():
        for _ in range(max(1, round(total / 2 * share / sum(PROPORTIONS.values())))):
            first, second = two_sentences(rng, told, label)
            back = "neutral" if label == "entailment" else label
            pairs += [_pair(first, second, label), _pair(second, first, back)]
    rng.shuffle(pairs)
    return pairs


def _pair(premise: str, hypothesis: str, label: str) -> dict[str, str]:
    return {
        "sentence1": _tokenize(premise),
        "sentence2": _tokenize(hypothesis),
        "gold_label": label,
    }


def _tokenize(text: str) -> str:
    return " ".join(re.sub(r"([.,;:?()])", r" \1 ", text.lower()).split())


def two_sentences(
    rng: random.Random,
    told: list[Told],
    label: str,
    present: Sequence[str] = PRESENT,
    absent: Sequence[str] = ABSENT,
) -> tuple[str, str]:
    """A premise and a hypothesis, neither an evaluation prompt.

    Args:
      rng: the stream.
      told: of `tell`.
      label: what the premise makes of the hypothesis.
      present, absent: templates of the hypothesis with {a} and {noun}.
    """
    for _ in range(1000):
        one = rng.choice(told)
        mode = rng.choice(("improving", "stable", "worsening"))
        clause = Teller(rng, one.study, one.before).say(one.finding, mode, ())
        finding, lines = one.finding, present
        if label == "contradiction":
            lines = absent
        elif label == "neutral":
            positive = {n for n, code in clause.codes.items() if code == POSITIVE}
            strangers = [name for name in NOUNS if not _near(name, positive)]
            others = [o.finding for o in told if o.finding.name in strangers]
            mirrored = _mirror(finding)
            if mirrored is not None and rng.random() < 0.3:
                finding = mirrored
            elif others:
                finding = rng.choice(others)
                lines = absent if rng.random() < 0.4 else present
            else:
                continue
        side = finding.side if lines is present else ""
        second = _hypothesis(rng, finding.name, side, lines)
        if not {normalize(clause.text), normalize(second)} & evaluation_prompts():
            return clause.text, second
    raise AssertionError("found no two sentences")


def _near(name: str, others: set[str]) -> bool:
    """Whether a finding says something of one of the others."""
    groups = [group for group in RELATED if name in group] or [frozenset({name})]
    return any(group & others for group in groups)


def _mirror(finding: Finding) -> Finding | None:
    other = {"left": "right", "right": "left"}.get(finding.side)
    if other is None:
        return None
    return Finding(finding.name, other, finding.lobe, 0.5, finding.kind, finding.seed)


def _hypothesis(rng: random.Random, name: str, side: str, lines: Sequence[str]) -> str:
    noun = NOUNS[name]
    if side in ("left", "right"):
        noun = f"{side} {noun}"
    article = "a " if name in ("Pneumothorax", "Pleural Effusion") else ""
    text = expand(rng, rng.choice(list(lines)), {"noun": noun, "a": article})
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + "."
