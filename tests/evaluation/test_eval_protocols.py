"""Zero-shot, retrieval and baselines on arrays whose answer is known."""

import numpy as np
import pytest
from sklearn import metrics as sk

from data_pipelines.findings import EVAL_FIVE, FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation import (
    baselines,
    plots_curves,
    prompts,
    retrieval,
    zero_shot,
)
from medclip_jax.evaluation.retrieval_exact import exact_rows
from medclip_jax.evaluation.zero_shot_findings import findings_rows
from medclip_jax.evaluation.zero_shot_five import five_class_rows

FIVE = prompts.five_class_prompts()
OWNER = np.repeat(np.arange(5), [len(texts) for texts in FIVE.values()])


def five_task(noise: float, films: int = 400, seed: int = 0):
    rng = np.random.default_rng(seed)
    classes = np.arange(films) % 5
    signal = (classes[:, None] == OWNER[None]).astype(np.float32)
    trained = signal + noise * rng.normal(size=signal.shape)
    guess = rng.normal(size=signal.shape)
    return {"trained": trained, "untrained": guess}, classes, np.arange(films) // 2


def test_five_perfect_and_random():
    logits, classes, patients = five_task(noise=0)
    rows = five_class_rows(logits, FIVE, classes, patients, "toy")
    head = rows[0]
    assert (head.protocol, head.metric, head.dataset) == (
        "zero_shot_five",
        "accuracy",
        "toy",
    )
    assert head.value == head.low == head.high == 1
    assert head.std == 0 and head.n == 400 and head.chance == 0.2
    assert 0.1 < head.untrained < 0.3
    by = {(row.protocol, row.metric): row for row in rows}
    assert by["zero_shot_five", "auroc"].value == 1
    assert by["zero_shot_five", "macro_f1"].value == 1
    assert by["zero_shot_five/max_prompt", "accuracy"].value == 1
    assert by["zero_shot_five/all_prompts", "accuracy"].value == 1


def test_five_noisy_interval_holds_the_value():
    logits, classes, patients = five_task(noise=4)
    head = five_class_rows(logits, FIVE, classes, patients, "toy")[0]
    assert 0.25 < head.low < head.value < head.high < 0.95
    assert head.std > 0


def test_pooling_mean_and_max():
    logits = np.array([[0.0, 3.0, 2.0, 2.0]])
    columns = [np.array([0, 1]), np.array([2, 3])]
    assert zero_shot.class_scores(logits, columns, "mean").tolist() == [[1.5, 2.0]]
    assert zero_shot.class_scores(logits, columns, "max").tolist() == [[3.0, 2.0]]
    with pytest.raises(UserError, match="median"):
        zero_shot.class_scores(logits, columns, "median")


def test_against_rest_removes_the_offset_of_a_film():
    scores = np.random.default_rng(0).normal(size=(6, 5))
    moved = scores + np.arange(6)[:, None] * 10
    np.testing.assert_allclose(
        zero_shot.against_rest(moved), zero_shot.against_rest(scores), atol=1e-12
    )


def test_binary_target_policies():
    labels = np.array([1, 0, -1, -2])
    kept, positive = zero_shot.binary_target(labels)
    assert kept.tolist() == [True, True, False, True]
    assert positive.tolist() == [True, False, False, False]
    kept, _ = zero_shot.binary_target(labels, "ignore")
    assert kept.tolist() == [True, True, False, False]
    with pytest.raises(UserError, match="not_given"):
        zero_shot.binary_target(labels, "one")


def test_findings_auroc_is_sklearns_and_short_findings_are_left_out():
    rng = np.random.default_rng(0)
    fourteen = prompts.fourteen_prompts()
    labels = rng.choice([1, 0, -1, -2], (300, 14), p=[0.2, 0.3, 0.1, 0.4])
    labels[:, 3] = 0
    owner = np.repeat(np.arange(14), [len(texts) for texts in fourteen.values()])
    trained = (labels == 1)[:, owner] + rng.normal(size=(300, len(owner)))
    both = {"trained": trained, "untrained": rng.normal(size=trained.shape)}
    rows, left_out = findings_rows(both, fourteen, labels, np.arange(300), "toy")
    assert list(left_out) == [FINDINGS[3]]
    assert "0 positive" in left_out[FINDINGS[3]]
    by = {(row.protocol, row.metric): row for row in rows}
    edema = FINDINGS.index("Edema")
    scores = zero_shot.against_rest(
        zero_shot.class_scores(trained, [np.flatnonzero(owner == c) for c in range(14)])
    )[:, edema]
    kept = labels[:, edema] != -1
    want = sk.roc_auc_score(labels[kept, edema] == 1, scores[kept])
    got = by["zero_shot_findings/Edema", "auroc"]
    assert got.value == pytest.approx(want) and want > 0.9
    assert got.low < got.value <= got.high
    assert got.n == kept.sum()
    macro = rows[0]
    assert macro.protocol == "zero_shot_findings" and macro.metric == "auroc"
    assert macro.value == pytest.approx(
        np.mean([r.value for r in rows[1:] if r.metric == "auroc"])
    )
    assert 0.4 < macro.untrained < 0.6
    precision = by["zero_shot_findings/Edema", "average_precision"]
    assert precision.chance == pytest.approx(np.mean(labels[kept, edema] == 1))


def test_precision_of_a_perfect_and_of_a_random_network():
    rng = np.random.default_rng(0)
    films, texts = np.arange(200) % 5, np.arange(100) % 5
    agree = films[:, None] == texts[None]
    guess = rng.normal(size=agree.shape)
    rows = retrieval.precision_rows(
        "p", "toy", {"trained": agree + 0.1 * guess, "untrained": guess}, agree,
        np.arange(200), (1, 2, 5, 10),
    )  # fmt: skip
    assert [row.metric for row in rows] == [f"precision_at_{k}" for k in (1, 2, 5, 10)]
    for row in rows:
        assert row.value == 1 and row.chance == pytest.approx(0.2) and row.n == 200
        assert abs(row.untrained - 0.2) < 0.1


def test_precision_leaves_out_k_above_the_candidates():
    eye = {"trained": np.eye(3)}
    rows = retrieval.precision_rows("p", "toy", eye, np.eye(3) > 0, [*"abc"], (1, 2, 5))
    assert [row.metric for row in rows] == ["precision_at_1", "precision_at_2"]


def test_standardised_scores_are_glorias():
    scores = np.array([[1, 0.2], [0.5, 0.9], [0.1, 0.4]])
    got = zero_shot.standardise(scores)
    want = [[1.267500, -1.019049], [-0.090536, 1.358732], [-1.176965, -0.339683]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got.argmax(axis=1).tolist() == [0, 1, 1]
    np.testing.assert_array_equal(zero_shot.standardise(scores[:1]), scores[:1])


def test_duplicates_of_text_are_one():
    first, group = retrieval.first_of_each(["No edema.", "Clear.", "no  edema", "x"])
    assert first.tolist() == [0, 1, 3]
    assert group.tolist() == [0, 1, 0, 2]


def test_exact_retrieval_groups_and_chance():
    # Films 0 and 1 are of report 0; the network always prefers report 1.
    logits = np.array([[0.0, 1], [0, 1], [0, 1]])
    rows = exact_rows(
        {"trained": logits, "untrained": logits[:, ::-1]},
        np.array([0, 0, 1]),
        ["a", "a", "b"],
        "toy",
    )
    by = {row.protocol: row for row in rows}
    to_text = by["retrieval_exact/image_to_text"]
    assert to_text.metric == "recall_at_1"
    assert to_text.value == pytest.approx(1 / 3)
    assert to_text.untrained == pytest.approx(2 / 3)
    assert to_text.chance == 0.5
    to_image = by["retrieval_exact/text_to_image"]
    assert to_image.value == pytest.approx(0.5)  # ties: the lower index first
    assert to_image.chance == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_chance_of_recall_is_hypergeometric():
    rng = np.random.default_rng(0)
    drawn = [rng.choice(20, 5, replace=False).min() < 3 for _ in range(20000)]
    chance = retrieval.chance_of_recall(np.array([3]), 20, 5)
    assert abs(chance - np.mean(drawn)) < 0.01
    assert retrieval.chance_of_recall(np.array([1]), 10, 10) == 1


def test_shrink_is_the_mean_of_each_field():
    films = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 1), dtype=np.uint8)
    got = baselines.shrink(films)
    want = films.reshape(2, 16, 4, 16, 3).mean((2, 4)).reshape(2, 256)
    np.testing.assert_allclose(got, want)
    uneven = baselines.shrink(np.full((1, 37, 50, 1), 9, np.uint8))
    np.testing.assert_allclose(uneven, 9)
    with pytest.raises(ValueError, match="8 x 64"):
        baselines.shrink(films[:, :8].repeat(2, axis=2)[:, :, :64])


def test_pixel_baseline_learns_brightness_and_not_noise():
    rng = np.random.default_rng(0)
    classes = np.arange(200) % 5
    films = rng.integers(0, 60, (200, 32, 32, 1))
    where = np.zeros((200, 32, 32, 1))
    for film, c in enumerate(classes):
        where[film, c * 6 : c * 6 + 6] = 60
    bright = (films + where).astype(np.uint8)
    fitted = baselines.fit_pixels_logistic(
        baselines.shrink(bright[:150]), classes[:150], range(150)
    )
    right = fitted.predict([bright[150:170], bright[170:]]) == classes[150:]
    assert right.mean() > 0.95 and fitted.films == 150
    noise = films.astype(np.uint8)
    fitted = baselines.fit_pixels_logistic(
        baselines.shrink(noise[:150]), classes[:150], range(150)
    )
    assert (fitted.predict([noise[150:]]) == classes[150:]).mean() < 0.45


def test_five_of_takes_the_five_columns_by_name():
    logits = np.zeros((5, 14))
    for row, name in enumerate(EVAL_FIVE):
        logits[row, FINDINGS.index(name)] = 1
        logits[row, FINDINGS.index("No Finding")] = 9
    assert baselines.five_of(logits).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="14 findings"):
        baselines.five_of(logits[:, :5])


def test_calibration_error_of_hand_made_bins():
    # 4 films at 0.95, 3 right; 6 films at 0.55, 3 right: 0.4 * 0.2 + 0.6 * 0.05
    confidence = np.array([0.95] * 4 + [0.55] * 6)
    right = np.array([True] * 3 + [False] + [True] * 3 + [False] * 3)
    error = plots_curves.calibration_error(confidence, right)
    assert error == pytest.approx(0.4 * 0.2 + 0.6 * 0.05)
    rng = np.random.default_rng(0)
    sure = rng.random(20000)
    honest = rng.random(20000) < sure
    assert plots_curves.calibration_error(sure, honest) < 0.02
    assert plots_curves.calibration_error(np.ones(10), np.ones(10, bool)) == 0
