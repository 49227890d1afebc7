"""Inference between sentences: joining, thresholds of dev, and a planted answer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from medclip_jax.evaluation import nli_fine_tuning, radnli, sentence_pairs, suite
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Abilities, Bench, Options
from medclip_jax.evaluation.sets import Table
from medclip_jax.methods.interface import TextEmbedding

NAME = "radnli"
PAD, CLS, SEP = 0, 1, 2
LENGTH = 9
WIDTH = 6
TOPICS = 4
HINT = 3 + 4 * TOPICS  # the first of three words that the tower does not know yet


class Planted:
    """A text is the sum of its words; a topic that is denied points the other way."""

    def embed_images(self, variables, films):
        raise AssertionError("no film is asked for")

    def embed_texts(self, variables, texts):
        words_BxTxC = variables["params"]["words"][texts["ids_BxT"]]
        total = (words_BxTxC * texts["mask_BxT"][..., None]).sum(1)
        joint = jnp.concatenate([total, jnp.full((len(total), 1), 0.2)], -1)
        return TextEmbedding(joint / jnp.linalg.norm(joint, axis=1, keepdims=True))

    def score(self, variables, images, texts):
        raise AssertionError


class Words:
    """Ids are in the text: "secret 3 11" is [CLS] 3 11 [SEP]."""

    def encode(self, texts, length):
        ids = np.full((len(texts), length), PAD, np.int32)
        for row, text in enumerate(texts):
            words = [CLS, *map(int, text.split()[1:]), SEP]
            ids[row, : len(words)] = words
        words = np.where(ids > SEP, np.arange(length) - 1, -1)
        return {
            "ids_BxT": ids,
            "mask_BxT": (ids != PAD).astype(np.int32),
            "word_ids_BxT": words.astype(np.int32),
        }


def networks(*names):
    embedder = Embedder(Planted(), lambda x: x, Words(), LENGTH, batch_size=64)
    words = np.zeros((HINT + 3, WIDTH), np.float32)
    for topic in range(TOPICS):  # two words that affirm it, two that deny it
        words[3 + 4 * topic : 5 + 4 * topic, topic] = 1
        words[5 + 4 * topic : 7 + 4 * topic, topic] = -1
    rng = np.random.default_rng(0)
    blind = np.zeros_like(words)
    blind[3:HINT] = rng.normal(size=(4 * TOPICS, WIDTH))
    made = {"trained": words, "untrained": blind}
    return {
        name: Network(name, embedder, {"params": {"words": made[name]}})
        for name in names or made
    }


def rows_of(count, split, seed, hinted=0.9):
    """Couples in both orders; the last word hints at the label, mostly rightly."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count // 2):
        label = int(rng.choice(3, p=[0.25, 0.5, 0.25]))
        first = rng.integers(0, 2 * TOPICS)
        other = (first + 2 * rng.integers(1, TOPICS)) % (2 * TOPICS)
        second = {0: first, 1: other, 2: first ^ 1}[label]
        hint = label if rng.random() < hinted else rng.integers(0, 3)
        both = [
            f"secret {3 + 2 * state + word} {HINT + hint}"
            for word, state in enumerate((first, second))
        ]
        for order in (both, both[::-1]):
            rows.append(
                {
                    "pair_id": f"{split}{len(rows):04d}",
                    "sentence1": order[0],
                    "sentence2": order[1],
                    "label": radnli.LABELS[label],
                    "subset": "",
                    "split": split,
                }
            )
    return rows


def radnli_table(dev=200, test=240):
    rows = [*rows_of(dev, "validate", 0), *rows_of(test, "test", 1)]
    return Table("toy radnli", "radnli", "of radnli", rows)


def mednli_table():
    rows = [*rows_of(300, "train", 2), *rows_of(100, "validate", 3)]
    return Table("toy mednli", "mednli", "of mednli", rows)


def run(*tables, names=(), **options):
    bench = Bench([], sentence_pairs=tables, options=Options(**options))
    return suite.run(bench, networks(*names), [NAME])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(nli_fine_tuning, "RATES", (1e-7, 3e-2))
    monkeypatch.setattr(nli_fine_tuning, "LEAST_STEPS", 60)


# --- Joining ----------------------------------------------------------------------------


def test_two_sentences_are_one_text():
    words = Words()
    first = words.encode(["x 10 11 12"], LENGTH)
    second = words.encode(["x 20 21"], LENGTH)
    got = nli_fine_tuning.join(first, second)
    assert got["ids_BxT"].tolist() == [[1, 10, 11, 12, 2, 20, 21, 2, 0]]
    assert got["mask_BxT"].tolist() == [[1] * 8 + [0]]
    assert got["word_ids_BxT"].tolist() == [[-1, 0, 1, 2, -1, 3, 4, -1, -1]]
    assert first["ids_BxT"].tolist() == [[1, 10, 11, 12, 2, 0, 0, 0, 0]]


def test_what_is_too_long_is_cut_from_the_longer_sentence():
    words = Words()
    long = words.encode(["x 10 11 12 13 14 15 16", "x 10 11"], LENGTH)
    other = words.encode(["x 20 21", "x 20 21 22 23 24 25 26"], LENGTH)
    got = nli_fine_tuning.join(long, other)
    assert got["ids_BxT"].tolist() == [
        [1, 10, 11, 12, 13, 2, 20, 21, 2],
        [1, 10, 11, 2, 20, 21, 22, 23, 2],
    ]
    assert got["mask_BxT"].min() == 1


def test_features_of_a_pair():
    u, v = np.array([[0.6, -0.8]]), np.array([[1.0, 0.0]])
    got = radnli.pair_features(u, v)
    np.testing.assert_allclose(got, [[0.6, -0.8, 1, 0, 0.4, 0.8, 0.6, 0]])


# --- A planted answer -------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nli_fine_tuning, "RATES", (1e-7, 3e-2))
        patch.setattr(nli_fine_tuning, "LEAST_STEPS", 60)
        return run(radnli_table(), mednli_table(), seeds=2)


def test_zero_shot(measured):
    rows = {(row.protocol, row.metric): row for row in measured.rows}
    test = [r for r in radnli_table().rows if r["split"] == "test"]
    two = [r for r in test if r["label"] != "neutral"]
    head = measured.rows[0]
    assert (head.protocol, head.metric, head.n) == (NAME, "auroc", len(two))
    assert head.value == 1 and 0.2 < head.untrained < 0.95
    assert head.data == "of radnli+of mednli"
    assert "neutral left out" in head.note
    # A couple in both orders is drawn together.
    assert len(set(head.sample.patients)) <= len(two) / 2
    scores = sentence_pairs.cosines(networks()["untrained"], two)
    want = sk.roc_auc_score([r["label"] == "entailment" for r in two], scores)
    assert head.untrained == pytest.approx(want, abs=1e-6)
    assert rows[NAME, "accuracy"].value == 1
    three = rows[f"{NAME}/three_way", "accuracy"]
    assert three.value == 1 and three.untrained < 0.75
    assert "contradiction < neutral < entailment" in three.note
    most = sum(r["label"] == "neutral" for r in test) / len(test)
    assert three.chance == pytest.approx(most)
    assert rows[f"{NAME}/three_way", "macro_accuracy"].chance == pytest.approx(1 / 3)


def test_frozen_and_fine_tuned_differ_in_what_they_can_learn(measured):
    rows = {(row.protocol, row.metric): row for row in measured.rows}
    frozen = rows[f"{NAME}/frozen", "accuracy"]
    assert frozen.value > 0.95
    assert "fitted on 300 pairs of toy mednli, train" in frozen.note
    tuned = rows[f"{NAME}/fine_tuned", "accuracy"]
    # The words that hint at the label were no words to either tower before.
    assert tuned.value > 0.85 and tuned.untrained > 0.85
    assert tuned.std is not None and frozen.std is None
    assert "300 pairs of toy mednli, train; 2 runs, learning rate 0.03" in tuned.note
    told = rows[f"{NAME}/fine_tuned", "macro_accuracy"]
    assert told.value > 0.8 and told.n == 240


def test_fine_tuning_leaves_the_network_as_it_was(quick):
    network = networks("trained")["trained"]
    before = np.array(network.variables["params"]["words"])
    test = rows_of(60, "test", 1)
    labels = np.array([radnli.LABELS.index(row["label"]) for row in test])
    texts = nli_fine_tuning.join_pairs(network, test)
    pairs = nli_fine_tuning.Labelled(texts, labels)
    first = nli_fine_tuning.fine_tune(network, pairs, pairs, texts, 2, seed=4)
    again = nli_fine_tuning.fine_tune(network, pairs, pairs, texts, 2, seed=4)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[0].shape == (2, 60) and first[1] == 3e-2
    np.testing.assert_array_equal(before, network.variables["params"]["words"])


def test_without_mednli_dev_is_fitted_on_and_told(quick):
    results = run(radnli_table(), seeds=1, names=("trained",))
    rows = {(row.protocol, row.metric): row for row in results.rows}
    dev = radnli.Pairs("x", rows_of(200, "validate", 0))
    fitted, chosen = radnli.training_pairs([], dev, 0)
    assert len(fitted.rows) + len(chosen.rows) == 200 and 20 < len(chosen.rows) < 60
    first, second = (
        {frozenset((row["sentence1"], row["sentence2"])) for row in of.rows}
        for of in (fitted, chosen)
    )
    assert not first & second
    for way in ("frozen", "fine_tuned"):
        note = rows[f"{NAME}/{way}", "accuracy"].note
        assert f"{len(fitted.rows)} pairs of toy radnli, validate" in note


def test_thresholds_come_from_dev_alone(quick):
    """With the test labels exchanged, what is predicted stays the same."""
    table = radnli_table()
    turned = {"entailment": "contradiction", "contradiction": "entailment"}
    rows = [
        {**r, "label": turned.get(r["label"], r["label"])}
        if r["split"] == "test"
        else r
        for r in table.rows
    ]
    other = Table(table.name, table.kind, table.fingerprint, rows)
    got = {(r.protocol, r.metric): r for r in run(other, names=("trained",)).rows}
    assert got[NAME, "auroc"].value == 0 and got[NAME, "accuracy"].value == 0
    neutral = sum(r["label"] == "neutral" for r in rows if r["split"] == "test") / 240
    assert got[f"{NAME}/three_way", "accuracy"].value == pytest.approx(neutral)


def test_no_steps_is_no_fine_tuning(quick):
    results = run(radnli_table(), names=("trained",), tune_steps=0)
    assert "--tune-steps 0" in results.skipped[f"{NAME}/fine_tuned on toy radnli"]
    kinds = {row.protocol for row in results.rows}
    assert kinds == {NAME, f"{NAME}/three_way", f"{NAME}/frozen"}


def test_too_slow_a_machine_is_told_and_the_rest_is_measured(quick, monkeypatch):
    monkeypatch.setattr(nli_fine_tuning, "MOST_SECONDS", 0.0)
    results = run(radnli_table(), names=("trained",))
    assert "minutes a network" in results.skipped[f"{NAME}/fine_tuned on toy radnli"]
    kinds = {row.protocol for row in results.rows}
    assert kinds == {NAME, f"{NAME}/three_way", f"{NAME}/frozen"}


def test_what_cannot_be_judged_is_told(quick):
    name = f"{NAME} on toy radnli"
    for bench, why in (
        (Bench([], abilities=Abilities(reads_text=False)), "reads no text"),
        (Bench([], options=Options(split="validate")), "test alone"),
    ):
        bench.sentence_pairs = [radnli_table()]
        assert not radnli.plan(bench) and why in bench.skipped[name]
    bench = Bench([], sentence_pairs=[radnli_table(test=20)])
    assert not radnli.plan(bench) and "10 test pairs" in bench.skipped[name]
    bench = Bench([], sentence_pairs=[mednli_table()])
    assert not radnli.plan(bench) and NAME in bench.skipped
    results = run(radnli_table(dev=0), names=("trained",))
    assert {row.metric for row in results.rows} == {"auroc"}
    assert any("dev pairs" in why for why in results.skipped.values())
    assert any("neither MedNLI" in why for why in results.skipped.values())


def test_no_text_is_told(measured):
    told = json.dumps([row.as_json() for row in measured.rows])
    assert "secret" not in told + measured.sections[0].text
    assert measured.sections[0].pictures[0].png[:4] == b"\x89PNG"
