"""Extraction against the simulated hospital's own account of each sentence."""

import numpy as np
import pytest

from data_pipelines.hospital.course import draw_patient
from data_pipelines.hospital.reports_text import write_report
from data_pipelines.reports.extract import process_report
from data_pipelines.reports.measure import CODES, macro_f1, score_labels

SEED = 20260


@pytest.fixture(scope="module")
def reports():
    written = []
    for number in range(80):
        patient = draw_patient(SEED, number)
        before = None
        for study in patient.studies:
            report = write_report(SEED, patient.body, study, before)
            written.append((study.study_id, report))
            before = study
    assert len(written) > 100
    return written


def test_sentences_are_found_as_they_were_written(reports):
    for study, report in reports:
        read = process_report(report.text, study=study)
        expected = [(sentence.section, sentence.text) for sentence in report.sentences]
        found = list(zip(read.sentence_sections, read.sentences, strict=True))
        assert found == expected, study


@pytest.mark.parametrize(("rules", "least"), [("medclip_jax", 0.97), ("chexpert", 0.8)])
def test_agreement(reports, rules, least):
    read = [process_report(report.text, rules) for _, report in reports]
    truth = np.array([s.codes for _, report in reports for s in report.sentences])
    found = np.concatenate([each.sentence_labels for each in read])
    scores = score_labels(truth, found)
    assert {code: macro_f1(scores, code) > least for code in CODES} == dict.fromkeys(
        CODES, True
    )
    # Reports as a whole: the same labels from the same sentences.
    whole = np.array([report.labels for _, report in reports])
    agree = np.mean(whole == np.stack([each.labels for each in read]))
    assert agree > least
