"""Embedding in batches against one direct call, on one device and on four."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import medclip
from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation.embedding import Embedder, rebatch
from medclip_jax.evaluation.in_training import ZeroShotInTraining, choose_films
from medclip_jax.methods.interface import Spec
from medclip_jax.methods.registry import build

LENGTH = 12


class HashTokenizer:
    """Words to ids by their letters: enough of a tokenizer to embed with."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            for column, word in enumerate(text.split()[:length]):
                ids[row, column] = 1 + sum(map(ord, word)) % 60
        return {"ids_BxT": ids, "mask_BxT": (ids > 0).astype(np.int32)}


def normalize(films_BxHxWx1):
    return jnp.repeat(films_BxHxWx1.astype(jnp.float32) / 127.5 - 1, 3, axis=-1)


def make(batch_size=4, **kwargs):
    config = medclip.get_config("demo")
    config.model.text.vocab_size = 64
    config.model.image.width = 8
    config.model.text.dim = 32
    config.model.text.mlp = 32
    config.model.embed_dim = 16
    method = build(config)
    # Random values by shape: compiling the initialisers takes longer than the tests.
    shapes = nn.meta.unbox(
        jax.eval_shape(
            lambda key: method.init(key, Spec(32, LENGTH)), jax.random.key(0)
        )
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    embedder = Embedder(method, normalize, HashTokenizer(), LENGTH, batch_size)
    return method, variables, embedder


def films(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 1), dtype=np.uint8)


def test_rebatch_keeps_order_and_loses_nothing():
    parts = [np.arange(3), np.arange(3, 4), np.arange(4, 11)]
    got = list(rebatch(parts, 4))
    assert [len(part) for part in got] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(got), np.arange(11))
    assert not list(rebatch([], 4))


def test_batches_give_what_one_call_gives():
    method, variables, embedder = make()
    pixels = films(10)
    texts = [f"mild edema at the lobe number {i}" for i in range(7)]
    images = embedder.films(variables, [pixels[:1], pixels[1:7], pixels[7:]])
    words = embedder.texts(variables, texts)
    direct = jax.jit(method.embed_images)(
        variables, {"current_BxHxWx3": normalize(pixels)}
    )
    np.testing.assert_allclose(images.joint_BxD, direct.joint_BxD, atol=1e-5)
    np.testing.assert_allclose(images.trunk_BxF, direct.trunk_BxF, atol=1e-4)
    direct_texts = jax.jit(method.embed_texts)(
        variables, HashTokenizer().encode(texts, LENGTH)
    )
    np.testing.assert_allclose(words.joint_BxD, direct_texts.joint_BxD, atol=1e-5)
    logits = embedder.logits(variables, images, words)
    assert logits.shape == (10, 7)
    np.testing.assert_allclose(
        logits, method.score(variables, direct, direct_texts), atol=1e-4
    )
    assert images.patches_BxPxC is None and words.words_BxTxC is None


def test_logits_that_are_not_finite_are_an_error():
    _, variables, embedder = make()
    broken = jax.tree.map(lambda leaf: leaf * np.nan, variables)
    images = embedder.films(broken, [films(3)])
    with pytest.raises(UserError, match="not finite"):
        embedder.logits(broken, images, embedder.texts(broken, ["edema"]))


def test_nothing_to_embed_is_an_error():
    _, variables, embedder = make()
    with pytest.raises(ValueError, match="no films"):
        embedder.films(variables, [])


def test_in_training_is_deterministic_and_at_chance_untrained():
    _, variables, embedder = make(batch_size=16)
    labels = np.zeros((60, 14), np.int8)
    names = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema")
    for row in range(60):
        name = (*names, "Pleural Effusion")[row % 5]
        labels[row, FINDINGS.index(name)] = 1
    views = ["AP"] * 50 + ["LATERAL"] * 10
    ids = [f"{row:03d}" for row in range(60)]
    chosen = choose_films(labels, views, ids, limit=40)
    assert np.bincount(chosen.classes).tolist() == [8] * 5
    assert chosen.indices.max() < 50
    evaluate = ZeroShotInTraining(embedder, films(60)[chosen.indices], chosen.classes)
    first = evaluate(variables)
    assert first == evaluate(variables)
    assert set(first) == {"zero_shot/accuracy", "zero_shot/auroc"}
    assert 0.05 < first["zero_shot/accuracy"] < 0.4
    with pytest.raises(UserError, match="Atelectasis 0"):
        choose_films(labels * 0, views, ids, limit=40)


SHARDED = """
import sys; sys.path.insert(0, {here!r})
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import test_eval_embedding as t
_, variables, embedder = t.make(batch_size=6)
assert embedder.batch_size == 8, embedder.batch_size
mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("data", "fsdp"))
placed = jax.tree.map(
    lambda a: jax.device_put(a, NamedSharding(mesh, P())), variables)
for some in (variables, placed):
    images = embedder.films(some, [t.films(10)])
    words = embedder.texts(some, ["mild edema", "clear lungs", "x"])
    np.save({out!r}, embedder.logits(some, images, words))
"""


def test_four_devices_give_what_one_gives(tmp_path):
    out = str(tmp_path / "logits.npy")
    script = SHARDED.format(here=os.path.dirname(__file__), out=out)
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)
    _, variables, embedder = make()
    images = embedder.films(variables, [films(10)])
    words = embedder.texts(variables, ["mild edema", "clear lungs", "x"])
    want = embedder.logits(variables, images, words)
    np.testing.assert_allclose(np.load(out), want, atol=1e-4)
