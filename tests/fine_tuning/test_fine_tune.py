"""Fine-tuning of a real, small image tower on labels, and the protocol around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted
import planted_tasks as toy
import pytest
from banded_films import binary_films, network
from sklearn.metrics import roc_auc_score

from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation import fine_tuning, suite
from medclip_jax.evaluation import tuning as tuning_lib
from medclip_jax.methods.interface import ExampleKeys
from medclip_jax.methods.supervised import Supervised, tower_of
from medclip_jax.runtime import state as state_lib


def tuning(run, films, steps=40, codes=None, score=None, **more):
    (name,) = films.classes
    judged = films.classes[name].codes_KxC if codes is None else codes
    parts = {part: films.where(part) for part in toy.SPLITS}
    return tuning_lib.Tuning(
        more.pop("start", network(run)),
        films,
        parts["train"],
        parts["validate"],
        parts["test"],
        judged[parts["train"]],
        tuning_lib.Labels(judged.shape[1], more.pop("exclusive", False)),
        score or (lambda of: -float(np.abs(of - judged[parts["validate"]]).mean())),
        steps,
        more.pop("seed", 0),
        **more,
    )


# --- The method -------------------------------------------------------------------


def small(run, **more):
    method = dataclasses.replace(
        Supervised.from_config(run.config), label_key="labels", **more
    )
    variables = state_lib.create_variables(
        run_lib.init_key(1),
        lambda key: method.init(key, run_lib.spec(run.config)),
        run.mesh,
    )
    films = np.random.default_rng(0).normal(size=(4, toy.SIDE, toy.SIDE, 3))
    return method, variables, {"films": {"current_BxHxWx3": films.astype(np.float32)}}


def class_logits(method, variables, batch):
    images = method.embed_images(variables, batch["films"])
    return np.asarray(method.class_logits(variables, images), np.float64)


def loss_of(method, variables, batch, keys=None, train=False):
    features, state = method.encode(variables, batch, keys, train)
    loss, *_ = method.objective(variables, features, batch, None, jnp.int32(0))
    return loss, state


def test_classes_have_one_cross_entropy(run):
    method, variables, batch = small(run, labels=3, exclusive=True)
    codes = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], np.int8)
    batch |= {"labels": codes, "image_weight_N": np.array([1, 1, 1, 0], np.float32)}
    logits = class_logits(method, variables, batch)
    assert logits.shape == (4, 3)
    # The third film has no class, and the fourth no weight.
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    want = -(log_p[0, 1] + log_p[1, 0]) / 2
    assert float(loss_of(method, variables, batch)[0]) == pytest.approx(want, rel=1e-5)


def test_labels_have_a_cross_entropy_each(run):
    method, variables, batch = small(
        run, labels=2, not_given="ignore", uncertain="ignore"
    )
    codes = np.array([[0, 1], [1, -2], [-1, 0], [1, 1]], np.int8)
    batch |= {"labels": codes, "image_weight_N": np.ones(4, np.float32)}
    logits = class_logits(method, variables, batch)
    every = np.logaddexp(0, logits) - (codes == 1) * logits
    want = every[codes >= 0].mean()
    assert float(loss_of(method, variables, batch)[0]) == pytest.approx(want, rel=1e-5)


def test_a_frozen_tower_has_no_gradient_and_keeps_its_statistics(run):
    for frozen in (True, False):
        method, variables, batch = small(run, labels=1, dropout=0.2, frozen=frozen)
        batch |= {"labels": np.ones((4, 1)), "image_weight_N": np.ones(4, np.float32)}
        keys = ExampleKeys(jax.random.split(jax.random.key(0), 4), None)

        def of(params, v=variables, m=method, b=batch, k=keys):
            return loss_of(m, {**v, "params": params}, b, k, True)

        grads, state = jax.jit(jax.grad(of, has_aux=True))(variables["params"])
        moved = {
            part: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
            for part, tree in grads["image"].items()
        }
        assert moved["classifier"] > 0
        assert (moved["encoder"] == 0) == frozen
        assert (state == {}) == frozen


def test_dropout_is_drawn_in_training_alone(run):
    # A frozen tower runs as in inference: only the dropout differs.
    method, variables, batch = small(run, labels=1, dropout=0.5, frozen=True)
    keys = ExampleKeys(jax.random.split(jax.random.key(0), 4), None)
    trained = np.asarray(
        method.encode(variables, batch, keys, True)[0].images.trunk_BxF
    )
    judged = np.asarray(
        method.encode(variables, batch, keys, False)[0].images.trunk_BxF
    )
    dropped = (trained == 0) & (judged != 0)
    assert 0.2 < dropped.sum() / (judged != 0).sum() < 0.8
    np.testing.assert_allclose(trained[~dropped], 2 * judged[~dropped], rtol=1e-5)


# --- The trainer ------------------------------------------------------------------


def test_training_learns_by_its_seed(run, tuner):
    films = binary_films(150)
    truth = films.classes["rsna_target"].codes_KxC[films.where("test"), 0] == 1
    made = tuner(tuning(run, films, steps=120))
    assert made.told.shape == (50, 1)
    assert roc_auc_score(truth, made.told[:, 0]) > 0.9
    assert made.best_step <= made.steps <= 120
    short = [tuner(tuning(run, films, steps=5, seed=seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(short[0].told, short[1].told)
    assert np.abs(short[2].told - short[0].told).max() > 1e-3


def test_without_steps_the_tower_is_the_starts(run, tuner):
    films = binary_films(30)
    method, *_ = tuner._of(tuning_lib.Labels(1, False))
    variables = tuner._start(method, tuning(run, films))
    for one, two in zip(
        jax.tree.leaves(variables["params"]["image"]["encoder"]),
        jax.tree.leaves(run.variables["params"]["image"]["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, run.variables)
    start = network(run, moved, "imagenet")
    variables = tuner._start(method, tuning(run, films, start=start))
    statistics = jax.tree.leaves(variables["batch_stats"]["image"])
    assert min(float(leaf.min()) for leaf in statistics) >= 1


def test_the_head_learns_first_and_alone(run, tuner):
    """One warm-up step of the compiled phase moves the head and nothing else."""
    films = binary_films(40)
    of = tuning(run, films)
    method, warm, *_ = tuner._of(tuning_lib.Labels(1, False))
    variables = tuner._start(method, of)
    before = jax.tree.map(np.asarray, variables)
    state, _ = warm.step(tuner._state(warm, variables, 0), next(tuner._batches(of)))
    after = jax.tree.map(np.asarray, state.variables)
    same = jax.tree.map(np.array_equal, before, after)
    assert all(jax.tree.leaves(same["params"]["image"]["encoder"]))
    assert all(jax.tree.leaves(same["batch_stats"]))
    assert not any(jax.tree.leaves(same["params"]["image"]["classifier"]))
    # Adam's first step is as long as the learning rate.
    kernels = [
        tree["params"]["image"]["classifier"]["kernel"] for tree in (before, after)
    ]
    assert np.abs(kernels[1] - kernels[0]).max() == pytest.approx(1e-3, rel=1e-2)


def test_the_rate_is_scaled(run, tuner):
    of = tuning(run, binary_films(40))
    method, _, full, _ = tuner._of(tuning_lib.Labels(1, False))
    moved = []
    for factor in (1.0, 0.5):
        variables = tuner._start(method, of)
        before = np.asarray(variables["params"]["image"]["classifier"]["kernel"])
        state = tuner._scaled(tuner._state(full, variables, 0), factor)
        state, _ = full.step(state, next(tuner._batches(of)))
        after = np.asarray(state.variables["params"]["image"]["classifier"]["kernel"])
        moved.append(np.abs(after - before).max())
    assert moved[0] == pytest.approx(1e-4, rel=1e-2)
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-2)


def test_training_stops_and_judges_the_best_checkpoint(run, tuner):
    films, scores = binary_films(60), iter([0.5, 0.9, *[0.1] * 50])
    seen = []

    def score(of):
        seen.append(of.copy())
        return next(scores)

    of = tuning(run, films, steps=400, score=score)
    made = tuner(dataclasses.replace(of, test=of.validate))
    # Ten validations without improvement after the second.
    assert len(seen) == 12 and made.score == 0.9
    np.testing.assert_array_equal(made.told, seen[1])
    # A fifth of the steps is the head's; a twentieth lies between validations.
    assert made.best_step == 80 + 2 * 20 and made.steps == 80 + 12 * 20


def test_another_tower_is_refused(run, tuner):
    tower = jax.tree.map(np.asarray, tower_of(run.variables))
    encoder = tower["params"]["image"]["encoder"]
    first = next(iter(encoder))
    cut = jax.tree.map(lambda leaf: leaf[..., :3], encoder[first])
    other = {**tower, "params": {"image": {"encoder": {**encoder, first: cut}}}}
    start = network(run, other, "imagenet")
    with pytest.raises(UserError, match="from imagenet: expected the image tower"):
        tuner(tuning(run, binary_films(30), start=start))


# --- The protocol -----------------------------------------------------------------


def test_protocol_asks_for_every_share_and_start(run):
    films = binary_films(240)
    asked = []

    def tune(of):
        asked.append(of)
        truth = films.classes["rsna_target"].codes_KxC[of.test]
        good = of.start.name == "trained"
        return tuning_lib.Tuned(truth * 0.9 if good else truth * 0.0, 1.0, 5, 5)

    bench = planted.bench(films, tune_draws=2, tune_steps=7)
    bench.tune = tune
    results = suite.run(bench, toy.networks(), ["fine_tuning"])
    assert len(asked) == 2 * (2 + 2 + 1)
    assert [of.number for of in asked] == list(range(1, 11)) and asked[0].of == 10
    assert [len(of.train) for of in asked[:5]] == [2, 4, 8, 8, 80]
    assert {of.steps for of in asked} == {7} and not asked[0].head.exclusive
    metrics = [row.metric for row in results.rows]
    assert metrics == ["auroc_1%", "auroc_10%", "auroc_100%"]
    for row in results.rows:
        assert row.value == 1 and row.untrained == 0.5 and row.n == 80
        assert "at most 7 steps" in row.note and row.data == films.fingerprint
    for of in asked:
        judged = set(films.patients[of.validate]) | set(films.patients[of.test])
        assert not judged & set(films.patients[of.train])


def test_protocol_without_a_trainer_is_told():
    bench = planted.bench(binary_films(60))
    assert fine_tuning.plan(bench) == []
    assert "train a network" in bench.skipped["fine_tuning"]


def test_no_steps_is_no_fine_tuning():
    bench = planted.bench(binary_films(60), tune_steps=0)
    bench.tune = lambda of: pytest.fail("a network was tuned")
    assert fine_tuning.plan(bench) == []
    assert "--tune-steps 0" in bench.skipped["fine_tuning"]
