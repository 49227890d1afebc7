"""The branching vessels of the lungs, and the air in trachea and bronchi.

A tree grows from each hilum by repeated forking; whatever leaves the lung is cut off.
The tree depends on the body alone, so it is the same in all films of a patient.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, Anatomy
from data_pipelines.hospital.organs import inside_lung
from data_pipelines.hospital.projection import Frame, arc_volume, curve

_GENERATIONS = 6
_ROOTS = 9


@dataclass(frozen=True)
class Tree:
    """Vessel points of one lung: places [N, 3], radii and spacing [N], all mm."""

    points_Nx3: np.ndarray
    radius: np.ndarray
    spacing: np.ndarray


def grow(anatomy: Anatomy, side: str, step: float) -> Tree:
    """The vessels of one lung.

    Args:
        anatomy: the chest; a forking pattern belongs to its seed and the side.
        side: "left" or "right".
        step: distance between samples, mm.

    Returns:
        The tree, clipped to the lung.
    """
    rng = np.random.default_rng([anatomy.seed, 105, int(SIGN[side]) + 1])
    tip, way, radius, length = _roots(anatomy, side, rng)
    points, radii, gaps = [], [], []
    for _ in range(_GENERATIONS):
        count = max(3, int(np.ceil(float(length.mean()) / step)))
        t = (np.arange(count) + 0.5) / count
        sag = rng.normal(0, 0.06, tip.shape) * length[:, None]
        line = tip[:, None] + t[None, :, None] * (way * length[:, None])[:, None]
        line = line + (t * (1 - t) * 4)[None, :, None] * sag[:, None]
        points.append(line.reshape(-1, 3))
        radii.append((radius[:, None] * (1 - 0.15 * t)[None]).ravel())
        gaps.append(np.repeat(length / count, count))
        tip, way, radius, length = _fork(tip, way, radius, length, rng)
    place, wide, gap = (np.concatenate(v) for v in (points, radii, gaps))
    keep = inside_lung(anatomy, place, side)
    return Tree(place[keep], wide[keep], gap[keep])


def _roots(anatomy, side, rng):
    angle = np.linspace(-1.35, 1.5, _ROOTS) + rng.normal(0, 0.12, _ROOTS)
    depth = rng.normal(0, 0.5, _ROOTS)
    way = np.stack([SIGN[side] * np.cos(angle), depth, np.sin(angle)], 1)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    tip = anatomy.hilum(side) + rng.normal(0, 5, (_ROOTS, 3)) * np.array([0.5, 1, 1.6])
    # Standing blood goes down: lower vessels are the wider ones.
    radius = 3.5 + 0.9 * np.sin(angle) + rng.normal(0, 0.2, _ROOTS)
    length = (0.17 + 0.05 * np.abs(np.sin(angle))) * anatomy.lung_height
    return tip, way, radius, length * rng.uniform(0.8, 1.1, _ROOTS)


def _fork(tip, way, radius, length, rng):
    tip = np.repeat(tip + way * length[:, None], 2, axis=0)
    turn = rng.normal(0, 1, tip.shape)
    base = np.repeat(way, 2, axis=0)
    turn -= base * np.sum(turn * base, 1, keepdims=True)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True) + 1e-9
    turn[1::2] = -turn[::2]
    angle = rng.uniform(0.25, 0.62, (len(tip), 1))
    way = base * np.cos(angle) + turn * np.sin(angle)
    radius = np.repeat(radius, 2) * rng.uniform(0.62, 0.84, len(tip))
    length = np.repeat(length, 2) * rng.uniform(0.62, 0.95, len(tip))
    return tip, way, radius, length


def draw(frame: Frame, trees: list[Tree], hazy: float = 0.0) -> np.ndarray:
    """Chords of all vessels, mm HxW; `hazy` (0..1) blurs their outlines."""
    points = np.concatenate([t.points_Nx3 for t in trees])
    radius = np.concatenate([t.radius for t in trees])
    volume = np.pi * radius**2 * np.concatenate([t.spacing for t in trees])
    image = np.zeros(frame.shape, np.float32)
    for low, high, sigma in ((0, 1.5, 0.5), (1.5, 99, 1.4)):
        band = (radius >= low) & (radius < high)
        if band.any():
            width = sigma * (1 + 1.5 * hazy) + 0.5 * hazy
            image += frame.draw(points[band], volume[band], width)
    return image


def airways(anatomy: Anatomy, frame: Frame, step: float) -> np.ndarray:
    """Air in the trachea and the main bronchi, mm HxW."""
    fork = anatomy.carina()
    ways = [([(0, 4, -130), (0.3 * anatomy.shift, -6, -10), fork], 8.2)]
    for side in SIGN:
        hilum = anatomy.hilum(side)
        ways.append(([fork, 0.5 * (fork + hilum) + np.array([0, 0, -3]), hilum], 5.6))
    image = np.zeros(frame.shape, np.float32)
    for control, radius in ways:
        axis = curve(np.array(control, np.float64), step)
        ring = np.linspace(-0.7, 0.7, 5) * radius
        across = np.array([1.0, 0, 0]) if frame.frontal else np.array([0, 1.0, 0])
        cloud = (axis[:, None] + ring[None, :, None] * across).reshape(-1, 3)
        volume = np.repeat(arc_volume(axis, np.pi * radius**2 / 5), 5)
        image += frame.splat(cloud, volume)
    return frame.blur(image, 2.0)
