"""Where a fracture lies, and the part of the film that shows it."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, Anatomy
from data_pipelines.hospital.projection import Frame
from data_pipelines.hospital.skeleton import clavicle_axis, rib_axes
from data_pipelines.hospital.state import Finding

_RIBS = {"upper": (3, 5), "middle": (5, 8), "lower": (7, 10)}


@dataclass(frozen=True)
class Break:
    """One broken bone.

    Attributes:
        rib: (number, side, place 0..1, displacement mm), or None.
        clavicle: (side, place 0..1, displacement mm), or None.
        point: where it is, mm.
        radius: how far its signs reach, mm.
    """

    rib: tuple | None
    clavicle: tuple | None
    point: np.ndarray
    radius: float


def locate(anatomy: Anatomy, finding: Finding) -> Break:
    """The break that a Fracture finding stands for."""
    rng = np.random.default_rng([abs(finding.seed), 303])
    side = finding.side if finding.side in SIGN else "right"
    s = finding.severity
    if finding.kind == "clavicle":
        place, gap = rng.uniform(0.36, 0.6), 11.0 + 11.0 * s
        axis = clavicle_axis(anatomy, side, 1.0)
        point = axis[int(place * len(axis))]
        return Break(None, (side, place, gap), point, 16.0)
    low, high = _RIBS.get(finding.lobe, (4, 9))
    number = int(rng.integers(low, high))
    place, gap = rng.uniform(0.18, 0.4), 15.0 + 10.0 * s
    axis = rib_axes(anatomy, 1.0)[number, side]
    point = axis[int(place * len(axis))]
    return Break((number, side, place, gap), None, point, 15.0)


def callus(frame: Frame, place: Break) -> np.ndarray:
    """Swelling and new bone about a break: a soft blob, mm of water HxW."""
    sigma = 0.26 * place.radius
    height = 9.0
    point, mass = place.point[None], np.array([height * 2 * np.pi * sigma**2])
    return frame.draw(point, mass, sigma)


def region(frame: Frame, place: Break) -> np.ndarray:
    """The disc of the film in which the step and the gap are seen, bool HxW."""
    row, col = (float(v[0]) for v in frame.pixels(place.point[None]))
    rows = (np.arange(frame.shape[0]) - row)[:, None]
    cols = (np.arange(frame.shape[1]) - col)[None, :]
    radius = place.radius / frame.pose.mm_per_px
    return rows**2 + cols**2 <= radius**2
