"""Zero-shot answers to the sources' own questions, on films whose answer is known."""

import dataclasses

import numpy as np
import planted
import planted_tasks as toy
import pytest
from sklearn import metrics as sk

from data_pipelines.annotations import Task
from data_pipelines.findings import EVAL_FIVE, FINDINGS
from medclip_jax.evaluation import (
    metrics,
    suite,
    task_prompts,
    tasks,
    zero_shot,
    zero_shot_styles,
)
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.sets import Judged, Sentences
from medclip_jax.evaluation.zero_shot_binary import best_threshold

PNEUMONIA = Task("binary", ("Pneumonia",))
COVIDX = Task("multiclass", ("normal", "pneumonia", "COVID-19"))
SAYS_NO = (
    lambda t: t.startswith(("no ", "there is no")),
    lambda t: not t.startswith(("no ", "there is no")),
)
COVID_WORDS = (
    lambda t: "normal" in t or "no acute" in t,
    lambda t: "pneumonia" in t,
    lambda t: "ground glass" in t,
)


def binary_codes(count=240, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (count, 1))


def by_name(results):
    return {(row.protocol, row.metric): row for row in results.rows}


def run(films, rules, names, sentences=None, abilities=None, **options):
    bench = planted.bench(films, sentences, **options)
    if abilities:
        bench.abilities = dataclasses.replace(bench.abilities, **abilities)
    return suite.run(bench, toy.networks(*rules), names)


# --- Units ------------------------------------------------------------------------


def test_films_of_a_study_are_averaged_and_share_a_label():
    codes = np.array([[1], [1], [0], [-1], [0], [-2]])
    films = toy.films(
        codes, Task("binary", ("a",), "study"), per_patient=6, per_study=2
    )
    question = tasks.questions(planted.bench(films), "binary")[0]
    asked = tasks.ask(question, "train", Options())
    assert asked.ids.tolist() == ["s0000", "s0001", "s0002"]
    # Uncertain is stronger than negative, and negative than not judged.
    assert asked.codes_UxC[:, 0].tolist() == [1, -1, 0]
    values = np.array([1.0, 3.0, 5.0, 5.0, 0.0, 1.0])
    assert asked.pool(values).tolist() == [2, 5, 0.5]


def test_a_limit_draws_whole_patients():
    films = toy.films(binary_codes(240), PNEUMONIA, per_patient=4)
    question = tasks.questions(planted.bench(films), "binary")[0]
    asked = tasks.ask(question, "test", Options(), 30)
    assert len(asked.positions) == 28 and asked.left_out == 80 - 28
    assert all(np.unique(asked.patients, return_counts=True)[1] == 4)


def test_lateral_films_are_left_out_unless_all_are_lateral():
    films = toy.films(binary_codes(12), PNEUMONIA)
    question = tasks.questions(planted.bench(films), "binary")[0]
    films.views[films.where("test")[0]] = "LATERAL"
    assert len(tasks.ask(question, "test", Options())) == 3
    films.views[:] = "OTHER"
    assert len(tasks.ask(question, "test", Options())) == 4


def test_a_set_without_tasks_is_asked_for_the_five_findings():
    films = planted.films(20)
    films.labels_Nx14[0] = -2  # no label at all: not judged
    films.labels_Nx14[1, FINDINGS.index("Edema")] = -1
    (question,) = tasks.questions(planted.bench(films), "multilabel")
    assert question.task.labels == EVAL_FIVE and question.task.unit == "image"
    asked = tasks.ask(question, "test", Options())
    assert len(asked) == 19
    assert asked.codes_UxC[0, EVAL_FIVE.index("Edema")] == -1
    chexpert = dataclasses.replace(films, kind="chexpert")
    (question,) = tasks.questions(planted.bench(chexpert), "multilabel")
    assert question.task.unit == "study"


# --- Words ------------------------------------------------------------------------


def test_prompts_of_each_question():
    sets = task_prompts.of_binary("rsna_target", "Pneumonia", ["clear lungs"])
    assert [s.name for s in sets] == ["biovil", "pair", "medclip"]
    assert [len(s.prompts["positive"]) for s in sets] == [4, 1, 312]
    assert sets[1].prompts == {
        "negative": ("no Pneumonia",),
        "positive": ("Pneumonia",),
    }
    sets = task_prompts.of_binary("covid_normal", "COVID", ["clear lungs"])
    assert [s.name for s in sets] == ["pair", "medclip"]
    assert len(sets[1].prompts["positive"]) == 12
    # Without a sentence of a normal film there is nothing to draw.
    assert len(task_prompts.of_binary("covid_normal", "COVID", [])) == 1
    assert task_prompts.pair("Pleural_Thickening")["negative"] == (
        "no Pleural Thickening",
    )
    three = task_prompts.of_classes(("normal", "COVID-19", "hernia"))
    assert list(three.prompts) == ["normal", "COVID-19", "hernia"]
    assert three.prompts["hernia"] == ["hernia"]
    assert len(three.prompts["COVID-19"]) == 12


def test_normal_sentences_hold_no_finding_alone():
    labels = np.full((5, 14), -2)
    none = FINDINGS.index("No Finding")
    labels[:, none] = 1
    labels[1, FINDINGS.index("Edema")] = 1
    labels[2, FINDINGS.index("Edema")] = -1
    labels[3, FINDINGS.index("Edema")] = 0
    texts = ["All is well.", "x", "y", "all is WELL", "abcd"]
    of = Sentences(texts, labels, np.arange(5), np.arange(5))
    assert task_prompts.normal_sentences(Bench([], {"a": of})) == ["All is well."]


# --- Rules of one score -----------------------------------------------------------


def test_gloria_oracle_of_standardised_scores():
    """Numbers of marshuang80/gloria, gloria/utils/utils.py normalize on this array."""
    got = zero_shot.standardise(np.array([[1, 0.2], [0.5, 0.9], [0.1, 0.4]]))
    want = [[1.267500, -1.019049], [-0.090536, 1.358732], [-1.176965, -0.339683]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got.argmax(1).tolist() == [0, 1, 1]


def test_ensemble_normalises_the_mean_embedding():
    images = np.array([[1.0, 0.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    got = zero_shot_styles.ensemble(images, texts, [np.array([0, 1]), np.array([2])])
    # The mean of the logits would be 0.5; the mean vector has length sqrt(1/2).
    np.testing.assert_allclose(got, [[np.sqrt(0.5), 1.0]])


def test_styles_pool_films_before_they_standardise():
    films = toy.films(binary_codes(60), Task("binary", ("x",), "study"), per_study=2)
    question = tasks.questions(planted.bench(films), "binary")[0]
    asked = tasks.ask(question, "test", Options())
    network = toy.networks(*SAYS_NO)["trained"]
    network.embed(films, asked.positions, np.zeros(0, int))
    words = {"negative": ["no x", "no x at all"], "positive": ["x"]}
    bench = planted.bench(films)
    made = zero_shot_styles.scores(
        network, films, asked, words, bench.options, bench.abilities
    )
    logits = network.logits(films, asked.positions, ["no x", "x"])
    np.testing.assert_allclose(made["own"], made["mean_of_logits"])
    np.testing.assert_allclose(made["own"][0], asked.pool(logits), rtol=1e-6)
    z = made["max_zscore"][0]
    assert len(z) == len(asked) == 10
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-9)


# --- Yes or no --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pneumonia():
    films = toy.films(binary_codes(), PNEUMONIA, "rsna_target", kind="rsna", spread=45)
    labels = np.full((3, 14), -2)
    labels[:, FINDINGS.index("No Finding")] = 1
    texts = ["no change", "no effusion", "no acute disease"]
    normal = Sentences(texts, labels, np.arange(3), np.arange(3))
    return films, run(films, SAYS_NO, ["zero_shot_binary"], normal)


def test_binary_finds_what_is_planted(pneumonia):
    _, results = pneumonia
    rows = by_name(results)
    head = results.rows[0]
    assert (head.protocol, head.metric) == ("zero_shot_binary", "auroc")
    assert head.dataset == "set" and head.kind == "rsna" and head.n == 80
    assert head.value > 0.95 and head.low <= head.value <= head.high
    assert 0.3 < head.untrained < 0.7
    assert rows["zero_shot_binary", "accuracy"].value > 0.9
    for suffix in ("pair_prompts", "medclip_prompts", "mean_of_embeddings"):
        assert rows[f"zero_shot_binary/{suffix}", "auroc"].value > 0.95
    # Prompts of the two sides were drawn from 312 words and 3 sentences.
    assert "MedCLIP" in rows["zero_shot_binary/medclip_prompts", "auroc"].note
    assert results.sections[0].protocol == "zero_shot_binary"


def test_binary_figures_are_sklearns_on_the_score_itself(pneumonia):
    films, results = pneumonia
    rows, network = by_name(results), toy.networks(*SAYS_NO)["trained"]
    test = films.where("test")
    network.embed(films, test, np.zeros(0, int))
    words = task_prompts.RSNA_BIOVIL
    sides = [
        network.logits(films, test, list(words[side])).astype(float).mean(1)
        for side in ("negative", "positive")
    ]
    scores = sides[1] - sides[0]
    truth = films.classes["rsna_target"].codes_KxC[test, 0] == 1
    want = {
        "auroc": sk.roc_auc_score(truth, scores),
        "average_precision": sk.average_precision_score(truth, scores),
        "accuracy": sk.accuracy_score(truth, scores > 0),
        "f1": sk.f1_score(truth, scores > 0),
    }
    for metric, value in want.items():
        got = rows["zero_shot_binary", metric].value
        assert got == pytest.approx(value, abs=1e-6), metric
    # The area of hard labels is another number.
    assert sk.roc_auc_score(truth, scores > 0) != pytest.approx(want["auroc"], abs=1e-3)


def test_threshold_never_sees_the_films_judged(pneumonia):
    films, results = pneumonia
    codes = films.classes["rsna_target"].codes_KxC
    swapped = toy.relabelled(films, "test", 1 - codes)
    others = by_name(run(swapped, SAYS_NO, ["zero_shot_binary"]))
    rows = by_name(results)
    name = "zero_shot_binary/validated_threshold"
    # The same hard labels against swapped truth: what was right is wrong.
    assert others[name, "accuracy"].value == pytest.approx(
        1 - rows[name, "accuracy"].value
    )
    moved = toy.relabelled(films, "validate", 1 - codes)
    others = by_name(run(moved, SAYS_NO, ["zero_shot_binary"]))
    assert others[name, "accuracy"].value != rows[name, "accuracy"].value


def test_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 12, 40) / 3.0
        positive = rng.random(40) < scores / 8 + 0.1
        got = best_threshold(positive, scores)
        every = [-1.0, *(np.unique(scores)[:-1] + 0.01)]
        f1 = [sk.f1_score(positive, scores > limit) for limit in every]
        assert sk.f1_score(positive, scores > got) == pytest.approx(max(f1))
        assert not np.isin(got, scores)
    assert best_threshold(np.ones(3, bool), np.array([2.0, 3.0, 4.0])) == 1


def test_what_cannot_be_asked_is_told():
    films = toy.films(np.zeros((60, 1)), PNEUMONIA, "rsna_target")
    bench = planted.bench(films)
    from medclip_jax.evaluation import zero_shot_binary

    assert zero_shot_binary.plan(bench) == []
    assert "0 positive and 20" in bench.skipped["zero_shot_binary on set"]
    bench = planted.bench(toy.films(binary_codes(60), PNEUMONIA), split="validate")
    zero_shot_binary.plan(bench)
    assert "is judged" in bench.skipped["threshold of zero_shot_binary on set"]


def test_f1_is_sklearns_and_survives_storage():
    rng = np.random.default_rng(0)
    truth, told = rng.random(50) < 0.4, rng.random(50) < 0.5
    f1 = metrics.F1(truth, told)
    assert f1(np.ones((1, 50)))[0] == pytest.approx(sk.f1_score(truth, told), abs=1e-9)
    weights = rng.integers(0, 4, (3, 50)).astype(float)
    want = [sk.f1_score(truth, told, sample_weight=w) for w in weights]
    np.testing.assert_allclose(f1(weights), want, atol=1e-9)
    again = metrics.from_arrays(metrics.to_arrays(f1))
    np.testing.assert_allclose(again(weights), want, atol=1e-9)
    rows = np.array([1, 5, 9])
    part = metrics.F1(truth[rows], told[rows], rows)
    want = sk.f1_score(truth[rows], told[rows], sample_weight=weights[0, rows])
    assert part(weights)[0] == pytest.approx(want)


# --- Several classes --------------------------------------------------------------


@pytest.mark.parametrize("rule", [{}, {"pooling": "max", "zscore": True}])
def test_classes_of_a_set_are_found(rule):
    classes = np.random.default_rng(3).choice(3, 300, p=[0.5, 0.3, 0.2])
    films = toy.films(np.eye(3)[classes], COVIDX, "covidx", kind="covidx")
    results = run(films, COVID_WORDS, ["zero_shot_multiclass"], abilities=rule)
    rows = by_name(results)
    head = results.rows[0]
    assert (head.protocol, head.metric, head.n) == (
        "zero_shot_multiclass",
        "accuracy",
        100,
    )
    assert head.value == 1 and head.chance == pytest.approx(1 / 3)
    assert head.untrained < 0.7 and head.std is not None
    assert "largest class has 0.5" in head.note or "largest class has 0.4" in head.note
    assert rows["zero_shot_multiclass", "balanced_accuracy"].value == 1
    assert rows["zero_shot_multiclass", "macro_f1"].value == 1
    assert rows["zero_shot_multiclass/COVID-19", "auroc"].value == 1
    for style in zero_shot_styles.STYLES:
        assert rows[f"zero_shot_multiclass/{style}", "accuracy"].value == 1


# --- Several labels ---------------------------------------------------------------


def test_labels_of_a_set_are_ranked_and_rare_ones_left_out():
    rng = np.random.default_rng(2)
    bands = rng.integers(0, 3, 300)
    codes = np.zeros((300, 4), int)
    codes[np.arange(300), bands] = 1
    codes[:, 3] = np.arange(300) == 5  # one positive film, of the test split
    codes[3, 1] = -1
    task = Task(
        "multilabel", ("Mass", "Edema", "Pleural_Thickening", "Hernia"), "study"
    )
    films = toy.films(codes, task, "nih_cxr14", bands=bands, per_study=2)
    rules = [
        lambda t, w=word: w in t and not t.startswith("no ")
        for word in ("mass", "edema", "thickening")
    ]
    results = run(films, rules, ["zero_shot_multilabel"])
    rows = by_name(results)
    head = results.rows[0]
    assert (head.protocol, head.metric, head.n) == ("zero_shot_multilabel", "auroc", 50)
    assert head.value > 0.9 and head.untrained < 0.7
    parts = [
        rows[f"zero_shot_multilabel/{label}", "auroc"].value
        for label in ("Mass", "Edema", "Pleural_Thickening")
    ]
    assert head.value == pytest.approx(np.mean(parts))
    assert ("zero_shot_multilabel/Hernia", "auroc") not in rows
    assert "Hernia" in results.skipped["some of zero_shot_multilabel on set"]


def test_labels_without_enough_units_are_no_question():
    from medclip_jax.evaluation import zero_shot_multilabel

    films = toy.films(np.zeros((30, 2)), Task("multilabel", ("a", "b")))
    bench = planted.bench(films)
    assert zero_shot_multilabel.plan(bench) == []
    assert "5 positive" in bench.skipped["zero_shot_multilabel on set"]
    judged = Judged(np.zeros(0, int), np.zeros((0, 2), np.int8))
    bench = planted.bench(dataclasses.replace(films, classes={"question": judged}))
    assert zero_shot_multilabel.plan(bench) == []
    assert "was judged" in bench.skipped["zero_shot_multilabel on set"]
