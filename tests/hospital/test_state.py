"""Patients, findings and courses of the simulated hospital."""

from collections import Counter

import numpy as np
import pytest

from data_pipelines.findings import EVAL_FIVE, FINDINGS
from data_pipelines.hospital import course
from data_pipelines.hospital.course import PLACES, draw_patient, progression, resolved
from data_pipelines.hospital.state import KINDS, Finding


@pytest.fixture(scope="module")
def patients():
    return [draw_patient(3, number) for number in range(3000)]


@pytest.fixture(scope="module")
def studies(patients):
    return [study for patient in patients for study in patient.studies]


def test_a_patient_is_a_function_of_seed_and_number(patients):
    assert [draw_patient(3, number) for number in (7, 2999, 0)] == [
        patients[7],
        patients[2999],
        patients[0],
    ]
    assert draw_patient(4, 7).studies != patients[7].studies
    assert draw_patient(3, 7, dataset="chexpert").body != patients[7].body


def test_every_kind_has_a_place_and_occurs(studies):
    kinds = {(name, kind) for name, group in KINDS.items() for kind in group}
    assert set(PLACES) == kinds
    assert {(f.name, f.kind) for s in studies for f in s.findings} == kinds


def test_ids_are_unique_and_have_mimics_form(patients, studies):
    subjects = [patient.patient_id for patient in patients]
    ids = [study.study_id for study in studies]
    assert len(set(subjects)) == len(subjects)
    assert len(set(ids)) == len(ids)
    assert all(len(s) == 8 and s[0] == "1" for s in subjects)
    assert all(len(s) == 8 and s[0] == "5" for s in ids)
    in_order = [
        [int(s.study_id) for s in p.studies] for p in patients if len(p.studies) > 2
    ]
    assert any(ids != sorted(ids) for ids in in_order), "ids must not follow time"


def test_times_rise_and_counts_are_one_to_six(patients):
    counts = Counter(len(patient.studies) for patient in patients)
    assert set(counts) == set(range(1, 7))
    for patient in patients:
        times = [study.time for study in patient.studies]
        assert times == sorted(set(times))
        assert [s.index for s in patient.studies] == list(range(len(times)))


def test_case_mix(studies):
    """About half hold exactly one of the five, balanced; a fifth are normal."""
    n = len(studies)
    alone = Counter()
    rates = Counter()
    for study in studies:
        names = {finding.name for finding in study.findings}
        rates.update(names)
        five = names & set(EVAL_FIVE)
        if len(five) == 1:
            alone.update(five)
    assert 0.45 < sum(alone.values()) / n < 0.55
    for name in EVAL_FIVE:
        assert 0.08 < alone[name] / n < 0.12, name
    for name in set(FINDINGS[1:]) - {*EVAL_FIVE, "Support Devices"}:
        assert 0.08 < rates[name] / n < 0.15, name
    assert 0.25 < rates["Support Devices"] / n < 0.36
    assert 0.15 < sum(s.truth()["No Finding"] for s in studies) / n < 0.25


def test_prevalence_and_difficulty():
    def look(**options):
        drawn = [draw_patient(0, k, **options).studies[0] for k in range(600)]
        sick = np.mean([1 - study.truth()["No Finding"] for study in drawn])
        severities = [
            f.severity for s in drawn for f in s.findings if f.name in EVAL_FIVE
        ]
        return sick, np.mean(severities) if severities else np.nan

    assert look(prevalence=0.0)[0] == 0
    assert 0.25 < look(prevalence=0.3)[0] < 0.36
    assert look(prevalence=1.0)[0] == 1
    assert look(difficulty=0.0)[1] > look(difficulty=1.0)[1] + 0.1


def test_severities_are_visible(studies):
    severities = [f.severity for s in studies for f in s.findings]
    assert 0.25 <= min(severities) < 0.3
    assert 0.95 < max(severities) <= 1.0


def test_courses_change_severity_alone(patients):
    turns = Counter()
    for patient in patients:
        for before, now in zip(patient.studies, patient.studies[1:], strict=False):
            past = {old.key: old for old in before.findings}
            for finding in now.findings:
                turn = progression(before, finding)
                turns[turn] += 1
                old = past.get(finding.key)
                if old is None:
                    assert turn == "new"
                    continue
                assert (old.side, old.lobe, old.kind) == (
                    finding.side,
                    finding.lobe,
                    finding.kind,
                )
                change = finding.severity - old.severity
                expected = "stable" if not change else "worsening"
                assert turn == (expected if change >= 0 else "improving")
                assert not change or abs(change) >= course.LEAST_CHANGE - 1e-3
            turns["resolved"] += len(resolved(before, now))
    assert set(turns) == {"new", "improving", "stable", "worsening", "resolved"}
    assert min(turns.values()) > 500
    assert progression(None, patients[0].studies[0].findings[0]) == "first"


def test_body_and_views_go_with_no_finding(patients):
    """No correlation above what chance gives in this many patients."""
    first = [patient.studies[0] for patient in patients]
    nuisance = np.array(
        [
            [
                p.body.sex == "F",
                p.body.age,
                p.body.width,
                p.body.height,
                p.body.fat,
                p.body.heart,
                p.body.kyphosis,
                len(p.studies[0].views) == 1,
            ]
            for p in patients
        ],
        float,
    )
    truth = np.array([[s.truth()[name] for name in FINDINGS] for s in first], float)
    both = np.corrcoef(nuisance.T, truth.T)[: nuisance.shape[1], nuisance.shape[1] :]
    assert np.abs(both).max() < 4.5 / np.sqrt(len(patients))


def test_wrong_findings_are_refused():
    with pytest.raises(ValueError, match="kind"):
        Finding("Edema", "bilateral", "none", 0.5, "nodule", 1)
    with pytest.raises(ValueError, match="side"):
        Finding("Edema", "both", "none", 0.5, "alveolar", 1)
    with pytest.raises(ValueError, match="severity"):
        Finding("Edema", "bilateral", "none", 1.5, "alveolar", 1)
