"""Segmentation: the official loss, both definitions of Dice, and a planted answer."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.annotations import encode_mask
from medclip_jax.evaluation import mask_decoder, segmentation, suite
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network, Patches
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.sets import Films
from medclip_jax.inputs import images
from medclip_jax.methods.interface import ImageEmbedding

NAME = "segmentation"
LOGITS = jnp.array([[[2.0, -1.0], [0.5, -3.0]]])
TARGETS = jnp.array([[[1.0, 0.0], [1.0, 1.0]]])


def test_loss_is_the_official_one():
    assert float(mask_decoder.soft_dice(LOGITS, TARGETS)) == pytest.approx(
        0.704747, abs=1e-6
    )
    assert float(mask_decoder.focal(LOGITS, TARGETS)) == pytest.approx(
        0.714579, abs=1e-6
    )
    assert float(mask_decoder.mixed_loss(LOGITS, TARGETS)) == pytest.approx(
        7.495705, abs=1e-6
    )


def test_loss_of_sure_pixels_is_finite():
    sure = 200 * (2 * TARGETS - 1)
    assert float(mask_decoder.mixed_loss(sure, TARGETS)) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(float(mask_decoder.mixed_loss(-sure, TARGETS)))


def test_dice_of_each_film():
    truth = np.zeros((4, 2, 2), bool)
    told = np.zeros((4, 2, 2), bool)
    truth[0, 0] = True
    told[0, :, 0] = True  # one pixel of two and two
    told[1, 0, 0] = True  # told, and nothing is there
    truth[3, 0, 0] = True  # there, and nothing told
    assert mask_decoder.dice(told, truth).tolist() == [0.5, 0, 1, 0]


def test_dice_is_scikit_learns_f1():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, told = rng.random((2, 6, 9, 9)) < 0.3
    want = [sk.f1_score(a.ravel(), b.ravel()) for a, b in zip(truth, told)]
    np.testing.assert_allclose(mask_decoder.dice(told, truth), want, atol=1e-6)


# --- A planted answer -------------------------------------------------------------------

SIZE, CELLS = 32, 16
SHAPE, STORED = (320, 256), (40, 32)


class Planted:
    """A patch tells how bright its cell is; a blind tower gives noise of its own."""

    def embed_images(self, variables, films):
        cells = films["current_BxHxWx3"][..., 0].reshape(-1, CELLS, 2, CELLS, 2)
        light_BxP = cells.mean((2, 4)).reshape(-1, CELLS * CELLS)
        noise = jnp.sin(1e4 * light_BxP.mean(1, keepdims=True) + jnp.arange(CELLS**2))
        patches = jnp.stack([light_BxP * variables["sees"], noise], -1)
        return ImageEmbedding(light_BxP[:, :4], None, patches, None, (CELLS, CELLS))


def networks(*names):
    embedder = Embedder(Planted(), lambda x: jnp.repeat(x / 255.0, 3, -1), None, 1, 64)
    made = {"trained": 1.0, "untrained": 0.0, "imagenet": 0.0}
    return {
        name: Network(
            name, embedder, {"sees": np.float32(made[name])}, reads_text=False
        )
        for name in names
    }


def planted(kind="siim", count=(60, 24, 40), stored=STORED, size=SIZE):
    """Every other film has a bright area, where its boxes or its mask are."""
    rng = np.random.default_rng(0)
    total = sum(count)
    pixels = np.zeros((total, size, size, 1), np.uint8)
    records, truth = [], []
    for film in range(total):
        mask = np.zeros(SHAPE, bool)
        boxes = np.zeros((0, 4), np.float32)
        if film % 2:
            x, y = rng.integers(10, 150, 2)
            w, h = rng.integers(60, 100, 2)
            boxes = np.array([[x, y, w, h]], np.float32)
            mask[y : y + h, x : x + w] = True
        drawn = (100 + 120 * mask + rng.integers(0, 20, SHAPE)).astype(np.uint8)
        small = np.asarray(Image.fromarray(drawn).resize(stored[::-1]))
        square = images.pad_to_square(small, size)
        pixels[film, ..., 0] = images.resize_square(square, size)
        truth.append(mask)
        records.append(
            {
                "original_height": SHAPE[0],
                "original_width": SHAPE[1],
                "height": stored[0],
                "width": stored[1],
                "boxes": boxes if kind == "rsna" else boxes[:0],
                "masks": [encode_mask(mask)] if kind == "siim" and mask.any() else [],
            }
        )

    def read(positions):
        yield pixels[positions]

    names = np.array([f"film{i:03d}" for i in range(total)])
    patients = np.array([f"p{i // 2:03d}" for i in range(total)])
    films = Films(
        "toy", names, patients, names, names, np.zeros((total, 14), np.int8), read,
        np.repeat(["train", "validate", "test"], count), records.__getitem__,
        kind=kind, fingerprint="films",
    )  # fmt: skip
    return films, np.array(truth), pixels


@pytest.mark.parametrize(
    ("kind", "stored"), [("rsna", STORED), ("siim", STORED), ("siim", (25, 20))]
)
def test_masks_lie_on_the_films_that_the_network_sees(kind, stored):
    """Also on films smaller than its input, which are not enlarged."""
    films, truth, pixels = planted(kind, stored=stored)
    positions = np.array([1, 0, 3, 5])
    masks = segmentation.masks_of(films, positions, SIZE)
    assert masks.shape == (4, SIZE, SIZE)
    assert not masks[1].any()
    for mask, position in zip(masks, positions):
        bright = pixels[position, ..., 0] > 165
        assert mask_decoder.dice(bright[None], mask[None])[0] > 0.85
    # The film takes a part of the square.
    area = truth[1].mean() * stored[0] * stored[1] / max(SIZE, *stored) ** 2
    assert masks[0].mean() == pytest.approx(area, rel=0.15)


@pytest.fixture(scope="module")
def measured():
    films, _, _ = planted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_decoder, "EPOCHS", 15)
        patch.setattr(mask_decoder, "PATIENCE", 4)
        made = networks("trained", "untrained", "imagenet")
        return suite.run(Bench([films]), made, [NAME])


def test_planted_areas_are_found(measured):
    rows = {row.metric: row for row in measured.rows}
    assert list(rows) == ["dice_positives", "dice_all"]
    head = rows["dice_positives"]
    assert head.protocol == NAME and head.n == 20
    assert head.value > 0.85 and head.low <= head.value <= head.high
    assert head.untrained < 0.4 and head.imagenet == head.untrained
    assert 0.05 < head.chance < 0.3
    assert head.sample.units[0] == "film085" and head.data == "films"
    assert "decoder fitted on 60 films" in head.note
    every = rows["dice_all"]
    assert every.n == 40 and every.chance == 0.5 and every.value > 0.85
    assert "train a network further" in measured.skipped["segmentation/tuned on toy"]


def test_gallery_is_chosen_by_rank(monkeypatch, measured):
    assert measured.sections[0].pictures[0].png[:4] == b"\x89PNG"
    got = {}
    monkeypatch.setattr(
        segmentation.plots_films, "outlines", lambda groups: got.update(groups) or b""
    )
    films, _, _ = planted()
    positions = films.where("test")
    masks = segmentation.masks_of(films, positions, SIZE)
    rng = np.random.default_rng(0)
    told = masks & (rng.random(masks.shape) < rng.random((len(masks), 1, 1)))
    segmentation._section(films, positions, told, masks)
    values = np.sort(mask_decoder.dice(told, masks)[1::2])[::-1]
    titles = {n: [o.title for o in of] for n, of in got.items()}
    wanted = {"best": values[:3], "median": values[8:11], "worst": values[-3:]}
    assert titles == {n: [f"Dice {v:.2f}" for v in of] for n, of in wanted.items()}


def test_training_is_chosen_by_validation_and_repeats(monkeypatch):
    """With other truth in validation, another epoch stays."""
    monkeypatch.setattr(mask_decoder, "EPOCHS", 3)
    rng = np.random.default_rng(0)
    masks = rng.random((40, 16, 16)) < 0.5
    light = masks.reshape(40, 8, 2, 8, 2).mean((2, 4)).reshape(40, 64, 1)
    patches = Patches(light.astype(np.float32), None, (8, 8))
    part = mask_decoder.Part(patches, masks)
    told = [mask_decoder.train(part, part, 3).predict(patches) for _ in range(2)]
    np.testing.assert_array_equal(*told)
    empty = mask_decoder.Part(patches, np.zeros_like(masks))
    first = mask_decoder.train(part, empty, 3).predict(patches)
    assert first.sum() < told[0].sum()


def test_films_of_the_parts_are_apart_and_balanced():
    films, _, _ = planted()
    options = Options(max_films=48, seed=1)
    chosen, _ = segmentation.choose(films, options)
    assert set(films.splits[chosen.train]) == {"train"}
    assert set(films.splits[chosen.validate]) == {"validate"}
    assert set(films.splits[chosen.judged]) == {"test"}
    assert len(chosen.judged) == 24
    for part, count in ((chosen.train, 24), (chosen.validate, 24)):
        assert len(part) == count and (part % 2).sum() == count // 2
        assert (np.diff(part) > 0).all()
    again, _ = segmentation.choose(films, options)
    np.testing.assert_array_equal(again.train, chosen.train)
    # Judging validation films takes them from those that choose.
    films, _, _ = planted(count=(60, 60, 4))
    chosen, _ = segmentation.choose(films, Options(max_films=50, split="validate"))
    assert not set(chosen.judged) & set(chosen.validate)


def test_what_cannot_be_judged_is_told():
    def why(films, **options):
        bench = Bench([films], options=Options(**options))
        assert not segmentation.plan(bench)
        return bench.skipped

    films, _, _ = planted(kind="csv")
    assert "kind with masks or boxes" in why(films)[NAME]
    name = f"{NAME} on toy"
    films, _, _ = planted()
    assert "trained on the split train" in why(films, split="train")[name]
    films, _, _ = planted(count=(60, 8, 40))
    assert "in the split validate, found 4 and 4" in why(films)[name]
    films, _, _ = planted(count=(60, 24, 0))
    assert "no films in the split test" in why(films)[name]
