import numpy as np
import pytest

from data_pipelines.findings import FINDINGS, NO_FINDING, NOT_GIVEN
from data_pipelines.reports.extract import Extractor, aggregate, process_report

EFFUSION = FINDINGS.index("Pleural Effusion")
PNEUMONIA = FINDINGS.index("Pneumonia")

REPORT = """                                 FINAL REPORT
 INDICATION:  Rule out pneumonia, known effusion.
 
 FINDINGS: 
 
 1. Small left effusion, 2.5 cm
 deep.  2. No edema.
 
 IMPRESSION:  Findings were discussed with Dr. ___ at 3 p.m.  Small effusion.
"""


def column(codes, finding=EFFUSION):
    labels = np.full((len(codes), 14), NOT_GIVEN, np.int8)
    labels[:, finding] = codes
    return labels


def test_report_is_read_from_findings_and_impression_alone():
    report = process_report(REPORT)
    assert report.sentences == [
        "Small left effusion, 2.5 cm deep.",
        "No edema.",
        "Small effusion.",
    ]
    assert report.sentence_sections == ["findings", "findings", "impression"]
    assert report.sentence_labels.shape == (3, 14)
    assert report.labels[EFFUSION] == 1
    assert report.labels[PNEUMONIA] == NOT_GIVEN
    assert report.labels[NO_FINDING] == NOT_GIVEN
    assert "indication" in report.sections


def test_report_without_text_has_no_label():
    for text in ("", "\n INDICATION: effusion?\n", "___"):
        report = process_report(text)
        assert report.sentences == []
        assert report.sentence_labels.shape == (0, 14)
        assert np.all(report.labels == NOT_GIVEN)


@pytest.mark.parametrize(
    ("codes", "own", "labeler"),
    [
        ([1, 0], 1, 1),
        ([1, -1], 1, 1),
        ([0, -1], -1, -1),
        ([1, 0, -1], 1, -1),
        ([0, 0], 0, 0),
        ([-2, -2], -2, -2),
    ],
)
def test_aggregate(codes, own, labeler):
    assert aggregate(column(codes))[EFFUSION] == own
    assert aggregate(column(codes), "chexpert")[EFFUSION] == labeler


def test_no_finding_of_a_report():
    extractor = Extractor()
    clear = extractor.label_sentences(["Clear lungs.", "ET tube in place."])
    assert aggregate(clear)[NO_FINDING] == 1
    blocked = extractor.label_sentences(["Clear lungs.", "Emphysema."])
    assert aggregate(blocked)[NO_FINDING] == NOT_GIVEN
    assert aggregate(clear[:0])[NO_FINDING] == NOT_GIVEN


def test_unknown_rules_name_the_known():
    with pytest.raises(ValueError, match="chexpert.*medclip_jax"):
        Extractor("negbio")
