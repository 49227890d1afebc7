"""Similarity of sentence pairs: thresholds, folds, and a planted answer."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from medclip_jax.evaluation import sentence_pairs, suite
from medclip_jax.evaluation import temporal_sentence_similarity as similarity
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Abilities, Bench, Options
from medclip_jax.evaluation.sets import Table
from medclip_jax.methods.interface import TextEmbedding

NAME = "temporal_sentence_similarity"


# --- Thresholds -------------------------------------------------------------------------


def every_threshold(scores):
    ranked = np.unique(scores)
    return [-np.inf, *((ranked[1:] + ranked[:-1]) / 2), np.inf]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60) + positive, 1)  # with ties
    got = sentence_pairs.best_threshold(scores, positive)
    right = {t: np.mean((scores > t) == positive) for t in every_threshold(scores)}
    assert right[got] == max(right.values())
    assert got == min(t for t in right if right[t] == right[got])


def test_thresholds_of_pairs_that_nothing_parts():
    positive = np.array([True, False, False])
    told = np.full(3, 0.5) > sentence_pairs.best_threshold(np.full(3, 0.5), positive)
    assert not told.any()
    assert sentence_pairs.best_threshold(
        np.array([0.2, 0.6]), np.array([False, True])
    ) == (pytest.approx(0.4))


@pytest.mark.parametrize("seed", range(4))
def test_no_other_two_thresholds_are_better(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, 25)
    scores = np.round(rng.normal(size=25) + np.array([0, 2, 1])[classes], 1)
    order, thresholds = sentence_pairs.best_order(scores, classes)
    told = sentence_pairs.classes_of(scores, order, thresholds)
    best = max(
        np.mean(sentence_pairs.classes_of(scores, o, (low, high)) == classes)
        for o in itertools.permutations(range(3))
        for low, high in itertools.combinations_with_replacement(
            every_threshold(scores), 2
        )
    )
    assert np.mean(told == classes) == pytest.approx(best, abs=1e-12)


def test_a_score_on_a_threshold_is_not_above_it():
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.6])
    told = sentence_pairs.classes_of(scores, (2, 1, 0), (0.2, 0.5))
    assert told.tolist() == [2, 2, 1, 1, 0]


def test_a_threshold_never_sees_the_fold_it_judges():
    """One pair alone is high; only its own fold could know that it is negative."""
    scores = np.r_[np.linspace(0.6, 0.8, 20), np.linspace(0.1, 0.3, 19), 0.95]
    positive = np.r_[np.ones(20, bool), np.zeros(20, bool)]
    groups = np.arange(40).astype(str)
    told = sentence_pairs.out_of_fold(scores, positive, groups, seed=0)
    assert told[-1]
    assert (told == positive)[:-1].all()
    # With labels drawn by chance the best threshold for all is better than chance.
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 100)), rng.random((200, 100)) < 0.5
    names = np.arange(100).astype(str)
    fair = [
        np.mean(sentence_pairs.out_of_fold(s, y, names, 0) == y)
        for s, y in zip(scores[:40], labels[:40])
    ]
    peeking = [
        np.mean((s > sentence_pairs.best_threshold(s, y)) == y)
        for s, y in zip(scores, labels)
    ]
    assert np.mean(peeking) > 0.55
    assert abs(np.mean(fair) - 0.5) < 0.03


def test_two_orders_are_one_couple():
    rows = [
        {"sentence1": a, "sentence2": b}
        for a, b in (("x", "y"), ("y", "x"), ("x", "z"), ("x", "y"))
    ]
    first, back, other, again = sentence_pairs.couples(rows)
    assert first == back == again != other
    assert "x" not in first


# --- A planted answer -------------------------------------------------------------------

CHANGES = ("better", "same", "worse")


class Planted:
    """A sentence lies where its change points to; its wording moves it a little."""

    def embed_images(self, variables, films):
        raise AssertionError("no film is asked for")

    def embed_texts(self, variables, texts):
        ids = texts["ids_BxT"]
        change_Bx3 = jnp.eye(3)[ids[:, 0]] * variables["reads"]
        noise_Bx5 = jnp.sin(ids[:, 1:2] * jnp.arange(1.0, 6.0) * 2.3) * 0.4
        joint = jnp.concatenate(
            [change_Bx3, noise_Bx5, jnp.full((len(ids), 1), 0.5)], -1
        )
        return TextEmbedding(joint / jnp.linalg.norm(joint, axis=1, keepdims=True))

    def score(self, variables, images, texts):
        raise AssertionError


class Words:
    def encode(self, texts, length):
        ids = [[CHANGES.index(t.split()[1]), int(t.split()[2])] for t in texts]
        return {
            "ids_BxT": np.array(ids, np.int32),
            "mask_BxT": np.ones((len(texts), 2)),
        }


def networks():
    embedder = Embedder(Planted(), lambda x: x, Words(), 2, batch_size=32)
    made = {"trained": 1.0, "untrained": 0.0}
    return {
        name: Network(name, embedder, {"reads": np.float32(reads)})
        for name, reads in made.items()
    }


def table(count=120):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        same = number % 5 < 2
        first, second = rng.choice(3, 2, replace=False)
        second = first if same else second
        words = rng.permutation(1000)[:2]
        rows.append(
            {
                "pair_id": f"{number:04d}",
                "sentence1": f"secret {CHANGES[first]} {words[0]}",
                "sentence2": f"secret {CHANGES[second]} {words[1]}",
                "label": "paraphrase" if same else "contradiction",
                "subset": "Swaps" if number % 3 else "RadGraph",
                "split": "test",
            }
        )
    return Table("pairs of toy", "ms_cxr_t", "pairs", rows)


@pytest.fixture(scope="module")
def measured():
    bench = Bench([], sentence_pairs=[table()])
    return suite.run(bench, networks(), [NAME])


def test_planted_paraphrases_are_found(measured):
    rows = {(row.protocol, row.metric): row for row in measured.rows}
    head = measured.rows[0]
    assert (head.protocol, head.metric, head.n) == (NAME, "auroc", 120)
    assert head.value > 0.95 and head.chance == 0.5
    assert 0.3 < head.untrained < 0.7
    assert head.low <= head.value <= head.high and head.data == "pairs"
    accuracy = rows[NAME, "accuracy"]
    assert accuracy.value > 0.9 and accuracy.chance == pytest.approx(0.6)
    assert accuracy.untrained < 0.7
    parts = [rows[f"{NAME}/{s}", "accuracy"] for s in ("RadGraph", "Swaps")]
    assert [row.n for row in parts] == [40, 80]
    assert sum(r.n * r.value for r in parts) == pytest.approx(120 * accuracy.value)
    assert head.sample.units[:2].tolist() == ["0000", "0001"]


def test_auroc_is_scikit_learns(measured):
    rows = table().rows
    for name, network in networks().items():
        scores = sentence_pairs.cosines(network, rows)
        first, second = (
            network.texts([row[s] for row in rows]).joint_BxD
            for s in ("sentence1", "sentence2")
        )
        np.testing.assert_allclose(scores, np.sum(first * second, 1), atol=1e-6)
        want = sk.roc_auc_score([r["label"] == "paraphrase" for r in rows], scores)
        got = (
            measured.rows[0].value if name == "trained" else measured.rows[0].untrained
        )
        assert got == pytest.approx(want, abs=1e-6)


def test_no_text_is_told_and_nothing_is_drawn_twice(measured):
    section = measured.sections[0]
    told = json.dumps([row.as_json() for row in measured.rows]) + section.text
    assert "secret" not in told and section.pictures[0].png[:4] == b"\x89PNG"
    again = suite.run(Bench([], sentence_pairs=[table()]), networks(), [NAME])
    assert [r.as_json() for r in again.rows] == [r.as_json() for r in measured.rows]


def test_what_cannot_be_judged_is_told():
    name = f"{NAME} on pairs of toy"
    bench = Bench([], sentence_pairs=[table()], abilities=Abilities(reads_text=False))
    assert not similarity.plan(bench)
    assert bench.skipped[name] == "the method reads no text"
    bench = Bench([], sentence_pairs=[table(20)])
    assert not similarity.plan(bench)
    assert "found 8 and 12" in bench.skipped[name]
    bench = Bench([], sentence_pairs=[table()], options=Options(split="validate"))
    assert not similarity.plan(bench) and "found 0 and 0" in bench.skipped[name]
    other = [{**row, "label": "neutral"} for row in table().rows]
    bench = Bench([], sentence_pairs=[dataclasses.replace(table(), rows=other)])
    assert not similarity.plan(bench) and NAME in bench.skipped
