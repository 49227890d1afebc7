import numpy as np
import pytest

from medclip_jax.inputs.streams import Stream


def test_each_pass_sees_every_item_once_in_another_order():
    stream = Stream({"a": (np.arange(100, 140), 1.0), "b": (np.arange(10), 1.0)}, 0)
    assert len(stream) == 50
    passes = [stream.at(np.arange(k * 50, (k + 1) * 50)) for k in range(3)]
    for items in passes:
        assert sorted(items) == [*range(10), *range(100, 140)]
    assert (passes[0] != passes[1]).any() and (passes[1] != passes[2]).any()


def test_weights_multiply_the_natural_share():
    parts = {"a": (np.zeros(300, int), 1.0), "b": (np.ones(100, int), 3.0)}
    stream = Stream(parts, 0)
    assert stream.shares == {"a": 0.5, "b": 0.5}
    assert stream.at(np.arange(4000)).mean() == pytest.approx(0.5, abs=0.01)
    # Every stretch has its share.
    for start in (0, 7, 10**9):
        kinds = stream.at(np.arange(start, start + 100))
        assert abs(kinds.sum() - 50) <= 1
    # Each part has its own pass: none of its items comes twice before all came once.
    items = Stream({"a": (np.arange(300), 1.0), "b": (np.arange(300, 400), 3.0)}, 0).at(
        np.arange(190)
    )
    assert len(np.unique(items)) == 190


def test_weight_zero_and_empty_parts_are_left_out():
    parts = {
        "a": (np.arange(5), 1.0),
        "b": (np.arange(5, 9), 0.0),
        "c": (np.arange(0), 1.0),
    }
    stream = Stream(parts, 0)
    assert len(stream) == 5 and set(stream.shares) == {"a"}
    assert stream.at(np.arange(100)).max() == 4


def test_seed_and_name_decide_the_order():
    def order(name, seed):
        return Stream({name: (np.arange(50), 1.0)}, seed).at(np.arange(50)).tolist()

    assert order("a", 0) == order("a", 0)
    assert order("a", 0) != order("a", 1)
    assert order("a", 0) != order("b", 0)


def test_two_sources_of_one_length_are_uncorrelated():
    at = np.arange(20_000)
    a = Stream({"images": (np.arange(2000), 1.0)}, 0).at(at)
    b = Stream({"texts": (np.arange(2000), 1.0)}, 0).at(at)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(at))


def test_three_parts_share_by_weight_and_each_keeps_its_passes():
    parts = {
        "a": (np.arange(10), 1.0),
        "b": (np.arange(10, 30), 2.0),
        "c": (np.arange(30, 60), 5.0),
    }
    stream = Stream(parts, 0)
    items = stream.at(np.arange(2000))
    shares = [
        np.mean((items >= low) & (items < high))
        for low, high in ((0, 10), (10, 30), (30, 60))
    ]
    np.testing.assert_allclose(shares, [10 / 200, 40 / 200, 150 / 200], atol=0.002)
    for low, high in ((0, 10), (10, 30), (30, 60)):
        mine = items[(items >= low) & (items < high)]
        for k in range(len(mine) // (high - low)):
            one = mine[k * (high - low) : (k + 1) * (high - low)]
            assert sorted(one) == list(range(low, high))
    scattered = np.array([1999, 3, 700, 3])
    np.testing.assert_array_equal(stream.at(scattered), items[scattered])
