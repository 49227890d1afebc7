"""The simulated films: same bits, right place, right sign, and no hint elsewhere."""

import hashlib

import numpy as np
import pytest

from data_pipelines.hospital import film, organs
from data_pipelines.hospital.anatomy import build
from data_pipelines.hospital.course import PLACES
from data_pipelines.hospital.findings_collapse import reshape
from data_pipelines.hospital.projection import Frame
from data_pipelines.hospital.render import render
from data_pipelines.hospital.state import KINDS, Body, Finding

ALL_KINDS = [(name, kind) for name in KINDS for kind in KINDS[name]]
SIDED = [
    (name, kind)
    for name, kind in ALL_KINDS
    if {"left", "right"} <= set(PLACES[name, kind][0])
]
BODIES = [
    Body("M", 61, 5, 0.5, 0.5, 0.4, 0.5, 0.4),
    Body("F", 48, 9, 0.3, 0.7, 0.6, 0.2, 0.6),
]


def finding(name, kind, side=None, lobe=None, severity=0.7, seed=3) -> Finding:
    sides, lobes = PLACES[name, kind]
    lobe = lobe or ("lower" if "lower" in lobes else next(iter(lobes)))
    return Finding(name, side or next(iter(sides)), lobe, severity, kind, seed)


def digest(result) -> str:
    parts = [result.pixels_HxW.tobytes()]
    parts += [bytes([k]) + m.tobytes() for k, m in sorted(result.masks.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
def test_same_arguments_give_the_same_bits(view):
    found = (
        finding("Edema", "alveolar"),
        finding("Pleural Effusion", "free", "left"),
        finding("Support Devices", "pacemaker"),
    )
    np.random.seed(1)
    first = render(BODIES[0], found, view, 96, 7)
    np.random.seed(2)  # a global generator must not matter, nor be advanced
    state = np.random.get_state()[1].copy()
    second = render(BODIES[0], found, view, 96, 7)
    assert digest(first) == digest(second)
    assert (np.random.get_state()[1] == state).all()
    assert digest(first) != digest(render(BODIES[0], found, view, 96, 8))
    assert digest(first) != digest(render(BODIES[1], found, view, 96, 7))


@pytest.mark.parametrize("size", [64, 130, 256])
def test_size_is_the_short_side(size):
    shapes = set()
    for seed in range(6):
        result = render(
            BODIES[0], (finding("Cardiomegaly", "global"),), "AP", size, seed
        )
        pixels = result.pixels_HxW
        assert pixels.dtype == np.uint8 and min(pixels.shape) == size
        assert 1.05 < max(pixels.shape) / size < 1.25
        assert result.masks[0].shape == pixels.shape
        assert result.masks[0].dtype == bool
        assert pixels.std() > 20
        shapes.add(pixels.shape)
    assert len(shapes) > 1


@pytest.mark.parametrize("name,kind", ALL_KINDS)
def test_frontal_shows_each_kind_inside_its_mask(name, kind):
    inside, outside = [], []
    for body in BODIES:
        for seed in (1, 2):
            found = finding(name, kind, seed=10 + seed)
            result = render(body, (found,), "PA", 192, seed)
            plain = render(body, (), "PA", 192, seed)
            change = np.abs(result.pixels_HxW.astype(int) - plain.pixels_HxW)
            mask = result.masks[0]
            assert set(result.masks) == {0} and not plain.masks
            inside.append(change[mask].mean())
            outside.append(change[~mask].mean())
    assert np.mean(inside) > 1.6 * np.mean(outside)
    assert np.mean(inside) > 4.0, "too faint to be seen"


@pytest.mark.parametrize("name,kind", SIDED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_patients_left_is_on_the_right_of_a_frontal_film(name, kind, side):
    for view in ("AP", "PA"):
        found = finding(name, kind, side)
        result = render(BODIES[0], (found,), view, 96, 4, difficulty=0.0)
        columns = np.nonzero(result.masks[0])[1]
        share = np.mean(columns > result.masks[0].shape[1] / 2)
        if name == "Support Devices":  # lines of both sides end in the same vein
            assert (share > 0.35) if side == "left" else (share < 0.65)
        else:
            assert (share > 0.8) if side == "left" else (share < 0.2)


def test_lateral_leaves_out_what_it_does_not_show():
    found = (
        finding("Fracture", "rib"),
        finding("Pneumothorax", "apical"),
        finding("Consolidation", "lobar", "right"),
        finding("Fracture", "clavicle"),
    )
    assert set(render(BODIES[0], found, "PA", 96, 1).masks) == {0, 1, 2, 3}
    assert set(render(BODIES[0], found, "LATERAL", 96, 1).masks) == {2}


@pytest.mark.parametrize(
    "name,kind",
    [
        ("Pleural Effusion", "free"),
        ("Cardiomegaly", "global"),
        ("Consolidation", "lobar"),
        ("Edema", "alveolar"),
        ("Lung Lesion", "mass"),
        ("Atelectasis", "lobar"),
    ],
)
def test_lateral_shows_it_inside_the_mask(name, kind):
    inside, outside = [], []
    for seed in (1, 2, 3):
        found = finding(name, kind, seed=seed)
        result = render(BODIES[0], (found,), "LATERAL", 128, seed)
        plain = render(BODIES[0], (), "LATERAL", 128, seed)
        change = np.abs(result.pixels_HxW.astype(int) - plain.pixels_HxW)
        inside.append(change[result.masks[0]].mean())
        outside.append(change[~result.masks[0]].mean())
    assert np.mean(inside) > 1.6 * np.mean(outside)


@pytest.mark.parametrize("view", ["AP", "PA", "LATERAL"])
def test_a_finding_changes_no_noise_position_or_mark_elsewhere(view):
    """Fresh noise or a moved patient would change every pixel, not a few near it."""
    found = finding("Lung Lesion", "nodule", "right", "upper", severity=0.4)
    plain = render(BODIES[0], (), view, 160, 5, 1.0).pixels_HxW.astype(int)
    result = render(BODIES[0], (found,), view, 160, 5, 1.0)
    change = np.abs(result.pixels_HxW - plain)
    assert change[result.masks[0]].max() > 8
    assert change[~result.masks[0]].mean() < 0.6
    # Beyond the reach of scatter not a bit changes.
    far = np.zeros_like(result.masks[0])
    far[-20:] = True
    assert change[far].max() <= 1


def test_position_and_exposure_do_not_know_the_findings():
    """They are drawn before the findings are looked at, from these arguments alone."""
    pose = film.draw_pose(BODIES[0], "AP", 128, 3, 0.5)
    assert pose == film.draw_pose(BODIES[0], "AP", 128, 3, 0.5)
    assert pose != film.draw_pose(BODIES[0], "AP", 128, 4, 0.5)
    assert film.draw_look(BODIES[0], "AP", 3, 0.5) == film.draw_look(
        BODIES[0], "AP", 3, 0.5
    )


def test_air_is_dark_and_water_is_bright():
    for name, kind, sign in (
        ("Pneumothorax", "apical", -1),
        ("Consolidation", "lobar", 1),
        ("Pleural Effusion", "free", 1),
        ("Edema", "alveolar", 1),
        ("Lung Lesion", "mass", 1),
        ("Support Devices", "pacemaker", 1),
    ):
        found = finding(name, kind)
        result = render(BODIES[0], (found,), "PA", 160, 2, 0.0)
        plain = render(BODIES[0], (), "PA", 160, 2, 0.0)
        change = result.pixels_HxW.astype(int) - plain.pixels_HxW
        assert sign * change[result.masks[0]].mean() > 4, (name, kind)


def heart_ratio(body, findings, seed) -> float:
    """Width of the heart's silhouette over the inner width of the rib cage."""
    pose = film.draw_pose(body, "PA", 256, seed, 0.5)
    anatomy = build(body, pose, 0.5)
    for found in findings:
        anatomy = reshape(anatomy, found)
    chord = organs.heart_chord(anatomy, Frame(pose))
    width = np.ptp(np.nonzero((chord > 0).any(0))[0]) * pose.mm_per_px
    return width / (2 * anatomy.half_width)


def test_a_large_heart_is_wider_than_half_the_chest():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        body = Body("MF"[seed % 2], 60, seed, *(float(v) for v in rng.random(5)))
        assert heart_ratio(body, (), seed) < 0.5
        for severity in (0.25, 1.0):
            large = finding("Cardiomegaly", "global", severity=severity)
            assert heart_ratio(body, (large,), seed) > 0.5


@pytest.mark.parametrize(
    "name,kind",
    [
        ("Pleural Effusion", "free"),
        ("Pleural Effusion", "subpulmonic"),
        ("Pneumothorax", "apical"),
        ("Consolidation", "lobar"),
        ("Cardiomegaly", "global"),
        ("Lung Lesion", "nodule"),
    ],
)
def test_severity_is_size(name, kind):
    areas = [
        render(BODIES[0], (finding(name, kind, severity=s),), "PA", 128, 1)
        .masks[0]
        .sum()
        for s in (0.25, 0.6, 1.0)
    ]
    assert areas[0] < areas[1] < areas[2]


def test_a_finding_stays_where_it_is_over_a_course():
    found = finding("Lung Lesion", "mass", "left", "upper")
    centres = []
    for seed in (1, 2):
        mask = render(BODIES[0], (found,), "PA", 128, seed, 0.0).masks[0]
        rows, cols = np.nonzero(mask)
        shape = np.array(mask.shape) / 2
        scale = film.draw_pose(BODIES[0], "PA", 128, seed, 0.0).mm_per_px
        centres.append((np.array([rows.mean(), cols.mean()]) - shape) * scale)
    assert np.abs(centres[0] - centres[1]).max() < 8  # mm


def test_difficulty_moves_the_patient():
    poses = [
        [film.draw_pose(BODIES[0], "PA", 128, seed, d).centre_u for seed in range(30)]
        for d in (0.0, 0.5, 1.0)
    ]
    spread = [np.std(values) for values in poses]
    assert spread[0] == 0 and spread[0] < spread[1] < spread[2]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="OBLIQUE"):
        render(BODIES[0], (), "OBLIQUE", 128, 0)
    with pytest.raises(ValueError, match="size 8"):
        render(BODIES[0], (), "PA", 8, 0)
    with pytest.raises(ValueError, match="difficulty 2"):
        render(BODIES[0], (), "PA", 64, 0, 2)
