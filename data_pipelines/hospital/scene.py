"""What the painters of findings share: the chest in one film, and the air left in it."""

from dataclasses import dataclass, field

import numpy as np

from data_pipelines.hospital.anatomy import LEFT, RIGHT, SIGN, Anatomy
from data_pipelines.hospital.organs import Organs, inside_lung
from data_pipelines.hospital.projection import Frame, smoothstep
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.vessels import Tree

AIRY = np.float32(0.76)
"""Share of the lung that is air; the rest is blood and tissue, as dense as water."""


@dataclass
class Scene:
    """One chest while its findings are painted.

    Attributes:
        frame: the pixel grid.
        healthy: the anatomy without findings.
        anatomy: the anatomy that findings have reshaped.
        organs: its large organs.
        trees: vessels of each lung; collapse moves them.
        strength: contrast of findings, 1 at difficulty 0.5.
        open: share of each lung's air that is still there, HxW in 0..1.
        water: mm of water-equivalent that findings add, HxW (below 0: take away).
        hazy: blur of the vessels' outlines, 0..1.
    """

    frame: Frame
    healthy: Anatomy
    anatomy: Anatomy
    organs: Organs
    trees: dict[str, Tree]
    strength: float
    open: dict[str, np.ndarray] = field(default_factory=dict)
    water: np.ndarray | None = None
    hazy: float = 0.0

    def __post_init__(self):
        ones = np.ones(self.frame.shape, np.float32)
        self.open = {LEFT: ones, RIGHT: ones}
        self.water = np.zeros(self.frame.shape, np.float32)

    def fill(self, side: str, share: np.ndarray) -> np.ndarray:
        """Fill a share (HxW, 0..1) of one lung with water; returns mm added."""
        share = np.clip(share, 0, 1)
        added = AIRY * self.organs.lungs[side] * self.open[side] * share
        self.open[side] = self.open[side] * (1 - share)
        self.water += added
        return added

    def add(self, water: np.ndarray) -> np.ndarray:
        """Add water-equivalent mm anywhere; returns them."""
        self.water += water
        return water

    def out(self, side: str) -> np.ndarray:
        """Distance from the midline towards one side (frontal), mm HxW."""
        return self.organs.p * np.float32(SIGN[side])

    def place(self, side: str, lobe: str, rng: np.random.Generator) -> np.ndarray:
        """A point well inside a lobe, not behind the heart: (x, y, z) mm."""
        a = self.healthy
        centre = np.array(LOBE_CENTRES[lobe])
        spread = np.array([0.13, 0.25, 0.07])
        scale = np.array([SIGN[side] * a.half_width, a.half_depth, a.lung_height])
        best = centre * scale
        for offset in rng.normal(0, 1, (6, 3)):
            point = (centre + spread * np.clip(offset, -1.5, 1.5)) * scale
            shell = point * np.array([1.12, 1.12, 1]) + np.array([0, 0, 14])
            if inside_lung(a, np.stack([point, shell]), side).all():
                return point
        return best


LOBE_CENTRES = {
    "upper": (0.50, 0.05, 0.30),
    "middle": (0.56, 0.35, 0.62),
    "lower": (0.60, -0.30, 0.80),
    "none": (0.55, 0.0, 0.55),
}
"""In units of half-width, half-depth and lung height."""


def sides(finding: Finding) -> tuple[str, ...]:
    """The lungs that a finding is in, in a fixed order."""
    if finding.side in (LEFT, RIGHT):
        return (finding.side,)
    return (RIGHT, LEFT)


def lobe_share(scene: Scene, lobe: str) -> np.ndarray:
    """Share of each ray through the lungs that lies in a lobe, HxW in 0..1.

    The oblique fissure runs from high behind to low in front, the horizontal one at
    mid-height in front. What is called "middle" on the left is the lingula.
    """
    if lobe == "none":
        return np.ones(scene.frame.shape, np.float32)
    anatomy, p, z = scene.healthy, scene.organs.p, scene.organs.z
    b, height = np.float32(anatomy.half_depth), np.float32(anatomy.lung_height)
    fissure_y = -b + (z - 0.22 * height) * (1.55 * b / (0.8 * height))
    if scene.frame.frontal:
        half = b * np.sqrt(
            np.clip(1 - (p / np.float32(anatomy.half_width)) ** 2, 0.05, 1)
        )
        lower = np.clip((fissure_y + half) / (2 * half), 0, 1)
    else:
        lower = smoothstep(-2.5, 2.5, fissure_y - p)
    if lobe == "lower":
        return lower
    below = smoothstep(-2.5, 2.5, z - np.float32(0.53) * height)
    return (1 - lower) * (below if lobe == "middle" else 1 - below)


def support(water: np.ndarray) -> np.ndarray:
    """Where a finding truly is: what it adds or removes, above a trace, bool HxW."""
    size = np.abs(water)
    return size > max(1.0, 0.15 * float(size.max()))
