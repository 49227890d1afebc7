"""Bones as clouds of points: ribs, clavicles, scapulae, shoulders, sternum; the spine.

Volumes are in mm3 of water that attenuates as much as the bone does above soft tissue.
"""

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, Anatomy, heights, table
from data_pipelines.hospital.projection import Frame, arc_volume, curve

_SHELL = 8
_BONE = 2.1


def tube(axis_Nx3, half_a, half_b, cortex_mm, normal) -> tuple[np.ndarray, np.ndarray]:
    """A bone as points: a cortical shell of elliptic section and a light filling.

    Args:
        axis_Nx3: its axis, mm.
        half_a: half-axis of the section along `normal`, mm.
        half_b: half-axis across, mm.
        cortex_mm: thickness of the cortex.
        normal: direction, roughly, of half_a.

    Returns:
        (points [M, 3], volumes [M]).
    """
    ahead = np.gradient(axis_Nx3, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    first = normal - ahead * (ahead @ normal)[:, None]
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(ahead, first)
    # Each ring is turned against the last, or rows of points would show as stripes.
    turn = 2.399963 * np.arange(len(axis_Nx3))[:, None]
    angle = turn + 2 * np.pi * np.arange(_SHELL)[None] / _SHELL
    shell = (
        axis_Nx3[:, None]
        + half_a * np.cos(angle)[:, :, None] * first[:, None]
        + half_b * np.sin(angle)[:, :, None] * second[:, None]
    )
    place = 0.7 * np.sin(turn + np.array([[0.0, 2.1, 4.2]]))
    core = axis_Nx3[:, None] + place[:, :, None] * (half_a * first[:, None])
    ring = np.pi * (half_a + half_b) * cortex_mm / _SHELL
    inner = 0.22 * np.pi * half_a * half_b / 3
    area = np.concatenate([np.full(_SHELL, ring), np.full(3, inner)])
    volume = arc_volume(axis_Nx3, 1.0)[:, None] * area * _BONE
    points = np.concatenate([shell, core], axis=1)
    return points.reshape(-1, 3), volume.ravel()


def rib_axis(anatomy: Anatomy, number: int, side: str, step: float) -> np.ndarray:
    """The middle line of rib `number` (1..11) from the spine to its front end."""
    t = (number - 1) / 10.0
    height = anatomy.lung_height
    start = -6 + (1.06 * height + 6) * t**0.97
    drop = height * (0.16 + 0.34 * min(t / 0.6, 1.0))
    end = 0.86 * np.pi if number < 8 else (0.86 - 0.09 * (number - 7)) * np.pi
    theta = np.linspace(0.09 * np.pi, end, max(int(330 / step), 24))
    # Up over the neck of the rib, down along the side, a little up in front.
    phase = theta / np.pi
    z = start - 7 * np.sin(np.pi * np.minimum(phase / 0.35, 1)) + drop * phase**1.25
    level = start + 0.55 * drop
    scale = 1.0 if number > 2 else (0.62, 0.86)[number - 1]
    a = anatomy.half_width_at(np.maximum(level, 12)) * scale + 3
    b = anatomy.half_depth_at(np.maximum(level, 12)) * scale + 3
    x = SIGN[side] * (a * np.sin(theta) ** 0.86)
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
    broken = {(number, side): rest for number, side, *rest in breaks}
    points, volumes = [], []
    for side in SIGN:
        for number in range(1, 12):
            axis = rib_axis(anatomy, number, side, step)
            pieces = [axis]
            if (number, side) in broken:
                pieces = _break(axis, *broken[(number, side)], step)
            for piece in pieces:
                cloud, volume = tube(piece, 6.2, 3.4, 0.62, np.array([0, 0.0, 1]))
                points.append(cloud)
                volumes.append(volume)
    return np.concatenate(points), np.concatenate(volumes)


def _break(axis, place, displacement, step):
    """Two pieces with a step and a gap; the ends tilt as bone held by muscle does."""
    at = int(np.clip(place * len(axis), 4, len(axis) - 5))
    gap = max(1, int(round(0.25 * abs(displacement) / step)))
    inner, outer = axis[: at - gap].copy(), axis[at + gap :].copy()
    for piece, sign, near in ((inner, -0.4, len(inner) - 1), (outer, 0.6, 0)):
        away = np.abs(np.arange(len(piece)) - near) * step
        piece[:, 2] += sign * displacement * np.exp(-away / 60.0)
    return [inner, outer]


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
    broken = {side: rest for side, *rest in breaks}
    points, volumes = [], []
    for side in SIGN:
        pieces = [clavicle_axis(anatomy, side, step)]
        if side in broken:
            pieces = _break(pieces[0], *broken[side], step)
        for piece in pieces:
            cloud, volume = tube(piece, 5.6, 5.2, 0.9, np.array([0.0, 0, 1]))
            points.append(cloud)
            volumes.append(volume)
    return np.concatenate(points), np.concatenate(volumes)


def shoulders(anatomy: Anatomy, arms: float, step: float):
    """Borders of the scapulae, upper ends of the humeri: (points, volumes)."""
    a = anatomy.half_width
    out = 26 * arms
    points, volumes = [], []
    lines = [
        ([(0.7 * a + out, 12), (0.68 * a + out, 70), (0.86 * a + 1.4 * out, 150)], 4),
        ([(0.86 * a + 1.4 * out, 150), (1.1 * a + out, 85), (1.24 * a + 8, 32)], 6),
        ([(0.7 * a + out, 34), (a + 0.5 * out, 14), (1.36 * a, -8)], 7),
        ([(0.7 * a + out, 12), (0.95 * a + out, 2), (1.18 * a + 8, 14)], 3),
    ]
    elbow = (a + anatomy.fat + 62 + 120 * arms, 330 - 60 * arms)
    for sign in SIGN.values():
        for control, weight in lines:
            axis = _flat(control, sign, -70, step)
            points.append(axis)
            volumes.append(arc_volume(axis, 2.6 * weight))
        axis = _flat([(a + 52, 34), elbow], sign, -15, step)
        cloud, volume = tube(axis, 11, 11, 2.6, np.array([1.0, 0, 0]))
        points.append(cloud)
        volumes.append(volume)
        head = _ball(np.array([sign * (a + 50), -20, 22.0]), 23.0, step)
        points.append(head)
        volumes.append(np.full(len(head), 2.2 * 4 * np.pi * 23**2 / len(head)))
    return np.concatenate(points), np.concatenate(volumes)


def _flat(control_xz, sign, y, step):
    xyz = np.array([(sign * x, y, z) for x, z in control_xz], np.float64)
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
    levels = heights()
    period = 18.0 + 0.022 * np.clip(levels, -100, 400)
    phase = np.cumsum(0.5 / period) % 1.0
    disc = np.exp(-(((phase - 0.5) / 0.10) ** 2))
    plate = np.exp(-(((np.abs(phase - 0.5) - 0.15) / 0.045) ** 2))
    body = (1 - 0.55 * disc + 0.22 * plate).astype(np.float32)
    half = (15.0 + 0.016 * np.clip(levels, -60, 400) - 1.5 * (1 - disc)).astype(
        np.float32
    )
    centre = np.float32(-anatomy.half_depth + 16)
    off = p - (table(anatomy.scoliosis, z) if frame.frontal else centre)
    ratio = off / table(half, z)
    square = ratio * ratio
    shape = np.sqrt(np.maximum(1 - square * square, 0)) * table(body, z)
    if not frame.frontal:
        return np.float32(17.0) * shape
    process = np.exp(-((off * np.float32(1 / 3.5)) ** 2))
    knot = np.exp(-(((phase - 0.05) / 0.16) ** 2)).astype(np.float32)
    return np.float32(10.0) * shape + np.float32(6.0) * process * table(knot, z)
