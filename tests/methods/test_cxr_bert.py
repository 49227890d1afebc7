"""CXR-BERT: sections that match, hidden words, phases, and no film anywhere."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medclip_jax import config_flags
from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.interface import ExampleKeys, Features, Spec, TextEmbedding
from tests.methods.test_biovil import NAMED, unit
from tests.methods.test_methods import BERT, LENGTH, SIZE, a_batch

FINDINGS = unit([[1, 2, 0], [0, 1, -1], [2, 0, 1]])
IMPRESSIONS = unit([[1, 1, 0], [0.5, 1, -1], [1, -1, 1]])


@functools.cache
def make(variant, *options):
    config = config_flags.load_config(f"cxr_bert.py:{variant}", options)
    config.model.text = ConfigDict({**BERT, "pooler": False})
    config.model.embed_dim = 16
    method = registry.build(config)
    init = jax.jit(method.init, static_argnums=1)
    return method, nn.meta.unbox(init(jax.random.key(0), Spec(SIZE, LENGTH)))


def sections(seed=0):
    """Texts of two sections a report, and keys."""
    first, second = a_batch(m=4)["texts"], a_batch(m=4)["texts"]
    second = {name: array[::-1] for name, array in second.items()}
    texts = {**first, **{f"second_{name}": array for name, array in second.items()}}
    keys = ExampleKeys(jnp.zeros(0), jax.random.split(jax.random.key(seed), 4))
    return {"films": {}, "texts": texts, "text_weight_M": np.ones(4)}, keys


def test_sections_that_match_and_hidden_words():
    """Both directions' sum is 1.007907 at tau 0.5; a tenth of the words' loss."""
    method, variables = make("demo_matching")
    features = Features(
        None,
        TextEmbedding(FINDINGS),
        second_texts=TextEmbedding(IMPRESSIONS),
        named=NAMED,
    )
    batch = {"text_weight_M": np.ones(3)}

    def run(method, batch):
        return method.objective(variables, features, batch, None, jnp.int32(0))[:2]

    loss, metrics = run(method, batch)
    np.testing.assert_allclose(metrics["loss_matching"], 1.007907, atol=1e-5)
    np.testing.assert_allclose(metrics["loss_mlm"], 3.0, atol=1e-6)
    np.testing.assert_allclose(loss, 1.007907 + 0.1 * 3.0, atol=1e-5)
    other = dataclasses.replace(method, temperature=0.25)
    assert run(other, batch)[1]["loss_matching"] < 0.7
    _, metrics = run(method, {"text_weight_M": np.array([1.0, 1.0, 0.0])})
    assert metrics["loss_matching"] < 1.0
    alone = dataclasses.replace(method, matching_weight=0.0, mlm_weight=1.0)
    loss, metrics = run(alone, batch)
    assert metrics.keys() == {"loss_mlm", "mlm_accuracy"}
    np.testing.assert_allclose(loss, 3.0, atol=1e-6)


def test_both_sections_go_through_one_tower():
    method, variables = make("demo_matching")
    batch, keys = sections()
    features, state = method.encode(variables, batch, keys, False)
    assert features.images is None and state == {}
    first = {k: v for k, v in batch["texts"].items() if not k.startswith("second_")}
    alone = method.embed_texts(variables, first)
    np.testing.assert_allclose(features.texts.joint_BxD, alone.joint_BxD, atol=1e-5)
    # The second sections are the first ones in the other order.
    np.testing.assert_allclose(
        features.second_texts.joint_BxD, alone.joint_BxD[::-1], atol=1e-5
    )
    named = features.named
    pieces = np.concatenate(
        [batch["texts"][f"{of}word_ids_BxT"] >= 0 for of in ("", "second_")], axis=1
    )
    assert named.named_BxT.shape == pieces.shape
    assert not np.asarray(named.named_BxT)[~pieces].any() and named.named_BxT.any()
    halves = np.split(np.asarray(named.named_BxT), 2, axis=1)
    assert (halves[0] != halves[1][::-1]).any()  # each section draws for itself


def test_a_report_draws_by_its_own_key():
    method, variables = make("demo_matching", "model.text.dropout=0.1")
    batch, keys = sections()
    whole, _ = method.encode(variables, batch, keys, True)
    part = {"films": {}, "texts": {k: v[1:3] for k, v in batch["texts"].items()}}
    some, _ = method.encode(
        variables, part, ExampleKeys(keys.images_N, keys.texts_M[1:3]), True
    )
    np.testing.assert_allclose(
        some.named.losses_BxT, whole.named.losses_BxT[1:3], atol=1e-4
    )
    np.testing.assert_allclose(
        some.second_texts.joint_BxD, whole.second_texts.joint_BxD[1:3], atol=1e-5
    )


def test_the_next_phase_and_biovil_start_from_this_one():
    """The same names for the same parts: `init_from` finds them."""
    from medclip_jax.weights.layout import flatten

    _, general = make("demo")
    _, matching = make("demo_matching")
    shapes = {p: a.shape for p, a in flatten(general).items()}
    assert shapes == {p: a.shape for p, a in flatten(matching).items()}
    config = config_flags.load_config("biovil.py:demo")
    config.model.text = ConfigDict({**BERT, "pooler": False})
    config.model.embed_dim = 16
    method = registry.build(config)
    init = jax.eval_shape(
        lambda key: method.init(key, Spec(SIZE, LENGTH)), jax.random.key(0)
    )
    joint = {p: a.shape for p, a in flatten(nn.meta.unbox(init)).items()}
    assert shapes.items() <= joint.items()


def test_one_view_for_each_phase():
    with pytest.raises(UserError, match="data.view=sections; with a weight of 0 take"):
        make("demo", "data.view=sections")
    with pytest.raises(
        UserError, match="cxr_bert.matching_weight=1.0 with data.view=rep"
    ):
        make("demo_matching", "data.view=reports")
