"""Bones as clouds of points: ribs, clavicles, scapulae, shoulders, sternum; the spine.

Volumes are in mm3 of water that attenuates as much as the bone does above soft tissue.
"""

from functools import lru_cache

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, Anatomy, heights, table
from data_pipelines.hospital.projection import Frame, arc_volume, curve, window

_SHELL = 6
_BONE = 3.7
_HUMERUS = (11, 11, 1.6, (1, 0, 0))


def tube(axis_BxNx3, half_a, half_b, cortex_mm, normal) -> tuple:
    """Bones as points: a cortical shell of elliptic section and a light filling.

    Args:
        axis_BxNx3: middle lines of B bones, mm.
        half_a: half-axis of the section along `normal`, mm.
        half_b: half-axis across, mm.
        cortex_mm: thickness of the cortex.
        normal: direction, roughly, of half_a.

    Returns:
        (points [M, 3] float32, volumes [M] float32); the points of one sample of the
        axis follow each other.
    """
    axis = np.asarray(axis_BxNx3, np.float32)
    ahead = np.empty_like(axis)
    ahead[:, 1:-1] = 0.5 * (axis[:, 2:] - axis[:, :-2])
    ahead[:, 0], ahead[:, -1] = axis[:, 1] - axis[:, 0], axis[:, -1] - axis[:, -2]
    ds = np.sqrt(np.einsum("bni,bni->bn", ahead, ahead)) + np.float32(1e-6)
    ahead /= ds[..., None]
    normal = np.asarray(normal, np.float32)
    first = normal - ahead * (ahead @ normal)[..., None]
    first /= np.sqrt(np.einsum("bni,bni->bn", first, first))[..., None]
    second = ahead[..., [1, 2, 0]] * first[..., [2, 0, 1]]
    second -= ahead[..., [2, 0, 1]] * first[..., [1, 2, 0]]
    along, across, area = _section(axis.shape[1], half_a, half_b, cortex_mm)
    points = np.empty((*axis.shape[:2], along.shape[1], 3), np.float32)
    for k in range(3):
        points[..., k] = axis[..., k, None] + along * first[..., k, None]
        points[..., k] += across * second[..., k, None]
    return points.reshape(-1, 3), (ds[..., None] * area).ravel()


@lru_cache(maxsize=64)
def _section(count, half_a, half_b, cortex_mm):
    """Places of the points in each cross-section [N, K], and their areas [K]: constants."""
    # Each ring is turned at random, or rows of points would show as stripes.
    turn = np.random.default_rng(1).random((count, 1), np.float32)
    angle = np.float32(2 * np.pi) * (turn + np.arange(_SHELL)) / _SHELL
    core = 0.8 * ((turn + np.array([[0.0, 0.5]])) % 1.0 * 2 - 1)
    along = np.concatenate([half_a * np.cos(angle), half_a * core], 1)
    across = np.concatenate([half_b * np.sin(angle), 0 * core], 1)
    ring = np.pi * (half_a + half_b) * cortex_mm / _SHELL
    inner = 0.22 * np.pi * half_a * half_b / 2
    area = _BONE * np.array([ring] * _SHELL + [inner] * 2)
    return tuple(v.astype(np.float32) for v in (along, across, area))


def rib_axes(anatomy: Anatomy, step: float) -> dict[tuple[int, str], np.ndarray]:
    """Middle lines, spine first, of ribs 1 to 11 by (number, side): float32 [N, 3]."""
    count = max(int(330 / step), 24)
    left = {number: _rib_axis(anatomy, number, count) for number in range(1, 12)}
    return {
        (number, side): axis * np.array([SIGN[side], 1, 1], np.float32)
        for side in SIGN
        for number, axis in left.items()
    }


def _rib_axis(anatomy, number, count):
    t = (number - 1) / 10.0
    height = anatomy.lung_height
    start = -6 + (1.06 * height + 6) * t**0.97
    drop = height * (0.16 + 0.34 * min(t / 0.6, 1.0))
    end = 0.86 * np.pi if number < 8 else (0.86 - 0.09 * (number - 7)) * np.pi
    theta = np.linspace(0.09 * np.pi, end, count, dtype=np.float32)
    # Up over the neck of the rib, then down along the side.
    phase = theta / np.float32(np.pi)
    z = start - 7 * np.sin(np.pi * np.minimum(phase / 0.35, 1)) + drop * phase**1.25
    level = start + 0.55 * drop
    scale = 1.0 if number > 2 else (0.62, 0.86)[number - 1]
    a = float(anatomy.half_width_at(max(level, 12.0))) * scale + 3
    b = float(anatomy.half_depth_at(max(level, 12.0))) * scale + 3
    x = a * np.sin(theta) ** 0.86
    return np.stack([x, -b * np.cos(theta), z], axis=1)


def ribs(anatomy: Anatomy, step: float, breaks=()) -> tuple[np.ndarray, np.ndarray]:
    """All ribs of both sides.

    Args:
        anatomy: the chest.
        step: distance between samples, mm.
        breaks: (number, side, place 0..1 along the rib, displacement mm) of fractures.

    Returns:
        (points [M, 3], volumes [M]).
    """
    axes = rib_axes(anatomy, step)
    keys = list(axes)
    axis_BxNx3 = np.stack([axes[key] for key in keys])
    whole = np.ones(axis_BxNx3.shape[:2], np.float32)
    for number, side, place, displacement in breaks:
        row = keys.index((number, side))
        _break(axis_BxNx3[row], whole[row], place, displacement)
    points, volumes = tube(axis_BxNx3, 6.2, 3.4, 0.62, (0, 0, 1))
    return points, volumes * np.repeat(whole.ravel(), _SHELL + 2)


def _break(axis_Nx3, whole_N, place, displacement):
    """A step and a gap, in place; the ends tilt as bone held by muscle does."""
    at = int(np.clip(place * len(axis_Nx3), 4, len(axis_Nx3) - 5))
    ds = np.linalg.norm(axis_Nx3[at + 1] - axis_Nx3[at])
    gap = max(1, round(0.2 * abs(displacement) / float(ds)))
    away = np.abs(np.arange(len(axis_Nx3)) - at) * ds
    tilt = displacement * np.exp(-away / 60.0)
    axis_Nx3[:at, 2] -= 0.4 * tilt[:at]
    axis_Nx3[at:, 2] += 0.6 * tilt[at:]
    whole_N += 0.9 * np.exp(-(((away - 1.5 * gap * ds) / 5.0) ** 2))  # dense ends
    whole_N[max(at - gap, 0) : at + gap] = 0


def clavicle_axis(anatomy: Anatomy, side: str, step: float) -> np.ndarray:
    """The S-shaped middle line of a clavicle, sternum first."""
    sign, a = SIGN[side], anatomy.half_width
    rng = np.random.default_rng([anatomy.seed, 104])
    rise = rng.uniform(-8, 14)
    control = [
        (14, 52, 26),
        (0.34 * a, 58, 14 - 0.3 * rise),
        (0.72 * a, 30, 8 - 0.7 * rise),
        (1.1 * a, -4, 2 - rise),
        (1.3 * a, -14, 3 - rise),
    ]
    return curve(np.array(control) * np.array([sign, 1, 1]), step)


def clavicles(anatomy, step, breaks=()) -> tuple[np.ndarray, np.ndarray]:
    """Both clavicles; breaks hold (side, place 0..1, displacement mm)."""
    axes = [clavicle_axis(anatomy, side, step) for side in SIGN]
    count = min(len(axis) for axis in axes)
    axis_BxNx3 = np.stack([axis[:count] for axis in axes])
    whole = np.ones(axis_BxNx3.shape[:2], np.float32)
    for side, place, displacement in breaks:
        row = list(SIGN).index(side)
        _break(axis_BxNx3[row], whole[row], place, displacement)
    points, volumes = tube(axis_BxNx3, 5.6, 5.2, 0.9, (0, 0, 1))
    return points, volumes * np.repeat(whole.ravel(), _SHELL + 2)


def shoulders(anatomy: Anatomy, arms: float, step: float):
    """Borders of the scapulae, upper ends of the humeri: (points, volumes)."""
    a = anatomy.half_width
    out = 26 * arms
    clouds = []
    lines = [
        ([(0.7 * a + out, 12), (0.68 * a + out, 70), (0.86 * a + 1.4 * out, 150)], 4),
        ([(0.86 * a + 1.4 * out, 150), (1.1 * a + out, 85), (1.24 * a + 8, 32)], 6),
        ([(0.7 * a + out, 34), (a + 0.5 * out, 14), (1.36 * a, -8)], 7),
        ([(0.7 * a + out, 12), (0.95 * a + out, 2), (1.18 * a + 8, 14)], 3),
    ]
    elbow = (a + anatomy.fat + 62 + 120 * arms, 330 - 60 * arms)
    for control, weight in lines:
        axis = _flat(control, -70, step)
        clouds.append(tube(axis[None], 0.55 * weight, 2.0, 0.5, (1, 0, 0.3)))
    clouds.append(tube(_flat([(a + 52, 34), elbow], -15, step)[None], *_HUMERUS))
    head = _ball(np.array([a + 50, -20, 22.0]), 23.0, step)
    clouds.append((head, np.full(len(head), 2.2 * 4 * np.pi * 23**2 / len(head))))
    points, volumes = (np.concatenate(v) for v in zip(*clouds, strict=True))
    mirrored = points * np.array([-1, 1, 1], np.float32)
    return np.concatenate([points, mirrored]), np.concatenate([volumes, volumes])


def _flat(control_xz, y, step):
    xyz = np.array([(x, y, z) for x, z in control_xz], np.float64)
    return curve(xyz, step)


def _ball(centre, radius, step):
    """Points spread evenly over a sphere (Fibonacci lattice)."""
    count = int(4 * np.pi * (radius / (1.2 * step)) ** 2) + 50
    i = np.arange(count) + 0.5
    polar = np.arccos(1 - 2 * i / count)
    turn = np.pi * (1 + 5**0.5) * i
    unit = [np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)]
    return centre + radius * np.stack(unit, 1)


def sternum(anatomy: Anatomy, step: float) -> tuple[np.ndarray, np.ndarray]:
    """A plate before the heart: seen from the side, faint from the front."""
    b = anatomy.half_depth
    axis = curve(np.array([(0, 0.66 * b, 26), (0, b + 1, 90), (0, b + 5, 190)]), step)
    sheets = [axis + np.array([dx, 0, 0]) for dx in np.linspace(-17, 17, 12)]
    points = np.concatenate(
        [s + np.array([0, dy, 0]) for s in sheets for dy in (-4, 4)]
    )
    return points, np.tile(arc_volume(axis, 2.6), 24)


def spine(anatomy: Anatomy, frame: Frame) -> np.ndarray:
    """Vertebral bodies and discs: extra water-equivalent mm, HxW."""
    p, z = frame.plane(-68.0) if frame.frontal else frame.plane(0.0)
    centre = 0.0 if frame.frontal else 16.0 - anatomy.half_depth
    image = np.zeros(frame.shape, np.float32)
    box = window(p, z, centre, 36.0, 0.0, 1e4)
    p, z = p[box], z[box]
    levels = heights()
    period = 18.0 + 0.022 * np.clip(levels, -100, 400)
    phase = np.cumsum(0.5 / period) % 1.0
    disc = np.exp(-(((phase - 0.5) / 0.10) ** 2))
    plate = np.exp(-(((np.abs(phase - 0.5) - 0.15) / 0.045) ** 2))
    body = (1 - 0.55 * disc + 0.22 * plate).astype(np.float32)
    half = (15.0 + 0.016 * np.clip(levels, -60, 400) - 1.5 * (1 - disc)).astype(
        np.float32
    )
    off = p - (table(anatomy.scoliosis, z) if frame.frontal else np.float32(centre))
    ratio = off / table(half, z)
    square = ratio * ratio
    shape = np.sqrt(np.maximum(1 - square * square, 0)) * table(body, z)
    if not frame.frontal:
        image[box] = np.float32(17.0) * shape
        return image
    process = np.exp(-((off * np.float32(1 / 3.5)) ** 2))
    knot = np.exp(-(((phase - 0.05) / 0.16) ** 2)).astype(np.float32)
    image[box] = np.float32(10.0) * shape + np.float32(6.0) * process * table(knot, z)
    return image
