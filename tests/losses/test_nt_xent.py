"""NT-Xent against worked figures, as one matrix and in rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import nt_xent_loss, ring

ONE = np.array([[1, 2, 0], [0, 1, 1]], np.float32)
OTHER = np.array([[1, 1, 1], [0, 1, -1]], np.float32)


@pytest.fixture(params=["dense", "rounds"], autouse=True)
def form(request, monkeypatch):
    """As one matrix of logits, or in rounds of tiles of two rows."""
    rounds = request.param == "rounds"
    monkeypatch.setattr(ring, "FROM_LOGITS", 0 if rounds else 1 << 60)
    monkeypatch.setattr(ring, "MOST_ROWS", 2)


def loss(one, other, scale, **more):
    def unit(rows):
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)

    return nt_xent_loss(unit(one), unit(other), scale, **more)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.07, 5.509724), (0.1, 3.989797), (0.5, 1.432965), (1.0, 1.229571)],
)
def test_mean_over_all_views(temperature, expected):
    np.testing.assert_allclose(loss(ONE, OTHER, 1 / temperature), expected, atol=1e-5)


def test_each_anchor():
    """A weight of its own takes the other film away, so anchors come by difference."""
    found = loss(ONE, OTHER, 2.0, weight_N=jnp.array([1.0, 1e-12]))
    np.testing.assert_allclose(found, (0.918332 + 0.832835) / 2, atol=1e-5)


def test_gradient():
    by_one, by_other = jax.grad(loss, (0, 1))(ONE, OTHER, 2.0)
    np.testing.assert_allclose(
        by_one,
        [[-0.161826, 0.080913, -0.193616], [0.310140, -0.323547, 0.323547]],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        by_other,
        [[-0.136443, -0.026628, 0.163071], [0.204241, -0.224781, -0.224781]],
        atol=1e-5,
    )


def test_a_film_of_no_weight_is_nobody_s_class():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 4)).astype(np.float32)
    keep = np.array([1.0, 1, 0, 1, 0])
    found = loss(one, other, 10.0, weight_N=jnp.asarray(keep))
    expected = loss(one[keep > 0], other[keep > 0], 10.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_views_come_in_twos():
    with pytest.raises(ValueError, match="two views of each film; found 2 and 1"):
        loss(ONE, OTHER[:1], 1.0)
