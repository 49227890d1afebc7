"""Dropout per example: rates, scale, independence of sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.models.dropout import active_keys, drop_path, dropout

KEYS = jax.random.split(jax.random.key(0), 64)
ONES = jnp.ones((64, 33, 31))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_scale(rate):
    out = np.asarray(dropout(ONES, rate, KEYS, 3))
    dropped = (out == 0).mean()
    assert abs(dropped - rate) < 4 * np.sqrt(rate * (1 - rate) / out.size)
    # The mean is kept, and what is kept is one value.
    assert abs(out.mean() - 1) < 0.01
    assert len(np.unique(out)) == 2


def test_examples_and_sites_draw_apart():
    first = np.asarray(dropout(ONES, 0.5, KEYS, 1)) > 0
    second = np.asarray(dropout(ONES, 0.5, KEYS, 2)) > 0
    # Independent fair coins agree on half of the entries.
    assert abs((first == second).mean() - 0.5) < 0.01
    assert abs((first[0] == first[1]).mean() - 0.5) < 0.1
    again = np.asarray(dropout(ONES, 0.5, KEYS, 1)) > 0
    np.testing.assert_array_equal(first, again)


def test_halves_of_a_word_are_independent():
    """Two draws come out of one 32-bit word."""
    flat = np.asarray(dropout(jnp.ones((64, 2000)), 0.5, KEYS, 1)) > 0
    assert abs((flat[:, :1000] == flat[:, 1000:]).mean() - 0.5) < 0.01


def test_drop_path_takes_whole_examples():
    keys = jax.random.split(jax.random.key(1), 4000)
    out = np.asarray(drop_path(jnp.ones((4000, 2, 3)), 0.3, keys, 5))
    whole = out.reshape(4000, -1)
    assert (whole == whole[:, :1]).all()
    assert abs((whole[:, 0] == 0).mean() - 0.3) < 0.03
    assert abs(out.mean() - 1) < 0.05


def test_gradient_goes_through_what_is_kept():
    out, pull = jax.vjp(lambda x: dropout(x, 0.4, KEYS, 1), ONES)
    (grad,) = pull(jnp.ones_like(out))
    np.testing.assert_allclose(grad, out, rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_outside_are_refused(rate):
    with pytest.raises(ValueError, match="must lie in"):
        active_keys(True, KEYS, rate)


def test_nothing_is_drawn_without_need():
    assert active_keys(False, KEYS, 0.5) is None
    assert active_keys(True, None, 0.0) is None
    assert active_keys(True, KEYS, 0.0, 0.1) is KEYS
    assert dropout(ONES, 0.5, None, 0) is ONES
    assert drop_path(ONES, 0.0, KEYS, 0) is ONES
