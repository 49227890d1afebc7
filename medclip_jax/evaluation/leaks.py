"""What an evaluation shares with the training: patients, films, annotations, sentences.

`find_leaks` compares, over all opened data sets, what training reads with what is judged:

    patient       patients of both, within one collection of patients
    film          films judged that look like a film of training in any data set; RSNA's
                  are NIH's under other names (threshold: `annotations.SAME`)
    phrases, progression    annotations of a patient whom training sees; MS-CXR annotates
                  films that are in MIMIC-CXR's train split
    sentence      phrases and sentence pairs that stand in a report of training, letter
                  case, marks and blanks apart. Common sentences recur by nature

Sentence pairs name no patient, so only their words can be looked for. Results hold ids
and counts, never text.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines import annotations
from data_pipelines.annotations import find_copies

ANNOTATED: dict[str, str] = {"ms_cxr": "mimic_cxr", "ms_cxr_t": "mimic_cxr"}
"""Adapters whose rows are of the patients of another."""

EXAMPLES = 5


@dataclass(frozen=True)
class Films:
    """Films of some splits of one data set.

    Attributes:
      name: of the data set.
      population: whose patients its ids name; equal ids of two populations are strangers.
      patients: ids of all patients, with films or not.
      hashes: 32 bytes by image id.
    """

    name: str
    population: str
    patients: Collection[str]
    hashes: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained(Films):
    """What training reads of a data set; `sentences` is gone through once."""

    sentences: Iterable[str] = field(default=(), repr=False)


@dataclass(frozen=True)
class Judged(Films):
    """What is judged of a data set.

    Attributes:
      annotated: side table -> the (id, patient) of each row.
      texts: (id, sentence) of phrases and pairs; an id may have several.
    """

    annotated: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    texts: Sequence[tuple[str, str]] = field(default=(), repr=False)


@dataclass(frozen=True, order=True)
class Leak:
    """What one evaluation set shares with one training set.

    Attributes:
      kind: "patient", "film", "phrases", "progression" or "sentence".
      evaluation, training: names of the data sets.
      count: how many of the evaluation's patients, films, rows or sentence ids.
      total: of how many.
      examples: the first ids, in order; those of films as "judged = trained on".
    """

    kind: str
    evaluation: str
    training: str
    count: int
    total: int
    examples: tuple[str, ...]


def find_leaks(training: Sequence[Trained], evaluation: Sequence[Judged]) -> list[Leak]:
    """Finds what evaluation sets share with training sets.

    Args:
      training: of `of_training`, one a data set of the training data.
      evaluation: of `of_evaluation`, one a data set that is evaluated.

    Returns:
      One entry for each kind and pair of sets that share anything, sorted. Films cost
      most: every judged one is compared with every one of training (10^9 pairs take
      about 5 s).
    """
    leaks = []
    for trained in training:
        known = set(trained.patients)
        spoken = _spoken(trained, evaluation)
        for judged in evaluation:

            def add(kind: str, found: Collection[str], total: int) -> None:
                if found:
                    first = tuple(sorted(found)[:EXAMPLES])
                    names = (judged.name, trained.name)  # noqa: B023
                    leaks.append(Leak(kind, *names, len(found), total, first))

            if judged.population == trained.population:
                mine = set(judged.patients)
                add("patient", mine & known, len(mine))
                for table, rows in judged.annotated.items():
                    add(
                        table,
                        {id for id, patient in rows if patient in known},
                        len(rows),
                    )
            add("film", _copies(judged, trained), len(judged.hashes))
            texts = {id for id, text in judged.texts if _words(text) in spoken}
            add("sentence", texts, len({id for id, _ in judged.texts}))
    return sorted(leaks)


def _copies(judged: Films, trained: Films) -> list[str]:
    """ "judged = trained on" for each judged film with a copy, the first by id."""
    mine, theirs = sorted(judged.hashes), sorted(trained.hashes)
    pairs = find_copies(
        [judged.hashes[image] for image in mine],
        [trained.hashes[image] for image in theirs],
    )
    first: dict[int, int] = {}
    for at, other in pairs:
        first.setdefault(at, other)
    return [f"{mine[at]} = {theirs[other]}" for at, other in first.items()]


def _spoken(trained: Trained, evaluation: Sequence[Judged]) -> set[str]:
    """Which of all judged texts a training set's sentences hold, as `_words`."""
    wanted = {_words(text) for judged in evaluation for _, text in judged.texts}
    wanted.discard("")
    if not wanted:
        return set()
    return {made for text in trained.sentences if (made := _words(text)) in wanted}


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


_TOLD = {
    "patient": "patients are training patients of",
    "film": "films look the same as a training film of",
    "phrases": "phrases are of training patients of",
    "progression": "changes are of training patients of",
    "sentence": "sentences stand in a training report of",
}


def describe(leak: Leak) -> str:
    """One line for a reader."""
    some = ", ".join(leak.examples[:3]) + (" ..." if leak.count > 3 else "")
    return (
        f"{leak.evaluation}: {leak.count:,} of {leak.total:,} {_TOLD[leak.kind]} "
        f"{leak.training} ({some})"
    )


# --- From opened data sets ----------------------------------------------------------


def of_training(dataset: Any, splits: Collection[str] = ("train",)) -> Trained:
    """What training reads of a data set.

    Args:
      dataset: an opened one: its name, kind, path, study table and reports are read.
      splits: those that training reads.
    """
    table = dataset.table
    rows = [
        row
        for row, split in zip(
            table["report_row"].to_pylist(), table["split"].to_pylist(), strict=True
        )
        if row >= 0 and split in splits
    ]
    return Trained(
        *_films(dataset, splits), sentences=_Sentences(dataset.reports, sorted(rows))
    )


def of_evaluation(
    dataset: Any,
    splits: Collection[str] = ("test",),
    films: Collection[str] | None = None,
) -> Judged:
    """What is judged of a data set.

    Args:
      dataset: an opened one; its side tables are read.
      splits: those that are judged. Phrases and progression count whatever the source's
        own split: theirs is not that of the films' data set.
      films: ids of the films that are judged; phrases and progression of others are
        left out. None leaves none out.
    """
    name, population, patients, hashes = _films(dataset, splits)
    annotated = {}
    texts = []
    for table, key in (("phrases", "phrase_id"), ("progression", "image_id")):
        rows = annotations.read(dataset.path, table).to_pylist()
        rows = [row for row in rows if films is None or row["image_id"] in films]
        if not rows:
            continue
        ids = [
            row[key] if table == "phrases" else f"{row[key]} {row['finding']}"
            for row in rows
        ]
        of_patient = [row["patient_id"] for row in rows]
        annotated[table] = list(zip(ids, of_patient, strict=True))
        patients = {*patients, *of_patient}
        if table == "phrases":
            texts += [(row[key], row["text"]) for row in rows]
    for row in annotations.read(dataset.path, "sentence_pairs").to_pylist():
        if row["split"] in splits:
            texts += [(row["pair_id"], row[f"sentence{n}"]) for n in (1, 2)]
    return Judged(name, population, patients, hashes, annotated, texts)


@dataclass(frozen=True)
class _Sentences:
    """The sentences of some reports, read when they are gone through."""

    reports: Sequence[dict] = field(repr=False)
    rows: Sequence[int] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        for row in self.rows:
            yield from self.reports[row]["sentences"]


def _films(
    dataset: Any, splits: Collection[str]
) -> tuple[str, str, set[str], dict[str, bytes]]:
    stored = annotations.read(dataset.path, "hashes")
    hash_of = dict(
        zip(stored["image_id"].to_pylist(), stored["hash"].to_pylist(), strict=True)
    )
    patients: set[str] = set()
    hashes: dict[str, bytes] = {}
    columns = ("split", "patient_id", "image_ids")
    lists = (dataset.table[column].to_pylist() for column in columns)
    for split, patient, images in zip(*lists, strict=True):
        if split in splits:
            patients.add(patient)
            hashes.update((i, hash_of[i]) for i in images if i in hash_of)
    population = ANNOTATED.get(dataset.kind, dataset.kind)
    if population == "csv":  # any folder: its ids are its own
        population = f"csv {dataset.name}"
    return dataset.name, population, patients, hashes
