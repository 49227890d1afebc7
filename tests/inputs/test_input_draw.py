import numpy as np
import pytest

from medclip_jax.inputs import draw

POSITIONS = np.arange(20_000)


def test_known_bits():
    """Frozen values: a change here changes every crop of every resumed run."""
    got = draw.bits(7, "crop top", np.array([0, 1, 10**12]))
    assert got.tolist() == [
        draw.bits(7, "crop top", np.array([p]))[0] for p in (0, 1, 10**12)
    ]
    assert got.dtype == np.uint64
    assert got.tolist() == [
        16092284269483769532,
        16138018041297173837,
        8431262667662858546,
    ]


def test_draw_is_keyed_by_each_of_seed_stream_and_position():
    base = draw.bits(0, "a", POSITIONS)
    assert len(np.unique(base)) == len(POSITIONS)
    for other in (draw.bits(1, "a", POSITIONS), draw.bits(0, "b", POSITIONS)):
        assert not (other == base).any()


@pytest.mark.parametrize("bound", [2, 7, 1000])
def test_below_is_uniform(bound):
    counts = np.bincount(draw.below(3, "x", POSITIONS, bound), minlength=bound)
    expected = len(POSITIONS) / bound
    chi2 = ((counts - expected) ** 2 / expected).sum()
    # Mean bound - 1, variance 2 (bound - 1): five standard deviations.
    assert chi2 < bound - 1 + 5 * np.sqrt(2 * (bound - 1))


def test_below_takes_a_bound_for_each_position():
    bound = np.array([1, 2, 3, 500])
    drawn = np.stack([draw.below(s, "x", np.arange(4), bound) for s in range(400)])
    assert (drawn < bound).all() and (drawn >= 0).all()
    assert [len(np.unique(column)) for column in drawn.T[:3]] == [1, 2, 3]


def test_streams_and_neighbouring_positions_are_uncorrelated():
    u = draw.uniform(0, "a", POSITIONS)
    assert 0 <= u.min() and u.max() < 1
    for other in (
        draw.uniform(0, "b", POSITIONS),
        draw.uniform(1, "a", POSITIONS),
        np.roll(u, 1),
    ):
        assert abs(np.corrcoef(u, other)[0, 1]) < 4 / np.sqrt(len(u))
