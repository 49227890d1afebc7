"""Token alignment, prototypes and cycles against worked figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses.cycle import cycle_loss, one_way
from medclip_jax.losses.prototypes import prototype_loss, sinkhorn
from medclip_jax.losses.token_alignment import (
    attended,
    clipped_shares,
    token_alignment_loss,
)


def at(degrees):
    """Points of the unit circle."""
    turn = np.deg2rad(np.asarray(degrees, np.float64))
    return jnp.asarray(np.stack([np.cos(turn), np.sin(turn)], -1), jnp.float32)


def unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


WORDS = at([[0, 40, 90], [20, 60, 110]])
PATCHES = at([[10, 35, 80, 120], [15, 50, 70, 100]])
REAL = jnp.array([[1, 1, 0], [1, 1, 1]])


def test_mgca_s_weights():
    words = clipped_shares(jnp.array([[0.30, 0.05, 0], [0.20, 0.10, 0.40]]))
    np.testing.assert_allclose(
        words, [[0.785714, 0.214286, 0], [0.294118, 0.176471, 0.529412]], atol=1e-6
    )
    patches = clipped_shares(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.05, 0.5, 0.2]]))
    np.testing.assert_allclose(
        patches,
        [
            [0.130000, 0.370000, 0.200000, 0.300000],
            [0.257732, 0.097938, 0.438144, 0.206186],
        ],
        atol=1e-6,
    )


def test_one_token_is_all_there_is():
    np.testing.assert_allclose(clipped_shares(jnp.array([[0.2, 0, 0]])), [[1, 0, 0]])
    assert np.isfinite(clipped_shares(jnp.zeros((1, 3)))).all()


def mgca(normalise_patches, patch_weights):
    word_weights = clipped_shares(jnp.array([[0.30, 0.05, 0], [0.20, 0.10, 0.40]]))
    found = unit(attended(WORDS, PATCHES, 0.1))
    word = token_alignment_loss(WORDS, found, word_weights, 0.1)
    found = attended(PATCHES, WORDS, 0.1, REAL)
    found = unit(found) if normalise_patches else found
    return word, token_alignment_loss(PATCHES, found, patch_weights, 0.1)


def test_mgca_s_token_alignment():
    """Its ViT weighs patches and leaves what they find as it is; its ResNet neither."""
    weights = clipped_shares(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.05, 0.5, 0.2]]))
    word, patch = mgca(False, weights)
    np.testing.assert_allclose([word, patch], [0.212674, 1.308511], atol=1e-5)
    word, patch = mgca(True, jnp.full((2, 4), 0.25))
    np.testing.assert_allclose(word + patch, 1.397308, atol=1e-5)


def test_med_st_s_token_alignment():
    weights = jnp.array(
        [[0.330005, 0.369514, 0.300481], [0.300605, 0.360152, 0.339244]]
    )
    found = unit(attended(WORDS, PATCHES, 0.1))
    word = token_alignment_loss(WORDS, found, weights, 0.1)
    weights = jnp.array(
        [
            [0.236917, 0.271258, 0.279231, 0.212594],
            [0.214664, 0.271688, 0.261116, 0.252531],
        ]
    )
    found = attended(PATCHES, WORDS, 0.1, REAL)
    patch = token_alignment_loss(PATCHES, found, weights, 0.1)
    np.testing.assert_allclose([word, patch], [0.172674, 1.161856], atol=1e-5)


def test_a_pair_of_no_weight_does_not_count():
    weights, found = jnp.full((2, 3), 1 / 3), unit(attended(WORDS, PATCHES, 0.1))
    kept = token_alignment_loss(WORDS[1:], found[1:], weights[1:], 0.1)
    both = token_alignment_loss(
        WORDS, found, weights, 0.1, weight_B=jnp.array([0.0, 1.0])
    )
    np.testing.assert_allclose(both, kept, rtol=1e-6)


PROTOTYPES, IMAGES, TEXTS = (
    at(of) for of in ([0, 60, 140], [0, 50, 100, 150], [10, 40, 120, 130])
)


def test_codes():
    np.testing.assert_allclose(
        sinkhorn(IMAGES @ PROTOTYPES.T),
        [
            [0.999973, 0.000027, 0.000000],
            [0.001788, 0.998212, 0.000000],
            [0.000000, 0.500268, 0.499732],
            [0.000000, 0.000000, 1.000000],
        ],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        sinkhorn(TEXTS @ PROTOTYPES.T),
        [
            [0.997246, 0.002754, 0],
            [0.011874, 0.988126, 0],
            [0, 0.002127, 0.997873],
            [0, 0.000037, 0.999963],
        ],
        atol=2e-6,
    )


def test_prototype_loss():
    found = prototype_loss(IMAGES @ PROTOTYPES.T, TEXTS @ PROTOTYPES.T)
    np.testing.assert_allclose(found, 0.343803, atol=1e-5)


def test_codes_of_some_examples():
    keep = jnp.array([1.0, 0, 1, 1])
    scores = IMAGES @ PROTOTYPES.T
    found = sinkhorn(scores, weight_B=keep)
    assert not found[1].any()
    expected = sinkhorn(scores[jnp.array([0, 2, 3])])
    np.testing.assert_allclose(found[jnp.array([0, 2, 3])], expected, atol=1e-6)


def test_no_gradient_flows_through_codes():
    def loss(images):
        return (sinkhorn(images) * jnp.arange(3.0)).sum()

    assert not jax.grad(loss)(IMAGES @ PROTOTYPES.T).any()


A = at([[0, 30, 60, 90]]), at([[5, 25, 70, 80]])
B = at([[0, 30, 60, 90], [10, 0, 45, 20]]), at([[5, 25, 70, 80], [0, 15, 40, 60]])


def test_one_way_of_a_cycle():
    there, back = one_way(*A)
    np.testing.assert_allclose(there.mean(), 0.255656, atol=1e-5)
    np.testing.assert_allclose(
        back[0], [0.271489, 0.184972, 0.510018, 0.676833], atol=1e-5
    )
    there, back = one_way(*A[::-1])
    np.testing.assert_allclose(
        [there.mean(), back.mean()], [0.255502, 0.453811], atol=1e-5
    )


@pytest.mark.parametrize(("pair", "expected"), [(A, 1.375797), (B, 3.129901)])
def test_cycles(pair, expected):
    np.testing.assert_allclose(cycle_loss(*pair), expected, atol=1e-5)


def test_a_sequence_of_no_weight_and_none_at_all():
    found = cycle_loss(*B, weight_S=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(found, 1.375797, atol=1e-5)
    assert cycle_loss(*B, weight_S=jnp.zeros(2)) == 0


def test_an_error_above_delta_counts_linearly():
    _, back = one_way(*A, delta=0.1)
    _, gaussian = one_way(*A)
    error = np.abs(
        np.array([0, 0.25, 0.5, 0.75]) - [0.054296, 0.203440, 0.587944, 0.647888]
    )
    expected = np.where(error < 0.1, gaussian[0], 0.1 * (error - 0.05))
    np.testing.assert_allclose(back[0], expected, atol=1e-5)
    assert (error > 0.1).any()
