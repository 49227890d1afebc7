import dataclasses
import threading

import jax
import make_datasets
import numpy as np
import pytest

from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
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
}
DATA = [
    make_datasets.make_dataset("a"),
    make_datasets.make_dataset("b", 5, 9, 3, seed=1),
]


@pytest.fixture(scope="module")
def tokenizer():
    return reader.make_tokenizer(DATA, BASE)


def make(tokenizer, config=(), batch=8, seed=0, process=(0, 1), data=DATA):
    config = {**BASE, **dict(config)}
    return reader.TrainInput(data, config, tokenizer, seed, batch, *process)


def leaves(batch):
    return jax.tree.leaves(batch)


def equal(one, other) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_types(tokenizer, name):
    inputs = make(tokenizer, CONFIGS[name])
    n, m = 8, 12 if name == "more texts" else 8
    expected = {
        "films": {"current_BxHxWx1": ((n, 24, 24, 1), np.uint8)},
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
    parts = [make(tokenizer, CONFIGS[name], process=(p, count)) for p in range(count)]
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


def ids_to_words(tokenizer, row):
    return tokenizer._fast.decode(row, skip_special_tokens=True)


def film_index(inputs):
    """Maps a labels row to the catalog's image: the labels of the toys are unique."""
    return {
        labels.tobytes(): index
        for index, labels in enumerate(inputs.catalog.image_labels_Ix14)
    }


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


def test_decoupled_meets_every_image_and_every_sentence(tokenizer):
    inputs = make(tokenizer, {"view": "unpaired"})
    n_images, n_texts = inputs.view.n_images, inputs.view.n_texts
    assert (n_images, n_texts) == (34 + 15, 51 + 16)
    rows = inputs.view.rows(np.arange(n_images), np.arange(n_texts))
    assert sorted(rows.image_N) == list(range(49))
    assert sorted(rows.sentence_M) == list(range(67))


def test_decoupled_draws_images_and_texts_independently():
    """All combinations of kinds at one position, as often as chance has it."""
    data = [make_datasets.make_dataset("a", 200, 400, 600)]
    tokenizer = reader.make_tokenizer(data, BASE)
    view = make(tokenizer, {"view": "unpaired"}, data=data).view
    positions = np.arange(7200)  # whole passes: 9 over the images, 4 over the texts
    rows = view.rows(positions, positions)
    image_alone, text_alone = rows.image_N >= 400, rows.sentence_M >= 600
    table = np.histogram2d(image_alone, text_alone, bins=2)[0]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(positions)
    assert expected.min() > 1000
    assert ((table - expected) ** 2 / expected).sum() < 15  # 1 degree: p < 0.0002
    study_of_image = view._catalog.image_study_I[rows.image_N]
    study_of_text = view._catalog.report_study_R[rows.report_M]
    met = (study_of_image == study_of_text).sum()
    by_chance = len(positions) * 200 * (2 / 800) * (3 / 1800)
    assert by_chance / 4 < met < by_chance * 3


def test_decoupled_weights_change_the_shares(tokenizer):
    config = {"paired_weight": 1.0, "image_only_weight": 0.0, "text_only_weight": 4.0}
    inputs = make(tokenizer, {"view": "unpaired", "unpaired": config})
    rows = inputs.view.rows(np.arange(600), np.arange(600))
    catalog = inputs.catalog
    has_text = catalog.study_report_Q[catalog.image_study_I[rows.image_N]] >= 0
    assert has_text.all()
    with_image = np.isin(catalog.report_study_R[rows.report_M], catalog.image_study_I)
    assert with_image.mean() == pytest.approx(51 / (51 + 4 * 16), abs=0.01)


def test_normal_sentences_can_be_drawn_less_often(tokenizer):
    views = {
        weight: make(
            tokenizer, {"view": "unpaired", "unpaired": {"normal_text_weight": weight}}
        ).view
        for weight in (1.0, 0.25, 0.0)
    }
    normal = views[1.0]._catalog.sentence_labels_Sx14[:, 0] == 1
    known = np.sort(views[1.0]._texts.at(np.arange(views[1.0].n_texts)))
    n_normal, n_other = normal[known].sum(), (~normal[known]).sum()
    assert n_normal and n_other
    for weight, view in views.items():
        drawn = view.rows(np.arange(6000), np.arange(6000)).sentence_M
        share = weight * n_normal / (weight * n_normal + n_other)
        assert normal[drawn].mean() == pytest.approx(share, abs=0.01)


# -- official ------------------------------------------------------------------------


def test_official_gives_own_sentences_or_prompts_of_like_labels(tokenizer):
    inputs = make(tokenizer, CONFIGS["official"])
    catalog = inputs.catalog
    rows = inputs.view.rows(np.arange(800), np.arange(800))
    study = catalog.image_study_I[rows.image_N]
    own = catalog.study_report_Q[study] >= 0
    assert own.any() and not own.all()
    np.testing.assert_array_equal(
        rows.report_M[own], catalog.study_report_Q[study[own]]
    )
    image = catalog.image_labels_Ix14[rows.image_N[~own]][:, 1:] == 1
    text = catalog.sentence_labels_Sx14[rows.sentence_M[~own]][:, 1:] == 1
    assert (image & text).any(axis=1).all()
    # The prompts come from all reports, those without films among them.
    assert not np.isin(
        catalog.report_study_R[rows.report_M[~own]], catalog.image_study_I
    ).all()


def test_official_labels_are_the_sentence_s_or_no_finding(tokenizer):
    data = [make_datasets.make_dataset("a")]
    for report in data[0].reports:
        report["sentence_labels"][:] = -2
    table = data[0].table.to_pylist()
    for row in table:
        row["sentence_labels"] = [-2] * len(row["sentence_labels"])
    data = [dataclasses.replace(data[0], table=_table(table))]
    batch = make(tokenizer, CONFIGS["official"], data=data).batch(0)
    has_text = batch["text_weight_M"] == 1
    # Nothing is labelled, so there is no prompt: films without a report have no text.
    assert has_text.any() and not has_text.all()
    assert (batch["text_labels_Mx14"][has_text, 0] == 1).all()
    assert (batch["text_labels_Mx14"][has_text, 1:] == 0).all()
    assert (batch["image_weight_N"] == 1).all()


def _table(rows):
    from data_pipelines import records

    return records.pa.Table.from_pylist(rows, schema=records.TABLE_SCHEMA)


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
    "processes": ({}, {"batch": 9, "process": (0, 2)}, "2 processes do not divide"),
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
