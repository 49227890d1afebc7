"""Losses against published formulas worked by hand, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax import losses
from medclip_jax.losses import ring
from medclip_jax.losses.semantic_matching import soft_cross_entropy


@pytest.fixture(params=["dense", "rounds"], autouse=True)
def form(request, monkeypatch):
    """The loss as one matrix of logits, or in rounds of tiles of one or two rows."""
    rounds = request.param == "rounds"
    monkeypatch.setattr(ring, "FROM_LOGITS", 0 if rounds else 1 << 60)
    monkeypatch.setattr(ring, "MOST_ROWS", 2)
    return request.param


V = np.array([[1, 2, 0, -1], [0, 1, 1, 2], [2, -1, 1, 0]], np.float32)
U = np.array([[1, 0, 1, 0], [1, 1, 0, 1], [0, -1, 1, 1]], np.float32)
COSINE = np.array(
    [[0.30, -0.10, 0.20], [0.25, 0.05, -0.15], [-0.20, 0.40, 0.10]], np.float32
)
IMAGE_LABELS = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]], np.float32)
TEXT_LABELS = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, -1, 0, 1]], np.float32)
ONES = np.ones(3, np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def matched(logits, target):
    """The loss on given logits: embeddings I and their products stand for them."""
    similarity = losses.label_similarity(IMAGE_LABELS, TEXT_LABELS, target)
    rows = soft_cross_entropy(logits, similarity, ONES, ONES)
    columns = soft_cross_entropy(logits.T, similarity.T, ONES, ONES)
    return rows, columns


@pytest.mark.parametrize(
    ("target", "image", "text", "total"),
    [
        ("dot", 2.194989, 2.564675, 2.379832),
        ("cosine", 2.464679, 2.573963, None),
    ],
)
def test_semantic_matching_oracle(target, image, text, total):
    if target == "cosine":
        # The worked example normalises by its own cosine, [1, 0, -0.5] in row 0.
        similarity = losses.label_similarity(IMAGE_LABELS, TEXT_LABELS, target)
        np.testing.assert_allclose(
            similarity, [[1, 0, -0.5], [0.5, 0, 0.5], [0, 1, 0]], atol=1e-6
        )
    rows, columns = matched(COSINE / 0.07, target)
    np.testing.assert_allclose([rows, columns], [image, text], atol=1e-5)
    if total:
        np.testing.assert_allclose((rows + columns) / 2, total, atol=1e-5)


def test_semantic_matching_gradients():
    """Of the whole loss: through orthonormal texts the logits are the images."""

    def loss(cosine, log_scale):
        return losses.semantic_matching_loss(
            cosine,
            jnp.eye(3),
            IMAGE_LABELS,
            TEXT_LABELS,
            jnp.exp(log_scale),
            target="dot",
        )

    log_scale = jnp.log(1 / 0.07)
    value, (by_cosine, by_scale) = jax.value_and_grad(loss, (0, 1))(COSINE, log_scale)
    np.testing.assert_allclose(value, 2.379832, atol=1e-5)
    np.testing.assert_allclose(
        by_cosine * 0.07,
        [
            [-0.005584, -0.053783, 0.143848],
            [0.100696, -0.051079, -0.179841],
            [-0.050209, 0.137755, -0.041803],
        ],
        atol=1e-5,
    )
    np.testing.assert_allclose(by_scale, 2.043320, atol=1e-5)


def test_uncertain_text_counts_against():
    """A kept -1 makes the target smaller than that of an unrelated text."""
    similarity = losses.label_similarity(IMAGE_LABELS, TEXT_LABELS, "dot")
    np.testing.assert_allclose(similarity, [[2, 0, -1], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("tau", "weight", "expected"),
    [(0.01, 0.75, 19.302771), (0.07, 0.5, 2.889234), (0.1, 0.75, 2.059599)],
)
def test_infonce_oracle(tau, weight, expected):
    value = losses.infonce_loss(unit(V), unit(U), 1 / tau, image_to_text=weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-5)


def test_infonce_lambda_is_of_the_image_to_text_direction():
    value = losses.infonce_loss(unit(U), unit(V), 10.0, image_to_text=0.75)
    np.testing.assert_allclose(value, 2.146865, atol=1e-5)


def test_infonce_gradients():
    def convirt(v, u):
        v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
        u = u / jnp.linalg.norm(u, axis=-1, keepdims=True)
        return losses.infonce_loss(v, u, 10.0, image_to_text=0.75)

    by_v, by_u = jax.grad(convirt, (0, 1))(V, U)
    np.testing.assert_allclose(
        by_v,
        [
            [-0.368284, 0.461990, -0.861505, 0.555695],
            [-0.066166, -0.238162, 0.146270, 0.045946],
            [0.452643, 0.926875, 0.021588, -0.673660],
        ],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        by_u,
        [
            [0.036826, -2.658183, -0.036826, 0.882805],
            [0.256053, 0.695741, -0.074161, -0.951795],
            [-1.352620, 0.472918, -0.175938, 0.648855],
        ],
        atol=1e-5,
    )


def test_clip_scale_gradient():
    def clip(log_scale):
        return losses.infonce_loss(unit(V), unit(U), jnp.exp(log_scale))

    np.testing.assert_allclose(jax.grad(clip)(jnp.log(1 / 0.07)), 2.674185, atol=1e-5)


@pytest.mark.parametrize(
    ("t", "b", "value", "by_t", "by_b"),
    [
        (10.0, -10.0, 5.210031, -4.146186, -0.908163),
        (10.0, 0.0, 7.853258, 7.561365, 1.593676),
        (20.0, -5.0, 7.768347, 13.330535, 1.254017),
    ],
)
def test_sigmoid_oracle(t, b, value, by_t, by_b):
    def loss(log_t, bias):
        return losses.sigmoid_loss(unit(V), unit(U), jnp.exp(log_t), bias)

    got, grads = jax.value_and_grad(loss, (0, 1))(jnp.log(t), b)
    np.testing.assert_allclose(got, value, atol=1e-5)
    np.testing.assert_allclose(grads, [by_t, by_b], rtol=1e-5, atol=1e-5)


def test_sigmoid_negative_block():
    value = losses.sigmoid_loss(unit(V), unit(U), 10.0, -10.0, paired=False)
    np.testing.assert_allclose(value, 0.100653, atol=1e-5)


def semantic(v, u, image_weight=None, text_weight=None):
    rng = np.random.default_rng(1)
    image_labels = rng.integers(-1, 2, (5, 14)).astype(np.float32)[: len(v)]
    text_labels = rng.integers(-1, 2, (7, 14)).astype(np.float32)[: len(u)]
    return losses.semantic_matching_loss(
        v,
        u,
        image_labels,
        text_labels,
        14.0,
        image_weight_N=image_weight,
        text_weight_M=text_weight,
    )


def infonce(v, u, image_weight=None, text_weight=None):
    return losses.infonce_loss(
        v, u, 10.0, image_weight_N=image_weight, text_weight_M=text_weight
    )


def sigmoid(v, u, image_weight=None, text_weight=None):
    return losses.sigmoid_loss(
        v, u, 10.0, -5.0, image_weight_N=image_weight, text_weight_M=text_weight
    )


@pytest.mark.parametrize("loss", [semantic, infonce, sigmoid])
@pytest.mark.parametrize(("n", "m"), [(3, 5), (3, 3)])
def test_zero_weight_equals_absence(loss, n, m):
    """Padding is neither an anchor nor a negative: same value, same gradients."""
    rng = np.random.default_rng(0)
    v, u = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(7, 8)))
    v, u = v.astype(np.float32), u.astype(np.float32)
    padded = jax.value_and_grad(
        lambda v, u: loss(v, u, jnp.arange(5) < n, jnp.arange(7) < m), (0, 1)
    )
    short = jax.value_and_grad(loss, (0, 1))
    value, (by_v, by_u) = padded(v, u)
    expected, (expected_v, expected_u) = short(v[:n], u[:m])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_v[:n], expected_v, atol=1e-6)
    np.testing.assert_allclose(by_u[:m], expected_u, atol=1e-6)
    assert not np.any(by_v[n:]) and not np.any(by_u[m:])


@pytest.mark.parametrize("loss", [semantic, infonce, sigmoid])
@pytest.mark.parametrize("images", [0.0, 1.0])
def test_nobody_to_compare_with_is_zero_and_finite(loss, images):
    """All weights are 0, or those of all texts."""
    v, u = unit(V[:, :3]), unit(U[:, :3])
    weights = jnp.full(3, images), jnp.zeros(3)
    value, grads = jax.value_and_grad(loss, (0, 1))(v, u, *weights)
    assert value == 0
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("loss", [semantic, infonce, sigmoid])
def test_jit_agrees(loss):
    v, u = jnp.asarray(unit(V)), jnp.asarray(unit(U))
    np.testing.assert_allclose(jax.jit(loss)(v, u), loss(v, u), rtol=1e-6)


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match="4 .images. and 3 .texts."):
        losses.infonce_loss(V, U[:, :3], 1.0)
    with pytest.raises(ValueError, match="found 'euclid'"):
        losses.label_similarity(IMAGE_LABELS, TEXT_LABELS, "euclid")
    with pytest.raises(ValueError, match=r"found \(2,\)"):
        losses.sigmoid_loss(V, U, 1.0, 0.0, image_weight_N=jnp.ones(2))
