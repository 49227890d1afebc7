import dataclasses

import make_datasets
import numpy as np
import pytest

from medclip_jax.errors import UserError
from medclip_jax.inputs import evalset, images

DATA = [
    make_datasets.make_dataset("a", split="test"),
    make_datasets.make_dataset("b", 4, 3, 2, split="test", seed=2),
    make_datasets.make_dataset("c", split="train", seed=3),
]


def test_films_labels_and_ids_are_of_one_record():
    films = evalset.load_images(DATA, "test", 32)
    assert len(films) == 30 + 11
    records = {(i["dataset"], i["image_id"]): i for d in DATA[:2] for i in d.images}
    pixels, weight = films.read(np.arange(len(films)))
    assert pixels.shape == (41, 32, 32, 1) and (weight == 1).all()
    for row in range(len(films)):
        record = records[films.dataset_names[row], films.ids[row]]
        np.testing.assert_array_equal(films.labels_Nx14[row], record["labels"])
        assert films.patient_ids[row] == record["patient_id"]
        assert films.study_ids[row] == record["study_id"]
        assert films.views[row] == record["view"]
        expected = images.evaluation_film(record["film"], 32)
        np.testing.assert_array_equal(pixels[row, ..., 0], expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_have_one_size_and_say_what_is_padding(workers):
    films = evalset.load_images(DATA, "test", 16)
    chosen = np.array([5, 3, 40, 0, 0, 17, 8])
    batches = list(films.batches(3, chosen, workers))
    assert [b["films_BxHxWx1"].shape for b in batches] == [(3, 16, 16, 1)] * 3
    index = np.concatenate([b["index_B"] for b in batches])
    np.testing.assert_array_equal(index, [*chosen, -1, -1])
    weight = np.concatenate([b["weight_B"] for b in batches])
    np.testing.assert_array_equal(weight, [1] * 7 + [0] * 2)
    pixels = np.concatenate([b["films_BxHxWx1"] for b in batches])
    np.testing.assert_array_equal(pixels[:7], films.read(chosen)[0])
    assert not pixels[7:].any()
    assert sum(len(b["index_B"]) for b in films.batches(16)) == 48


def test_views_are_chosen():
    films = evalset.load_images(DATA, "test", 16, views=("LATERAL",))
    assert len(films) == 16 and set(films.views) == {"LATERAL"}
    with pytest.raises(UserError, match="'test'.*no films of the views AP"):
        evalset.load_images(DATA, "test", 16, views=("AP",))
    with pytest.raises(UserError, match="'validate' of a, b, c has no films"):
        evalset.load_images(DATA, "validate", 16)


def test_a_bad_film_is_black_with_weight_zero(caplog):
    spoiled = [
        {**i, "film": b"?"} if k == 2 else i for k, i in enumerate(DATA[0].images)
    ]
    films = evalset.load_images(
        [dataclasses.replace(DATA[0], images=spoiled)], "test", 16
    )
    batch = next(films.batches(8))
    np.testing.assert_array_equal(batch["weight_B"], [1, 1, 0, 1, 1, 1, 1, 1])
    assert not batch["films_BxHxWx1"][2].any()
    assert "a/i1-0" in caplog.text


@pytest.mark.parametrize(
    ("sections", "count"),
    [((), 12 * 3 + 5 * 2 + 4 * 3 + 2 * 2), (("impression",), 12 + 5 + 4 + 2)],
)
def test_texts_come_with_their_own_labels(sections, count):
    texts = evalset.load_texts(DATA, "test", sections=sections)
    assert len(texts) == count
    records = {(r["dataset"], r["study_id"]): r for d in DATA[:2] for r in d.reports}
    for row in range(len(texts)):
        record = records[texts.dataset_names[row], texts.study_ids[row]]
        number = record["sentences"].index(texts.texts[row])
        assert not sections or record["sentence_sections"][number] in sections
        np.testing.assert_array_equal(
            texts.labels_Mx14[row], record["sentence_labels"][number]
        )
        assert texts.patient_ids[row] == record["patient_id"]


def test_reports_are_joined_and_labelled_as_a_whole():
    texts = evalset.load_texts(DATA[:1], "test", kind="report", sections=("findings",))
    assert len(texts) == 17
    for row in range(17):
        record = next(
            r for r in DATA[0].reports if r["study_id"] == texts.study_ids[row]
        )
        assert texts.texts[row] == record["sentences"][0]
        np.testing.assert_array_equal(texts.labels_Mx14[row], record["labels"])


def test_errors_of_texts():
    with pytest.raises(UserError, match="'sentence' or 'report'"):
        evalset.load_texts(DATA, "test", kind="word")
    with pytest.raises(UserError, match="has no report text"):
        evalset.load_texts(DATA, "validate")


def test_training_sentences_are_of_all_sections_and_normalised():
    found = evalset.training_sentences(DATA)
    expected = {
        evalset.normalize_sentence(s) for r in DATA[2].reports for s in r["sentences"]
    }
    assert found == expected
    assert len(found) == 12 * 3 + 5 * 2


def test_normalisation_ignores_case_punctuation_and_space():
    base = evalset.normalize_sentence("mild  left-sided effusion, 3.5 cm")
    assert base == "mild left sided effusion 3 5 cm"
    assert evalset.normalize_sentence(" Mild left sided EFFUSION; 3 5 cm.\n") == base
    assert evalset.normalize_sentence("mild right sided effusion 3 5 cm") != base
