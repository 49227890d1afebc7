"""Fine-tuning of a real, small image tower on masks, and segmentation with it."""

import dataclasses

import jax
import numpy as np
import planted
import planted_tasks as toy
import pytest
import test_eval_segmentation as segments
from banded_films import binary_films, network

from medclip_jax import evaluate_networks
from medclip_jax.evaluation import mask_decoder, segmentation, suite
from medclip_jax.evaluation import tuning as tuning_lib
from medclip_jax.evaluation.features import Network


def mask_tuning(run, films, steps=40):
    """Rows 4 to 7 where a film is positive; the decoder is fitted on the frozen tower.

    Returns:
      What is asked, the masks of its test films, and what the decoder told of them.
    """
    masks = np.zeros((len(films), toy.SIDE, toy.SIDE), bool)
    masks[films.classes["rsna_target"].codes_KxC[:, 0] == 1, 4:8] = True
    at = {part: films.where(part) for part in toy.SPLITS}
    of = network(run)
    of = Network("trained", evaluate_networks.embedder_of(run, 16), of.variables)
    of.embed(films, np.arange(len(films)), np.arange(len(films)))
    parts = {
        part: mask_decoder.Part(of.patches(films, positions), masks[positions])
        for part, positions in at.items()
    }
    fitted = mask_decoder.train(parts["train"], parts["validate"], 0)
    asked = tuning_lib.Tuning(
        of,
        films,
        *at.values(),
        masks[at["train"]],
        fitted.decoder,
        lambda told: mask_decoder.dice(told, masks[at["validate"]]).mean(),
        steps,
        0,
        fitted.params,
    )
    return asked, masks[at["test"]], fitted.predict(parts["test"].patches)


def test_masks_are_learned_with_the_tower(run, tuner):
    of, truth, _ = mask_tuning(run, binary_films(240))
    new = mask_decoder.new_params(
        of.head, of.start.patches(of.films, of.train).trunk_BxPxF, 0
    )
    scores = []
    made = tuner(
        dataclasses.replace(
            of,
            head_params=new,
            steps=2000,
            score=lambda told: scores.append(of.score(told)) or scores[-1],
        )
    )
    assert scores[0] < 0.3 and made.score == max(scores) > 0.7
    assert mask_decoder.dice(made.told, truth).mean() > 0.6
    method, _, full, _ = tuner._of(of.head)
    state = tuner._state(full, tuner._start(method, of), 0)
    start = jax.tree.map(np.asarray, state.variables["params"]["image"])
    state, _ = full.step(state, next(tuner._batches(of)))
    moved = jax.tree.map(
        lambda one, two: float(np.abs(one - two).max()),
        start,
        jax.tree.map(np.asarray, state.variables["params"]["image"]),
    )
    for part in ("encoder", "decoder"):
        assert max(jax.tree.leaves(moved[part])) == pytest.approx(1e-4, rel=1e-2)
    # What standardises the features stays, whatever the weight decay.
    assert moved["decoder"]["middle_F"] == moved["decoder"]["spread_F"] == 0


def test_masks_of_the_start_stay_where_training_is_no_better(run, tuner):
    """The decoder that is given is a candidate too."""
    scores = iter([0.9, *[0.1] * 50])
    of, _, frozen = mask_tuning(run, binary_films(60))
    made = tuner(dataclasses.replace(of, score=lambda told: next(scores)))
    assert made.best_step == 0 and made.score == 0.9 and made.steps > 0
    np.testing.assert_array_equal(made.told, frozen)


def test_segmentation_protocol_tunes_the_tower(run, tuner):
    films, _, _ = segments.planted(size=run.config.data.image_size)
    asked, told = [], []

    def tune(of):
        asked.append(of)
        made = tuner(of)
        # Nothing here depends on how well so few steps train.
        told.append(dataclasses.replace(made, told=~made.told))
        return told[-1]

    embedder = evaluate_networks.embedder_of(run, 16)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) * 1.01, run.variables)
    networks = {
        name: Network(name, embedder, variables)
        for name, variables in (("trained", run.variables), ("untrained", moved))
    }
    bench = planted.bench(films, tune_steps=60)
    bench.tune = tune
    results = suite.run(bench, networks, ["segmentation"])
    rows = {(row.protocol, row.metric): row for row in results.rows}
    assert [of.start.name for of in asked] == ["trained", "untrained"]
    assert [of.number for of in asked] == [1, 2] and asked[0].of == 2
    assert not set(asked[0].train) & {*asked[0].validate, *asked[0].test}
    for metric, n in (("dice_positives", 20), ("dice_all", 40)):
        frozen = rows["segmentation", metric]
        tuned = rows["segmentation/tuned", metric]
        assert tuned.n == frozen.n == n and tuned.chance == frozen.chance
        assert "at most 60 steps" in tuned.note and tuned.untrained is not None
    masks = segmentation.masks_of(films, asked[0].test, run.config.data.image_size)
    value = mask_decoder.dice(told[0].told, masks).mean()
    assert rows["segmentation/tuned", "dice_all"].value == pytest.approx(value)
    assert not [name for name in results.skipped if name.startswith("segmentation/")]
