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


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40, 1000])
def test_each_pass_is_a_permutation(n):
    passes = draw.shuffled(0, "a", np.arange(6 * n), n).reshape(6, n)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(n), (6, 1)))
    if n >= 40:
        assert len({p.tobytes() for p in passes}) == 6
        assert (passes[0] == np.arange(n)).sum() < 8
        other = draw.shuffled(1, "a", np.arange(n), n)
        assert (other == passes[0]).sum() < 8


def test_any_position_can_be_asked_alone():
    whole = draw.shuffled(3, "a", np.arange(500), 123)
    picked = np.array([499, 0, 122, 123, 77])
    np.testing.assert_array_equal(draw.shuffled(3, "a", picked, 123), whole[picked])
    far = draw.shuffled(3, "a", np.arange(10**14, 10**14 + 9), 10**9)
    assert len(set(far)) == 9 and far.max() > 10**7


@pytest.mark.parametrize("n", [3, 10, 16])
def test_shuffles_are_uniform(n):
    """Every item is as often at every place, and next to every other."""
    passes = draw.shuffled(0, "a", np.arange(4000 * n), n).reshape(4000, n)
    places = np.stack([np.bincount(column, minlength=n) for column in passes.T])
    expected = 4000 / n
    chi2 = ((places - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
    pairs = np.bincount(passes[:, 0] * n + passes[:, 1], minlength=n * n)
    pairs = pairs.reshape(n, n)[~np.eye(n, dtype=bool)]
    expected = 4000 / (n * (n - 1))
    chi2 = ((pairs - expected) ** 2 / expected).sum()
    freedom = len(pairs) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
