"""The linear probe beside scikit-learn, and what its films may not choose."""

import os
import subprocess
import sys

import numpy as np
import planted
import planted_tasks as toy
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from data_pipelines.annotations import Task
from medclip_jax.evaluation import linear_probe, probe_solver, probes, suite, tasks

BINARY = Task("binary", ("Pneumonia",))
THREE = Task("multiclass", ("a", "b", "c"))


def features(count=160, width=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)


def sklearn_of(x, y, strength, films):
    c = 1 / (strength * films.sum())
    model = LogisticRegression(C=c, tol=1e-12, max_iter=10_000)
    return model.fit(x[films].astype(float), y[films])


# --- The solver -------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_binary_heads_are_sklearns(strength):
    x, rng = features(), np.random.default_rng(1)
    y = x[:, 0] - x[:, 1] + rng.normal(size=len(x)) > 0
    films = np.stack([rng.random(len(x)) < share for share in (0.3, 0.7, 1.0)])
    heads = probe_solver.solve(
        x, y[:, None], np.ones((len(x), 1)), films, np.full(3, strength),
        exclusive=False,
    )  # fmt: skip
    assert heads.gradients_B.max() <= probe_solver.TOLERANCE
    for b in range(3):
        model = sklearn_of(x, y, strength, films[b])
        np.testing.assert_allclose(
            heads.kernels_BxFxC[b, :, 0], model.coef_[0], atol=1e-4
        )
        np.testing.assert_allclose(heads.biases_BxC[b], model.intercept_, atol=1e-4)
        logits = heads.logits(x)[b, :, 0]
        want = model.predict_proba(x)[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), want, atol=1e-4)
        assert roc_auc_score(y, logits) == pytest.approx(
            roc_auc_score(y, want), abs=1e-6
        )


def test_heads_of_several_classes_are_sklearns():
    x, rng = features(), np.random.default_rng(2)
    y = (x[:, :3] + rng.normal(size=(len(x), 3))).argmax(1)
    films = rng.random((1, len(x))) < 0.6
    heads = probe_solver.solve(
        x, np.eye(3)[y], np.ones((len(x), 3)), films, np.array([0.03]), exclusive=True
    )
    model = sklearn_of(x, y, 0.03, films[0])
    # Both sum to zero over the classes: the penalty leaves no other minimum.
    np.testing.assert_allclose(heads.kernels_BxFxC[0].T, model.coef_, atol=1e-4)
    told = linear_probe.probabilities(heads, 0, x, True)
    np.testing.assert_allclose(told, model.predict_proba(x), atol=1e-4)


def test_labels_are_fitted_apart_and_unknown_ones_do_not_count():
    x, rng = features(), np.random.default_rng(3)
    y = x[:, :2] + rng.normal(size=(len(x), 2)) > 0
    known = rng.random((len(x), 2)) < 0.7
    garbage = np.where(known, y, rng.random(y.shape) < 0.5)
    heads = probe_solver.solve(
        x, garbage, known, np.ones((1, len(x))), np.array([0.05]), exclusive=False
    )
    for c in range(2):
        model = sklearn_of(x, y[:, c], 0.05, known[:, c])
        np.testing.assert_allclose(
            heads.kernels_BxFxC[0, :, c], model.coef_[0], atol=1e-4
        )


def test_several_devices_solve_the_same():
    code = (
        "import numpy as np, sys; sys.path.insert(0, 'tests/evaluation')\n"
        "from medclip_jax.evaluation import probe_solver\n"
        "from test_eval_linear_probe import features\n"
        "import jax; x = features(60); y = (x[:, :1] > 0)\n"
        "heads = probe_solver.solve(x, y, np.ones((60, 1)), np.ones((5, 60)),\n"
        "    np.array([1, .5, .1, .05, .02]), exclusive=False)\n"
        "print(jax.device_count(), *heads.kernels_BxFxC.ravel())"
    )
    found = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        made = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        count, *values = made.stdout.split()
        assert int(count) == devices and len(values) == 60
        found.append(np.array(values, float))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


# --- Shares of the labels ---------------------------------------------------------


def test_a_share_is_of_patients_nested_and_meets_every_answer():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(100)], 3)
    codes = (rng.random((300, 4)) < [0.5, 0.02, 0.2, 0.9]).astype(int)
    shares = [probes.subset(codes, patients, f, 0, False) for f in (0.01, 0.1, 1.0)]
    for films in shares:
        taken = set(patients[films])
        assert films.sum() == 3 * len(taken)
        for label in codes[films].T:
            assert set(label) == {0, 1}
    assert len(set(patients[shares[1]])) == 10 and shares[2].all()
    assert (shares[0] <= shares[1]).all()
    other = probes.subset(codes, patients, 0.1, 1, False)
    assert (other != shares[1]).any()
    again = probes.subset(codes[::-1], patients[::-1], 0.1, 0, False)
    assert (again[::-1] == shares[1]).all()  # by id, not by the order of the films
    classes = np.eye(4, dtype=int)[np.arange(300) % 4]
    few = probes.subset(classes, patients, 0.0, 0, True)
    assert classes[few].any(0).all()


# --- The protocol -----------------------------------------------------------------


def run(films, **options):
    return suite.run(planted.bench(films, **options), toy.networks(), ["linear_probe"])


def by_name(results):
    return {(row.protocol, row.metric): row for row in results.rows}


def test_probe_of_a_binary_question():
    codes = np.random.default_rng(0).integers(0, 2, (240, 1))
    films = toy.films(codes, BINARY, "rsna_target", kind="rsna", spread=40)
    results = run(films, seeds=3)
    rows = by_name(results)
    assert [row.metric for row in results.rows] == [
        "auroc_1%",
        "auroc_10%",
        "auroc_100%",
    ]
    head = rows["linear_probe", "auroc_100%"]
    assert head.value > 0.9 and head.n == 80 and head.std is None
    # Its features see a band that is noise, and little of the others.
    assert head.untrained < head.value - 0.05
    assert rows["linear_probe", "auroc_1%"].std > 0
    assert "40 of 40 training patients with 80 films" in head.note
    assert "strength by validation" in head.note
    assert len(results.sections[0].pictures) == 1


def test_probe_of_classes_is_judged_by_accuracy():
    classes = np.random.default_rng(3).integers(0, 3, 240)
    films = toy.films(np.eye(3)[classes], THREE, "covidx", kind="covidx")
    rows = by_name(run(films, seeds=2))
    head = rows["linear_probe", "accuracy_100%"]
    assert head.value > 0.95 and head.chance == pytest.approx(1 / 3)


def test_probe_of_a_study_averages_its_films():
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 2, (80, 1)), 3, axis=0)
    task = Task("binary", ("Abnormal",), "study")
    films = toy.films(
        codes, task, "mura_abnormal", per_patient=3, per_study=3, spread=60
    )
    bench = planted.bench(films, seeds=1)
    (question,) = tasks.questions(bench, "binary")
    parts, _ = probes.find_parts(question, bench.options)
    network = toy.networks()["trained"]
    network.embed(films, np.arange(len(films)), np.zeros(0, int))
    of = {
        part: network.trunk(films, getattr(parts, part).positions)
        for part in ("train", "validate", "test")
    }
    fitted = linear_probe.fit(of, question, parts, 1)
    (chances,) = fitted.chances[1.0]
    assert chances.shape == (len(parts.test), 1) and len(parts.test) == 26
    x = of["train"].astype(float)
    mean, deviation = x.mean(0), x.std(0)
    y = codes[parts.train.positions, 0]
    model = sklearn_of(
        (x - mean) / deviation, y, fitted.strengths[1.0][0], np.ones(len(y), bool)
    )
    told = model.predict_proba((of["test"] - mean) / deviation)[:, 1]
    np.testing.assert_allclose(chances[:, 0], told.reshape(-1, 3).mean(1), atol=2e-4)


def test_films_judged_choose_nothing():
    codes = np.random.default_rng(0).integers(0, 2, (240, 1))
    films = toy.films(codes, BINARY, spread=40)
    swapped = toy.relabelled(films, "test", 1 - codes)
    head = by_name(run(films, seeds=2))["linear_probe", "auroc_10%"]
    other = by_name(run(swapped, seeds=2))["linear_probe", "auroc_10%"]
    assert other.value == pytest.approx(1 - head.value) and other.note == head.note
    moved = toy.relabelled(films, "validate", 1 - codes)
    assert by_name(run(moved, seeds=2))["linear_probe", "auroc_10%"].note != head.note


def test_without_a_validation_split_training_patients_validate():
    codes = np.random.default_rng(0).integers(0, 2, (240, 1))
    films = toy.films(codes, BINARY)
    films.splits[films.splits == "validate"] = "train"
    bench = planted.bench(films)
    (question,) = tasks.questions(bench, "binary")
    parts, _ = probes.find_parts(question, bench.options)
    assert parts.carved
    assert not set(parts.train.patients) & set(parts.validate.patients)
    assert len(parts.validate) == 32 and len(parts.train) == 128
    row = by_name(run(films, seeds=1))["linear_probe", "auroc_100%"]
    assert "validation patients taken of the training split" in row.note


def test_what_cannot_be_probed_is_told():
    bench = planted.bench(toy.films(np.zeros((60, 1)), BINARY))
    assert linear_probe.plan(bench) == []
    assert "hold and lack" in bench.skipped["linear_probe on set"]
    bench = planted.bench(toy.films(np.zeros((60, 1)), BINARY), split="train")
    linear_probe.plan(bench)
    assert "is judged" in bench.skipped["linear_probe on set"]
    films = toy.films(np.random.default_rng(0).integers(0, 2, (60, 1)), BINARY)
    films.splits[:] = "test"
    bench = planted.bench(films)
    linear_probe.plan(bench)
    assert "split train" in bench.skipped["linear_probe on set"]
