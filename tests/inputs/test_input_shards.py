"""From a simulated hospital on disk, through `prepare`, to batches."""

import itertools

import jax
import numpy as np
import pytest

from configs import medclip
from data_pipelines import prepare
from data_pipelines.hospital import simulate
from medclip_jax.inputs import catalog, evalset, reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("hospital")
    raw, out = root / "raw", root / "shards"
    sizes = ["--patients", "12", "--chexpert-patients", "8", "--size", "64"]
    splits = ["--validate-fraction", "0.2"]
    command = ["--out", str(raw), *sizes, *splits, "--jobs", "1"]
    assert simulate.main(command) == 0
    for name, folder in (("mimic_cxr", "mimic-cxr"), ("chexpert", "chexpert")):
        options = ["--dataset", name, "--raw", str(raw / folder), "--out", str(out)]
        assert prepare.main(options) == 0
    return out


@pytest.fixture(scope="module")
def config():
    config = medclip.get_config("demo").data
    config.image_size, config.crop_from, config.min_patients = 48, 64, 2
    return config


def test_batches_from_disk(shards, config):
    tokenizer = reader.make_tokenizer(shards, config)
    inputs = reader.TrainInput(shards, config, tokenizer, 0, 16)
    for step, batch in itertools.islice(inputs.prefetch(0), 6):
        assert (batch["image_weight_N"] == 1).all()
        assert (batch["text_weight_M"] == 1).all()
        films = batch["films"]["current_BxHxWx1"]
        assert films.shape == (16, 48, 48, 1) and films.std() > 20
        ids, mask = batch["texts"]["ids_BxT"], batch["texts"]["mask_BxT"]
        assert mask.sum(axis=1).min() > 3
        assert (ids == 1).sum() < 0.2 * mask.sum()  # few words of one patient
        assert (batch["text_labels_Mx14"] != -2).any(axis=1).all()
    parts = [
        reader.TrainInput(shards, config, tokenizer, 0, 16, (p,), 2).batch(step)
        for p in range(2)
    ]
    joined = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    assert jax.tree.all(jax.tree.map(np.array_equal, joined, batch))
    assert "images alone" in inputs.describe()


def test_evaluation_sets_from_disk(shards):
    datasets = catalog.open_datasets(shards)
    films = evalset.load_images(datasets, "test", 48)
    assert (films.read(range(4))[1] == 1).all()
    texts = evalset.load_texts(datasets, "test")
    train = evalset.load_texts(datasets, "train")
    assert not set(train.patient_ids) & set(texts.patient_ids)
    assert {evalset.normalize_sentence(t) for t in train.texts} <= (
        evalset.training_sentences(datasets)
    )
