"""Readers of toy datasets, for the tests of what they read."""

import jax
import make_datasets
import numpy as np

from data_pipelines import records
from medclip_jax.inputs import reader

BASE = {
    "image_size": 24,
    "crop_from": 32,
    "text_length": 12,
    "vocab_size": 150,
    "min_patients": 1,
    "sections": (),
    "workers": 3,
    "prefetch": 3,
}
CONFIGS = {
    "pairs": {"view": "pairs"},
    "pairs by study": {"view": "pairs", "row": "study"},
    "reports": {"view": "pairs", "text": "report"},
    "decoupled": {"view": "unpaired"},
    "more texts": {
        "view": "unpaired",
        "unpaired": {"texts_per_image": 1.5, "text_only_weight": 2.0},
    },
    "official": {"view": "unpaired", "unpaired": {"sampling": "official"}},
    "images": {"view": "images"},
    "two crops": {"view": "two_crops"},
}
DATA = [
    make_datasets.make_dataset("a"),
    make_datasets.make_dataset("b", 5, 9, 3, seed=1),
]


def make(tokenizer, config=(), batch=8, seed=0, parts=((0,), 1), data=DATA):
    config = {**BASE, **dict(config)}
    return reader.TrainInput(data, config, tokenizer, seed, batch, *parts)


def leaves(batch):
    return jax.tree.leaves(batch)


def equal(one, other) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def ids_to_words(tokenizer, row):
    return tokenizer._fast.decode(row, skip_special_tokens=True)


def film_index(inputs):
    """Maps a labels row to the catalog's image: the labels of the toys are unique."""
    return {
        labels.tobytes(): index
        for index, labels in enumerate(inputs.catalog.image_labels_Ix14)
    }


def table_of(rows):
    return records.pa.Table.from_pylist(rows, schema=records.TABLE_SCHEMA)
