"""Brings prepared data to the evaluation: films, texts, and what is known of them."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
from medclip_jax.evaluation import prompts
from medclip_jax.evaluation.sets import Films, Sentences
from medclip_jax.inputs import evalset


def load_films(datasets: Sequence[Dataset], split: str, image_size: int) -> list[Films]:
    """The films of every data set that has any in the split.

    Raises:
      UserError: when none has.
    """
    found = []
    for dataset in datasets:
        if split not in dataset.table["split"].unique().to_pylist():
            continue
        try:
            loaded = evalset.load_images([dataset], split, image_size)
        except UserError:  # studies of text alone
            continue
        found.append(
            Films(
                dataset.name,
                np.asarray(loaded.ids),
                np.asarray(loaded.patient_ids),
                np.asarray(loaded.study_ids),
                np.asarray(loaded.views),
                np.asarray(loaded.labels_Nx14),
                functools.partial(read_films, loaded),
            )
        )
    if not found:
        held = {d.name: d.table["split"].unique().to_pylist() for d in datasets}
        raise UserError(
            f"no data set has films in the split {split!r}; splits found: {held}. "
            "Choose another with --split"
        )
    return found


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


def is_training_data(workdir: Path, datasets: Sequence[Dataset]) -> bool:
    """Whether every data set is, bit for bit, one that the run was trained on."""
    trained = json.loads((workdir / "data.json").read_text()).get("datasets", {})
    return all(trained.get(d.name) == d.fingerprint for d in datasets)
