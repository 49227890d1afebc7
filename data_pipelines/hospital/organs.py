"""Chord lengths of the large organs along every ray: body wall, lungs, heart, gas.

All lengths are mm. A ray through the body crosses `soft` mm of tissue as dense as water,
of which the lungs take their chord away; opacities give parts of it back.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.hospital.anatomy import LEFT, RIGHT, SIGN, Anatomy, heights, level
from data_pipelines.hospital.projection import (
    Frame,
    ellipsoid_chord,
    smoothstep,
    window,
)

_APEX_HEIGHT = 56.0
_APEX_Y = -8.0
MEDIAL = 0.5
"""How much less a dome falls off towards the heart than towards the ribs."""


@dataclass
class Organs:
    """Maps of one film, float32 HxW, mm.

    Attributes:
        p: x (frontal) or y (lateral) of each pixel at the depth of the lungs.
        z: its height.
        soft: chord of the whole body.
        lungs: chord of each lung, "left" and "right".
        heart: chord of the heart.
        gas: chord of gas outside the lungs.
    """

    p: np.ndarray
    z: np.ndarray
    soft: np.ndarray
    lungs: dict[str, np.ndarray]
    heart: np.ndarray
    gas: np.ndarray


def _overlap(low, high, centre, half):
    """Length of [low, high] that [centre - half, centre + half] covers."""
    return np.maximum(
        np.minimum(high, centre + half) - np.maximum(low, centre - half), 0
    )


def lung_chord(
    anatomy: Anatomy,
    frame: Frame,
    p: np.ndarray,
    z: np.ndarray,
    side: str,
    wall: np.ndarray | None = None,
) -> np.ndarray:
    """Chord of one lung, before heart and great vessels are taken out.

    Args:
        anatomy: the chest.
        frame: says along which axis to look.
        p: map of x (frontal) or y (lateral), mm.
        z: map of heights, mm.
        side: "left" or "right".
        wall: thickness, mm at each level of the z table, of what lies between rib
            cage and lung all round (fluid, thick pleura).

    Returns:
        float32 HxW, mm.
    """
    box = _lung_window(anatomy, frame, p, z, side)
    chord = np.zeros(p.shape, np.float32)
    p, z = p[box], z[box]
    index = level(z)
    a = anatomy.half_width_at(heights())
    b = anatomy.half_depth_at(heights())
    if wall is not None:
        a, b = np.maximum(a - wall, 1), np.maximum(b - wall, 1)
    args = (anatomy, anatomy.domes[side], p, z, a.take(index), b.take(index))
    if frame.frontal:
        pedicle = anatomy.pedicle_left if side == LEFT else anatomy.pedicle_right
        chord[box] = _frontal_lung(*args, pedicle.take(index), SIGN[side])
    else:
        chord[box] = _lateral_lung(*args)
    return chord


def _lung_window(anatomy, frame, p, z, side):
    """The part of the film that can show one lung."""
    a, height = anatomy.half_width, 0.5 * anatomy.lung_height
    if frame.frontal:
        reach = 0.5 * (a + 60)
        return window(p, z, SIGN[side] * (reach - 60), reach, height, height + 75)
    return window(p, z, 0.0, anatomy.half_depth, height, height + 75)


def _frontal_lung(anatomy, dome, x, z, a, b, pedicle, sign):
    sign = np.float32(sign)
    out = x * sign
    ratio = x / a
    half = b * np.sqrt(np.maximum(1 - ratio * ratio, 0))
    rx = np.float32(0.5 * anatomy.half_width)
    off = (out - rx) / rx
    apex = np.maximum(z * np.float32(1 / _APEX_HEIGHT) - off * off, 0)
    apex = np.sqrt(apex) * np.float32(0.8 * anatomy.half_depth)
    low = np.maximum(-half, _APEX_Y - apex)
    high = np.minimum(half, _APEX_Y + apex)
    t = (out - np.float32(dome.x0)) * np.float32(1 / anatomy.half_width)
    t = np.maximum(t, -MEDIAL * t)
    rise = z - np.float32(dome.top) - np.float32(dome.across) * t * t
    cut = np.sqrt(np.maximum(rise, 0)) * np.float32(
        anatomy.half_depth / np.sqrt(dome.along)
    )
    chord = np.maximum(high - low, 0) - _overlap(low, high, np.float32(dome.y0), cut)
    medial = out - sign * np.float32(anatomy.shift) - pedicle
    return np.maximum(chord, 0) * smoothstep(-4.0, 6.0, medial)


def _lateral_lung(anatomy, dome, y, z, a, b):
    ratio = y / b
    high = a * np.sqrt(np.maximum(1 - ratio * ratio, 0))
    rx = np.float32(0.5 * anatomy.half_width)
    off = (y - np.float32(_APEX_Y)) * np.float32(1 / (0.8 * anatomy.half_depth))
    apex = np.maximum(z * np.float32(1 / _APEX_HEIGHT) - off * off, 0)
    apex = np.sqrt(apex) * rx
    hidden = 22 * np.exp(-(((y + 14) * np.float32(1 / 34.0)) ** 2)) + 5
    low = np.maximum(hidden, rx - apex)
    high = np.minimum(high, rx + apex)
    t = (y - np.float32(dome.y0)) * np.float32(1 / anatomy.half_depth)
    rise = z - np.float32(dome.top) - np.float32(dome.along) * t * t
    cut = np.sqrt(np.maximum(rise, 0)) * np.float32(
        anatomy.half_width / np.sqrt(dome.across)
    )
    top = np.minimum(high, np.float32(dome.x0) + cut)
    covered = top - np.maximum(low, np.float32(dome.x0) - cut / np.float32(MEDIAL))
    chord = np.maximum(high - low, 0) - np.maximum(covered, 0) * (rise > 0)
    return np.maximum(chord, 0)


def inside_lung(anatomy: Anatomy, points_Nx3: np.ndarray, side: str) -> np.ndarray:
    """Which points lie in a lung (mediastinum not taken out), bool [N]."""
    x, y, z = points_Nx3.T
    out = x * SIGN[side]
    dome = anatomy.domes[side]
    rx, ry = 0.5 * anatomy.half_width, 0.8 * anatomy.half_depth
    a, b = anatomy.half_width_at(z), anatomy.half_depth_at(z)
    t = np.maximum(out - dome.x0, MEDIAL * (dome.x0 - out))
    diaphragm = (
        dome.top
        + dome.across * (t / anatomy.half_width) ** 2
        + dome.along * ((y - dome.y0) / anatomy.half_depth) ** 2
    )
    in_cage = (x / a) ** 2 + (y / b) ** 2 < 0.96
    in_apex = ((out - rx) / rx) ** 2 + ((y - _APEX_Y) / ry) ** 2 < z / _APEX_HEIGHT
    return in_cage & in_apex & (z < diaphragm) & (out > 8)


def heart_chord(anatomy: Anatomy, frame: Frame) -> np.ndarray:
    """Chord of the heart, magnified as its depth asks, mm HxW."""
    p, z = frame.plane(28.0 if frame.frontal else 15.0)
    along = 1 if frame.frontal else 0
    chord = np.zeros(frame.shape, np.float32)
    for centre, spread in anatomy.heart():
        chord = np.maximum(chord, ellipsoid_chord(centre, spread, along, p, z))
    # The heart lies on the diaphragm; the lung behind the dome is not its to take.
    floor = 0.5 * (anatomy.domes[LEFT].top + anatomy.domes[RIGHT].top) + 2.0
    return chord * (1 - smoothstep(floor, floor + 16.0, z))


def project(anatomy: Anatomy, frame: Frame) -> Organs:
    """All large organs of a chest in one film."""
    p, z = frame.plane(0.0)
    heart = heart_chord(anatomy, frame)
    lungs = {side: lung_chord(anatomy, frame, p, z, side) for side in (RIGHT, LEFT)}
    lungs = take_out(lungs, heart, frame, p - np.float32(anatomy.shift))
    soft = _frontal_body(anatomy, frame) if frame.frontal else _side_body(anatomy, p, z)
    return Organs(p, z, soft, lungs, heart, _gas(anatomy, frame))


def take_out(lungs, heart, frame, p):
    """Lung chords less the heart's: all of it on its side, or shared in a lateral."""
    share = {LEFT: 0.62, RIGHT: 0.38}
    result = {}
    for side, chord in lungs.items():
        part = 2.2 if frame.frontal else share[side]
        result[side] = np.maximum(chord - heart * np.float32(part), 0)
    return result


def _frontal_body(anatomy, frame):
    x, z = frame.plane(0.0)
    a, fat = anatomy.half_width, anatomy.fat
    levels = (-220, -80, -52, -36, -16, 10, 50, 95, 240, 600)
    neck = 58 + 0.35 * fat
    widths = (neck, neck + 4, neck + 30, 0.95 * a, 1.25 * a, a + 52, a + 40)
    widths += (a + fat + 6, a + fat + 4, a + fat + 12)
    depth = anatomy.half_depth + 0.8 * fat + 8
    depths = (60, 62, 66, 70, 76, 84, 0.9 * depth, depth, depth, depth * 1.05)
    half_width = np.interp(heights(), levels, widths).astype(np.float32)
    half_depth = np.interp(heights(), levels, depths).astype(np.float32)
    index = level(z)
    ratio = np.abs(x) / half_width.take(index)
    torso = np.sqrt(np.maximum(1 - ratio * ratio * ratio, 0)) * half_depth.take(index)
    arms = _arms(anatomy, frame.pose.arms, np.abs(x), z)
    soft = np.maximum(2 * torso, arms)
    bx, bz = frame.plane(anatomy.half_depth + 15.0)
    for sign, thick in zip((-1, 1), anatomy.breast, strict=True):
        soft += _breast(anatomy, bx * sign, bz, thick)
    return soft


def _arms(anatomy, away, x, z):
    shoulder = np.array([anatomy.half_width + 48, 22.0])
    elbow = np.array(
        [anatomy.half_width + anatomy.fat + 62 + 120 * away, 330 - 60 * away]
    )
    radius = 36 + 0.5 * anatomy.fat
    line = elbow - shoulder
    dx, dz = x - np.float32(shoulder[0]), z - np.float32(shoulder[1])
    t = (dx * np.float32(line[0]) + dz * np.float32(line[1])) / np.float32(line @ line)
    t = np.clip(t, 0, 1)
    dx, dz = dx - t * np.float32(line[0]), dz - t * np.float32(line[1])
    return 2 * np.sqrt(np.maximum(np.float32(radius**2) - dx * dx - dz * dz, 0))


def _breast(anatomy, x, z, thick):
    out = np.zeros(x.shape, np.float32)
    box = window(x, z, 0.62 * anatomy.half_width, 66.0, anatomy.breast_z - 20, 68)
    x, z = x[box], z[box]
    dx = (x - np.float32(0.62 * anatomy.half_width)) * np.float32(1 / 66.0)
    dz = z - np.float32(anatomy.breast_z)
    # Sharp below, where the breast folds; above it runs out into the chest wall.
    fade = 1 - smoothstep(-75.0, 25.0, -dz)
    dz = np.maximum(dz, 0) * np.float32(1 / 46.0)
    bulge = np.sqrt(np.maximum(1 - dx * dx - dz * dz, 0))
    out[box] = np.float32(thick) * fade * bulge
    return out


def _side_body(anatomy, y, z):
    b, fat = anatomy.half_depth, anatomy.fat
    levels = (-220, -70, -30, 10, 60, 130, 240, 600)
    front = (34, 36, 44, 62, b + 0.4 * fat + 8, b + 0.7 * fat + 12, b + fat + 12)
    back = (56, 60, 84, 96, b + 0.8 * fat + 22, b + 0.8 * fat + 22, b + 0.7 * fat + 18)
    front, back = front + (b + 1.6 * fat + 20,), back + (b + 0.6 * fat + 16,)
    wide = anatomy.half_width + fat
    levels_z = heights()
    below = (levels_z - anatomy.breast_z) / np.where(
        levels_z > anatomy.breast_z, 40, 95
    )
    bulge = 0.6 * sum(anatomy.breast) * np.sqrt(np.maximum(1 - below**2, 0)) ** 1.5
    widths = (60, 66, 150, 190, 0.95 * wide, wide, wide, wide)
    lut = [np.interp(heights(), levels, v) for v in (front, back, widths)]
    lut[0] = lut[0] + bulge
    index = level(z)
    front, back, width = (v.astype(np.float32).take(index) for v in lut)
    # Arms are held up: they add nothing below the shoulders.
    reach = np.where(y > 0, front, back)
    ratio = np.abs(y) / reach
    soft = 2 * width * np.sqrt(np.maximum(1 - ratio * ratio * ratio, 0))
    return soft


def _gas(anatomy, frame):
    """Stomach bubble under the left dome, and some gas in the bowel."""
    rng = np.random.default_rng([anatomy.seed, 103])
    along = 1 if frame.frontal else 0
    p, z = frame.plane(20.0 if frame.frontal else 40.0)
    gas = np.zeros(frame.shape, np.float32)
    top = anatomy.gas_top
    bubble = np.diag(np.array([rng.uniform(18, 36), 26, rng.uniform(9, 20)]) ** 2)
    at = np.array([rng.uniform(48, 72), 18, top + 14 + np.sqrt(bubble[2, 2])])
    if rng.random() < 0.75:
        gas += ellipsoid_chord(at, bubble, along, p, z)
    for _ in range(int(rng.integers(0, 5))):
        at = np.array([rng.uniform(-110, 110), 20, top + rng.uniform(70, 150)])
        size = np.diag(rng.uniform(10, 24, 3) ** 2)
        gas = np.maximum(gas, ellipsoid_chord(at, size, along, p, z))
    return gas * np.float32(0.8)
