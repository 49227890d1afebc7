"""Brings prepared data to the evaluation: films, texts, and what is known of them."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from data_pipelines import annotations
from data_pipelines.findings import NOT_GIVEN, POSITIVE, UNCERTAIN
from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
from medclip_jax.evaluation import prompts
from medclip_jax.evaluation.sets import Films, Judged, Sentences, Table
from medclip_jax.inputs import evalset


def load_films(
    datasets: Sequence[Dataset], image_size: int, split: str = ""
) -> list[Films]:
    """The films of every data set that has any, of all splits.

    Args:
      datasets: opened data sets.
      image_size: pixels, what the network takes.
      split: some data set must have films of it; "" asks nothing.

    Raises:
      UserError: when none has.
    """
    found = []
    for dataset in datasets:
        if not len(dataset.images):  # texts or annotations alone
            continue
        loaded = evalset.load_images([dataset], "", image_size)
        tasks = annotations.read_tasks(dataset.path)
        found.append(
            Films(
                dataset.name,
                np.asarray(loaded.ids, np.str_),
                np.asarray(loaded.patient_ids, np.str_),
                np.asarray(loaded.study_ids, np.str_),
                np.asarray(loaded.views, np.str_),
                np.asarray(loaded.labels_Nx14),
                functools.partial(read_films, loaded),
                np.asarray(loaded.splits, np.str_),
                loaded.record,
                dataset.kind,
                dataset.fingerprint,
                tasks,
                judged(dataset, tasks, loaded.ids.tolist()),
            )
        )
    if not any(len(films.where(split)) if split else len(films) for films in found):
        held = {f.name: sorted(set(f.splits.tolist())) for f in found}
        raise UserError(
            f"no data set has films in the split {split!r}; splits found: {held}. "
            "Choose another with --split"
        )
    return found


def judged(
    dataset: Dataset, tasks: Mapping[str, annotations.Task], ids: Sequence[str]
) -> dict[str, Judged]:
    """What the source says of its films, task by task."""
    places = {str(image_id): place for place, image_id in enumerate(ids)}
    table = annotations.read(dataset.path, "classes")
    made = {}
    for name, task in tasks.items():
        rows = table.filter(pc.equal(table["task"], name)).to_pylist()
        rows.sort(key=lambda row: places[row["image_id"]])
        codes_KxC = np.zeros((len(rows), len(task.labels)), np.int8)
        for place, row in enumerate(rows):
            for column, code in (
                ("positive", POSITIVE),
                ("uncertain", UNCERTAIN),
                ("not_judged", NOT_GIVEN),
            ):
                for label in row[column]:
                    codes_KxC[place, task.labels.index(label)] = code
        films = np.array([places[row["image_id"]] for row in rows], np.int64)
        made[name] = Judged(films, codes_KxC)
    return made


def load_tables(datasets: Sequence[Dataset], name: str) -> list[Table]:
    """The side tables of a name, of the data sets that have it."""
    made = []
    for dataset in datasets:
        rows = annotations.read(dataset.path, name).to_pylist()
        if rows:
            made.append(Table(dataset.name, dataset.kind, dataset.fingerprint, rows))
    return made


def read_films(loaded: evalset.EvalImages, positions: np.ndarray) -> Iterator:
    """Films as arrays uint8 [b, H, W, 1]; one that cannot be read is an error."""
    for batch in loaded.batches(indices=positions):
        real = batch["index_B"] >= 0
        bad = batch["index_B"][real & (batch["weight_B"] == 0)]
        if len(bad):
            raise UserError(
                f"film {loaded.ids[bad[0]]} of {loaded.dataset_names[bad[0]]} cannot be "
                "decoded, so a figure over all films cannot be given; the shard is "
                "damaged: prepare the data set again"
            )
        yield batch["films_BxHxWx1"][real]


def load_sentences(
    datasets: Sequence[Dataset], split: str, kind: str, config
) -> dict[str, Sentences]:
    """Data set name to its sentences or reports; data sets without text are absent."""
    found = {}
    for dataset in datasets:
        if not len(dataset.reports):
            continue
        try:
            texts = evalset.load_texts([dataset], split, kind, config.data.sections)
        except UserError:
            continue
        found[dataset.name] = Sentences(
            texts.texts,
            np.asarray(texts.labels_Mx14),
            np.asarray(texts.patient_ids),
            np.asarray(texts.study_ids),
        )
    return found


def check_prompts(datasets: Sequence[Dataset], split: str) -> dict[str, int]:
    """Counts distinct training sentences that equal an evaluation prompt."""
    datasets = [d for d in datasets if d.for_pretraining and len(d.reports)]
    if not datasets:
        return {"sentences": 0, "prompts": 0, "checked": 0}
    every = [
        *prompts.five_class_prompts().values(),
        *prompts.fourteen_prompts().values(),
    ]
    return prompts.count_overlap(
        evalset.training_sentences(datasets, split),
        (text for texts in every for text in texts),
    )


def is_simulated(dataset: Dataset) -> bool:
    """Whether `prepare` marked the data set as made from the simulated hospital."""
    return dataset.notice.lower().startswith("simulated")


def same_as_training(trained: Mapping[str, str], datasets: Sequence[Dataset]) -> bool:
    """Whether every data set for pretraining is, bit for bit, one of the run's own."""
    return all(
        trained.get(d.name) == d.fingerprint for d in datasets if d.for_pretraining
    )
