"""GLoRIA: joining pieces, its losses and scores, and each switch both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.gloria import WordsHead
from medclip_jax.methods.interface import Features, ImageEmbedding, Spec, TextEmbedding
from medclip_jax.models.features import TextFeatures
from medclip_jax.models.resize import resize_corners
from tests.losses.test_word_regions import MASK, REGIONS, WORDS
from tests.methods.test_methods import BERT, RESNET, a_batch, make, tiny

# [CLS] card ##io x [SEP] [PAD], in four layers.
PIECES = np.arange(48, dtype=np.float32).reshape(4, 6, 2) / 10
WORD_IDS = np.array([[-1, 0, 0, 1, -1, -1]], np.int32)
TOKENS = {
    "ids_BxT": np.array([[2, 10, 11, 100, 3, 0]], np.int32),
    "mask_BxT": np.array([[1, 1, 1, 1, 1, 0]], np.int32),
    "word_ids_BxT": WORD_IDS,
}
GLOBAL = {
    "images": np.array([[1, 2, 0], [0, 1, 1]], np.float32),
    "texts": np.array([[1, 1, 1], [0, 1, -1]], np.float32),
}


def joined(**switches):
    layers = tuple(jnp.asarray(layer)[None] for layer in PIECES)
    features = TextFeatures(layers[-1], (jnp.full((1, 6, 2), 9.0), *layers))
    return WordsHead(**switches).apply({}, features, TOKENS, train=False)


def test_words_and_their_mean():
    made = joined()
    np.testing.assert_allclose(
        made.local_BxLxD[0],
        [[7.2, 7.6], [16.8, 17.6], [9.6, 10.0], [10.4, 10.8], [0, 0], [0, 0]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(made.joint_BxD[0], [7.333333, 7.666667], rtol=1e-6)
    assert made.mask_BxL[0].tolist() == [True, True, True, False, False, False]


def test_an_unknown_word_shortens_its_text_by_a_switch():
    assert int(joined(unknown_id=100).mask_BxL.sum()) == 2
    assert int(joined(unknown_id=-1).mask_BxL.sum()) == 3
    assert int(joined(layers=5).local_BxLxD[0, 0, 0] * 10 + 0.5) == 72 + 90


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embedded(mask=MASK):
    images = ImageEmbedding(
        jnp.zeros((2, 1)), unit(GLOBAL["images"]), None, jnp.asarray(REGIONS)
    )
    texts = TextEmbedding(
        unit(GLOBAL["texts"]), None, None, jnp.asarray(WORDS), jnp.asarray(mask)
    )
    return images, texts


def test_the_whole_loss():
    method, variables = make("gloria")
    batch = {"image_weight_N": np.ones(2), "text_weight_M": np.ones(2)}
    loss, parts, _ = method.objective(
        variables, Features(*embedded()), batch, None, jnp.int32(0)
    )
    np.testing.assert_allclose(parts["loss_global"], 7.816123, atol=1e-5)
    np.testing.assert_allclose(parts["loss_local"], 0.928360, atol=1e-5)
    np.testing.assert_allclose(loss, 8.744484, atol=1e-5)
    lighter = dataclasses.replace(method, local_weight=0.1)
    loss, _, _ = lighter.objective(
        variables, Features(*embedded()), batch, None, jnp.int32(0)
    )
    np.testing.assert_allclose(loss, 7.816123 + 0.0928360, atol=1e-5)


def test_scores():
    """The best word, [CLS] aside, and the cosine of the whole."""
    method, variables = make("gloria")
    pairs = embedded(MASK * (np.arange(5) > 0))
    local = np.array([[4.624871, 2.461830], [4.522593, 1.636634]])
    cosines = np.array([[0.7745967, 0.6324555], [0.8164966, 0.0]])
    for similarity, expected in (
        ("local", local),
        ("global", cosines),
        ("both", (local + cosines) / 2),
    ):
        of = dataclasses.replace(method, similarity=similarity)
        found = of.score(variables, *pairs)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert of.scores_locally == (similarity != "global")


def test_window_of_a_score():
    method, variables = make("gloria")
    texts = a_batch()["texts"]
    words_B = texts["word_ids_BxT"].max(axis=1) + 1
    made = method.embed_texts(variables, texts).local_mask_BxW
    np.testing.assert_array_equal(made.sum(axis=1), words_B)
    assert not made[:, 0].any()
    trained = method.encode(variables, a_batch(), None, False)[0].texts.local_mask_BxW
    np.testing.assert_array_equal(trained.sum(axis=1), words_B + 1)
    official = dataclasses.replace(method, window="characters")
    assert official.reads_characters and not method.reads_characters
    texts = {**texts, "characters_B": np.array([5, 3, 100, 7], np.int32)}
    made = official.embed_texts(variables, texts).local_mask_BxW
    np.testing.assert_array_equal(made.sum(axis=1), [5, 3, 7, 7])


def test_films_are_brought_to_the_size_of_the_model():
    """Corner pixels on each other, and what lies between by distance."""
    row = np.array([0.0, 3.0, 6.0], np.float32)
    films = np.broadcast_to(row[None, :, None, None], (1, 3, 3, 1))
    np.testing.assert_allclose(
        resize_corners(jnp.asarray(films), 5)[0, :, 0, 0],
        [0, 1.5, 3, 4.5, 6],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        resize_corners(jnp.asarray(films), 2)[0, :, 0, 0], [0, 6], atol=1e-6
    )
    torch = pytest.importorskip("torch")
    films = np.random.default_rng(0).normal(size=(2, 17, 23, 3)).astype(np.float32)
    for side in (5, 23, 40):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(films.transpose(0, 3, 1, 2)),
            (side, side),
            mode="bilinear",
            align_corners=True,
        )
        np.testing.assert_allclose(
            resize_corners(jnp.asarray(films), side),
            expected.numpy().transpose(0, 2, 3, 1),
            atol=1e-5,
        )


def test_the_model_s_size_is_used():
    config = tiny("gloria", RESNET)
    variables = make("gloria")[1]
    for side, grid in ((64, (16, 16)), (0, (8, 8))):
        config.gloria.resize_to = side
        method = registry.build(config)
        images = jax.jit(method.embed_images)(variables, a_batch()["films"])
        assert images.grid == grid
        assert images.local_BxPxD.shape == (4, grid[0] * grid[1], BERT["dim"])
        # Scores and what is found, made twice and differentiated by both sides.
        local = 4 * 2 * (2 * grid[0] * grid[1] * 8 * BERT["dim"])
        whole = 4 * 2 * BERT["dim"]
        assert method.loss_flops(Spec(32, 8), 10) == 6 * 100 * (local + whole)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("similarity", "mean", "gloria.similarity must be one of both, global, local"),
        ("window", "all", "gloria.window must be one of words, characters"),
        ("text_layers", 4, "the text tower has 2 layers and its embedding"),
        ("stage", 3, "the image tower has 2 stages"),
    ],
)
def test_switches_that_there_are_not(name, value, message):
    config = tiny("gloria", RESNET)
    config.gloria[name] = value
    with pytest.raises(UserError, match=message):
        registry.build(config)


def test_words_are_as_wide_as_the_tower():
    config = tiny("gloria")
    config.model.embed_dim = 32
    with pytest.raises(UserError, match="text tower's width, 16; found 32"):
        registry.build(config)
