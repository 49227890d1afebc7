import dataclasses
import threading

import jax
import make_datasets
import numpy as np
import pytest
from readers import BASE, CONFIGS, DATA, equal, ids_to_words, make

from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
from medclip_jax.inputs import reader, views


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_types(tokenizer, name):
    inputs = make(tokenizer, CONFIGS[name])
    n, m = 8, 12 if name == "more texts" else 8
    expected = {
        "films": {
            f"{of}_BxHxWx1": ((n, 24, 24, 1), np.uint8) for of in inputs.options.films
        },
        "texts": {
            "ids_BxT": ((m, 12), np.int32),
            "mask_BxT": ((m, 12), np.int32),
            "word_ids_BxT": ((m, 12), np.int32),
        },
        "image_labels_Nx14": ((n, 14), np.int8),
        "text_labels_Mx14": ((m, 14), np.int8),
        "image_weight_N": ((n,), np.float32),
        "text_weight_M": ((m,), np.float32),
    }
    for step in (0, 1, 1000):
        got = jax.tree.map(lambda a: (a.shape, a.dtype.type), inputs.batch(step))
        assert got == expected
    assert str(inputs.n_texts) in inputs.describe()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_joined_are_the_one_process(tokenizer, name, count):
    whole = make(tokenizer, CONFIGS[name])
    parts = [make(tokenizer, CONFIGS[name], parts=((p,), count)) for p in range(count)]
    for step in (0, 3, 17):
        joined = jax.tree.map(
            lambda *a: np.concatenate(a), *[part.batch(step) for part in parts]
        )
        assert equal(joined, whole.batch(step))
    assert len({inputs.fingerprint for inputs in [whole, *parts]}) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_prefetch_gives_the_batches_of_the_steps_in_order(tokenizer, name):
    inputs = make(tokenizer, CONFIGS[name])
    fresh = make(tokenizer, {**CONFIGS[name], "cache_bytes": 0, "workers": 1})
    ahead = inputs.prefetch(5)
    for expected_step in range(5, 17):
        step, batch = next(ahead)
        assert step == expected_step
        assert equal(batch, fresh.batch(step))


def test_steps_and_seeds_differ(tokenizer):
    inputs = make(tokenizer)
    batches = [inputs.batch(step) for step in range(12)]
    batches += [make(tokenizer, seed=1).batch(step) for step in range(12)]
    films = {batch["films"]["current_BxHxWx1"].tobytes() for batch in batches}
    assert len(films) == 24


def test_threads_get_what_one_thread_gets(tokenizer):
    inputs = make(tokenizer, {"view": "unpaired"})
    expected = {
        step: make(tokenizer, {"view": "unpaired"}).batch(step) for step in range(12)
    }
    wrong = []

    def work():
        for step in range(12):
            if not equal(inputs.batch(step), expected[step]):
                wrong.append(step)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pairs_join_each_film_with_a_sentence_of_its_study(tokenizer):
    inputs = make(tokenizer)
    rows = inputs.view.rows(np.arange(400), np.arange(400))
    catalog = inputs.catalog
    np.testing.assert_array_equal(
        catalog.image_study_I[rows.image_N], catalog.report_study_R[rows.report_M]
    )
    np.testing.assert_array_equal(
        catalog.sentence_report_S[rows.sentence_M], rows.report_M
    )
    # Every film with a text, and every sentence of every paired report, is met.
    assert len(np.unique(rows.image_N)) == 2 * (12 + 5)
    assert len(np.unique(rows.sentence_M)) == 3 * (12 + 5)


def test_the_batch_holds_what_the_rows_say(tokenizer):
    """Pixels, tokens and labels come from the very records that the ids name."""
    inputs = make(tokenizer, {"crop_from": 24})
    rows = inputs.view.rows(np.arange(8), np.arange(8))
    batch = inputs.batch(0)
    catalog = inputs.catalog
    for row in range(8):
        dataset = DATA[catalog.image_dataset_I[rows.image_N[row]]]
        image = dataset.images[catalog.image_row_I[rows.image_N[row]]]
        assert image["image_id"] == catalog.image_id_I[rows.image_N[row]]
        np.testing.assert_array_equal(batch["image_labels_Nx14"][row], image["labels"])
        film = reader.images.training_film(image["film"], 24, 24)
        np.testing.assert_array_equal(
            batch["films"]["current_BxHxWx1"][row, ..., 0], film
        )
        report = dataset.reports[catalog.report_row_R[rows.report_M[row]]]
        assert report["study_id"] == image["study_id"]
        number = catalog.sentence_number_S[rows.sentence_M[row]]
        np.testing.assert_array_equal(
            batch["text_labels_Mx14"][row], report["sentence_labels"][number]
        )
        text = ids_to_words(tokenizer, batch["texts"]["ids_BxT"][row])
        assert text == report["sentences"][number]


def test_whole_reports_have_the_report_s_labels(tokenizer):
    inputs = make(tokenizer, {"text": "report", "text_length": 40})
    rows = inputs.view.rows(np.arange(8), np.arange(8))
    batch = inputs.batch(0)
    for row in range(8):
        at = rows.report_M[row]
        report = DATA[inputs.catalog.report_dataset_R[at]].reports[
            inputs.catalog.report_row_R[at]
        ]
        np.testing.assert_array_equal(batch["text_labels_Mx14"][row], report["labels"])
        text = ids_to_words(tokenizer, batch["texts"]["ids_BxT"][row])
        assert text == " ".join(report["sentences"])


def test_study_rows_draw_each_of_its_images(tokenizer):
    inputs = make(tokenizer, {"row": "study"})
    rows = inputs.view.rows(np.arange(600), np.arange(600))
    counts = np.bincount(rows.image_N, minlength=30)
    used = counts[counts > 0]
    assert len(used) == 34 and inputs.n_images == 8 and inputs.view.n_images == 17
    assert used.min() > 4


def test_sections_choose_the_sentences(tokenizer):
    inputs = make(tokenizer, {"sections": ("impression",)})
    rows = inputs.view.rows(np.arange(300), np.arange(300))
    assert set(inputs.catalog.sentence_number_S[rows.sentence_M]) == {1}
    with_captions = [
        DATA[0],
        make_datasets.make_dataset("c", 4, 0, 0, sections=("caption",)),
    ]
    inputs = make(tokenizer, {"sections": ("impression",)}, data=with_captions)
    assert inputs.catalog.reports_without_sections == 4
    assert inputs.view.n_images == 24 + 8  # the captions are used
    assert "4 reports have none of the sections impression" in inputs.describe()


def test_a_fraction_of_the_data_is_of_whole_patients_and_nested(tokenizer):
    def patients(fraction):
        inputs = make(tokenizer, {"fraction": fraction, "view": "unpaired"}, batch=4)
        catalog = inputs.catalog
        return {*zip(catalog.study_dataset_Q, catalog.study_patient_Q)}, catalog

    everyone, whole = patients(1.0)
    half, catalog = patients(0.5)
    quarter, _ = patients(0.25)
    assert quarter < half < everyone
    assert abs(len(half) / len(everyone) - 0.5) < 0.25
    # A patient's studies are all there, or none of them.
    for name, patient in half:
        count = [
            np.sum((c.study_dataset_Q == name) & (c.study_patient_Q == patient))
            for c in (catalog, whole)
        ]
        assert count[0] == count[1]
    with pytest.raises(UserError, match=r"fraction.*\(0, 1\]"):
        make(tokenizer, {"fraction": 0.0}, batch=4)


def test_paired_fraction_takes_whole_patients_out_of_the_pairs(tokenizer):
    half = make(tokenizer, {"paired_fraction": 0.5}, batch=4)
    catalog = half.catalog
    rows = half.view.rows(np.arange(300), np.arange(300))
    everyone = make(tokenizer, batch=4).view.rows(np.arange(300), np.arange(300))
    assert 0 < len(np.unique(rows.image_N)) < len(np.unique(everyone.image_N))
    apart = make(tokenizer, {"paired_fraction": 0.5, "view": "unpaired"}, batch=4)
    streams = apart.view._streams
    for name in ("a", "b"):
        mine = catalog.study_dataset_Q == name
        first = {
            catalog.study_patient_Q[s]
            for s in catalog.image_study_I[rows.image_N]
            if mine[s]
        }
        second = {
            catalog.study_patient_Q[s]
            for s in catalog.image_study_I[streams.image_only]
            if mine[s] and catalog.study_report_Q[s] >= 0
        }
        assert not first & second
    everything = sum(map(len, streams[:4]))
    assert everything == sum(
        map(len, make(tokenizer, {"view": "unpaired"}).view._streams[:4])
    )


def test_films_alone_need_no_text():
    data = [make_datasets.make_dataset("films", 0, 9, 0)]
    config = {**BASE, "view": "images"}
    inputs = make(reader.make_tokenizer(data, config), config, data=data)
    batch = inputs.batch(0)
    assert batch["image_weight_N"].all() and not batch["text_weight_M"].any()
    with pytest.raises(UserError, match="no word to train a tokenizer on"):
        reader.make_tokenizer(data, BASE)


# -- decoupled ------------------------------------------------------------------------


# -- bad records and user errors -------------------------------------------------------


def spoil(dataset: Dataset, rows) -> Dataset:
    images = [
        {**image, "film": b"\xff\xd8 spoiled"} if row in rows else image
        for row, image in enumerate(dataset.images)
    ]
    return dataclasses.replace(dataset, images=images)


@pytest.mark.parametrize("name", ["pairs", "decoupled"])
def test_a_bad_film_has_weight_zero_and_changes_nothing_else(tokenizer, name, caplog):
    good = make(tokenizer, CONFIGS[name])
    config = {**CONFIGS[name], "max_bad_rate": 0.5}
    bad = make(tokenizer, config, data=[spoil(DATA[0], {3}), DATA[1]])
    seen = 0
    for step in range(12):
        expected, got = good.batch(step), bad.batch(step)
        zero = got["image_weight_N"] == 0
        seen += zero.sum()
        films = got["films"]["current_BxHxWx1"]
        assert not films[zero].any()
        np.testing.assert_array_equal(
            films[~zero], expected["films"]["current_BxHxWx1"][~zero]
        )
        assert equal(got["texts"], expected["texts"])
        np.testing.assert_array_equal(
            got["text_weight_M"] == 0, zero if name == "pairs" else np.zeros(8)
        )
    assert seen > 0
    assert bad._films.bad_ids == ["a/i1-1"]
    assert [r for r in caplog.messages if "a/i1-1" in r]
    assert len(caplog.messages) == 1  # told once, not each time


def test_too_many_bad_films_stop_the_run_and_name_some(tokenizer):
    inputs = make(tokenizer, data=[spoil(DATA[0], range(24))])
    with pytest.raises(UserError, match=r"could not be decoded.*a/i\d+-\d"):
        for step in range(5):
            inputs.batch(step)
    with pytest.raises(UserError):
        for _ in make(tokenizer, data=[spoil(DATA[0], range(24))]).prefetch(0):
            pass


ERRORS = {
    "unknown dataset": ({"datasets": ("a", "zz")}, {}, "zz.*found: a, b"),
    "batch too large": ({}, {"batch": 64}, "64 images.*only 34"),
    "too many texts": (
        {"view": "unpaired", "unpaired": {"texts_per_image": 9.0}},
        {},
        "72 texts.*only 67",
    ),
    "parts": ({}, {"batch": 9, "parts": ((0,), 2)}, "9 images.* 2 equal parts"),
    "split": ({"train_split": "test"}, {}, "is empty.*0 films"),
    "no pair": ({"paired_fraction": 0.0}, {}, "no study has a film and a text"),
    "weights": (
        {
            "view": "unpaired",
            "unpaired": {"paired_weight": 0.0, "image_only_weight": 0.0},
        },
        {},
        "no film with labels",
    ),
    "unknown key": ({"imagesize": 3}, {}, "unknown key.*imagesize.*image_size"),
    "unknown inner key": ({"augment": {"flipp": 0.5}}, {}, "data.augment.*flipp"),
    "view": ({"view": "triples"}, {}, "one of .*unpaired.*'triples'"),
    "crop": ({"crop_from": 20}, {}, "crop_from must be at least image_size = 24"),
    "official ratio": (
        {
            "view": "unpaired",
            "unpaired": {"sampling": "official", "texts_per_image": 2.0},
        },
        {},
        "1 with sampling 'official'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_user_errors_say_what_and_how(tokenizer, name):
    config, options, message = ERRORS[name]
    with pytest.raises(UserError, match=message):
        make(tokenizer, config, **options)


def test_fingerprint_follows_what_is_read_and_not_how_fast(tokenizer):
    base = make(tokenizer).fingerprint
    same = ({"workers": 1, "prefetch": 9, "cache_bytes": 0},)
    for config in same:
        assert make(tokenizer, config).fingerprint == base
    others = [
        make(tokenizer, {"image_size": 25}),
        make(tokenizer, {"augment": {"flip": 0.5}}),
        make(tokenizer, batch=4),
        make(tokenizer, seed=1),
        make(tokenizer, data=DATA[:1]),
        make(tokenizer, data=DATA[::-1]),
        make(reader.make_tokenizer(DATA, {**BASE, "vocab_size": 40})),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 8


def test_config_dict_is_read_like_a_mapping(tokenizer):
    from ml_collections import ConfigDict

    config = ConfigDict({**BASE, "augment": {"flip": 0.5}, "view": "unpaired"})
    inputs = reader.TrainInput(DATA, config, tokenizer, 0, 8)
    assert inputs.options.augment.flip == 0.5
    plain = make(tokenizer, {"augment": {"flip": 0.5}, "view": "unpaired"})
    assert plain.fingerprint == inputs.fingerprint


# -- crops ---------------------------------------------------------------------------


def test_crops_are_keyed_by_seed_and_position(tokenizer):
    one, other = make(tokenizer), make(tokenizer, seed=5)
    # The same film at two positions: cut at different places.
    corners = {}
    rows = one.view.rows(np.arange(34 * 8), np.arange(34 * 8))
    cuts = np.concatenate([one.batch(s)["films"]["current_BxHxWx1"] for s in range(34)])
    for image, cut in zip(rows.image_N, cuts):
        corners.setdefault(image, set()).add(cut.tobytes())
    assert np.mean([len(c) for c in corners.values()]) > 6
    assert not equal(one.batch(0)["films"], other.batch(0)["films"])


def test_no_crop_when_the_sizes_are_equal(tokenizer):
    inputs = make(tokenizer, {"crop_from": 24})
    rows = inputs.view.rows(np.arange(34 * 8), np.arange(34 * 8))
    cuts = np.concatenate(
        [inputs.batch(s)["films"]["current_BxHxWx1"] for s in range(34)]
    )
    seen = {}
    for image, cut in zip(rows.image_N, cuts):
        seen.setdefault(image, set()).add(cut.tobytes())
    assert {len(c) for c in seen.values()} == {1}


def test_images_alone_bring_masked_texts(tokenizer):
    """Every labelled film of an epoch once, and no text at all."""
    inputs = make(tokenizer, {"view": "images"}, batch=4)
    batch = inputs.batch(0)
    assert batch["text_weight_M"].shape == (4,) and not batch["text_weight_M"].any()
    assert batch["image_weight_N"].all()
    positions = np.arange(inputs.view.n_images)
    drawn = inputs.view.rows(positions, positions).image_N
    assert sorted(drawn) == sorted(set(drawn))
    assert (inputs.catalog.image_labels_Ix14[drawn] != -2).any(axis=1).all()


def test_two_crops_of_each_film(tokenizer):
    """Of every film, labelled or not; the first is the one that other views cut."""
    inputs = make(tokenizer, {"view": "two_crops"}, batch=6)
    assert inputs.view.n_images == len(inputs.catalog.image_row_I)
    batch = inputs.batch(1)
    assert not batch["text_weight_M"].any() and batch["image_weight_N"].all()
    films = batch["films"]
    assert sorted(films) == ["current_BxHxWx1", "second_BxHxWx1"]
    rows = inputs.view.rows(np.arange(6, 12), np.arange(6, 12))
    apart = 0
    for row, image in enumerate(rows.image_N):
        whole = inputs._films.film(int(image))
        windows = np.lib.stride_tricks.sliding_window_view(whole, (24, 24))
        for film in films.values():
            assert (windows == film[row, ..., 0]).all(axis=(2, 3)).any()
        apart += (films["current_BxHxWx1"][row] != films["second_BxHxWx1"][row]).any()
    assert apart >= 4
    again = make(tokenizer, {"view": "two_crops"}, batch=6).batch(1)
    assert equal(batch, again)
    uncut = {"view": "two_crops", "crop_from": 24}
    films = make(tokenizer, uncut, batch=6).batch(1)["films"]
    np.testing.assert_array_equal(films["current_BxHxWx1"], films["second_BxHxWx1"])


def test_the_film_before():
    """Of the latest earlier study of the patient that has films; the first of it."""
    image_study = np.array([0, 0, 1, 3, 4, 5, 5])
    dataset = np.array(["a", "a", "a", "a", "a", "b"], object)
    patient = np.array(["p", "p", "p", "p", "q", "q"], object)
    index = np.array([2, 0, 1, 3, 0, 1])
    found = views.prior_images(image_study, dataset, patient, index)
    # Study 1, 2 (without films), 0, 3 of p, in this order; q's are of two data sets.
    assert found.tolist() == [2, 2, -1, 0, -1, -1, -1]


def test_films_with_the_one_before(tokenizer):
    inputs = make(tokenizer, {"view": "with_prior", "crop_from": 24}, batch=8)
    catalog = inputs.catalog
    batch = inputs.batch(1)
    films = batch["films"]
    assert sorted(films) == ["current_BxHxWx1", "has_prior_B", "prior_BxHxWx1"]
    rows = inputs.view.rows(np.arange(8, 16), np.arange(8, 16))
    assert films["has_prior_B"].any() and not films["has_prior_B"].all()
    for row, image in enumerate(rows.image_N):
        study = catalog.image_study_I[image]
        earlier = [
            other
            for other in range(len(catalog.image_study_I))
            for of in [catalog.image_study_I[other]]
            if catalog.study_dataset_Q[of] == catalog.study_dataset_Q[study]
            and catalog.study_patient_Q[of] == catalog.study_patient_Q[study]
            and catalog.study_index_Q[of] < catalog.study_index_Q[study]
        ]
        assert films["has_prior_B"][row] == bool(earlier)
        prior = films["prior_BxHxWx1"][row, ..., 0]
        assert (prior == (inputs._films.film(earlier[0]) if earlier else 0)).all()
    plain = make(tokenizer, {"view": "pairs", "crop_from": 24}, batch=8).batch(1)
    np.testing.assert_array_equal(
        films["current_BxHxWx1"], plain["films"]["current_BxHxWx1"]
    )
    assert "have one before" in inputs.describe()
    read = np.flatnonzero(inputs.films_of(1, 2))
    priors = inputs._prior_I[rows.image_N]
    assert set(read) == set(rows.image_N) | set(priors[priors >= 0])


def test_both_films_are_cut_alike(tokenizer):
    """Of two films that are one, the crops are one."""
    inputs = make(tokenizer, {"view": "with_prior"}, batch=8)
    inputs._prior_I = np.arange(len(inputs._prior_I))
    films = inputs.batch(0)["films"]
    assert films["has_prior_B"].all()
    np.testing.assert_array_equal(films["current_BxHxWx1"], films["prior_BxHxWx1"])


def texts_of(inputs, step):
    """(first, second) of each report in a batch, as words."""
    texts = inputs.batch(step)["texts"]
    return [
        tuple(
            ids_to_words(inputs._tokenizer, texts[f"{of}ids_BxT"][row])
            for of in inputs.options.texts
        )
        for row in range(len(texts["ids_BxT"]))
    ]


def test_reports_alone(tokenizer):
    inputs = make(tokenizer, {"view": "reports", "text_length": 64}, batch=8)
    batch = inputs.batch(0)
    assert batch["films"] == {} and not inputs.films_of(0, 3).any()
    assert batch["image_weight_N"].shape == (0,) and batch["text_weight_M"].all()
    assert inputs.view.n_texts == (inputs.catalog.report_count_R > 0).sum()
    drawn = inputs.view.rows(np.arange(8), np.arange(8)).report_M
    store = inputs._texts
    for (text,), report in zip(texts_of(inputs, 0), drawn):
        assert text == " ".join(store.sentences((int(report), -1))).lower()
    assert "films of" not in inputs.describe().split("batch:")[1].split(";")[0]


def test_two_sections_of_a_report(tokenizer):
    both = {"view": "sections", "sections": ("findings", "impression")}
    inputs = make(tokenizer, {**both, "text_length": 64}, batch=8)
    has_all = inputs.catalog.report_has_all_R
    assert inputs.view.n_texts == has_all.sum()
    drawn = inputs.view.rows(np.arange(8), np.arange(8)).report_M
    assert has_all[drawn].all()
    for texts, report in zip(texts_of(inputs, 0), drawn):
        dataset = inputs._datasets[inputs.catalog.report_dataset_R[report]]
        record = dataset.reports[int(inputs.catalog.report_row_R[report])]
        for text, name in zip(texts, inputs.options.sections):
            own = [
                sentence
                for sentence, of in zip(
                    record["sentences"], record["sentence_sections"]
                )
                if of == name
            ]
            assert text == " ".join(own).lower() != ""
    # With a section that some reports lack, these are left out.
    rare = {"view": "sections", "sections": ("findings", "history")}
    fewer = make(tokenizer, rare, batch=4)
    assert 0 < fewer.view.n_texts < len(fewer.catalog.report_count_R)
    with pytest.raises(UserError, match="sections must be two"):
        make(tokenizer, {"view": "sections", "sections": ()})
    with pytest.raises(UserError, match="no report has sections findings and nowhere"):
        make(tokenizer, {"view": "sections", "sections": ("findings", "nowhere")})


def test_sentences_are_shuffled_anew(tokenizer):
    more = {"view": "reports", "text_length": 64, "sections": ()}
    plain = make(tokenizer, more, batch=8)
    shuffled = make(tokenizer, {**more, "shuffle_sentences": True}, batch=8)
    epochs = range(0, 12, 4)
    changed = 0
    for step in epochs:
        for (one,), (other,) in zip(texts_of(plain, step), texts_of(shuffled, step)):
            assert sorted(one.split()) == sorted(other.split())
            changed += one != other
    assert changed > 6
    again = make(tokenizer, {**more, "shuffle_sentences": True}, batch=8)
    assert equal(shuffled.batch(3), again.batch(3))
    parts = make(
        tokenizer, {**more, "shuffle_sentences": True}, batch=8, parts=((1,), 2)
    ).batch(3)
    np.testing.assert_array_equal(
        parts["texts"]["ids_BxT"], again.batch(3)["texts"]["ids_BxT"][4:]
    )
