"""From the patient's millimetres to the film's pixels: cone-beam geometry and splatting.

Patient axes, in mm: x to the patient's left, y to the front, z downwards with 0 at the
lung apices. A frontal film looks along y and shows the patient's left on its right; a
lateral film looks along x and shows the front of the chest on its left.

Large organs are evaluated on the whole grid as analytic chord lengths along the ray.
Thin ones (ribs, vessels, tubes) are clouds of points that each carry a volume; dropping
the volume on the pixel grid gives the mean chord of every pixel at any resolution.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

VIEWS = ("AP", "PA", "LATERAL")
_SOURCE_MM = {"PA": -1800.0, "AP": 1000.0, "LATERAL": -1800.0}
_CENTRE_Z = 130.0


@dataclass(frozen=True)
class Pose:
    """How the patient stands before the detector; nothing here knows of findings.

    Attributes:
        view: "AP", "PA" or "LATERAL".
        height: rows of the film.
        width: columns of the film.
        mm_per_px: pixel pitch in the plane through the patient's centre.
        centre_u: horizontal mm coordinate of the film's centre.
        centre_v: vertical mm coordinate of the film's centre.
        roll: rotation in the plane of the film, radians.
        yaw: tangent of the rotation about the long axis (obliquity).
        tilt: tangent of the beam's cranio-caudal angle.
        bend: how far the thoracic spine bows backwards, mm (lateral film only).
        inspiration: mm by which the diaphragm is lower than in the mean film.
        arms: 0 = arms along the body, 1 = arms away and scapulae out of the lungs.
    """

    view: str
    height: int
    width: int
    mm_per_px: float
    centre_u: float
    centre_v: float
    roll: float
    yaw: float
    tilt: float
    bend: float
    inspiration: float
    arms: float


class Frame:
    """The pixel grid of one film and the way from patient coordinates to it."""

    def __init__(self, pose: Pose):
        self.pose = pose
        self.shape = (pose.height, pose.width)
        self.frontal = pose.view != "LATERAL"
        self._cos, self._sin = np.cos(pose.roll), np.sin(pose.roll)
        step = pose.mm_per_px
        cols = ((np.arange(pose.width) - (pose.width - 1) / 2) * step)[None, :]
        rows = ((np.arange(pose.height) - (pose.height - 1) / 2) * step)[:, None]
        u = cols * self._cos + rows * self._sin + pose.centre_u
        v = rows * self._cos - cols * self._sin + pose.centre_v
        self._u, self._v = u.astype(np.float32), v.astype(np.float32)
        self._planes: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def magnification(self, depth):
        """Size on the film of what lies at a depth, relative to the centre plane."""
        return 1.0 + depth / _SOURCE_MM[self.pose.view]

    def plane(self, depth: float) -> tuple[np.ndarray, np.ndarray]:
        """Patient coordinates of each pixel in the plane at one depth.

        Args:
            depth: y in a frontal film, x in a lateral one, mm.

        Returns:
            (x, z) maps in a frontal film, (y, z) maps in a lateral one, float32 HxW;
            kept, so not to be written to.
        """
        if depth not in self._planes:
            self._planes[depth] = self._plane(depth)
        return self._planes[depth]

    def _plane(self, depth):
        scale = np.float32(1.0 / self.magnification(depth))
        z = (self._v - np.float32(_CENTRE_Z)) * scale
        z += np.float32(_CENTRE_Z - self.pose.tilt * depth)
        p = self._u * scale - np.float32(self.pose.yaw * depth)
        if not self.frontal:
            p = -p - self._bow(z)
        return p, z

    def _bow(self, z):
        arc = 1.0 - ((z - np.float32(110.0)) * np.float32(1 / 190.0)) ** 2
        return np.float32(-self.pose.bend) * arc

    def pixels(self, points_Nx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, as floats, at which points of the patient are seen."""
        x, y, z = points_Nx3.T
        if self.frontal:
            depth, u = y, x
        else:
            depth, u = x, -(y + self._bow(z))
        scale = self.magnification(depth)
        u = (u + self.pose.yaw * depth) * scale - self.pose.centre_u
        v = (z + self.pose.tilt * depth - _CENTRE_Z) * scale + _CENTRE_Z
        v = v - self.pose.centre_v
        step = self.pose.mm_per_px
        cols = (u * self._cos - v * self._sin) / step + (self.shape[1] - 1) / 2
        rows = (u * self._sin + v * self._cos) / step + (self.shape[0] - 1) / 2
        return rows, cols

    def splat(self, points_Nx3: np.ndarray, volume_N: np.ndarray) -> np.ndarray:
        """Drop the volumes (mm3) of points on the grid; returns mean chords, mm HxW."""
        return self._deposit(points_Nx3, volume_N, None)

    def draw(self, points_Nx3, volume_N, sigma_mm: float) -> np.ndarray:
        """Splat and blur: the chords of a thin structure, mm HxW."""
        return self._deposit(points_Nx3, volume_N, self._sigma(sigma_mm))

    def _sigma(self, sigma_mm):
        return max(sigma_mm / self.pose.mm_per_px, 0.45)

    def blur(self, image_HxW: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Gaussian blur by a width in mm (never below the pixel's own 0.45 px)."""
        sigma = self._sigma(sigma_mm)
        return gaussian_filter(image_HxW, sigma, truncate=2.5, mode="nearest")

    def _deposit(self, points_Nx3, volume_N, sigma_px):
        """Splat, and blur unless sigma is None, in the box that the points need."""
        image = np.zeros(self.shape, np.float32)
        rows, cols = self.pixels(np.asarray(points_Nx3, np.float32))
        height, width = self.shape
        inside = (rows >= 0) & (cols >= 0) & (rows < height - 1) & (cols < width - 1)
        mass = np.broadcast_to(np.asarray(volume_N, np.float32), rows.shape)
        if not inside.all():
            rows, cols, mass = rows[inside], cols[inside], mass[inside]
        if not len(rows):
            return image
        margin = 2 if sigma_px is None else int(2.5 * sigma_px) + 2
        low = [max(0, int(v.min()) - margin) for v in (rows, cols)]
        high = [
            min(n, int(v.max()) + margin + 2)
            for v, n in zip((rows, cols), self.shape, strict=True)
        ]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        shape = (high[0] - low[0], high[1] - low[1])
        part = _bilinear(rows - low[0], cols - low[1], mass, shape)
        part *= np.float32(1 / self.pose.mm_per_px**2)
        if sigma_px is not None:
            part = gaussian_filter(part, sigma_px, truncate=2.5, mode="nearest")
        image[box] = part
        return image


def _bilinear(rows, cols, mass, shape):
    """Sum of masses, each shared by the four pixels about its place."""
    height, width = shape
    top, left = rows.astype(np.int64), cols.astype(np.int64)
    down, right = rows - top, cols - left
    corner = top * width + left
    low = mass * (1 - down)
    high = mass - low
    # Four sums over one index: the other corners are whole-image shifts of it.
    flat = np.empty((4, height, width), np.float32)
    for k, part in enumerate((low, low * right, high, high * right)):
        flat[k] = np.bincount(corner, part, height * width).reshape(height, width)
    image = flat[0] - flat[1]
    image[:, 1:] += flat[1, :, :-1]
    image[1:] += flat[2, :-1] - flat[3, :-1]
    image[1:, 1:] += flat[3, :-1, :-1]
    return image


def curve(control_Kx3: np.ndarray, step: float) -> np.ndarray:
    """Resample a Catmull-Rom spline through control points.

    Args:
        control_Kx3: K >= 2 points, mm.
        step: wanted distance between samples, mm.

    Returns:
        float64 [N, 3] points about `step` apart, both ends included.
    """
    p = np.asarray(control_Kx3, np.float64)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    length = np.linalg.norm(np.diff(p, axis=0), axis=1)
    ends = np.concatenate([[0.0], np.cumsum(length)])
    count = max(2, int(np.ceil(ends[-1] / step)) + 1)
    where = np.interp(np.linspace(0, ends[-1], count), ends, np.arange(len(p)))
    i = np.minimum(where.astype(int), len(p) - 2)
    t = (where - i)[:, None]
    a, b, c, d = padded[i], padded[i + 1], padded[i + 2], padded[i + 3]
    return b + 0.5 * t * (
        c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
    )


def arc_volume(points_Nx3: np.ndarray, area_mm2) -> np.ndarray:
    """Volume carried by each sample of a curve with a given cross-section."""
    ds = np.linalg.norm(np.diff(points_Nx3, axis=0), axis=1)
    ds = np.concatenate([ds[:1], ds]) if len(ds) else np.ones(1)
    return ds * area_mm2


def ellipsoid_chord(centre, spread_3x3, along: int, p, z) -> np.ndarray:
    """Chord of an ellipsoid along one axis.

    Args:
        centre: (x, y, z) mm.
        spread_3x3: matrix S with the surface (r-c)' S^-1 (r-c) = 1, mm2.
        along: 1 to integrate over y (frontal), 0 over x (lateral).
        p: map of x (frontal) or y (lateral), mm.
        z: map of z, mm.

    Returns:
        Chord length in mm, 0 outside.
    """
    q = np.linalg.inv(spread_3x3)
    other = 1 - along
    reach = np.sqrt(np.diag(spread_3x3))
    box = window(p, z, centre[other], reach[other], centre[2], reach[2])
    chord = np.zeros(p.shape, np.float32)
    dp, dz = p[box] - np.float32(centre[other]), z[box] - np.float32(centre[2])
    q_aa, q_ap, q_az = q[along, along], q[along, other], q[along, 2]
    # Schur complement: the quadratic form left after maximising over the ray.
    pp = np.float32(q[other, other] - q_ap**2 / q_aa)
    pz = np.float32(2 * (q[other, 2] - q_ap * q_az / q_aa))
    zz = np.float32(q[2, 2] - q_az**2 / q_aa)
    inside = 1.0 - dp * (pp * dp + pz * dz) - zz * dz * dz
    chord[box] = np.sqrt(np.maximum(inside, 0)) * np.float32(2.0 / np.sqrt(q_aa))
    return chord


def window(p, z, p_at, p_reach, z_at, z_reach) -> tuple[slice, slice]:
    """Rows and columns of the maps that can hold a box of patient coordinates."""
    return (
        _span(z[:, [0, -1]], 1, z_at, z_reach),
        _span(p[[0, len(p) // 4, len(p) // 2, 3 * len(p) // 4, -1]], 0, p_at, p_reach),
    )


def _span(edges, axis, at, reach):
    reach = reach + 6.0  # the bow of the spine bends the columns between the samples
    near = (edges.max(axis) > at - reach) & (edges.min(axis) < at + reach)
    found = np.flatnonzero(near)
    return slice(found[0], found[-1] + 1) if len(found) else slice(0, 0)


def value_noise(rng: np.random.Generator, x, z, cell_mm: float) -> np.ndarray:
    """Smooth noise fixed to the patient: N(0, 1) at the nodes of a grid in mm.

    Evaluated on every second or fourth pixel where the cells are many pixels wide.
    """
    tile = rng.standard_normal((64, 64)).astype(np.float32)
    pitch = abs(float(z[1, 0] - z[0, 0])) + abs(float(z[0, 1] - z[0, 0]))
    every = 4 if cell_mm > 12 * pitch else 2 if cell_mm > 5 * pitch else 1
    shape = x.shape
    if every > 1:
        x, z = coarse_grid(x, every), coarse_grid(z, every)
    scale = np.float32(1.0 / cell_mm)
    gx, gz = x * scale, z * scale
    ix, iz = np.floor(gx), np.floor(gz)
    fx, fz = gx - ix, gz - iz
    fx = fx * fx * (3 - 2 * fx)
    fz = fz * fz * (3 - 2 * fz)
    ix, iz = ix.astype(np.int32) & 63, (iz.astype(np.int32) & 63) << 6
    jx, jz = (ix + 1) & 63, (iz + 64) & 4095
    tile = tile.ravel()
    top, right = tile.take(iz + ix), tile.take(iz + jx)
    top += (right - top) * fx
    bottom, right = tile.take(jz + ix), tile.take(jz + jx)
    bottom += (right - bottom) * fx
    top += (bottom - top) * fz
    return top if every == 1 else enlarge(top, every, shape)


def coarse_grid(image: np.ndarray, every: int) -> np.ndarray:
    """An affine-like map at every `every`-th pixel, one step beyond the last row."""
    height, width = image.shape
    rows = np.minimum(np.arange(0, height + every, every), height - 1)
    cols = np.minimum(np.arange(0, width + every, every), width - 1)
    return image[rows[:, None], cols[None, :]]


def enlarge(coarse: np.ndarray, every: int, shape, offset: float = 0.0) -> np.ndarray:
    """Bilinear enlargement, one axis after the other (much faster than a zoom).

    Args:
        coarse: samples of which number k lies at pixel k * every + offset.
        every: distance between samples, pixels.
        shape: rows and columns wanted.
        offset: pixel of sample 0.

    Returns:
        float32 of the wanted shape.
    """
    coarse = coarse.astype(np.float32)
    low, high, weight = _between(coarse.shape[0], every, shape[0], offset)
    rows = coarse[low] + weight[:, None] * (coarse[high] - coarse[low])
    low, high, weight = _between(coarse.shape[1], every, shape[1], offset)
    left = rows.take(low, axis=1)
    right = rows.take(high, axis=1)
    right -= left
    right *= weight
    left += right
    return left


def _between(count, every, length, offset):
    where = np.clip((np.arange(length) - offset) / every, 0, count - 1)
    low = where.astype(np.intp)
    return low, np.minimum(low + 1, count - 1), (where - low).astype(np.float32)


def smoothstep(low: float, high: float, value) -> np.ndarray:
    """0 below low, 1 above high, smooth between (Hermite)."""
    t = np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)
