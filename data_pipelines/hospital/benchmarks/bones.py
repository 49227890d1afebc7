"""Films of arms and hands: bones with cortex and marrow in soft tissue, by Beer-Lambert.

A bone is a tube about an axis, wider at its ends. On the film, what counts is how far a ray
runs through cortex, marrow and soft tissue, which for a tube follows from the distance
to its axis. An abnormal limb has a fracture, whose far part is shifted and turned, or a
plate with screws over a healed one. Joints are gaps; there are no tendons, no growth plates
and no arthritis: fit to exercise a learning system, not to teach readers.
"""

import dataclasses
import math
import random

import numpy as np
from scipy.spatial import cKDTree

from data_pipelines.hospital import film
from data_pipelines.hospital.course import draw_body
from data_pipelines.hospital.projection import Frame, Pose, value_noise

MU_SOFT, MU_CORTEX, MU_MARROW, MU_METAL = 0.021, 0.095, 0.034, 0.6
"""Attenuation at about 60 kVp, per mm; metal is titanium in the beam's harder rest."""

STEP = 0.25  # mm between points of an axis


@dataclasses.dataclass(frozen=True)
class Bone:
    """A straight bone before it is turned: mm, x to the right, z downwards.

    Attributes:
      start, end: (x, z) of its ends.
      radius: of the shaft, mm; the ends are `flare` times as wide.
      depth: before (+) or behind (-) the limb's middle, which a turned limb shows.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    flare: float = 1.5
    depth: float = 0.0

    @property
    def length(self) -> float:
        return math.dist(self.start, self.end)


def _ray(x: float, slope: float, scale: float) -> list[Bone]:
    """Metacarpal and phalanges of one finger."""
    bones, z = [], 0.0
    for length, radius in ((58, 4.2), (38, 3.8), (24, 3.2), (16, 2.6)):
        begin = (x + slope * z, -z)
        z += scale * length
        end = (x + slope * (z - 3), 3 - z)
        bones.append(Bone(begin, end, radius * scale**0.5))
        z += 1.5
    return bones


TYPES: dict[str, tuple[float, float, list[Bone]]] = {
    "XR_ELBOW": (
        190,
        44,
        [
            Bone((0, -120), (0, -3), 9, 1.9),
            Bone((-8, 4), (-14, 120), 6.5, 1.5, 8),
            Bone((10, 1), (14, 120), 7, 1.7, -8),
        ],
    ),
    "XR_FINGER": (90, 10, _ray(0, 0, 1.05)[1:]),
    "XR_FOREARM": (260, 40, [
        Bone((-13, -115), (-15, 112), 6.5, 1.8, 5),
        Bone((13, -125), (15, 105), 6.5, 1.5, -5),
    ]),
    "XR_HAND": (165, 14, [
        bone
        for finger, (x, slope, scale) in enumerate(
            ((-30, -0.24, 0.85), (-15, -0.10, 1.0), (0, 0, 1.08), (14, 0.09, 1.0),
             (27, 0.20, 0.8))
        )
        for bone in _ray(x, slope, scale)[finger == 0 :]
    ]),
    "XR_HUMERUS": (300, 52, [
        Bone((0, -130), (0, 128), 10.5, 1.8),
        Bone((-10, 133), (-12, 170), 8, 1.6, 6),
        Bone((11, 131), (13, 170), 8, 1.6, -6),
    ]),
    "XR_SHOULDER": (230, 58, [
        Bone((25, -22), (45, 150), 11, 2.1),
        Bone((-110, -62), (18, -48), 5.5, 1.4, 15),
        Bone((2, -32), (-30, 95), 5, 1.3, -15),
    ]),
    "XR_WRIST": (165, 27, [
        Bone((-12, 12), (-15, 110), 7.5, 2.0, 4),
        Bone((13, 16), (14, 110), 6, 1.6, -4),
        *(
            Bone((x, z), (x + 0.5, z + 5), 6.5, 1.0, (-1) ** n * 3)
            for n, (x, z) in enumerate(((-15, -2), (0, -4), (13, -1), (-13, -17),
                                        (0, -20), (13, -16)))
        ),
        *(Bone((1.25 * x, -85), (x, -31), 4.3, 1.5) for x in (-17, -5, 6, 17)),
    ]),
}  # fmt: skip
"""Study type -> mm that the film's short side shows, half-width of the soft tissue about
an axis in mm, and the bones."""


def render_limb(
    rng: random.Random,
    study_type: str,
    abnormal: str,
    size: int,
    difficulty: float,
    turned: float,
    pose_rng: random.Random,
) -> np.ndarray:
    """Makes one film. The same arguments, streams included, give the same bits.

    Args:
      rng: where the limb and what is wrong with it come from; the same stream gives the
        same limb in another position.
      study_type: one of TYPES.
      abnormal: "" (nothing), "fracture" or "plate".
      size: short side, px.
      difficulty: 0..1; more noise, and less displacement.
      turned: of the limb about its long axis, radians.
      pose_rng: where position and exposure come from.

    Returns:
      uint8 HxW, bright where little came through.
    """
    field, soft_radius, bones = TYPES[study_type]
    grown = rng.uniform(0.88, 1.12)
    frame = _frame(pose_rng, field, size, _centre(bones, grown, turned))
    x, z = frame.plane(0.0)
    long = [n for n, bone in enumerate(bones) if bone.length >= 5 * bone.radius]
    sick = rng.choice(long)
    fault = _Fault(rng, difficulty)
    soft = np.zeros(frame.shape, np.float32)
    cortex, marrow, metal = soft.copy(), soft.copy(), soft.copy()
    for number, bone in enumerate(bones):
        axis = _axis(rng, bone, grown, turned)
        radii = _radii(bone, len(axis)) * grown
        wall = rng.uniform(0.22, 0.34)
        parts = [(axis, None)]
        if abnormal and number == sick:
            parts = fault.broken(axis, bone.radius, healed=abnormal == "plate")
        for line, keep in parts:
            tube = _Tube(line, radii, x, z)
            inside = tube.chord(1.0) if keep is None else keep(tube) * tube.chord(1.0)
            hollow = np.minimum(tube.chord(1 - wall), inside)
            cortex, marrow = cortex + inside - hollow, marrow + hollow
        if abnormal == "plate" and number == sick:
            metal += fault.plate(axis, radii, x, z)
        about = _Tube(axis, np.full(len(axis), soft_radius * grown), x, z)
        soft = np.maximum(soft, about.chord(1.0))
    noise = np.random.default_rng(rng.getrandbits(31))
    marrow *= 1 + 0.35 * value_noise(noise, x, z, 1.6)
    integral = MU_SOFT * np.maximum(soft - cortex - marrow, 0)
    integral += MU_CORTEX * cortex + MU_MARROW * np.maximum(marrow, 0)
    integral += MU_METAL * metal
    return film.expose(frame, integral, _look(pose_rng, integral, difficulty))


def _centre(bones: list[Bone], grown: float, turned: float) -> tuple[float, float]:
    """The middle of all bones, (x, z) in mm."""
    ends = np.array([end for bone in bones for end in (bone.start, bone.end)])
    x, z = grown * 0.5 * (ends.min(0) + ends.max(0))
    return float(x) * math.cos(turned), float(z)


def _frame(
    rng: random.Random, field: float, size: int, centre: tuple[float, float]
) -> Frame:
    """The pixel grid: upright, centred roughly, turned by some degrees."""
    height = round(size * rng.uniform(1.1, 1.45))
    return Frame(
        Pose(
            view="AP",
            height=height,
            width=size,
            mm_per_px=field / size * rng.uniform(0.9, 1.15),
            centre_u=centre[0] + rng.gauss(0, 0.03) * field,
            centre_v=centre[1] + rng.gauss(0, 0.04) * field,
            roll=math.radians(rng.gauss(0, 9)),
            yaw=0.0,
            tilt=0.0,
            bend=0.0,
            inspiration=0.0,
            arms=0.0,
        )
    )


def _look(rng: random.Random, integral: np.ndarray, difficulty: float) -> film.Look:
    """Exposure for a limb: the window follows what is in the beam, as an automatic does."""
    seed = rng.getrandbits(31)
    look = film.draw_look(draw_body(rng), "PA", seed, difficulty)
    high = float(np.percentile(integral, 97)) * rng.uniform(1.0, 1.25)
    return dataclasses.replace(
        look,
        low=-0.15,
        high=max(high, 0.8),
        scatter=0.08,
        equalise=0.2,
        noise=0.6 * look.noise,
        tilt_x=0.3 * look.tilt_x,
        tilt_y=0.3 * look.tilt_y,
        vignette=0.3 * look.vignette,
        uneven=0.25 * look.uneven,
    )


def _axis(rng: random.Random, bone: Bone, grown: float, turned: float) -> np.ndarray:
    """Points [N, 2] of a slightly bowed axis, as the turned limb shows it, mm."""
    start, end = np.array(bone.start), np.array(bone.end)
    count = max(8, int(np.linalg.norm(end - start) / STEP))
    t = np.linspace(0, 1, count)[:, None]
    points = start + t * (end - start)
    across = np.array([-(end - start)[1], (end - start)[0]])
    points = points + rng.gauss(0, 0.012) * across * 4 * t * (1 - t)
    points[:, 0] = points[:, 0] * math.cos(turned) + bone.depth * math.sin(turned)
    return points * grown


def _radii(bone: Bone, count: int) -> np.ndarray:
    """Radius at each point of an axis: the shaft, and wider ends."""
    t = np.abs(np.linspace(-1, 1, count))
    return bone.radius * (1 + (bone.flare - 1) * t**6)


class _Tube:
    """How a tube about an axis lies on the film."""

    def __init__(self, axis_Nx2, radii_N, x_HxW, z_HxW):
        tree = cKDTree(axis_Nx2)
        points = np.stack([x_HxW.ravel(), z_HxW.ravel()], 1)
        reach = 1.1 * float(radii_N.max())
        distance, index = tree.query(points, distance_upper_bound=reach)
        index = np.minimum(index, len(axis_Nx2) - 1)
        step = np.gradient(axis_Nx2, axis=0)
        step /= np.linalg.norm(step, axis=1, keepdims=True)
        off = points - axis_Nx2[index]
        self.distance = distance.reshape(x_HxW.shape)
        self.radius = radii_N[index].reshape(x_HxW.shape)
        self.along = STEP * index.reshape(x_HxW.shape)
        across = off[:, 0] * -step[index, 1] + off[:, 1] * step[index, 0]
        self.across = across.reshape(x_HxW.shape)

    def chord(self, share: float) -> np.ndarray:
        """Length of the ray in the tube of `share` of the radius, mm, float32 HxW."""
        inside = np.maximum((share * self.radius) ** 2 - self.distance**2, 0)
        return (2 * np.sqrt(inside)).astype(np.float32)


class _Fault:
    """A break of one bone, at a place along its axis."""

    def __init__(self, rng: random.Random, difficulty: float):
        self.place = rng.uniform(0.3, 0.7)
        self.slant = math.tan(math.radians(rng.uniform(-40, 40)))
        self.size = 1.2 - 0.5 * difficulty
        self.shift = rng.choice((-1, 1)) * rng.uniform(0.4, 1.0) * self.size
        self.turn = math.radians(rng.choice((-1, 1)) * rng.uniform(6, 18)) * self.size
        self.side = rng.choice((-1, 1))

    def broken(self, axis_Nx2: np.ndarray, radius: float, healed: bool) -> list:
        """Both parts as (axis, what of the tube is kept); a healed break has a line."""
        at = int(self.place * len(axis_Nx2))
        middle = axis_Nx2[at]
        step = axis_Nx2[at] - axis_Nx2[at - 1]
        step /= np.linalg.norm(step)
        cut = STEP * at
        gap = 0.5 if healed else 1.4
        shift, turn = (0.0, 0.0) if healed else (radius * self.shift, self.turn)
        cos, sin = math.cos(turn), math.sin(turn)
        away = np.array([-step[1], step[0]]) * shift
        moved = (
            (axis_Nx2 - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle + away
        )
        return [
            (axis_Nx2, lambda tube: tube.along + self.slant * tube.across < cut - gap),
            (moved, lambda tube: tube.along + self.slant * tube.across > cut + gap),
        ]

    def plate(self, axis_Nx2, radii_N, x_HxW, z_HxW) -> np.ndarray:
        """A plate on the bone's side, and screws through the bone: mm of metal."""
        count = len(axis_Nx2)
        at, half = int(self.place * count), int(max(0.22 * count, 10 / STEP))
        low, high = max(2, at - half), min(count - 3, at + half)
        step = np.gradient(axis_Nx2, axis=0)
        step /= np.linalg.norm(step, axis=1, keepdims=True)
        normal = self.side * np.stack([-step[:, 1], step[:, 0]], 1)
        wide = float(np.clip(0.2 * radii_N[at], 0.7, 1.8))
        surface = axis_Nx2 + normal * (radii_N[:, None] + wide)
        line = surface[low:high]
        metal = np.minimum(
            _Tube(line, np.full(len(line), wide), x_HxW, z_HxW).chord(1.0), wide
        ) * np.float32(2.5)
        for where in np.linspace(low + 4, high - 5, 6).astype(int):
            begin, end = (
                surface[where],
                axis_Nx2[where] - normal[where] * radii_N[where],
            )
            length = max(8, int(np.linalg.norm(end - begin) / STEP))
            screw = begin + np.linspace(0, 1, length)[:, None] * (end - begin)
            radii = np.full(length, 0.75 * wide)
            metal = metal + _Tube(screw, radii, x_HxW, z_HxW).chord(1.0)
        return metal
