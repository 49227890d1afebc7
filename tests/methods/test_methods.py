"""Every shipped method on tiny encoders: the contract of methods/interface.py."""

import dataclasses
import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.interface import ClassifiesFilms, ExampleKeys, Spec

PAIRED = ("biovil", "clip", "convirt", "gloria", "medclip", "mgca", "siglip")
SIZE, LENGTH, VOCAB = 32, 8, 50
SWIN = {
    "name": "swin",
    "patch": 4,
    "embed_dim": 8,
    "depths": (1, 1),
    "heads": (2, 2),
    "window": 4,
    "drop_path": 0.3,
    "pretrained": "",
}
RESNET = {
    "name": "resnet",
    "stage_sizes": (1, 1),
    "width": 4,
    "block": "basic",
    "pretrained": "",
}
BERT = {
    "name": "bert",
    "vocab_size": VOCAB,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "mlp": 32,
    "max_positions": 16,
    "dropout": 0.1,
    "pretrained": "",
    "tokenizer": "",
}


def tiny(name, image=SWIN):
    config = importlib.import_module(f"configs.{name}").get_config("demo")
    config.model.image = ConfigDict(image)
    config.model.text = ConfigDict(BERT)
    if name == "biovil":  # of so few and short texts, or none may be hidden
        config.mlm.rate = 0.9
    if name == "gloria":  # its words have no head, and the tower has two stages
        config.model.embed_dim = BERT["dim"]
        config.gloria.stage = 1
    if name == "mgca":
        config.mgca.update({"stage": 1, "hidden": 32, "frozen_steps": 0})
    return config


@functools.cache
def make(name, encoder="resnet"):
    method = registry.build(tiny(name, {"swin": SWIN, "resnet": RESNET}[encoder]))
    init = jax.jit(method.init, static_argnums=1)
    return method, nn.meta.unbox(init(jax.random.key(0), Spec(SIZE, LENGTH)))


def _word_ids(mask):
    place = np.arange(LENGTH)
    within = (place > 0) & (place < mask.sum(1, keepdims=True) - 1)
    return np.where(within, (place - 1) // 2, -1).astype(np.int32)


def a_batch(n=4, m=4):
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (m, 1))).astype(np.int32)
    films = rng.normal(size=(n, SIZE, SIZE, 3)).astype(np.float32)
    return {
        "films": {"current_BxHxWx3": films},
        "texts": {
            "ids_BxT": rng.integers(1, VOCAB, (m, LENGTH)).astype(np.int32) * mask,
            "mask_BxT": mask,
            # Two pieces a word, between [CLS] and [SEP].
            "word_ids_BxT": _word_ids(mask),
        },
        "image_labels_Nx14": rng.integers(-2, 2, (n, 14)).astype(np.int8),
        "text_labels_Mx14": rng.integers(-2, 2, (m, 14)).astype(np.int8),
        "image_weight_N": np.ones(n, np.float32),
        "text_weight_M": np.ones(m, np.float32),
    }


def keys_of(n, m):
    keys = jax.random.split(jax.random.key(3), n + m)
    return ExampleKeys(keys[:n], keys[n:])


def loss_of(method, variables, batch, keys, train=True):
    features, state = method.encode(variables, batch, keys, train)
    return method.objective(variables, features, batch, None, jnp.int32(0))[0], state


@pytest.mark.parametrize(
    ("name", "image"),
    [("medclip", "swin"), *((name, "resnet") for name in (*PAIRED, "supervised"))],
)
def test_every_parameter_learns(name, image):
    """A finite loss, and a gradient that reaches all that the loss can see."""
    method, variables = make(name, image)
    batch = a_batch()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        return loss_of(method, {**variables, "params": params}, batch, keys_of(4, 4))

    (value, _), grads = loss(variables["params"])
    assert np.isfinite(value)
    dead = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(np.abs(grad) > 1e-12)
    }
    # The key's bias shifts all scores of a query alike; softmax does not see it. The
    # pooler feeds no other pooling. Rows of a table that no example names stay 0,
    # but a table as a whole does not.
    blind = {p for p in dead if p.endswith("key/bias") or "/pooler/" in p}
    if name == "mgca":  # batch norm takes off what a bias before it adds
        blind |= {p for p in dead if "/projection/" in p and p.endswith("/bias")}
    assert dead == blind


@pytest.mark.parametrize("name", [*PAIRED, "supervised"])
def test_logical_names_on_every_parameter(name):
    method = registry.build(tiny(name))
    boxed = jax.eval_shape(
        lambda: method.init(jax.random.key(0), Spec(SIZE, LENGTH))["params"]
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    ):
        assert isinstance(leaf, nn.LogicallyPartitioned), path
        assert len(leaf.names) == leaf.value.ndim, path


def test_a_part_of_a_batch_draws_what_the_whole_draws():
    method, variables = make("medclip", "swin")
    batch, keys = a_batch(), keys_of(4, 4)
    encode = jax.jit(method.encode, static_argnums=3)
    whole, _ = encode(variables, batch, keys, True)
    part = jax.tree.map(lambda leaf: leaf[1:3], batch)
    features, _ = encode(
        variables, part, ExampleKeys(keys.images_N[1:3], keys.texts_M[1:3]), True
    )
    for one, other in (
        (whole.images.joint_BxD, features.images.joint_BxD),
        (whole.texts.joint_BxD, features.texts.joint_BxD),
    ):
        np.testing.assert_allclose(one[1:3], other, atol=2e-5)
    plain, _ = encode(variables, batch, None, False)
    assert np.abs(plain.texts.joint_BxD - whole.texts.joint_BxD).max() > 1e-3


@pytest.mark.parametrize("name", PAIRED)
def test_inference(name):
    method, variables = make(name)
    batch = a_batch(3, 5)
    images = jax.jit(method.embed_images)(variables, batch["films"])
    texts = jax.jit(method.embed_texts)(variables, batch["texts"])
    logits_NxM = method.score(variables, images, texts)
    assert logits_NxM.shape == (3, 5) and logits_NxM.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(images.joint_BxD, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(texts.joint_BxD, axis=1), 1, rtol=1e-5)
    assert images.trunk_BxF.dtype == jnp.float32


@pytest.mark.parametrize("name", PAIRED)
def test_padding_does_not_change_a_text(name):
    method, variables = make(name)
    texts = a_batch()["texts"]
    other = {**texts, "ids_BxT": np.where(texts["mask_BxT"], texts["ids_BxT"], 7)}
    embed = jax.jit(method.embed_texts)
    np.testing.assert_allclose(
        embed(variables, texts).joint_BxD, embed(variables, other).joint_BxD, atol=1e-6
    )


VIT = {
    "name": "vit",
    "patch": 8,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp": 32,
    "pooling": "cls",
    "pretrained": "",
}


@pytest.mark.parametrize(
    ("pooling", "text_pool", "asked"),
    [("cls", "cls", [True, True]), ("mean", "max", [False, False])],
)
def test_training_computes_what_its_heads_read(pooling, text_pool, asked):
    """The first tokens alone where nothing else is read, and the same embeddings."""
    config = tiny("convirt", {**VIT, "pooling": pooling})
    config.model.text.dropout = config.model.text.attention_dropout = 0.0
    config.convirt.text_pool = text_pool
    method = registry.build(config)
    variables = nn.meta.unbox(
        jax.jit(method.init, static_argnums=1)(jax.random.key(0), Spec(SIZE, LENGTH))
    )
    found = [bool(method.asked(tower, True)) for tower in ("image", "text")]
    assert found == asked and not method.asked("text", False)
    encode = jax.jit(method.encode, static_argnums=3)
    trained, _ = encode(variables, a_batch(), keys_of(4, 4), True)
    still, _ = encode(variables, a_batch(), None, False)
    np.testing.assert_allclose(
        trained.images.joint_BxD, still.images.joint_BxD, atol=1e-5
    )
    np.testing.assert_allclose(
        trained.texts.joint_BxD, still.texts.joint_BxD, atol=1e-5
    )
    assert (trained.images.patches_BxPxC.shape[1] == 0) == asked[0]
    assert still.images.patches_BxPxC.shape[1] == 16


def test_medclip_official_pooling_counts_padding():
    method, variables = make("medclip")
    head = dataclasses.replace(method.text_head, padding=True)
    method = dataclasses.replace(method, text_head=head)
    texts = {k: v[:, :4] for k, v in a_batch()["texts"].items()}
    texts["mask_BxT"] = np.ones_like(texts["mask_BxT"])
    longer = {k: np.pad(v, ((0, 0), (0, 4))) for k, v in texts.items()}
    embed = jax.jit(method.embed_texts)
    short = embed(variables, texts).joint_BxD
    assert np.abs(short - embed(variables, longer).joint_BxD).max() > 1e-3


def test_temperature_is_clamped_after_an_update():
    method, variables = make("medclip")
    for given, expected in ((9.0, 4.605170), (-1.0, 0.0), (2.0, 2.0)):
        params = {**variables["params"], "logit_scale": jnp.float32(given)}
        after = method.after_update({"params": params}, jnp.int32(0))
        np.testing.assert_allclose(after["params"]["logit_scale"], expected)
    assert "logit_scale" not in make("convirt")[1]["params"]


def test_medclip_starts_at_the_scale_of_its_config():
    config = tiny("medclip", RESNET)
    for scale in (2.0, 1 / 0.07):
        config.medclip.initial_scale = scale
        method = registry.build(config)
        params = {"params": nn.meta.unbox(method.scalars())}
        np.testing.assert_allclose(method.scale(params), scale, rtol=1e-6)
    config.medclip.initial_scale = 0.5
    with pytest.raises(UserError, match=r"initial_scale must be in \[1, 100\]"):
        registry.build(config)


def test_batch_statistics_move_only_in_training():
    method, variables = make("medclip")
    batch = a_batch()
    _, state = loss_of(method, variables, batch, keys_of(4, 4))
    moved = jax.tree.map(
        lambda old, new: float(np.abs(old - new).max()),
        variables["batch_stats"],
        state["batch_stats"],
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert loss_of(method, variables, batch, None, train=False)[1] == {}


def test_supervised_ignores_what_it_is_told_to():
    method, variables = make("supervised")
    assert isinstance(method, ClassifiesFilms)
    batch = a_batch()
    batch["image_labels_Nx14"][:] = -1
    assert loss_of(method, variables, batch, None, train=False)[0] == 0
    images = method.embed_images(variables, batch["films"])
    logits_Bx14 = method.class_logits(variables, images)
    assert logits_Bx14.shape == (4, 14)


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("model", "dtype", "model.dtype must be one of bfloat16, float32"),
        ("model", "attention", "model.attention must be one of plain, cudnn, xla"),
        ("medclip", "target", "medclip.target must be one of cosine, dot"),
    ],
)
def test_a_value_that_there_is_not(part, key, message):
    config = tiny("medclip")
    config[part][key] = "foo"
    with pytest.raises(UserError, match=message):
        registry.build(config)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this machine has a GPU")
def test_fused_attention_of_a_gpu_is_refused_elsewhere():
    config = tiny("medclip")
    config.model.attention = "cudnn"
    with pytest.raises(UserError, match="needs an NVIDIA GPU .* found cpu and float32"):
        registry.build(config)


def test_fused_attention_is_refused_where_weights_are_dropped():
    config = tiny("medclip")
    config.model.attention = "xla"
    config.model.text.attention_dropout = 0.1
    with pytest.raises(
        UserError, match="model.text.attention_dropout=0.1. Set it to 0"
    ):
        registry.build(config)


def test_unknown_method_lists_the_known():
    config = tiny("medclip")
    config.method = "medklip"
    with pytest.raises(UserError, match="gloria, medclip, mgca, moco, siglip"):
        registry.build(config)


@pytest.mark.parametrize(
    ("pool", "text", "message"),
    [
        ("last", {}, "must be one of layers_1_2_last, pooler"),
        ("layers_1_2_last", {"layers": 1}, "two layers or more"),
        ("pooler", {"pooler": False}, "needs model.text.pooler=True"),
    ],
)
def test_a_pooling_that_the_tower_cannot_give(pool, text, message):
    config = tiny("medclip")
    config.medclip.text_pool = pool
    config.model.text = ConfigDict({**BERT, **text})
    with pytest.raises(UserError, match=message):
        registry.build(config)
