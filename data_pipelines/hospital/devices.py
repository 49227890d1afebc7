"""Support devices as metal and plastic on their usual ways through the body.

Reference: Godoy et al., Chest radiography in the ICU, AJR 198 (2012), for where tips
of tubes and lines should be.
"""

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, Anatomy
from data_pipelines.hospital.projection import arc_volume, curve
from data_pipelines.hospital.scene import Scene
from data_pipelines.hospital.state import Finding

_METAL = np.float32(4.0)
"""How much more than water the drawn cross-sections attenuate."""


def device(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Draw one device; its support is whatever it attenuates."""
    step = 0.8 * scene.frame.pose.mm_per_px
    sign = SIGN.get(finding.side, 1.0)
    parts = WAYS[finding.kind](scene.anatomy, sign, rng, step)
    image = np.zeros(scene.frame.shape, np.float32)
    for sigma in sorted({part[2] for part in parts}):
        cloud = [(points, volume) for points, volume, s in parts if s == sigma]
        points, volumes = (np.concatenate(v) for v in zip(*cloud, strict=True))
        image += scene.frame.draw(points, volumes, sigma)
    return scene.add(np.minimum(_METAL * image, np.float32(110.0)))


def _line(control, area, step, sigma=0.5):
    points = curve(np.array(control, np.float64), step)
    return points, arc_volume(points, area), sigma


def _walls(control, radius, area, step, sigma=0.45):
    """A hollow tube: two walls, and a dense stripe."""
    axis = curve(np.array(control, np.float64), step)
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    ahead = np.gradient(axis, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    side = np.cross(ahead, [0.0, 1.0, 0.0])
    other = np.cross(ahead, side)
    shell = (
        axis[:, None]
        + radius * np.cos(angle)[None, :, None] * side[:, None]
        + radius * np.sin(angle)[None, :, None] * other[:, None]
    )
    volume = np.repeat(arc_volume(axis, area / 8), 8)
    stripe = axis + 0.75 * radius * side
    return [
        (shell.reshape(-1, 3), volume, sigma),
        (stripe, arc_volume(stripe, 0.9 * area), sigma),
    ]


def _ett(anatomy: Anatomy, sign, rng, step):
    tip = anatomy.carina() - np.array([0, 0, rng.uniform(20, 50)])
    top = np.array([rng.normal(0, 6), 20, -150])
    bend = 0.5 * (tip + np.array([0, 0, -60])) + np.array([rng.normal(0, 2), 4, -8])
    return _walls([top, bend, tip], 4.6, 42.0, step)


def _svc(anatomy: Anatomy):
    x = anatomy.shift - 21
    return np.array([x, 8, 0.2 * anatomy.lung_height]), np.array(
        [x - 2, 6, 0.5 * anatomy.lung_height]
    )


def _picc(anatomy, sign, rng, step):
    a = anatomy.half_width
    high, low = _svc(anatomy)
    low = low + np.array([0, 0, rng.uniform(-25, 12)])
    way = [
        (sign * (a + anatomy.fat + 50), -5, 190),
        (sign * (a + 42), -5, 70),
        (sign * (a + 6), 10, 22),
        (sign * 0.5 * a, 24, 14),
        (sign * 16 - 6, 22, 24),
        high,
        low,
    ]
    return [_line(way, 11.0, step)]


def _central_line(anatomy, sign, rng, step):
    a = anatomy.half_width
    high, low = _svc(anatomy)
    low = low + np.array([0, 0, rng.uniform(-20, 15)])
    if rng.random() < 0.6:  # internal jugular
        start = [(sign * 48, 20, -120), (sign * 30, 20, -60), (sign * 20, 20, 6)]
    else:  # subclavian
        start = [(sign * (a + 10), 55, 50), (sign * 0.7 * a, 40, 20)]
        start += [(sign * 0.4 * a, 25, 16), (sign * 18, 22, 24)]
    hub = np.array(start[0])
    ends = [hub + np.array([sign * 12, 10, -14]), hub + np.array([sign * 18, 10, -4])]
    lumens = [_line([hub, end], 16.0, step) for end in ends]
    return [_line([*start, high, low], 20.0, step), *lumens]


def _pacemaker(anatomy, sign, rng, step):
    a, height = anatomy.half_width, anatomy.lung_height
    at = np.array([sign * 0.74 * a, 88, 0.22 * height + rng.uniform(-6, 14)])
    high, low = _svc(anatomy)
    heart = anatomy.heart()[0][0]
    atrium = np.array([anatomy.shift - 24, 26, 0.62 * height])
    apex = heart + np.array([rng.uniform(24, 36), 24, 26])
    vein = [at + np.array([0, 0, -22]), (sign * 0.5 * a, 40, 16), (sign * 16, 24, 24)]
    loop = at + np.array([sign * 14, 0, 10])
    right = heart + np.array([-26, 14, 16])
    leads = [
        _line([loop, *vein, high, low, right, apex], 13.0, step),
        _line([loop, *vein, high, low, atrium, atrium + [-9, 8, -14]], 13.0, step),
        _line([apex + [-10, -4, -2], apex], 34.0, step),
        _line([atrium + [-5, 4, -8], atrium + [-9, 8, -14]], 34.0, step),
    ]
    return [*_can(at, rng, step), *leads]


def _can(at, rng, step):
    """The generator: a rounded flat box with circuitry that shows inside."""
    u = np.arange(-1, 1, step / 22)
    gx, gz = (v.ravel() for v in np.meshgrid(u, u))
    keep = gx**4 + gz**4 < 1
    gx, gz = gx[keep], gz[keep]
    depth = 46.0 + 26.0 * ((np.abs(gx + 0.2) < 0.4) & (np.abs(gz - 0.3) < 0.45))
    depth += 24.0 * (gx**4 + gz**4 > 0.8)
    points = at + np.stack([23 * gx, 3 * np.sin(7 * gx), 21 * gz], 1)
    cell = (step / 22) ** 2 * 23 * 21
    return [(points, depth * cell / _METAL, 0.5)]


def _chest_tube(anatomy, sign, rng, step):
    a, height = anatomy.half_width, anatomy.lung_height
    z = rng.uniform(0.6, 0.8) * height
    tip_x, tip_z = rng.uniform(0.3, 0.55) * a, rng.uniform(0.12, 0.3) * height
    way = [
        (sign * (a + anatomy.fat + 45), 0, z + 45),
        (sign * (a + 4), -6, z),
        (sign * 0.86 * a, -12, 0.5 * (z + tip_z) + 12),
        (sign * tip_x, -6, tip_z),
    ]
    tube = _walls(way, 4.4, 46.0, step)
    stripe, volume, sigma = tube[1]
    hole = int(0.78 * len(stripe))  # the side hole interrupts the stripe
    volume = volume.copy()
    volume[hole : hole + max(2, int(7 / step))] = 0
    return [tube[0], (stripe, 1.5 * volume, sigma)]


def _ng_tube(anatomy, sign, rng, step):
    top = anatomy.gas_top
    x = 0.6 * anatomy.shift
    way = [
        (rng.normal(0, 5), 0, -150),
        (x + 1, -40, 30),
        (x + 4, -44, 0.6 * anatomy.lung_height),
        (10, -20, top + 4),
        (38 + rng.uniform(0, 14), 10, top + 34),
        (52 + rng.uniform(0, 20), 22, top + rng.uniform(50, 78)),
    ]
    line = _line(way, 15.0, step)
    return [line, (line[0][-int(12 / step) :], np.full(int(12 / step), 16 * step), 0.5)]


def _sternal_wires(anatomy, sign, rng, step):
    parts = []
    b = anatomy.half_depth
    for z in np.linspace(0.2, 0.72, 6) * anatomy.lung_height:
        z = z + rng.normal(0, 2.5)
        angle = np.linspace(0, 2 * np.pi, 14)
        twist = rng.uniform(-0.3, 0.3)
        width, tall = rng.uniform(10, 13), rng.uniform(4.5, 6.5)
        ring = np.stack(
            [
                width * np.cos(angle),
                b + 3 + 6 * np.sin(angle),
                z + tall * np.sin(angle + twist),
            ],
            1,
        )
        parts.append(_line(ring, 12.0, step, 0.45))
        knot = [(2, b + 9, z + tall - 1), (-2, b + 10, z + tall + 5)]
        parts.append(_line(knot, 16.0, step, 0.45))
    return parts


WAYS = {
    "ett": _ett,
    "picc": _picc,
    "central_line": _central_line,
    "pacemaker": _pacemaker,
    "chest_tube": _chest_tube,
    "ng_tube": _ng_tube,
    "sternal_wires": _sternal_wires,
}
