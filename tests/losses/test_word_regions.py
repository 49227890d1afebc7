"""GLoRIA's local score and loss against worked figures, in every named form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses.word_regions import WordRegions, word_regions_loss

# Maps [channel][row][column] of two films, word slots of two texts.
MAPS = np.array(
    [
        [[[1, 0], [0, 0.5]], [[0, 1], [-0.5, 0]], [[0.5, 0], [1, -1]]],
        [[[0, 1], [0.5, 0]], [[1, 1], [0, -1]], [[0, 0.5], [-1, 1]]],
    ],
    np.float32,
)
REGIONS = MAPS.reshape(2, 3, 4).transpose(0, 2, 1)
WORDS = np.array(
    [
        [[0.2, 0.1, 0], [1, 0, 0.5], [0, 1, -0.5], [0.3, 0.3, 0.3], [0, 0, 0]],
        [[0.1, 0.2, 0], [0.5, -0.5, 1], [0.4, 0.4, -0.4], [0, 0, 0], [0, 0, 0]],
    ],
    np.float32,
)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def losses_of(how, mask=MASK, scale=10.0, regions=REGIONS, words=WORDS):
    return np.array(word_regions_loss(regions, words, mask, scale, how))


def test_attention_and_scores():
    how = WordRegions()
    weights_WxR = how.attend(REGIONS, WORDS, MASK)[0, 0, :3]
    np.testing.assert_allclose(
        weights_WxR,
        [
            [0.206577, 0.212162, 0.305792, 0.275470],
            [0.468570, 0.084450, 0.340021, 0.106959],
            [0.094174, 0.508769, 0.087671, 0.309385],
        ],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        how.scores(REGIONS, WORDS, MASK),
        [[5.679332, 5.232827], [5.554007, 5.433414]],
        atol=2e-6,
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (WordRegions(), [0.739642, 0.188719]),
        (WordRegions(aggregate="mean"), [0.282579, 0.188719]),
        (WordRegions(aggregate="paper"), [0.582087, 0.544100]),
        (WordRegions("regions"), [0.491002, 0.872540]),
    ],
)
def test_losses(how, expected):
    np.testing.assert_allclose(losses_of(how), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "scores", "expected"),
    [
        (
            WordRegions(),
            [[53.585922, 53.267555], [55.355570, 54.149913]],
            [1.007107, 1.136637],
        ),
        (
            WordRegions(aggregate="mean"),
            [[46.654450, 42.281432], [48.424098, 43.163790]],
            [2.639011, 1.136637],
        ),
        (
            WordRegions("regions", unit=True),
            [[56.621129, 56.231678], [53.079941, 56.972720]],
            [0.268723, 0.209160],
        ),
    ],
)
def test_texts_of_other_lengths(how, scores, expected):
    regions = np.array(
        [
            [[1, 0], [0.6, 0.8], [0, 1], [-1, 0.5]],
            [[0.5, 0.5], [-0.2, 1], [1, 1], [0.3, -0.9]],
        ]
    )
    words = np.array(
        [[[1, 0.2], [0, 1], [9, 9]], [[0.4, 0.4], [-1, 0.3], [0.2, -1]]], np.float32
    )
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    found = 10 * how.scores(jnp.asarray(regions), words, mask)
    np.testing.assert_allclose(found, scores, rtol=1e-6)
    found = losses_of(how, mask, regions=jnp.asarray(regions), words=words)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradient():
    def loss(regions, words):
        return sum(word_regions_loss(regions, words, MASK, 10.0, WordRegions()))

    by_regions, by_words = jax.grad(loss, (0, 1))(REGIONS, WORDS)
    np.testing.assert_allclose(
        by_regions[0, 0], [-0.625471, -0.461459, 0.446804], atol=1e-5
    )
    np.testing.assert_allclose(
        by_words[0, 1], [-0.236426, -0.779034, 4.699312], atol=1e-5
    )
    assert not by_words[0, 3:].any()  # what is masked


def test_highest_word_alone():
    """As the official code scores at inference: [CLS] aside, then padding too."""
    how = WordRegions(aggregate="max")
    words, mask = WORDS[:, 1:], MASK[:, 1:]
    np.testing.assert_allclose(
        how.scores(REGIONS, words, mask),
        [[4.624871, 2.461830], [4.522593, 1.636634]],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        how.scores(REGIONS, words, np.ones((2, 4))),
        [[4.939472, 4.899497], [4.807965, 4.918167]],
        atol=2e-6,
    )


def test_what_weighs_nothing_is_no_class_and_no_anchor():
    rng = np.random.default_rng(0)
    regions, words = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 2, 3))
    mask, keep = np.ones((4, 2)), np.array([1.0, 0, 1, 1])
    given = [jnp.asarray(a, jnp.float32) for a in (regions, words, mask)]
    found = word_regions_loss(
        *given, 10.0, WordRegions(), image_weight_N=jnp.asarray(keep),
        text_weight_M=jnp.asarray(keep),
    )  # fmt: skip
    kept = [a[keep > 0] for a in given]
    expected = word_regions_loss(*kept, 10.0, WordRegions())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_tiles_change_nothing(monkeypatch):
    expected = losses_of(WordRegions())
    monkeypatch.setattr("medclip_jax.losses.word_regions.SCORES", 1)
    np.testing.assert_allclose(losses_of(WordRegions()), expected, rtol=1e-6)


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="share their width"):
        WordRegions().scores(REGIONS, WORDS[..., :2], MASK)
    with pytest.raises(ValueError, match="expected regions"):
        WordRegions().scores(REGIONS[0], WORDS, MASK)
