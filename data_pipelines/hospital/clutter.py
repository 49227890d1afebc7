"""What lies on the patient and belongs to nobody's report: leads, snaps, skin folds."""

import numpy as np

from data_pipelines.hospital.anatomy import Anatomy
from data_pipelines.hospital.film import Look
from data_pipelines.hospital.projection import Frame, arc_volume, curve


def clutter(frame: Frame, anatomy: Anatomy, look: Look, step: float) -> np.ndarray:
    """Monitor leads, gown snaps and a skin fold, mm of water HxW.

    Drawn from the film's seed alone; a bedside film has more of it.
    """
    rng = np.random.default_rng([look.seed, 204])
    parts = []
    if rng.random() < look.leads:
        for _ in range(int(rng.integers(2, 5))):
            parts += _lead(anatomy, rng, step)
    if rng.random() < 0.6 * look.leads:
        for _ in range(int(rng.integers(1, 4))):
            at = _skin(anatomy, rng.uniform(-1, 1), rng.uniform(-0.1, 1.1))
            parts.append(_ring(at, rng.uniform(2.5, 4.0), 22.0, step))
    image = np.zeros(frame.shape, np.float32)
    if parts:
        points, volumes = (np.concatenate(v) for v in zip(*parts, strict=True))
        image = np.minimum(frame.draw(points, volumes, 0.5), np.float32(90))
    if frame.frontal and rng.random() < 0.5 * look.leads:
        image += _skin_fold(frame, anatomy, rng)
    return image


def _skin(anatomy, across, down):
    x = across * anatomy.half_width
    depth = anatomy.half_depth + anatomy.fat - 25 * across**2
    return np.array([x, depth, down * anatomy.lung_height])


def _ring(at, radius, area, step):
    angle = np.linspace(0, 2 * np.pi, max(8, int(6.3 * radius / step)))
    circle = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], 1) * radius
    points = at + circle
    return points, arc_volume(points, area)


def _lead(anatomy, rng, step):
    """A wire that hangs from an electrode to the edge of the film."""
    start = _skin(anatomy, rng.uniform(-0.95, 0.95), rng.uniform(0.0, 0.95))
    sign = np.sign(start[0]) if rng.random() < 0.7 else -np.sign(start[0])
    end = np.array([sign * rng.uniform(150, 260), 70, rng.uniform(0, 420)])
    middle = 0.5 * (start + end) + rng.normal(0, 38, 3) * np.array([1, 0.2, 1])
    wire = curve(np.array([start, middle, end]), step)
    return [(wire, arc_volume(wire, 12.0)), _ring(start, 4.5, 50.0, step)]


def _skin_fold(frame, anatomy, rng):
    """One long soft edge: bright on one side, fading away from it on the other."""
    x, z = frame.plane(anatomy.half_depth)
    at = rng.choice([-1, 1]) * rng.uniform(0.55, 1.0) * anatomy.half_width
    slope = rng.normal(0, 0.15)
    off = (x - np.float32(at) - np.float32(slope) * (z - np.float32(140))) * np.sign(at)
    fold = np.where(off < 0, 0, np.exp(-off / np.float32(22)))
    reach = np.exp(-(((z - np.float32(rng.uniform(80, 220))) / np.float32(90)) ** 2))
    return np.float32(8.0) * fold * reach
