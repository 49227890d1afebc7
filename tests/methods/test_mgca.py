"""MGCA: its three losses, heads and towers, and each switch both ways."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.errors import UserError
from medclip_jax.losses.prototypes import prototype_loss
from medclip_jax.methods import registry
from medclip_jax.methods.interface import Features, ImageEmbedding, Spec, TextEmbedding
from medclip_jax.models.bert import Bert
from medclip_jax.models.features import TextFeatures
from medclip_jax.models.heads import BatchNormMLP, ReportAndWordsHead
from medclip_jax.models.token_attention import CrossAttention
from medclip_jax.models.vit import ViT
from tests.losses.test_local_and_temporal import (
    IMAGES,
    PATCHES,
    PROTOTYPES,
    REAL,
    TEXTS,
    WORDS,
    at,
)
from tests.methods.test_methods import (
    BERT,
    LENGTH,
    RESNET,
    SIZE,
    VIT,
    a_batch,
    keys_of,
    make,
    tiny,
)

WORD_ATTENTION = jnp.array([[0.30, 0.05, 0], [0.20, 0.10, 0.40]])
PATCH_ATTENTION = jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.05, 0.5, 0.2]])
OFFICIAL = {"attention": "cosines", "patch_weights": "attention", "unit_patches": False}


def embedded(images, texts):
    """Two pairs of patches and words, of any length, with these wholes."""
    return (
        ImageEmbedding(
            jnp.zeros((2, 1)), images, None, 3 * PATCHES, (2, 2), PATCH_ATTENTION
        ),
        TextEmbedding(texts, None, None, 0.5 * WORDS, REAL, WORD_ATTENTION),
    )


def method_of(**switches):
    return dataclasses.replace(make("mgca")[0], **switches)


@functools.cache
def encoded():
    """Method, variables, and features of four pairs."""
    method, variables = make("mgca")
    encode = jax.jit(method.encode, static_argnums=3)
    return method, variables, encode(variables, a_batch(), None, False)[0]


def first_three(tree):
    return jax.tree.map(lambda leaf: leaf[:3], tree)


VARIABLES = {"params": {"prototypes": PROTOTYPES}}
BATCH = {"image_weight_N": np.ones(2), "text_weight_M": np.ones(2)}


@pytest.mark.parametrize(
    ("switches", "of_patches"),
    [
        ({}, 1.308511),
        ({"patch_weights": "alike", "unit_patches": True}, 1.184633),
    ],
)
def test_words_and_patches(switches, of_patches):
    """As the official code weighs them with a ViT and with a ResNet."""
    method = method_of(**{**OFFICIAL, **switches})
    found = method.local_losses(VARIABLES, *embedded(IMAGES[:2], TEXTS[:2]), np.ones(2))
    np.testing.assert_allclose(found, [0.212674, of_patches], atol=1e-5)


def test_prototypes_of_four_pairs():
    method = method_of(prototypes=3)
    images = ImageEmbedding(jnp.zeros((4, 1)), IMAGES)
    texts = TextEmbedding(TEXTS)
    given = (VARIABLES, images, texts)
    found = method.prototype_loss(*given, jnp.ones(4), jnp.int32(0))
    np.testing.assert_allclose(found, 0.343803, atol=1e-5)
    # Harder or softer codes and predictions, and fewer rounds, are another loss.
    for switch in ({"epsilon": 0.5}, {"prototype_temperature": 1.0}, {"iterations": 1}):
        other = dataclasses.replace(method, **switch)
        changed = other.prototype_loss(*given, jnp.ones(4), jnp.int32(0))
        expected = prototype_loss(
            IMAGES @ PROTOTYPES.T,
            TEXTS @ PROTOTYPES.T,
            **{k.removeprefix("prototype_"): v for k, v in switch.items()},
        )
        np.testing.assert_allclose(changed, expected, rtol=1e-6)
        assert abs(changed - found) > 1e-4


def cross_entropies(logits):
    """Of both directions, by numpy."""
    logits = np.asarray(logits, np.float64)
    own = np.diagonal(logits)
    return [np.mean(np.log(np.exp(logits).sum(axis)) - own) for axis in (1, 0)]


@pytest.mark.parametrize("sums", [True, False])
def test_the_whole_loss(sums):
    images, texts = at([0, 50]), at([10, 40])
    method = method_of(
        **OFFICIAL,
        sum_directions=sums,
        global_weight=2.0,
        local_weight=0.7,
        prototype_weight=0.5,
    )
    loss, parts, state = method.objective(
        VARIABLES, Features(*embedded(images, texts)), BATCH, None, jnp.int32(0)
    )
    ways = cross_entropies(images @ texts.T / 0.07)
    of_wholes = sum(ways) if sums else np.mean(ways)
    np.testing.assert_allclose(parts["loss_global"], of_wholes, rtol=1e-5)
    of_prototypes = prototype_loss(images @ PROTOTYPES.T, texts @ PROTOTYPES.T)
    np.testing.assert_allclose(parts["loss_prototypes"], of_prototypes, rtol=1e-6)
    np.testing.assert_allclose(
        loss,
        2 * of_wholes + 0.7 * (0.212674 + 1.308511) + 0.5 * of_prototypes,
        atol=1e-5,
    )
    assert state == {}


def test_three_pairs_as_wholes():
    """The official code adds up 0.029317 and 0.029040."""
    wholes = at([0, 50, 100]), at([10, 40, 120])
    _, variables, features = encoded()
    features = first_three(features)
    features = Features(
        features.images.replace(joint_BxD=jnp.pad(wholes[0], ((0, 0), (0, 126)))),
        features.texts.replace(joint_BxD=jnp.pad(wholes[1], ((0, 0), (0, 126)))),
    )
    for sums, expected in ((True, 0.058357), (False, 0.058357 / 2)):
        method = method_of(sum_directions=sums)
        _, parts, _ = method.objective(
            variables, features, a_batch(3, 3), None, jnp.int32(0)
        )
        np.testing.assert_allclose(parts["loss_global"], expected, atol=1e-6)
    np.testing.assert_allclose(
        method.score(variables, features.images, features.texts),
        wholes[0] @ wholes[1].T / 0.07,
        rtol=1e-5,
    )


def test_a_pair_of_no_weight_is_not_there():
    method, variables, features = encoded()
    batch = a_batch()
    batch["text_weight_M"][3] = batch["image_weight_N"][3] = 0
    of = functools.partial(method.objective, variables, key=None, step=jnp.int32(0))
    loss, parts, _ = of(features, batch)
    alone, of_three, _ = of(*first_three((features, batch)))
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    for name, value in parts.items():
        np.testing.assert_allclose(value, of_three[name], rtol=1e-5, err_msg=name)


def test_learned_attention():
    """Matrices before and after, and logits over the root of the width, not over tau."""
    rng = np.random.default_rng(0)
    names = ("query", "key", "value", "out")
    params = {
        name: {"kernel": rng.normal(size=(2, 2)), "bias": rng.normal(size=2)}
        for name in names
    }
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    found = CrossAttention().apply({"params": params}, PATCHES, WORDS, REAL)
    patches, words = np.asarray(PATCHES, np.float64), np.asarray(WORDS, np.float64)

    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    logits = linear("query", patches) @ linear("key", words).swapaxes(1, 2) / 2**0.5
    exps = np.exp(logits) * (np.asarray(REAL)[:, None] > 0)
    weights = exps / exps.sum(-1, keepdims=True)
    expected = linear("out", weights @ linear("value", words))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    made = {"patches_find": params, "words_find": params, "prototypes": PROTOTYPES}
    given = ({"params": made}, *embedded(IMAGES[:2], TEXTS[:2]), np.ones(2))
    losses = [
        method_of(**{**OFFICIAL, "attention": of}).local_losses(*given)
        for of in ("learned", "cosines")
    ]
    assert np.abs(np.subtract(*losses)).min() > 1e-2
    assert {"words_find", "patches_find"} < make("mgca")[1]["params"].keys()


def test_prototypes_are_frozen_and_of_length_1():
    method, variables = make("mgca")
    np.testing.assert_allclose(
        jnp.linalg.norm(variables["params"]["prototypes"], axis=1), 1, rtol=1e-5
    )
    frozen = dataclasses.replace(method, frozen_steps=3)
    features = Features(*embedded(IMAGES[:2], TEXTS[:2]))
    frozen = dataclasses.replace(frozen, **OFFICIAL)

    def loss(params, step):
        return frozen.objective({"params": params}, features, BATCH, None, step)[0]

    for step, moves in ((2, False), (3, True)):
        gradient = jax.grad(loss)(VARIABLES["params"], jnp.int32(step))
        assert bool(jnp.any(gradient["prototypes"] != 0)) == moves
    params = {**variables["params"], "prototypes": 3 * PROTOTYPES}
    after = method.after_update({**variables, "params": params}, jnp.int32(0))
    np.testing.assert_allclose(after["params"]["prototypes"], PROTOTYPES, rtol=1e-6)
    assert after["batch_stats"] is variables["batch_stats"]


# [CLS] card ##io x [SEP] [PAD], and one that fills all tokens: [CLS] a b c ##d [SEP].
WORD_IDS = np.array([[-1, 0, 0, 1, -1, -1], [-1, 0, 1, 2, 2, -1]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], np.int32)
STATES = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
ATTENDED = np.array([[1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 6]], np.float32) / 10
SUMS = np.array(
    [
        [[0, 1], [6, 8], [6, 7], [8, 9], [0, 0], [0, 0]],
        [[12, 13], [14, 15], [16, 17], [38, 40], [22, 23], [0, 0]],
    ],
    np.float32,
)


@pytest.mark.parametrize(
    ("shifted", "attended", "lengths"),
    [
        (False, [[0.5, 0.4, 0.5, 0, 0], [0.2, 0.3, 0.9, 0.6, 0]], [3, 4]),
        (True, [[0.7, 0.5, 0, 0, 0], [0.3, 0.4, 0, 0, 0]], [3, 2]),
    ],
)
def test_words_and_how_much_is_looked_at_them(shifted, attended, lengths):
    """The official code is one piece late, and loses the end of a text that is full."""
    features = TextFeatures(jnp.asarray(STATES), (), attended_BxT=jnp.asarray(ATTENDED))
    texts = {"word_ids_BxT": WORD_IDS, "mask_BxT": MASK}
    head = ReportAndWordsHead(2, 3, batch_norm=False, shifted=shifted)
    key = jax.random.key(1)
    params = nn.meta.unbox(head.init(key, features, texts, train=False))["params"]
    made = head.apply({"params": params}, features, texts, train=False)
    np.testing.assert_allclose(made.weight_BxL, attended, atol=1e-6)
    np.testing.assert_array_equal(made.mask_BxL.sum(axis=1), lengths)
    kept = np.arange(6) <= np.array(lengths)[:, None]
    sums = SUMS * kept[..., None]
    mlp = BatchNormMLP(2, 3, batch_norm=False)
    for name, given, found in (
        ("global", sums[:, 0], made.joint_BxD),
        ("local", sums[:, 1:], made.local_BxLxD),
    ):
        expected = mlp.apply({"params": params[name]}, given, train=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("has_norm", [True, False])
def test_a_head_with_batch_norm_and_without(has_norm):
    """Statistics over examples and parts; the last norm has no parameters."""
    states = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    head = BatchNormMLP(2, 5, has_norm)
    variables = nn.meta.unbox(head.init(jax.random.key(0), states, train=False))
    given = {name: variables[name] for name in variables if name != "params"}
    params = jax.tree.map(np.asarray, variables["params"])
    found, changed = head.apply(
        {"params": params, **given}, states, train=True, mutable=list(given)
    )

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) if has_norm else x

    hidden = states.reshape(12, 6) @ params["hidden"]["kernel"]
    out = np.maximum(norm(hidden), 0) @ params["out"]["kernel"]
    np.testing.assert_allclose(found.reshape(12, 2), norm(out), atol=1e-4)
    assert {"hidden", "out", *(["norm"] if has_norm else [])} == params.keys()
    assert bool(changed) == has_norm
    if has_norm:
        moved = changed["batch_stats"]["out_norm"]
        np.testing.assert_allclose(moved["mean"], 0.1 * out.mean(0), atol=1e-5)
        np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * out.var(0), atol=1e-5)


@functools.cache
def bert(**fields):
    """A tower that attends sharply, its parameters, and texts."""
    encoder = Bert(**{k: v for k, v in BERT.items() if k in Bert.__annotations__})
    encoder = encoder.clone(dropout=0.0, attention_dropout=0.0, **fields)
    texts = a_batch()["texts"]
    ids, mask = texts["ids_BxT"], texts["mask_BxT"]
    params = nn.meta.unbox(encoder.init(jax.random.key(0), ids, mask, train=False))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.5 * rng.normal(size=a.shape), params)
    return encoder, jax.tree.map(jnp.float32, params), (ids, mask)


def test_a_tower_that_tells_whom_its_first_token_attends_to():
    """Of the last layer, by hand; the other layers as a loop or not; all as before."""
    encoder, params, given = bert(tells_attention=True)
    made = encoder.apply(params, *given, train=False)
    silent = encoder.clone(tells_attention=False).apply(params, *given, train=False)
    assert silent.attended_BxT is None
    np.testing.assert_allclose(made.words_BxTxC, silent.words_BxTxC, atol=1e-6)
    assert len(made.hidden) == len(silent.hidden)
    x, layer = np.asarray(made.hidden[-2], np.float64), params["params"]["layer_1"]
    query, key = (
        (x @ layer[name]["kernel"] + layer[name]["bias"]).reshape(4, LENGTH, 2, 8)
        for name in ("query", "key")
    )
    exps = np.exp(np.einsum("blk,btlk->blt", query[:, 0], key) / 8**0.5)
    exps = exps * given[1][:, None]
    expected = (exps / exps.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(made.attended_BxT, expected, atol=1e-5)
    deep, params, given = bert(tells_attention=True, layers=3)
    loop = deep.clone(scan_layers=True).apply(params, *given, train=False)
    plain = deep.apply(params, *given, train=False)
    np.testing.assert_allclose(loop.attended_BxT, plain.attended_BxT, atol=1e-6)
    np.testing.assert_allclose(loop.words_BxTxC, plain.words_BxTxC, atol=1e-5)


def test_a_vit_tells_of_its_patches():
    fields = {k: v for k, v in VIT.items() if k in ViT.__annotations__}
    encoder = ViT(**fields, tells_attention=True)
    films = a_batch()["films"]["current_BxHxWx3"]
    params = nn.meta.unbox(encoder.init(jax.random.key(0), films, train=False))
    made = encoder.apply(params, films, train=False)
    assert made.attended_BxP.shape == (4, 16)
    assert (made.attended_BxP.sum(axis=1) < 1).all()  # the first token itself
    first = encoder.apply(params, films, train=False, first_only=True)
    np.testing.assert_allclose(first.attended_BxP, made.attended_BxP, atol=1e-6)
    np.testing.assert_allclose(first.trunk_BxF, made.trunk_BxF, atol=1e-5)
    silent = encoder.clone(tells_attention=False).apply(params, films, train=False)
    assert silent.attended_BxP is None
    np.testing.assert_allclose(silent.patches_BxPxC, made.patches_BxPxC, atol=1e-6)


@pytest.mark.parametrize("one_position", [True, False])
def test_a_tower_with_one_position_does_not_see_the_order(one_position):
    encoder, params, (ids, _) = bert(one_position=one_position)
    ids, mask = np.maximum(ids, 1), np.ones_like(ids)
    turned = np.concatenate([ids[:, :1], ids[:, :0:-1]], axis=1)
    first = [
        encoder.apply(params, given, mask, train=False).words_BxTxC[:, 0]
        for given in (ids, turned)
    ]
    assert (np.abs(first[0] - first[1]).max() < 1e-5) == one_position


def test_with_a_vit():
    """The recipe's kind of tower, whose first token weighs patches."""
    config = tiny("mgca", VIT)
    config.mgca.update({"patch_weights": "attention", "stage": 0})
    method = registry.build(config)
    init = jax.jit(method.init, static_argnums=1)
    variables = nn.meta.unbox(init(jax.random.key(0), Spec(SIZE, LENGTH)))
    batch = a_batch()
    encode = jax.jit(method.encode, static_argnums=3)
    features, state = encode(variables, batch, keys_of(4, 4), True)
    images = features.images
    assert images.grid == (4, 4) and images.local_BxPxD.shape == (4, 16, 128)
    assert images.local_weight_BxP.shape == (4, 16)
    assert features.texts.local_BxWxD.shape == (4, LENGTH - 1, 128)
    assert state["batch_stats"].keys() == {"image_projection", "text_projection"}
    given = (variables, features, batch, None, jnp.int32(0))
    _, weighed, _ = method.objective(*given)
    alike = dataclasses.replace(method, patch_weights="alike")
    _, equal, _ = alike.objective(*given)
    assert weighed["loss_patches"] != equal["loss_patches"]
    assert np.isfinite([*weighed.values(), *equal.values()]).all()
    # Words 7, patches 16, width 128, 50 prototypes; wholes of ten by ten.
    tokens = 4 * 7 * 16 + 7**2 + 16**2
    local = 6 * 3 * 2 * 10 * 128 * (tokens + 2 * 50)
    assert method.loss_flops(Spec(SIZE, LENGTH), 10) == 6 * 4 * 2 * 100 * 128 + local


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention", "heads", "mgca.attention must be one of learned, cosines"),
        ("patch_weights", "all", "mgca.patch_weights must be one of attention, alike"),
        ("patch_weights", "attention", "such as vit; found resnet"),
        ("stage", 3, "the image tower has 2 stages"),
    ],
)
def test_switches_that_there_are_not(name, value, message):
    config = tiny("mgca", RESNET)
    config.mgca[name] = value
    with pytest.raises(UserError, match=message):
        registry.build(config)
