"""MedNLI of patients whom the simulated MIMIC-CXR does not have.

Nearly each premise stands there three times, with a hypothesis of each label, so labels
are balanced. As in the real files the id is pairID, hypotheses begin with a space, and parses
that nobody needs take most of a line.
"""

import hashlib
import json
from pathlib import Path

from data_pipelines.datasets.nli import LABELS
from data_pipelines.hospital.benchmarks.radnli import tell, two_sentences
from data_pipelines.hospital.course import stream
from data_pipelines.hospital.writer import Settings

PREMISES_A_PATIENT: dict[str, int] = {"train": 8, "dev": 1, "test": 1}
"""For each patient of --benchmarks; the real files have 3,744, 465 and 474."""

NOTES = 40  # patients whose notes the premises are of, a split
PRESENT = ("the patient [has|was found to have] {a}{noun}", "{a}{noun} is present")
ABSENT = ("the patient has no {noun}", "the patient does not have {a}{noun}")


def write_tables(folder: Path, settings: Settings, root: Path) -> None:
    """Writes the three files; nothing of `root` is read."""
    del root
    for at, (split, many) in enumerate(PREMISES_A_PATIENT.items()):
        told = tell(settings, "mimic_iii", range(at * NOTES, (at + 1) * NOTES))
        lines = []
        for number in range(many * settings.benchmarks if told else 0):
            for label in LABELS:
                # The same stream: the same premise, mostly, for each label.
                rng = stream(settings.seed, "mednli", split, number)
                first, second = two_sentences(rng, told, label, PRESENT, ABSENT)
                name = f"{settings.seed}/{split}/{number}/{label}"
                lines.append(_line(f"CXR: {first}", f" {second}", label, name))
        if lines:
            path = folder / f"mli_{split}_v1.jsonl"
            path.write_text("".join(lines), "utf-8")


def _line(premise: str, hypothesis: str, label: str, name: str) -> str:
    pair = {
        "gold_label": label,
        "pairID": hashlib.sha256(name.encode()).hexdigest()[:32],
        "sentence1": premise,
        "sentence1_binary_parse": _parse(premise, "( {} )"),
        "sentence1_parse": _parse(premise, "(ROOT (FRAG {}))"),
        "sentence2": hypothesis,
        "sentence2_binary_parse": _parse(hypothesis, "( {} )"),
        "sentence2_parse": _parse(hypothesis, "(ROOT (S {}))"),
    }
    return json.dumps(pair) + "\n"


def _parse(text: str, form: str) -> str:
    return form.format(" ".join(f"(X {word})" for word in text.split()))
