"""Progression between two films: the published number, folds, and a planted answer."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from medclip_jax.evaluation import small_probes, suite
from medclip_jax.evaluation import temporal_image_classification as temporal
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.sets import Films, Table
from medclip_jax.methods.interface import ImageEmbedding

NAME = "temporal_image_classification"


def test_macro_accuracy_of_the_published_example():
    truth, told = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])
    right, ones, rows = (truth == told).astype(float), np.ones((1, 6)), np.arange(6)
    macro = temporal.recalls(right, truth, rows)(ones)[0]
    assert macro == pytest.approx(0.722222, abs=1e-6)
    assert macro == pytest.approx(sk.balanced_accuracy_score(truth, told), abs=1e-12)
    assert temporal.share(right, truth, rows)(ones)[0] == pytest.approx(4 / 6)


# --- Classifiers ------------------------------------------------------------------------


def points(count=120, width=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=[0.2, 0.5, 0.3])
    return rng.normal(size=(count, width)) + 0.35 * np.eye(width)[labels] * 8, labels


def test_fewer_coordinates_change_no_prediction():
    features, labels = points()
    few = small_probes.compact(features)
    assert few.shape == (120, 120)
    np.testing.assert_allclose(
        np.square(few[0] - few[1:]).sum(1), np.square(features[0] - features[1:]).sum(1)
    )
    kept = small_probes.compact(features[:, :20])
    np.testing.assert_allclose(kept, features[:, :20] - features[:, :20].mean(0))
    for wide, narrow in ((features, few), (1e-3 * features + 7, few)):
        a, b = (
            small_probes.logistic(x[:80], labels[:80], x[80:]) for x in (wide, narrow)
        )
        np.testing.assert_array_equal(a, b)
    assert np.mean(a == labels[80:]) > 0.6


def test_logistic_is_scikit_learns_on_scaled_features():
    features, labels = points(width=10)
    middle = features[:80].mean(0)
    length = np.sqrt(np.square(features[:80] - middle).sum(1).mean())
    model = LogisticRegression(C=10, class_weight="balanced", max_iter=5000)
    model.fit((features[:80] - middle) / length, labels[:80])
    want = model.predict((features[80:] - middle) / length)
    got = small_probes.logistic(features[:80], labels[:80], features[80:])
    np.testing.assert_array_equal(got, want)


def test_out_of_fold_is_scikit_learns_cross_validation():
    features, labels = points(width=10)
    got = small_probes.out_of_fold(
        features, labels, None, small_probes.linear_svm, seed=4
    )
    folds = StratifiedKFold(10, shuffle=True, random_state=4)
    want = cross_val_score(
        LinearSVC(max_iter=20_000, random_state=0), features, labels, cv=folds
    )
    assert np.mean(got == labels) == pytest.approx(want.mean(), abs=1e-6)


def test_rows_of_a_patient_are_never_fitted_on():
    """Each patient has a mark and a label: whoever saw the patient knows it."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 4)
    labels = np.repeat(rng.integers(0, 3, 60), 4)
    features = 5 * np.eye(60)[patients] + rng.normal(0, 0.1, (240, 60))

    def right(groups):
        told = small_probes.out_of_fold(
            features, labels, groups, small_probes.logistic, seed=0
        )
        assert set(told) <= {0, 1, 2}
        return np.mean(told == labels)

    assert right(None) > 0.95
    assert right(patients) < 0.55


# --- A planted answer -------------------------------------------------------------------

SIZE = 8
FINDINGS = ("Edema", "Pneumothorax")


class Planted:
    """The trunk is the film's left and right half; a joint space of noise and both."""

    def embed_images(self, variables, films):
        halves = films["current_BxHxWx3"][..., 0].reshape(-1, SIZE, 2, SIZE // 2)
        light_Bx2 = halves.mean((1, 3))
        noise_Bx6 = jnp.sin(1000 * light_Bx2 @ jnp.arange(12.0).reshape(2, 6))
        parts = [
            4 * light_Bx2 * variables["eye"],
            noise_Bx6,
            jnp.full((len(halves), 1), 9),
        ]
        trunk = jnp.concatenate(parts, -1)
        joint = trunk / jnp.linalg.norm(trunk, axis=1, keepdims=True)
        return ImageEmbedding(trunk, joint)


def planted(count=120, splits=("test",), seed=0):
    """Two findings, one a half; it grows brighter when it gets worse."""
    rng = np.random.default_rng(seed)
    total = count * len(splits)
    pixels = np.zeros((2 * total, SIZE, SIZE, 1), np.uint8)
    rows = []
    for pair in range(total):
        for half, finding in enumerate(FINDINGS):
            label = int(rng.choice(3, p=[0.25, 0.45, 0.3]))
            before = rng.integers(100, 140)
            columns = slice(half * SIZE // 2, (half + 1) * SIZE // 2)
            pixels[2 * pair, :, columns] = before
            pixels[2 * pair + 1, :, columns] = before + 50 * (label - 1)
            rows.append(
                {
                    "image_id": f"f{2 * pair + 1}",
                    "previous_image_id": f"f{2 * pair}",
                    "patient_id": f"p{pair // 2}",
                    "finding": finding,
                    "label": temporal.LABELS[label],
                    "quality": "",
                }
            )

    def read(positions):
        yield pixels[positions]

    names = np.array([f"f{i}" for i in range(2 * total)])
    films = Films(
        "toy", names, names, names, names, np.zeros((2 * total, 14), np.int8), read,
        np.repeat(splits, 2 * count), lambda i: {}, fingerprint="films",
    )  # fmt: skip
    return films, Table("changes of toy", "ms_cxr_t", "changes", rows)


class PlantedPair(Planted):
    """The trunk is what grew brighter, of each half: it needs both films."""

    reads_prior = True

    def embed_images(self, variables, films):
        seen = super().embed_images(variables, films)
        if "prior_BxHxWx3" not in films:
            return ImageEmbedding(0 * seen.trunk_BxF, 0 * seen.joint_BxD)
        before = {"current_BxHxWx3": films["prior_BxHxWx3"]}
        change = seen.trunk_BxF - super().embed_images(variables, before).trunk_BxF
        trunk = jnp.concatenate([change[:, :2], jnp.ones((len(change), 1))], -1)
        return ImageEmbedding(trunk, trunk)


def networks(*names, method=Planted):
    embedder = Embedder(
        method(), lambda x: jnp.repeat(x / 255.0, 3, -1), None, 1, batch_size=64
    )
    made = {"trained": 1.0, "untrained": 0.0, "imagenet": 0.0}
    return {
        name: Network(name, embedder, {"eye": np.float32(made[name])}, reads_text=False)
        for name in names
    }


@pytest.fixture(scope="module")
def measured():
    films, table = planted()
    made = networks("trained", "untrained", "imagenet")
    return suite.run(Bench([films], progression=[table]), made, [NAME])


def test_planted_changes_are_found(measured):
    rows = {(row.protocol, row.metric): row for row in measured.rows}
    head = measured.rows[0]
    assert (head.protocol, head.metric) == (NAME, "macro_accuracy")
    assert head.value > 0.85 and head.chance == pytest.approx(1 / 3)
    assert head.low < head.value < head.high and head.std is not None
    assert head.untrained < 0.5 and head.imagenet == head.untrained
    assert head.n == 240 and len(set(head.sample.patients)) == 60
    assert head.sample.units[0] == "f1 f0 Edema"
    assert head.data == "changes+films"
    for metric in ("macro_accuracy", "accuracy"):
        parts = [rows[f"{NAME}/{f}", metric].value for f in FINDINGS]
        assert rows[NAME, metric].value == pytest.approx(np.mean(parts))
    assert rows[f"{NAME}/Edema", "accuracy"].n == 120
    labels = [r["label"] for r in planted()[1].rows if r["finding"] == "Edema"]
    most = max(map(labels.count, temporal.LABELS)) / len(labels)
    assert rows[f"{NAME}/Edema", "accuracy"].chance == pytest.approx(most)
    assert rows[f"{NAME}/joint", "macro_accuracy"].value > 0.6
    assert rows[f"{NAME}/ungrouped_svm/Edema", "accuracy"].value > 0.6
    why = measured.skipped[f"{NAME}/separate_training on changes of toy"]
    assert "Edema, Pneumothorax" in why


def test_a_network_that_reads_both_films_is_shown_both(measured):
    films, table = planted()
    made = networks("trained", "untrained", method=PlantedPair)
    results = suite.run(Bench([films], progression=[table]), made, [NAME])
    rows = {(row.protocol, row.metric): row for row in results.rows}
    head = rows[NAME, "macro_accuracy"]
    assert head.value > 0.95 and head.untrained < 0.5
    # The change alone tells them apart; films side by side also tell how bright both are.
    assert head.value > measured.rows[0].value
    pairs = temporal.find_pairs(table, Bench([films]))[0][::-7]
    places = [(pair.current, pair.previous) for pair in pairs]
    network = made["trained"]
    one = network.compared(places)
    light = [next(films.read(np.array([at])))[0] / 255.0 for (_, at), _ in places]
    dark = [next(films.read(np.array([at])))[0] / 255.0 for _, (_, at) in places]
    change = 4 * (np.array(light) - np.array(dark))[:, 0, [0, -1], 0]
    np.testing.assert_allclose(one.trunk_BxF[:, :2], change, atol=1e-5)
    other = networks("trained", method=PlantedPair)["trained"].compared(places)
    np.testing.assert_array_equal(one.trunk_BxF, other.trunk_BxF)


def test_order_of_the_films_matters(measured):
    """With the films exchanged, improving and worsening are exchanged, not lost."""
    films, table = planted()
    turned = [
        {**r, "image_id": r["previous_image_id"], "previous_image_id": r["image_id"]}
        for r in table.rows
    ]
    pairs = temporal.find_pairs(table, Bench([films]))[0]
    back = temporal.find_pairs(dataclasses.replace(table, rows=turned), Bench([films]))[
        0
    ]

    def light(films, positions):
        return next(films.read(positions)).reshape(len(positions), -1)[:, [0, -1]]

    first, second = (temporal.side_by_side(light, p) for p in (pairs, back))
    by_unit = {p.unit: row for p, row in zip(back, second)}
    for pair, row in zip(pairs, first):
        now, before, finding = pair.unit.split(" ")
        other = by_unit[f"{before} {now} {finding}"]
        np.testing.assert_array_equal(row, np.r_[other[2:], other[:2]])
        np.testing.assert_allclose(np.linalg.norm(row[:2]), 1)


def test_separate_training_pairs_are_of_other_patients():
    films, table = planted(splits=("train", "test"))
    bench = Bench([films], progression=[table])
    results = suite.run(bench, networks("trained", "untrained"), [NAME])
    rows = {(row.protocol, row.metric): row for row in results.rows}
    head = rows[f"{NAME}/separate_training", "macro_accuracy"]
    assert head.value > 0.85 and head.untrained < 0.5 and head.std is None
    assert head.n == rows[NAME, "macro_accuracy"].n == 240
    assert "fitted on 120 Edema, 120 Pneumothorax" in head.note
    assert "240 labels" in results.skipped[f"some of {NAME} on changes of toy"]
    # All patients judged: none is left to fit on.
    same = [{**row, "patient_id": f"p{i % 60}"} for i, row in enumerate(table.rows)]
    bench = Bench([films], progression=[dataclasses.replace(table, rows=same)])
    temporal.plan(bench)
    assert f"{NAME}/separate_training on changes of toy" in bench.skipped


def test_what_cannot_be_judged_is_told():
    films, table = planted(count=20)
    bench = Bench([films], progression=[table])
    assert not temporal.plan(bench)
    why = bench.skipped[f"{NAME} on changes of toy"]
    assert "10 patients of each class are needed" in why
    films, table = planted()
    bench = Bench([], progression=[table])
    assert not temporal.plan(bench)
    assert "240 labels" in bench.skipped[f"{NAME} on changes of toy"]
    odd = [{**table.rows[0], "label": "resolved"}, *table.rows[1:]]
    bench = Bench([films], progression=[dataclasses.replace(table, rows=odd)])
    assert len(temporal.plan(bench)) == 1
    assert "1 labels: their label" in bench.skipped[f"some of {NAME} on changes of toy"]


def test_gallery_and_repetition(measured):
    section = measured.sections[0]
    assert section.pictures[0].png[:4] == b"\x89PNG"
    films, table = planted()
    bench = Bench([films], progression=[table], options=Options())
    again = suite.run(bench, networks("trained"), [NAME])
    for metric in ("value", "low", "high", "std"):
        values = [[getattr(row, metric) for row in of.rows] for of in (again, measured)]
        assert values[0] == values[1]
