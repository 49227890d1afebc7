"""The shape of one thorax: numbers that projections, vessels and findings all share.

Cross-sections of the chest are ellipses whose half-axes depend on the height z; the
apices and the diaphragm are paraboloids; the heart is three ellipsoids. So the chord of
a lung along any ray has a closed form (`organs.py`). Sizes follow adult averages.

Reference: ICRP Publication 89 (2002), reference values for organs; Felson's Principles
of Chest Roentgenology, 4th ed., for the borders of the mediastinum.
"""

from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.hospital.projection import Pose
from data_pipelines.hospital.state import Body

Z_FIRST, Z_STEP, Z_COUNT = -220.0, 0.5, 1600
_Z = (Z_FIRST + Z_STEP * np.arange(Z_COUNT)).astype(np.float32)
LEFT, RIGHT = "left", "right"
SIGN = {LEFT: 1.0, RIGHT: -1.0}


@dataclass(frozen=True)
class Dome:
    """A hemidiaphragm: z = top + across*((|x|-x0)/A)^2 + along*((y-y0)/B)^2, mm."""

    top: float
    x0: float
    across: float
    along: float
    y0: float = 12.0


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest in one film, mm (see the module's axes).

    Attributes:
        half_width: A, half the largest inner width of the rib cage.
        half_depth: B, half its inner depth.
        lung_height: from apex to the right dome at mean inspiration.
        fat: thickness of the chest wall.
        domes: hemidiaphragm of each side.
        heart_ratio: heart width over 2A, before magnification.
        heart_tilt: angle of the heart's long axis below the horizontal, radians.
        shift: displacement of the mediastinum to the patient's left.
        pedicle_right: half-width of the mediastinum at each level of the z table.
        pedicle_left: the same to the left of the midline.
        scoliosis: x of the spine at each level of the z table.
        breast: (right, left) thickness of the breasts.
        breast_z: height of their centre.
        gas_top: height of the stomach's roof.
        seed: the body's seed.
    """

    half_width: float
    half_depth: float
    lung_height: float
    fat: float
    domes: dict[str, Dome]
    heart_ratio: float
    heart_tilt: float
    shift: float
    pedicle_right: np.ndarray
    pedicle_left: np.ndarray
    scoliosis: np.ndarray
    breast: tuple[float, float]
    breast_z: float
    gas_top: float
    seed: int

    def half_width_at(self, z):
        """Inner half-width of the rib cage at heights z, mm."""
        t = np.asarray(z, np.float32) / self.lung_height
        return self.half_width * np.interp(
            t, (0, 0.12, 0.3, 0.5, 0.75, 1.0, 1.4), (0.5, 0.68, 0.86, 0.95, 1, 1, 0.97)
        ).astype(np.float32)

    def half_depth_at(self, z):
        """Inner half-depth of the rib cage at heights z, mm."""
        t = np.asarray(z, np.float32) / self.lung_height
        return self.half_depth * np.interp(
            t, (0, 0.2, 0.45, 0.7, 1.0, 1.4), (0.5, 0.76, 0.95, 1, 1, 0.98)
        ).astype(np.float32)

    def heart(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ellipsoids (centre, spread matrix) of ventricles, right heart, outflow, left atrium."""
        c, s = np.cos(self.heart_tilt), np.sin(self.heart_tilt)
        # Columns: long axis (left, forward, down), and two across it.
        long = np.array([c * 0.88, 0.47, s * 0.88])
        long /= np.linalg.norm(long)
        up = np.array([-s, 0.0, c])
        up -= long * (up @ long)
        up /= np.linalg.norm(up)
        axes = np.stack([long, up, np.cross(long, up)], 1)
        ventricles = axes @ np.diag([79.0**2, 52.0**2, 47.0**2]) @ axes.T
        parts = [
            (np.array([27.0, 26.0, 3.0]), ventricles),
            (np.array([-16.0, 14.0, -10.0]), np.diag([38.0**2, 42.0**2, 55.0**2])),
            (np.array([14.0, 18.0, -44.0]), np.diag([35.0**2, 36.0**2, 56.0**2])),
            (np.array([8.0, -16.0, -34.0]), np.diag([34.0**2, 30.0**2, 34.0**2])),
        ]
        left = max(m[0] + np.sqrt(v[0, 0]) for m, v in parts)
        right = min(m[0] - np.sqrt(v[0, 0]) for m, v in parts)
        scale = self.heart_ratio * 2 * self.half_width / (left - right)
        # The apex rests on the left dome: a larger heart grows upwards and outwards.
        base = 0.5 * (self.domes[LEFT].top + self.domes[RIGHT].top) + 20.0
        low = scale * max(m[2] + np.sqrt(v[2, 2]) for m, v in parts)
        origin = np.array([self.shift, 0.0, base - low])
        return [(origin + scale * m, scale**2 * v) for m, v in parts]

    def carina(self) -> np.ndarray:
        """Where the trachea divides."""
        return np.array([0.8 * self.shift - 2.0, -22.0, 0.36 * self.lung_height])

    def hilum(self, side: str) -> np.ndarray:
        """Root of the lung's vessels; the left one is a little higher."""
        drop = 8.0 if side == RIGHT else -2.0
        x = SIGN[side] * 34.0 + self.shift * 0.9
        return np.array([x, -14.0, 0.44 * self.lung_height + drop])


def level(z: np.ndarray) -> np.ndarray:
    """Index of heights z, mm, in the per-height tables (half millimetres), int32."""
    index = ((z - np.float32(Z_FIRST)) * np.float32(1 / Z_STEP)).astype(np.int32)
    return np.clip(index, 0, Z_COUNT - 1)


def table(values: np.ndarray, z) -> np.ndarray:
    """Look a per-height table up at the heights z."""
    return values.take(level(z))


def heights() -> np.ndarray:
    """The heights, mm, at which the per-height tables are kept."""
    return _Z


def _pedicle(height: float, jitter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t = _Z / height
    right = np.interp(
        t,
        (-0.3, 0.0, 0.2, 0.38, 0.5, 0.7, 1.1),
        (20, 24, 24 + jitter[0], 27 + jitter[0], 25, 21, 20),
    )
    left = np.interp(
        t, (-0.3, 0.0, 0.2, 0.5, 0.64, 0.8, 1.1), (19, 24, 25, 31, 33, 22, 20)
    )
    knob = (11 + jitter[1]) * np.exp(-(((t - 0.3) / 0.055) ** 2))
    trunk = (7 + jitter[2]) * np.exp(-(((t - 0.43) / 0.06) ** 2))
    return right.astype(np.float32), (left + knob + trunk).astype(np.float32)


def build(body: Body, pose: Pose, difficulty: float) -> Anatomy:
    """The healthy chest of a patient as it stands for one film.

    Args:
        body: the patient, all sizes 0..1.
        pose: how he stands; only the depth of his inspiration is used.
        difficulty: 0..1, how far bodies stray from the mean.

    Returns:
        The anatomy before any finding has changed it.
    """
    rng = np.random.default_rng([abs(body.seed), 101])
    stray = 0.55 + 0.9 * difficulty
    width, height, fat, heart = (
        float(np.clip(0.5 + stray * (value - 0.5), 0, 1))
        for value in (body.width, body.height, body.fat, body.heart)
    )
    female = body.sex == "F"
    lung_height = 196.0 + 50.0 * height - (10.0 if female else 0.0)
    noise = rng.standard_normal(16)
    top = lung_height + pose.inspiration
    domes = {
        RIGHT: Dome(top, 62 + 4 * noise[0], 195 + 18 * noise[1], 42 + 4 * noise[2]),
        LEFT: Dome(
            top + 11 + 6 * stray * noise[3], 60, 190 + 18 * noise[4], 41 + 4 * noise[5]
        ),
    }
    right, left = _pedicle(lung_height, noise[6:9] * (1.5 + 2 * difficulty))
    curve = 5 * difficulty * np.sin(_Z / 95.0 + noise[9]) * noise[10]
    thickness = (14 + 26 * fat if female else 3 + 7 * fat) * (1 + 0.2 * noise[11:13])
    asymmetry = 1 + 0.3 * difficulty * noise[13] * np.array([-1, 1])
    breast = np.maximum(0, thickness * asymmetry)
    return Anatomy(
        half_width=118.0 + 28.0 * width - (6.0 if female else 0.0),
        half_depth=78.0 + 16.0 * width,
        lung_height=lung_height,
        fat=14.0 + 34.0 * fat,
        domes=domes,
        heart_ratio=0.395 + 0.075 * heart,
        heart_tilt=0.72 + 0.08 * float(noise[14]) + 0.004 * pose.inspiration,
        shift=2.0 * float(noise[15]) * difficulty,
        pedicle_right=right,
        pedicle_left=left,
        scoliosis=curve.astype(np.float32),
        breast=(float(breast[0]), float(breast[1])),
        breast_z=0.72 * lung_height + 22 * fat,
        gas_top=domes[LEFT].top,
        seed=abs(body.seed),
    )


def widen_pedicle(anatomy: Anatomy, right_mm: float, left_mm: float) -> Anatomy:
    """Widen the upper mediastinum smoothly between the thoracic inlet and the heart."""
    t = _Z / anatomy.lung_height
    bulge = np.exp(-(np.abs((t - 0.3) / 0.23) ** 2.6)).astype(np.float32)
    return replace(
        anatomy,
        pedicle_right=anatomy.pedicle_right + right_mm * bulge,
        pedicle_left=anatomy.pedicle_left + left_mm * bulge,
    )


def move_dome(anatomy: Anatomy, side: str, rise_mm: float, **shape: float) -> Anatomy:
    """Raise (or, below 0, lower) one dome; `shape` replaces further fields of it.

    The stomach goes with a left dome, unless `shape` is given: then fluid lies between.
    """
    dome = anatomy.domes[side]
    domes = {**anatomy.domes, side: replace(dome, top=dome.top - rise_mm, **shape)}
    gas_top = anatomy.gas_top
    if side == LEFT and not shape:
        gas_top -= rise_mm
    return replace(anatomy, domes=domes, gas_top=gas_top)
