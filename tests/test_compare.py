"""`medclip-jax compare`: planted differences are found, equal networks are equal."""

import dataclasses
import json

import numpy as np
import pytest

from medclip_jax import compare
from medclip_jax.errors import UserError
from medclip_jax.evaluation import metrics, paired, rows, samples

UNITS = np.array([f"film{i}" for i in range(400)])
PATIENTS = np.array([f"p{i // 2}" for i in range(400)])


def write(folder, gain=0.0, seed=0, units=UNITS, data="d1"):
    """A report with an accuracy, an AUROC and a macro F1."""
    rng = np.random.default_rng(7)
    hard = np.repeat(rng.random(200), 2)  # what is hard is hard for both networks
    own = np.random.default_rng(seed)
    right = hard + 0.05 * own.normal(size=400) < 0.6 + gain
    positive = np.arange(400) % 2 == 0
    scores = positive * (0.5 + gain) + rng.normal(size=400) + 0.1 * own.normal(size=400)
    folder.mkdir()
    made = [
        rows.measured("zero_shot_five", "toy", "accuracy",
                      {"trained": metrics.Mean(right)}, PATIENTS, 0.2, units=units),
        rows.measured("zero_shot_findings", "toy", "auroc",
                      {"trained": metrics.Auroc(positive, scores)}, PATIENTS, 0.5,
                      units=units),
        rows.measured("zero_shot_five/max_prompt", "toy", "macro_f1",
                      {"trained": metrics.MacroF1(positive * 1, (scores > 0.2) * 1, 2)},
                      PATIENTS, 0.5, units=units),
    ]  # fmt: skip
    samples.write([dataclasses.replace(row, data=data) for row in made], folder)
    return folder


def run(tmp_path, first, second, *more):
    out = tmp_path / "out"
    assert compare.main([str(first), str(second), "--out", str(out), *more]) == 0
    made = json.loads((out / "compare.json").read_text())
    return {one["protocol"]: one for one in made["differences"]}, made


def test_a_better_network_is_found_better(tmp_path, capsys):
    first = write(tmp_path / "a")
    second = write(tmp_path / "b", gain=0.25, seed=1)
    found, _ = run(tmp_path, first, second)
    head = found["zero_shot_five"]
    assert head["value"] == pytest.approx(head["second"] - head["first"])
    assert head["low"] > 0.1 and head["high"] < 0.4
    assert head["p"] < 0.01 and head["p_holm"] < 0.05
    assert head["n"] == 400 and head["patients"] == 200
    assert found["zero_shot_findings"]["value"] > 0
    said = capsys.readouterr().out
    assert "B - A" in said and "1 further figures" in said
    turned, _ = run(tmp_path, second, first)
    assert turned["zero_shot_five"]["high"] < -0.1


def test_a_network_does_not_differ_from_itself(tmp_path):
    first = write(tmp_path / "a")
    found, _ = run(tmp_path, first, first)
    for one in found.values():
        assert one["value"] == one["low"] == one["high"] == 0 and one["p"] == 1


def test_pairing_sees_what_two_intervals_do_not(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", gain=0.06, seed=1)
    a, b = (samples.read(folder) for folder in (first, second))
    key = ("zero_shot_five", "toy", "accuracy")
    alone = [
        metrics.bootstrap(of[key].sample.statistic, of[key].sample.patients)
        for of in (a, b)
    ]
    assert alone[0].high > alone[1].low  # the intervals overlap
    assert paired.difference(key, a[key], b[key]).low > 0


def test_false_alarms_are_as_rare_as_p_says():
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        kept = [
            samples.Kept(
                "d",
                rows.Sample(
                    metrics.Mean(rng.random(120) < 0.6), PATIENTS[:120], UNITS[:120]
                ),
            )
            for _ in range(2)
        ]
        made = paired.difference(("p", "d", "m"), *kept, resamples=400)
        alarms += made.p < 0.05
    assert 6 <= alarms <= 24  # 15 expected


def test_holm_is_the_textbooks():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0] and paired.holm([]) == []


@pytest.mark.parametrize(
    "other, why",
    [({"data": "d2"}, "other data"), ({"units": UNITS[::-1]}, "other units")],
)
def test_other_data_are_not_compared(tmp_path, other, why):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", **other)
    with pytest.raises(UserError, match=why):
        compare.main([str(first), str(second)])


def test_a_folder_without_samples_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(UserError, match="medclip-jax evaluate --out"):
        compare.main([str(tmp_path), str(tmp_path)])
    first = write(tmp_path / "a")
    path = first / samples.FILE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="samples.npz is damaged"):
        compare.main([str(first), str(first)])
    with pytest.raises(UserError, match="--resamples"):
        compare.main([str(first), str(first), "--resamples", "3"])
