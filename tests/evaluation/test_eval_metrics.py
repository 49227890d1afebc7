"""Metrics against published oracles, scikit-learn, and known distributions."""

import numpy as np
import pytest
from sklearn import metrics as sk

from medclip_jax.evaluation import metrics


def test_precision_at_k_oracle():
    candidates = np.array([0, 1, 0, 1, 0, 2])
    similarity = np.array([[6.0, 5, 4, 3, 2, 1]])
    found = metrics.precision_at_k(similarity, (candidates == 0)[None], (1, 2, 3, 5))
    got = [found[k][0] for k in (1, 2, 3, 5)]
    np.testing.assert_allclose(got, [1.0, 0.5, 0.666667, 0.6], atol=1e-6)


def test_precision_at_k_ranks_ties_by_index():
    correct = np.array([[True, False, True, False]])
    found = metrics.precision_at_k(np.zeros((1, 4)), correct, (1, 2, 4))
    assert [found[k][0] for k in (1, 2, 4)] == [1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="K=5 exceeds 4"):
        metrics.precision_at_k(np.zeros((1, 4)), correct, (5,))


def test_rank_oracle_with_ties():
    images = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]])
    texts = np.array([[1, 0], [0, 1], [0, 1], [0.8, 0.6]])
    logits = images @ texts.T
    exact = np.eye(4, dtype=bool)
    to_text = metrics.first_hit_rank(logits, exact)
    to_image = metrics.first_hit_rank(logits.T, exact)
    np.testing.assert_array_equal(to_text, [0, 0, 2, 2])
    np.testing.assert_array_equal(to_image, [0, 0, 2, 3])
    summary = metrics.rank_summary(to_text, (1,))
    assert summary == {"mean_rank": 2.0, "median_rank": 2.0, "recall_at_1": 0.5}
    summary = metrics.rank_summary(to_image, (1,))
    assert summary == {"mean_rank": 2.25, "median_rank": 2.0, "recall_at_1": 0.5}


def test_rank_takes_the_best_of_several_right_answers():
    similarity = np.array([[0.1, 0.9, 0.5]])
    assert metrics.first_hit_rank(similarity, np.array([[True, False, True]]))[0] == 1
    with pytest.raises(ValueError, match="without a right answer"):
        metrics.first_hit_rank(similarity, np.zeros((1, 3), bool))


def test_classification_is_sklearns_and_counts_absent_classes():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    got = metrics.classification(truth, predicted, 5)
    labels = {"labels": range(5), "average": "macro", "zero_division": 0}
    assert got["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, **labels))
    assert got["macro_recall"] == pytest.approx(
        sk.recall_score(truth, predicted, **labels)
    )
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert got["recall_by_class"][4] == 0
    assert metrics.confusion(truth, predicted, 5).shape == (5, 5)
    assert metrics.confusion(np.array([0]), np.array([2]), 3)[0, 2] == 1


def test_weighted_auroc_is_sklearns_with_ties():
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + positive, 1)  # many ties
    weights = rng.integers(0, 4, (5, 300)).astype(float)
    got = metrics.Auroc(positive, scores)(weights)
    want = [sk.roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    ones = metrics.Auroc(positive, scores)(np.ones((1, 300)))[0]
    assert ones == pytest.approx(metrics.auroc(positive, scores))


def test_auroc_needs_both_kinds():
    assert np.isnan(metrics.auroc(np.ones(3, bool), np.arange(3)))
    assert np.isnan(metrics.average_precision(np.zeros(3, bool), np.arange(3)))
    only = metrics.Auroc(np.ones(3, bool), np.arange(3))
    assert np.isnan(only(np.ones((1, 3)))[0])


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        right = np.random.default_rng(seed).random(150) < 0.6
        interval = metrics.bootstrap(
            metrics.Mean(right), np.arange(150), seed=seed, samples=300
        )
        assert interval.low <= interval.value <= interval.high
        covered += interval.low <= 0.6 <= interval.high
    assert 88 <= covered <= 99


def test_bootstrap_is_over_patients_and_seeded():
    right = np.repeat(np.random.default_rng(0).random(40) < 0.5, 10)
    statistic = metrics.Mean(right)
    films = metrics.bootstrap(statistic, np.arange(400))
    patients = metrics.bootstrap(statistic, np.repeat(np.arange(40), 10))
    # Ten equal films a patient carry one patient's information: sqrt(10) wider.
    ratio = (patients.high - patients.low) / (films.high - films.low)
    assert 2.5 < ratio < 3.9
    assert patients == metrics.bootstrap(statistic, np.repeat(np.arange(40), 10))
    uneven = metrics.Mean(np.arange(400.0))
    other = metrics.bootstrap(uneven, np.arange(400), seed=1)
    assert other.low != metrics.bootstrap(uneven, np.arange(400), seed=0).low


def test_bootstrap_blocks_change_nothing(monkeypatch):
    statistic = metrics.Mean(np.arange(50.0))
    whole = metrics.bootstrap(statistic, np.arange(50), samples=64)
    monkeypatch.setattr(metrics, "_BLOCK_ENTRIES", 50 * 7)
    assert metrics.bootstrap(statistic, np.arange(50), samples=64) == whole


def test_an_interval_of_few_resamples_is_none():
    # One positive unit among 20: 36 % of the resamples lack it, which leaves enough;
    # two statistics that each need another single unit are both there in 40 %.
    scores = np.linspace(0, 1, 20)
    one, two = (metrics.Auroc(np.arange(20) == place, scores) for place in (15, 4))
    kept = metrics.bootstrap(one, np.arange(20))
    assert kept.low < kept.value < kept.high
    lost = metrics.bootstrap(metrics.MeanOf([one, two]), np.arange(20))
    assert np.isfinite(lost.value) and np.isnan(lost.low) and np.isnan(lost.high)


def test_bootstrap_of_one_patient_has_no_interval():
    interval = metrics.bootstrap(metrics.Mean(np.array([1, 0])), ["p", "p"])
    assert interval.value == 0.5
    assert np.isnan(interval.low) and np.isnan(interval.high)


def weighted_case(seed=1, units=300):
    rng = np.random.default_rng(seed)
    positive = rng.random(units) < 0.3
    scores = np.round(rng.normal(size=units) + positive, 1)  # many ties
    weights = rng.integers(0, 4, (5, units)).astype(float)
    return rng, positive, scores, weights


def test_weighted_average_precision_is_sklearns_with_ties():
    _, positive, scores, weights = weighted_case()
    got = metrics.AveragePrecision(positive, scores)(weights)
    want = [
        sk.average_precision_score(positive, scores, sample_weight=row)
        for row in weights
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_weighted_f1_and_macro_recall_are_sklearns():
    rng, _, _, weights = weighted_case()
    truth = rng.integers(0, 4, 300)
    predicted = np.where(rng.random(300) < 0.5, truth, rng.integers(0, 4, 300))
    got = metrics.MacroF1(truth, predicted, 4)(weights)
    want = [
        sk.f1_score(truth, predicted, average="macro", sample_weight=row)
        for row in weights
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    fifth = metrics.MacroF1(truth, predicted, 5)(weights)  # a class never met
    np.testing.assert_allclose(fifth, np.array(want) * 4 / 5, rtol=1e-12)
    got = metrics.macro_recall(truth, predicted, 4)(weights)
    want = [
        sk.balanced_accuracy_score(truth, predicted, sample_weight=row)
        for row in weights
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # improving twice, stable three times, worsening once: 1/2, 2/3 and 1
    small = metrics.macro_recall(
        np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2]), 3
    )
    assert small(np.ones((1, 6)))[0] == pytest.approx(0.722222, abs=1e-6)


def test_a_part_of_the_units_counts_with_its_own_weights():
    _, positive, scores, weights = weighted_case()
    rows = np.flatnonzero(np.arange(300) % 3 == 0)
    part = metrics.Auroc(positive[rows], scores[rows], rows)
    alone = metrics.Auroc(positive[rows], scores[rows])
    np.testing.assert_allclose(part(weights), alone(weights[:, rows]))
    mean = metrics.Mean(scores[rows], rows)(weights)
    want = [np.average(scores[rows], weights=row[rows]) for row in weights]
    np.testing.assert_allclose(mean, want)


def test_a_statistic_comes_back_from_arrays(tmp_path):
    _, positive, scores, weights = weighted_case()
    truth, rows = positive.astype(int), np.arange(0, 300, 2)
    statistic = metrics.MeanOf(
        [
            metrics.Mean(scores[rows], rows),
            metrics.MeanOf([metrics.Auroc(positive, scores)]),
            metrics.AveragePrecision(positive[rows], scores[rows], rows),
            metrics.MacroF1(truth, 1 - truth, 2),
        ]
    )
    np.savez(tmp_path / "s.npz", **metrics.to_arrays(statistic, "a/"))
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        again = metrics.from_arrays(stored, "a/")
    np.testing.assert_array_equal(again(weights), statistic(weights))
