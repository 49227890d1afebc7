"""The CheXpert labeler's own behaviour."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.findings import FINDINGS, NO_FINDING, NOT_GIVEN
from data_pipelines.reports.chexpert import PHRASES, ChexpertRules, clean
from data_pipelines.reports.extract import Extractor
from data_pipelines.reports.sentences import split_sentences


@pytest.fixture(scope="module")
def extractor():
    return Extractor("chexpert")


def told(labels):
    return {
        name: int(code)
        for name, code in zip(FINDINGS, labels, strict=True)
        if code != NOT_GIVEN
    }


CASES = [
    ("Heart size is normal and no effusion.", {"Cardiomegaly": 0, "Pleural Effusion": 0, "No Finding": 1}),
    ("Enlarged heart size.", {"Cardiomegaly": 1}),
    ("Cannot exclude small effusion.", {"Pleural Effusion": -1}),
    ("An effusion is not excluded.", {"Pleural Effusion": -1}),
    ("No new opacity.", {"Lung Opacity": -1}),
    ("Opacity, may reflect atelectasis or consolidation.", {"Lung Opacity": 1, "Atelectasis": -1, "Consolidation": -1}),
    ("Pneumonia versus edema.", {"Pneumonia": -1, "Edema": -1}),
    ("Pulmonary vascular congestion.", {"Edema": -1}),
    ("The cardiomediastinal silhouette is stable.", {"Enlarged Cardiomediastinum": -1}),
    # Artefacts of matching parts of words, kept on purpose.
    ("Plate-like atelectasis.", {"Atelectasis": 1, "Support Devices": 1}),
    ("Active tuberculosis.", {"Support Devices": 1, "No Finding": 1}),
    ("The aortic contour is tortuous.", {"Enlarged Cardiomediastinum": 1}),
    ("Soft tissue edema.", {"Edema": 1}),
    # Blocking terms leave all 14 blank; denied they do not.
    ("Thickening of the fissure.", {}),
    ("No emphysema.", {"No Finding": 1}),
    # Dropped mentions.
    ("Small pericardial effusion.", {"No Finding": 1}),
    ("Massive effusion.", {"Pleural Effusion": 1}),
    ("Wires lie over the heart size marker.", {"Support Devices": 1, "No Finding": 1}),
    # Heart failure hints at an enlarged heart; denied it does not.
    ("Mild CHF.", {"Edema": 1, "Cardiomegaly": -1}),
    ("No CHF.", {"Edema": 0, "No Finding": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "expected"), CASES, ids=[s for s, _ in CASES])
def test_sentence(extractor, sentence, expected):
    expected = {name: code for name, code in expected.items() if code != NOT_GIVEN}
    assert told(extractor.label_sentence(sentence)) == expected


def test_generated_unmentions_drop_a_place(extractor):
    assert told(extractor.label_sentence("A lead lies over the cardiac silhouette."))[
        "No Finding"
    ]
    assert "Cardiomegaly" in told(extractor.label_sentence("Cardiac silhouette."))


def test_report_joins_mentions_by_the_labelers_quirk(extractor):
    sentences = ["Small effusion.", "Effusion is not excluded; no effusion."]
    index = FINDINGS.index("Pleural Effusion")
    # {1, -1, 0} is uncertain for the labeler's code, though the paper says positive.
    assert extractor.label_report(sentences)[index] == -1
    assert Extractor("medclip_jax").label_report(sentences)[index] == 1


def test_cleaning():
    assert (
        clean("Edema and/or  Effusion,clear/dry") == "edema or effusion, clear or dry"
    )


def test_phrases_are_shipped_with_their_licence():
    assert "MIT License" in (PHRASES.parent / "LICENSE").read_text("utf-8")
    names = {path.name for path in (PHRASES / "mention").iterdir()}
    assert names == {f"{name.lower().replace(' ', '_')}.txt" for name in FINDINGS}
    assert len(ChexpertRules()._phrases) > 140


OWN_SMOKE = {
    "Heart size is normal, lungs clear. No pneumonia or edema. No effusion": {
        "No Finding": 1, "Cardiomegaly": 0, "Edema": 0, "Pneumonia": 0,
        "Pleural Effusion": 0,
    },
    "1. Right effusion with adjacent atelectasis.\n\n2. Cardiomegaly without edema.": {
        "Cardiomegaly": 1, "Edema": 0, "Atelectasis": 1, "Pleural Effusion": 1,
    },
    "1. Stable cardiomegaly. 2. Expanded but clear lungs.": {"Cardiomegaly": 1},
}  # fmt: skip


@pytest.mark.parametrize("report", OWN_SMOKE)
def test_small_reports(extractor, report):
    labels = extractor.label_report(split_sentences(report))
    assert told(labels) == OWN_SMOKE[report]


@pytest.mark.data_packs
def test_the_labelers_own_samples(extractor):
    packs = os.environ.get("MEDCLIP_DATA_PACKS")
    folder = Path(packs or "") / "labeler_reference" / "chexpert_labeler"
    if not packs or not folder.is_dir():
        pytest.skip("MEDCLIP_DATA_PACKS names no folder with labeler_reference")
    with (folder / "labeled_reports.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 4
    for row in rows:
        labels = extractor.label_report(split_sentences(row["Reports"]))
        expected = [int(float(row[name] or NOT_GIVEN)) for name in FINDINGS]
        np.testing.assert_array_equal(labels, expected)
    assert labels[NO_FINDING] == NOT_GIVEN
