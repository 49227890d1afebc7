"""MS-CXR-T 1.0.0 of the simulated MIMIC-CXR: changes between two films, sentence pairs.

Film pairs: two studies that follow each other, the first frontal film of each, in the
test split and, as in the real set, a few of MIMIC's train split. Only what got better,
worse or stayed is labelled; the five findings have two columns each.

Sentence pairs: both sentences tell the same finding. Paraphrase: the same change.
Contradiction: another change. "Swaps" exchanges the one word for the change; "RadGraph"
pairs sentences that were written apart. The proportions are those of the real file, whose
first column is an index without a name.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.datasets.ms_cxr_t import FINDINGS_OF, IMAGES, LABELS, SENTENCES
from data_pipelines.hospital import layouts
from data_pipelines.hospital.course import draw_patient, stream
from data_pipelines.hospital.grammar import evaluation_prompts, normalize, tidy
from data_pipelines.hospital.state import Finding, Study
from data_pipelines.hospital.teller import Teller
from data_pipelines.hospital.writer import Settings
from data_pipelines.tables import read_rows

FIVE = tuple(FINDINGS_OF)
PAIR_COLUMNS = (
    "dicom_id",
    "previous_dicom_id",
    "subject_id",
    "study_id",
    "previous_study_id",
)
TRAIN_SHARE = 0.1
PAIRS_A_PATIENT = 6
"""Sentence pairs for each patient of --benchmarks; 60 give as many as the real file."""

PROPORTIONS: dict[tuple[str, str], int] = {
    ("RadGraph", "paraphrase"): 42,
    ("RadGraph", "contradiction"): 75,
    ("Swaps", "paraphrase"): 99,
    ("Swaps", "contradiction"): 145,
}
WORDS: dict[str, tuple[str, ...]] = {
    # Within a row the words mean the same and fit the same place of a sentence.
    "worse verb": ("worsened", "progressed", "increased"),
    "better verb": ("improved", "decreased", "diminished"),
    "worse": ("increased", "worsening", "progressive", "worsened", "increasing"),
    "better": ("improved", "improving", "decreased", "decreasing"),
    "stable": ("unchanged", "stable", "persistent", "similar"),
    "worse noun": (
        "interval worsening of",
        "interval progression of",
        "interval increase in",
        "progression of",
        "worsening of",
    ),
    "better noun": (
        "interval improvement in",
        "improvement in",
        "interval decrease in",
    ),
    "worse degree": ("more extensive", "more pronounced", "worse"),
    "better degree": ("less extensive", "less pronounced", "better"),
}
OPPOSITES: dict[str, tuple[str, ...]] = {
    "worse verb": ("better verb",),
    "better verb": ("worse verb",),
    "worse": ("better", "stable"),
    "better": ("worse", "stable"),
    "stable": ("worse", "better"),
    "worse noun": ("better noun",),
    "better noun": ("worse noun",),
    "worse degree": ("better degree",),
    "better degree": ("worse degree",),
}


def write_tables(folder: Path, settings: Settings, root: Path) -> None:
    """Writes both files from the truth below `root`."""
    studies = read_studies(root)
    _write_images(folder, settings, root, studies)
    _write_sentences(folder, settings, studies)


def read_studies(root: Path) -> list[dict]:
    """The simulated MIMIC-CXR's lines of `truth/studies.jsonl` below `root`."""
    with (root / "truth" / "studies.jsonl").open(encoding="utf-8") as lines:
        studies = [json.loads(line) for line in lines]
    return [study for study in studies if study["dataset"] == "mimic_cxr"]


# --- Film pairs ------------------------------------------------------------------


def _write_images(
    folder: Path, settings: Settings, root: Path, studies: list[dict]
) -> None:
    by_id = {study["study_id"]: study for study in studies}
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    rng = stream(settings.seed, "ms_cxr_t", "films")
    columns = {name: column for column, name in FINDINGS_OF.items()}
    for row in read_rows(root / "truth" / "progression.csv"):
        kept = row["dataset"] == "mimic_cxr" and row["progression"] in LABELS
        if kept and row["name"] in columns:
            now, before = by_id[row["study_id"]], by_id[row["prior_study_id"]]
            pair = pairs.setdefault(
                (now["study_id"], before["study_id"]), _pair(now, before)
            )
            column = columns[row["name"]]
            pair[f"{column}_progression"] = row["progression"]
            quality = rng.choice(("one_expert", "multiple_experts", "disagreement"))
            pair[f"{column}_label_quality"] = quality
    most = max(1, int(TRAIN_SHARE * settings.benchmarks))
    train = [p for p in pairs.values() if p["split"] == "train"]
    chosen = [p for p in pairs.values() if p["split"] == "test"]
    rng.shuffle(chosen)
    chosen = chosen[: 2 * settings.benchmarks] + rng.sample(
        train, min(most, len(train))
    )
    chosen.sort(key=lambda pair: pair["dicom_id"])
    names = [f"{c}_{what}" for what in ("progression", "label_quality") for c in FIVE]
    rows = [
        {name: pair.get(name, "") for name in [*PAIR_COLUMNS, *names]}
        for pair in chosen
    ]
    if rows:
        layouts.write_csv(folder / IMAGES, [*PAIR_COLUMNS, *names], rows)


def _pair(now: dict, before: dict) -> dict[str, str]:
    return {
        "dicom_id": _place(now),
        "previous_dicom_id": _place(before),
        "subject_id": now["patient_id"],
        "study_id": now["study_id"],
        "previous_study_id": before["study_id"],
        "split": now["split"],
    }


def _place(study: dict) -> str:
    """A film as the real file names it: a path without files/ and without .jpg."""
    frontal = next(
        image
        for image, view in zip(study["images"], study["views"], strict=True)
        if view != "LATERAL"
    )
    subject = study["patient_id"]
    return f"p{subject[:2]}/p{subject}/s{study['study_id']}/{frontal}"


# --- Sentence pairs --------------------------------------------------------------


def _write_sentences(folder: Path, settings: Settings, studies: list[dict]) -> None:
    numbers = sorted({s["number"] for s in studies if s["split"] == "test"})
    rng = stream(settings.seed, "ms_cxr_t", "sentences")
    told = list(_findings(rng, settings, numbers))
    total = PAIRS_A_PATIENT * settings.benchmarks
    rows = []
    for (subset, category), share in PROPORTIONS.items() if told else ():
        for _ in range(max(1, round(total * share / sum(PROPORTIONS.values())))):
            first, second = _two_sentences(rng, told, subset, category)
            rows.append(
                {
                    "sentence_1": first,
                    "sentence_2": second,
                    "category": category,
                    "subset_name": subset,
                }
            )
    rng.shuffle(rows)
    columns = ("", "sentence_1", "sentence_2", "category", "subset_name")
    rows = [{"": str(number), **row} for number, row in enumerate(rows)]
    if rows:
        layouts.write_csv(folder / SENTENCES, columns, rows)


def _findings(
    rng: random.Random, settings: Settings, numbers: list[int]
) -> Iterator[tuple[Study, Study, Finding]]:
    """Findings of the five in later studies of some patients, with the study before."""
    for number in numbers:
        patient = draw_patient(
            settings.seed,
            number,
            prevalence=settings.prevalence,
            difficulty=settings.difficulty,
        )
        for before, study in zip(patient.studies, patient.studies[1:]):
            for finding in study.findings:
                if finding.name in FINDINGS_OF.values():
                    yield study, before, finding


def _two_sentences(
    rng: random.Random, told: list, subset: str, category: str
) -> tuple[str, str]:
    for _ in range(1000):
        study, before, finding = rng.choice(told)
        mode = rng.choice(LABELS)
        other = mode
        if category == "contradiction":
            other = rng.choice([label for label in LABELS if label != mode])
        first = Teller(rng, study, before).say(finding, mode, ()).text
        if subset == "Swaps":
            second = swap(rng, first, mode, category)
        else:
            second = Teller(rng, study, before).say(finding, other, ()).text
        same = second is None or normalize(second) == normalize(first)
        if not same and normalize(second or "") not in evaluation_prompts():
            return first, second or ""
    raise AssertionError("found no two sentences that differ")


def swap(rng: random.Random, text: str, mode: str, category: str) -> str | None:
    """A sentence with its word for the change exchanged; None where it has none.

    Args:
      rng: the stream.
      text: of `Teller.say`.
      mode: what it tells: one of LABELS.
      category: "paraphrase": a word of the same meaning; "contradiction": the reverse.
    """
    kind = {"worsening": "worse", "improving": "better", "stable": "stable"}[mode]
    groups = [group for group in WORDS if group.split()[0] == kind]
    found = [(word, group) for group in groups for word in WORDS[group]]
    if re.search(r"\b(has|have) ", text) is None:
        found = [pair for pair in found if not pair[1].endswith("verb")]
    found = [
        pair for pair in found if re.search(rf"\b{pair[0]}\b", text, re.IGNORECASE)
    ]
    if not found:
        return None
    # The longest: "interval worsening of" before "worsening"; after "has" a verb.
    word, group = max(found, key=lambda p: (p[1].endswith("verb"), len(p[0])))
    if category == "contradiction":
        group = rng.choice(OPPOSITES[group])
    new = rng.choice([other for other in WORDS[group] if other != word])
    return tidy(re.sub(rf"\b{word}\b", new, text, count=1, flags=re.IGNORECASE))
