"""Maps of phrases: the published numbers and the geometry."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.annotations import box_mask
from medclip_jax.evaluation import grounding
from medclip_jax.evaluation import grounding_maps as maps
from medclip_jax.inputs import images

# --- Numbers of the official code -------------------------------------------------


def test_smoothing_kernel():
    line = np.zeros((1, 31))
    line[0, 15] = 1
    # One row: mirrored, the filter across it sums to one.
    got = maps.smooth(line)[0, 15:23]
    want = [0.26596426, 0.21296753, 0.10934117, 0.03599435, 0.00759740, 0.00102820,
            0.00008922, 0]  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-8)


def test_smoothing_of_an_impulse():
    middle, corner = np.zeros((15, 15)), np.zeros((15, 15))
    middle[7, 7] = corner[0, 0] = 1
    got = maps.smooth(middle)
    np.testing.assert_allclose(
        [got[7, 7], got[7, 8], got[8, 8], got.sum()],
        [0.07073699, 0.05664176, 0.04535516, 1],
        atol=1e-8,
    )
    got = maps.smooth(corner)
    np.testing.assert_allclose(
        [got[0, 0], got[0, 1], got[1, 1], got.sum()],
        [0.22937566, 0.15436389, 0.10388289, 1],
        atol=1e-8,
    )


def test_upsampling_of_a_crop_without_resizing():
    frame = maps.cropped(4, 6, 4, resize=None)
    got = maps.place(np.array([[0, 1], [2, 4]]), frame, np.arange(4), np.arange(6))
    want = [
        [0, 0.25, 0.75, 1],
        [0.5, 0.8125, 1.4375, 1.75],
        [1.5, 1.9375, 2.8125, 3.25],
        [2, 2.5, 3.5, 4],
    ]
    np.testing.assert_allclose(got[:, 1:5], want, atol=1e-12)
    assert np.isnan(got[:, [0, 5]]).all()
    nearest = maps.place(
        np.array([[0, 1], [2, 4]]), frame, np.arange(4), np.arange(6), "nearest"
    )
    assert nearest[:, 1:5].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 4, 4]] * 2
    with pytest.raises(ValueError, match="bicubic"):
        maps.place(np.eye(2), frame, np.arange(4), np.arange(6), "bicubic")


@pytest.mark.parametrize(
    ("width", "height", "side", "size", "rows", "columns"),
    [
        (600, 500, 480, 468, (16, 483), (66, 533)),
        (601, 500, 480, 468, (16, 483), (66, 533)),
        (2544, 3056, 480, 2385, (335, 2719), (79, 2463)),
        (2544, 3056, 448, 2226, (415, 2640), (159, 2384)),
    ],
)
def test_where_a_crop_lies(width, height, side, size, rows, columns):
    frame = maps.cropped(height, width, side)
    assert frame.height == frame.width == size
    for pixels, across, want in (
        (height, (np.arange(height), [width // 2]), rows),
        (width, ([height // 2], np.arange(width)), columns),
    ):
        for upsampling in ("nearest", "bilinear"):
            line = maps.place(np.ones((15, 15)), frame, *across, upsampling).ravel()
            valid = np.flatnonzero(np.isfinite(line))
            assert len(line) == pixels
            assert (valid[0], valid[-1]) == want
            assert len(valid) == want[1] - want[0] + 1
            np.testing.assert_allclose(line[valid], 1)


def test_upsampling_is_pytorchs():
    torch = pytest.importorskip("torch")
    coarse = np.random.default_rng(0).normal(size=(14, 14))
    frame = maps.Frame(0, 0, 223, 301)
    for upsampling, more in (("bilinear", {"align_corners": False}), ("nearest", {})):
        want = torch.nn.functional.interpolate(
            torch.tensor(coarse)[None, None], size=(223, 301), mode=upsampling, **more
        )[0, 0].numpy()
        got = maps.place(coarse, frame, np.arange(223), np.arange(301), upsampling)
        np.testing.assert_allclose(got, want, atol=1e-9)


M = np.array(
    [
        [0.05, 0.10, 0.12, 0.02],
        [0.15, 0.62, 0.55, 0.08],
        [0.11, 0.48, 0.33, -0.04],
        [0.00, 0.21, 0.09, -0.10],
    ]
)
ONE, TWO = [(1, 1, 2, 2)], [(1, 1, 2, 2), (1, 3, 1, 1)]


def inside(boxes):
    return box_mask(boxes, 4, 4)


def test_ratio_of_one_box_is_of_the_population():
    assert maps.signed_cnr(M, inside(ONE)) == pytest.approx(3.181256, abs=1e-6)
    assert maps.signed_cnr(1 - M, inside(ONE)) == pytest.approx(-3.181256, abs=1e-6)


def test_ratio_of_two_boxes():
    assert maps.signed_cnr(M, inside(TWO)) == pytest.approx(2.325997, abs=1e-6)
    each = [abs(maps.signed_cnr(M, inside([box]))) for box in TWO]
    assert each == pytest.approx([3.181256, 0.185105], abs=1e-6)
    before = M.copy()
    got = maps.sequential_cnr(M, [inside([box]) for box in TWO])
    assert got == pytest.approx(2.679044, abs=1e-6)
    assert got == pytest.approx((3.181256 + 2.176833) / 2, abs=1e-6)
    np.testing.assert_array_equal(M, before)


@pytest.mark.parametrize(
    ("boxes", "margin", "want", "mean"),
    [
        (ONE, False, [0.5, 0.8, 1.0, 0.75, 0.5], 0.71),
        (TWO, False, [0.625, 1.0, 0.8, 0.6, 0.4], 0.685),
        (ONE, True, [2 / 3, 0.8, 1.0, 0.75, 0.5], 0.7433333333),
    ],
)
def test_overlap(boxes, margin, want, mean):
    shown = M.copy()
    if margin:
        shown[:, 0] = np.nan
        assert maps.signed_cnr(shown, inside(boxes)) == pytest.approx(3.09141, abs=1e-6)
    got = maps.ious(shown, inside(boxes))
    assert got == pytest.approx(want, abs=1e-6)
    assert got.mean() == pytest.approx(mean, abs=1e-6)


def test_thresholds_are_strict():
    shown = np.where(inside(ONE), 0.5, 0.25)
    shown[0, 0] = 0.6
    assert maps.ious(shown, inside(ONE), [0.25, 0.5]).tolist() == [0.8, 0]


def test_annotation_in_the_margin_is_missed_and_no_pixel_gives_no_ratio():
    shown = np.full((4, 4), np.nan)
    shown[:, :2] = 0.6
    assert maps.ious(shown, inside([(1, 0, 2, 4)]))[0] == pytest.approx(4 / 12)
    assert np.isnan(maps.signed_cnr(shown, inside([(2, 0, 2, 4)])))
    assert np.isnan(maps.signed_cnr(M, inside([(0, 0, 4, 4)])))
    assert maps.signed_cnr(np.full((4, 4), 0.3), inside(ONE)) == 0


def test_pointing_counts_equal_highest_points_by_share():
    assert maps.pointing(M, inside(ONE)) == 1
    assert maps.pointing(M, inside([(0, 0, 1, 1)])) == 0
    assert maps.pointing(np.ones((4, 4)), inside(ONE)) == 0.25
    margin = M.copy()
    margin[1, 1] = np.nan
    assert maps.pointing(margin, inside([(2, 1, 1, 1)])) == 1


# --- The film's own frame -----------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "stored", "least"),
    [
        ((3056, 2544), (615, 512), 224),
        ((500, 600), (500, 600), 224),
        ((120, 90), (120, 90), 224),  # smaller than the network's input: not enlarged
        ((512, 512), (512, 512), 224),
    ],
)
def test_padding_is_undone(original, stored, least):
    """A rectangle goes the way of every film, and comes back where it was."""
    height, width = original
    box = (width // 5, height // 2, width // 3, height // 4)
    film = box_mask([box], height, width).astype(np.uint8) * 255
    small = Image.fromarray(film).resize(stored[::-1], Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "png")
    seen = images.evaluation_film(buffer.getvalue(), least)
    frame = maps.padded(*original, *stored, least)
    placed = maps.place(seen / 255, frame, np.arange(height), np.arange(width))
    assert np.isfinite(placed).all()
    x, y, w, h = box
    assert maps.ious(placed, film > 0, [0.5])[0] > 0.97
    # No shift: the weight's middle is the box's.
    down, across = placed.sum(1), placed.sum(0)
    middle = (
        down @ np.arange(height) / down.sum(),
        across @ np.arange(width) / across.sum(),
    )
    pixel = max(frame.height, frame.width) / least
    assert middle == pytest.approx((y + (h - 1) / 2, x + (w - 1) / 2), abs=0.15 * pixel)


def test_sampling_large_films_changes_figures_little():
    rng = np.random.default_rng(0)
    frame = maps.padded(3056, 2544, 615, 512, 224)
    moved = []
    for _ in range(3):
        coarse = maps.smooth(rng.normal(0, 1.5, size=(14, 14)))
        x, y = rng.integers(100, 1500, 2)
        w, h = rng.integers(200, 1000, 2)
        about = coarse, frame, [(x, y, w, h)], 3056, 2544
        every = grounding.phrase_figures(*about, longest=10_000)
        moved.append(grounding.phrase_figures(*about) - every)
    moved = np.abs(moved)
    assert moved[:, :2].max() < 6e-3
    assert moved[:, 2].max() < 1e-3
    assert moved[:, 3].max() == 0
