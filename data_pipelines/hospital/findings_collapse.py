"""Atelectasis, and the findings that reshape the chest before anything is painted.

Reference: Woodring and Reed, Types and mechanisms of pulmonary atelectasis, J Thorac
Imaging 11 (1996), for direct and indirect signs of collapse.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.hospital.anatomy import (
    LEFT,
    RIGHT,
    SIGN,
    Anatomy,
    move_dome,
    table,
    widen_pedicle,
)
from data_pipelines.hospital.organs import heart_chord
from data_pipelines.hospital.projection import (
    arc_volume,
    curve,
    smoothstep,
    value_noise,
)
from data_pipelines.hospital.scene import Scene, sides
from data_pipelines.hospital.state import Finding

OTHER = {LEFT: RIGHT, RIGHT: LEFT}


def reshape(anatomy: Anatomy, finding: Finding) -> Anatomy:
    """The chest as one finding deforms it: heart, mediastinum, domes."""
    s, name, kind = finding.severity, finding.name, finding.kind
    if name == "Cardiomegaly":
        ratio = 0.51 + 0.115 * s + 0.25 * (anatomy.heart_ratio - 0.43)
        return replace(anatomy, heart_ratio=ratio, heart_tilt=anatomy.heart_tilt - 0.1)
    if name == "Enlarged Cardiomediastinum":
        rng = np.random.default_rng([abs(finding.seed), 301])
        lean = rng.uniform(0.35, 0.65)
        return widen_pedicle(anatomy, (22 + 48 * s) * lean, (22 + 48 * s) * (1 - lean))
    if finding.side not in SIGN:
        rise = 5 + 7 * s if name == "Atelectasis" else 0.0
        for side in sides(finding) if rise else ():
            anatomy = move_dome(anatomy, side, rise)
        return anatomy
    side, sign = finding.side, SIGN[finding.side]
    if name == "Atelectasis":
        rise = (5 + 9 * s) if kind != "lobar" else (8 + 16 * s)
        rise *= 0.4 if finding.lobe == "upper" else 1.0
        pull = sign * (7 + 14 * s if kind == "lobar" else 0.0)
        anatomy = move_dome(anatomy, side, rise)
        return replace(anatomy, shift=anatomy.shift + pull)
    if name == "Pneumothorax" and kind == "tension":
        anatomy = move_dome(anatomy, side, -(8 + 14 * s))
        return replace(anatomy, shift=anatomy.shift - sign * (14 + 20 * s))
    if name == "Pleural Effusion" and kind == "subpulmonic":
        return move_dome(
            anatomy, side, 20 + 30 * s, x0=0.68 * anatomy.half_width, across=330.0
        )
    if name == "Pleural Effusion" and s > 0.7:
        return replace(anatomy, shift=anatomy.shift - sign * 45 * (s - 0.7))
    return anatomy


def cardiomegaly(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Nothing to add: the heart is already large. Its silhouette is the support."""
    return heart_chord(scene.anatomy, scene.frame)


def mediastinum(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """The widened upper mediastinum: where it lies, in either film."""
    anatomy, p, z = scene.anatomy, scene.organs.p, scene.organs.z
    t = z * np.float32(1 / anatomy.lung_height)
    level = smoothstep(0.05, 0.1, t) * (1 - smoothstep(0.55, 0.6, t))
    if scene.frame.frontal:
        x = p - np.float32(anatomy.shift)
        wide = np.where(
            x > 0, table(anatomy.pedicle_left, z), table(anatomy.pedicle_right, z)
        )
        return 20.0 * level * (np.abs(x) < wide)
    depth = np.exp(-(((p - 12) * np.float32(1 / 38.0)) ** 2)) * level
    share = np.float32(0.25 + 0.4 * finding.severity) * depth
    return scene.fill(LEFT, share) + scene.fill(RIGHT, share)


def atelectasis(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Bands, small wedges, or a whole lobe folded towards the hilum."""
    total = np.zeros(scene.frame.shape, np.float32)
    for side in sides(finding):
        if finding.kind == "lobar":
            total += _lobar(scene, finding, side, rng)
        elif finding.kind == "linear":
            total += _bands(scene, finding, side, rng, int(2 + 3 * finding.severity))
        else:
            total += _bands(scene, finding, side, rng, 2)
            total += _wedges(scene, finding, side, rng)
    return total


def _level(scene, lobe, rng):
    """Height at which bands lie, as a share of the way from apex to dome."""
    low, high = {"upper": (0.3, 0.5), "middle": (0.55, 0.75)}.get(lobe, (0.76, 0.97))
    return rng.uniform(low, high)


def _bands(scene, finding, side, rng, count):
    """Plates of collapsed lung seen edge on: thin, dense, nearly horizontal."""
    anatomy, sign, s = scene.anatomy, SIGN[side], finding.severity
    step = 0.8 * scene.frame.pose.mm_per_px
    clouds, volumes = [], []
    thick = 3.5 + 3.4 * s
    for _ in range(count):
        z = _level(scene, finding.lobe, rng) * anatomy.domes[side].top
        length = rng.uniform(0.34, 0.5 + 0.24 * s) * anatomy.half_width
        start = rng.uniform(0.28, 0.42) * anatomy.half_width
        y, slope = rng.uniform(-40, 30), rng.normal(-0.06, 0.16)
        x = start + np.array([0, 0.5, 1.0]) * length
        sag = rng.normal(0, 2.5)
        height = z + slope * (x - x[1]) + np.array([0, sag, 0])
        line = curve(np.stack([sign * x, np.full(3, y), height], 1), step)
        taper = np.sin(np.pi * np.linspace(0.06, 0.94, len(line))) ** 0.5
        depth = rng.uniform(27, 38) + 16 * s
        volume = arc_volume(line, thick * depth * 0.8) * taper
        sheet = np.linspace(-0.5, 0.5, 3 if scene.frame.frontal else 24)
        plate = line[:, None] + sheet[None, :, None] * np.array([0, depth, 0])
        clouds.append(plate.reshape(-1, 3))
        volumes.append(np.repeat(volume / len(sheet), len(sheet)))
    image = scene.frame.draw(np.concatenate(clouds), np.concatenate(volumes), thick / 3)
    lung = smoothstep(5, 40, scene.organs.lungs[side])
    limit = 0.8 * scene.organs.lungs[side]
    return scene.add(np.minimum(image * lung, limit) * np.float32(scene.strength))


def _wedges(scene, finding, side, rng):
    """Small triangles with their base on the pleura, at the bottom of the lung."""
    share = np.zeros(scene.frame.shape, np.float32)
    s, anatomy = finding.severity, scene.anatomy
    hilum = anatomy.hilum(side)
    across = 0 if scene.frame.frontal else 1
    z1 = _level(scene, finding.lobe, rng) * anatomy.domes[side].top + 12
    x1 = SIGN[side] * rng.uniform(0.5, 0.85) * anatomy.half_width
    end = np.array([x1, rng.uniform(-45, 10), z1])
    dp = scene.organs.p - np.float32(hilum[across])
    dz = scene.organs.z - np.float32(hilum[2])
    way = (end - hilum)[[across, 2]]
    length = float(np.hypot(*way))
    way = (way / length).astype(np.float32)
    along = (dp * way[0] + dz * way[1]) * np.float32(1 / length)
    away = np.abs(dp * way[1] - dz * way[0])
    near = 0.45 - 0.15 * s
    width = (7 + 15 * s) * np.clip((along - near) / (1 - near), 0, 1)
    share = smoothstep(-4.0, 3.0, width - away) * smoothstep(near, near + 0.15, along)
    share *= 1 - smoothstep(1.12, 1.2, along)
    return scene.fill(side, share * np.float32(0.42 * scene.strength))


def _lobar(scene, finding, side, rng):
    """A lobe without air: a wedge with one straight edge, the fissure it dragged."""
    s, anatomy = finding.severity, scene.anatomy
    shape = _frontal_wedge if scene.frame.frontal else _lateral_wedge
    edge = shape(scene, finding.lobe, side, s)
    edge = edge + np.float32(1.5) * value_noise(
        rng, scene.organs.p, scene.organs.z, 0.16 * anatomy.lung_height
    )
    share = smoothstep(-1.5, 2.0, edge) * np.float32(0.62 + 0.26 * s)
    return scene.fill(side, share * np.float32(min(scene.strength, 1.1)))


def _frontal_wedge(scene, lobe, side, s):
    anatomy, z = scene.anatomy, scene.organs.z
    out = scene.out(side) - np.float32(SIGN[side] * anatomy.shift)
    a, height = anatomy.half_width, anatomy.lung_height
    hilum = anatomy.hilum(side)
    if lobe == "upper":
        # The horizontal fissure is pulled up and bows: high at the side, low inside.
        level = hilum[2] - 6 - (0.14 + 0.05 * s) * height * smoothstep(25, 0.9 * a, out)
        return level - z
    if lobe == "lower":
        # A sail behind the heart: from the hilum down and out to the diaphragm.
        top, bottom = hilum[2] + 8, anatomy.domes[side].top + 20
        slope = (0.24 + 0.26 * s) * a / (bottom - top)
        return np.minimum(30 + slope * (z - top) - out, z - top)
    # The middle lobe: a flat triangle beside the heart that blurs its border.
    middle = 0.70 * height
    half = (0.10 + 0.035 * s) * height * np.clip(1 - (out - 30) / (0.62 * a), 0, 1)
    return half - np.abs(z - np.float32(middle)) - 2 * (half <= 0)


def _lateral_wedge(scene, lobe, side, s):
    anatomy, y, z = scene.anatomy, scene.organs.p, scene.organs.z
    b, height = anatomy.half_depth, anatomy.lung_height
    hilum = anatomy.hilum(side)
    if lobe == "upper":
        return np.minimum(hilum[2] - 4 - z - 0.1 * (y + b), y + 0.35 * b)
    if lobe == "lower":
        front = -0.1 * b - (0.55 - 0.35 * s) * b * (1 - (z - hilum[2]) / (0.6 * height))
        return np.minimum(front - y, z - hilum[2] - 6)
    line = hilum[2] + 10 + (y - hilum[1]) * (0.30 * height / b)
    half = (5 + 9 * s) * smoothstep(hilum[1], 0.6 * b, y)
    return half - np.abs(z - line) - 2 * (half <= 0.2)
