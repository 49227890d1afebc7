"""Encoders against numbers that PyTorch gave for weights made by a formula.

The weights of a state dict, in the alphabetical order of its names, are a hash of the
entry's index i and the tensor's place k; the numbers were computed once with
torchvision's ResNet-50 and Hugging Face's BertModel in float64.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medclip_jax.models.registry import build_image_encoder, build_text_encoder
from medclip_jax.weights import bert, resnet


def compiled(function, *args):
    """Called in one compiled program."""
    return jax.jit(function)(*args)


def fill(size, k):
    i = np.arange(size, dtype=np.float64)
    x = 43758.5453 * np.sin(12.9898 * i + 78.233 * k)
    return 2 * (x - np.floor(x)) - 1


def tensor(name, shape, k):
    h = fill(int(np.prod(shape)), k).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * h**2
    if len(shape) == 1:
        return 1 + 0.1 * h if name.endswith("weight") else 0.05 * h
    return h * np.sqrt(3 / np.prod(shape[1:]))


def filled(shapes):
    state = {
        name: tensor(name, shapes[name], k) for k, name in enumerate(sorted(shapes))
    }
    return {name: value.astype(np.float32) for name, value in state.items()}


def target_of(encoder, *args):
    return jax.eval_shape(
        lambda: nn.meta.unbox(encoder.init(jax.random.key(0), *args, train=False))
    )


def zeros(target):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(target))


def test_the_hash():
    np.testing.assert_allclose(
        fill(5, 0), [-1, 0.843381, -0.885564, 0.116445, -0.252533], atol=1e-6
    )
    np.testing.assert_allclose(fill(3, 7), [-0.755627, -0.784626, 0.808516], atol=1e-6)
    np.testing.assert_allclose(fill(100001, 150)[-1], 0.255082, atol=1e-6)


def test_resnet50():
    encoder = build_image_encoder({"name": "resnet"})
    films = fill(3 * 64 * 64, 1000).reshape(1, 3, 64, 64).transpose(0, 2, 3, 1)
    films = jnp.asarray(films, jnp.float32)
    target = target_of(encoder, films)
    shapes = {
        key: value.shape
        for key, value in resnet.to_torch(zeros(target)).items()
        if not key.endswith("num_batches_tracked")
    }
    shapes |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    assert len(shapes) == 267
    state = filled(shapes)
    variables, report = resnet.from_torch(state, target)
    assert report.fits and sorted(report.ignored) == ["fc.bias", "fc.weight"]

    def forward(variables, films):
        return encoder.apply(
            variables,
            films,
            train=False,
            capture_intermediates=lambda module, _: module.name == "layer3_5",
        )

    features, captured = compiled(forward, variables, films)
    trunk = np.asarray(features.trunk_BxF)[0]
    wanted = [0.519342, 0.316964, 0.809427, 0.593729, 0.008900, 0.322052]
    np.testing.assert_allclose(trunk[:6], wanted, atol=1e-4)
    np.testing.assert_allclose(trunk.mean(), 0.444866, atol=1e-4)
    map3 = captured["intermediates"]["layer3_5"]["__call__"][0]
    np.testing.assert_allclose(map3.mean(), 0.614580, atol=1e-4)
    logits = state["fc.weight"] @ trunk + state["fc.bias"]
    wanted = [0.517682, 0.169903, 0.857103, -0.088857]
    np.testing.assert_allclose(logits[:4], wanted, atol=1e-4)


def test_tiny_bert():
    encoder = build_text_encoder(
        {
            "name": "bert",
            "vocab_size": 50,
            "dim": 32,
            "layers": 4,
            "heads": 4,
            "mlp": 64,
            "max_positions": 16,
        }
    )
    ids = np.array([[2, 7, 9, 11, 3, 0], [2, 5, 3, 0, 0, 0]], np.int32)
    mask = (ids != 0).astype(np.int32)
    target = target_of(encoder, ids, mask)
    shapes = {k: v.shape for k, v in bert.to_torch(zeros(target)).items()}
    assert len(shapes) == 71
    variables, report = bert.from_torch(filled(shapes), target)
    assert report.fits and not report.ignored

    out = compiled(lambda v: encoder.apply(v, ids, mask, train=False), variables)
    words, keep = np.asarray(out.words_BxTxC), mask[..., None] > 0

    def check(got, wanted):
        np.testing.assert_allclose(got, wanted, atol=1e-4)

    check(words[0, 0, :4], [-0.111734, -0.685748, -1.087636, 1.747065])
    check(words[0, 4, :4], [-0.610552, -0.805667, -1.114922, 1.318044])
    check(
        out.pooler_BxC[:, :4],
        [
            [-0.066316, -0.417717, 0.654001, 0.969069],
            [0.544854, -0.582674, 0.417702, 0.984477],
        ],
    )
    check(
        np.where(keep, words, -np.inf).max(1)[:, :4],
        [
            [-0.022074, -0.079491, -0.662403, 1.747065],
            [-0.747264, -0.169935, -1.888282, 1.211637],
        ],
    )
    check(
        words.max(1)[1, :4],
        [-0.747264, 0.165776, -1.848825, 1.211637],
    )
    check(
        (np.where(keep, words, 0).sum(1) / keep.sum(1))[:, :4],
        [
            [-0.452518, -0.600884, -1.105067, 1.427256],
            [-0.847854, -0.227029, -1.933733, 1.157300],
        ],
    )
    last4 = sum(np.asarray(state) for state in out.hidden[-4:])
    check(last4[0, 1, :4], [-5.827414, -1.444703, -4.398450, 4.818232])
