"""How the unpaired view draws films and texts."""

import dataclasses

import make_datasets
import numpy as np
import pytest
from readers import BASE, CONFIGS, make, table_of

from medclip_jax.inputs import reader


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
    data = [dataclasses.replace(data[0], table=table_of(table))]
    batch = make(tokenizer, CONFIGS["official"], data=data).batch(0)
    has_text = batch["text_weight_M"] == 1
    # Nothing is labelled, so there is no prompt: films without a report have no text.
    assert has_text.any() and not has_text.all()
    assert (batch["text_labels_Mx14"][has_text, 0] == 1).all()
    assert (batch["text_labels_Mx14"][has_text, 1:] == 0).all()
    assert (batch["image_weight_N"] == 1).all()
