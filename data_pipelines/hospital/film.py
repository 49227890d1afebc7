"""How a film is made of line integrals: position, dose, scatter, noise, tone, marks.

Everything here is drawn from the film's seed, the body and the view; nothing knows of
the findings, so no exposure, noise or rotation can give one away.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from data_pipelines.hospital.projection import Frame, Pose, enlarge
from data_pipelines.hospital.state import Body

MU = np.float32(0.0185)
"""Attenuation of water at 120 kVp after the chest's own filtering, per mm."""

_GLYPHS = {
    "L": (16, 16, 16, 16, 16, 16, 31),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
}


@dataclass(frozen=True)
class Look:
    """Exposure and processing of one film; see `expose` for how each is used."""

    low: float
    high: float
    gamma: float
    scatter: float
    equalise: float
    noise: float
    tilt_x: float
    tilt_y: float
    vignette: float
    uneven: float
    anatomic: float
    border: tuple[float, ...]
    marker: str
    marker_at: tuple[float, float]
    portable: bool
    leads: float
    seed: int


def draw_pose(body: Body, view: str, size: int, seed: int, difficulty: float) -> Pose:
    """Position of the patient for one film.

    Args:
        body: the patient (only its kyphosis is used).
        view: "AP", "PA" or "LATERAL".
        size: short side, pixels.
        seed: the film's seed.
        difficulty: 0..1, scales every deviation from the ideal position.

    Returns:
        The pose.
    """
    rng = np.random.default_rng([abs(seed), abs(body.seed), 201])
    d, g = difficulty, rng.standard_normal(9)
    portable = view == "AP"
    aspect = float(rng.choice([2544 / 3056, 0.83, 0.86, 0.92]))
    landscape = rng.random() < (0.5 if portable else 0.3) and view != "LATERAL"
    long_side = round(size / aspect)
    height, width = (size, long_side) if landscape else (long_side, size)
    short_mm = 330.0 * (1 + 0.30 * d * rng.uniform(-0.8, 1.3))
    if view == "LATERAL":
        short_mm *= 0.95
    loose = 1.5 if portable else 1.0
    return Pose(
        view=view,
        height=height,
        width=width,
        mm_per_px=short_mm / size,
        centre_u=float(np.clip(32 * d * loose * g[0], -50, 50)),
        centre_v=132.0 + float(np.clip(36 * d * g[1], -48, 48)),
        roll=float(np.radians(5.0 * d * loose * np.clip(g[2], -2, 2))),
        yaw=0.18 * d * loose * float(np.clip(g[3], -2, 2)),
        tilt=0.10 * d * float(g[4]) + (0.06 if portable else 0.0),
        bend=26.0 * body.kyphosis + 4.0 * d * float(g[5]),
        inspiration=float(np.clip(26 * d * g[6], -34, 22)) - (9.0 if portable else 0.0),
        arms=float(np.clip((0.15 if portable else 0.85) + 0.3 * d * g[7], 0, 1)),
    )


def draw_look(body: Body, view: str, seed: int, difficulty: float) -> Look:
    """Exposure and processing of one film; arguments as for `draw_pose`."""
    rng = np.random.default_rng([abs(seed), abs(body.seed), 202])
    d, g = difficulty, rng.standard_normal(12)
    centre = 2.35 + 0.18 * g[0] * d
    span = 4.0 * np.exp(0.2 * d * g[1])
    if view == "LATERAL":
        centre, span = centre + 1.4, 1.35 * span
    border = np.maximum(0, rng.normal(-0.02, 0.035, 4)) * (0.3 + d)
    portable = view == "AP"
    return Look(
        low=float(centre - 0.52 * span),
        high=float(centre + 0.48 * span),
        gamma=float(np.exp(0.3 * d * g[2])),
        scatter=float((0.5 if portable else 0.28) * np.exp(0.35 * d * g[3])),
        equalise=float(np.clip(0.3 + 0.4 * d + 0.3 * d * g[4], 0, 0.8)),
        noise=float((0.028 if portable else 0.018) * np.exp(0.5 * d * g[5])),
        tilt_x=float(0.5 * d * g[6]),
        tilt_y=float(0.5 * d * g[7]),
        vignette=float(0.4 * d * g[8]),
        uneven=float(1.4 * d),
        anatomic=float(0.012 + 0.03 * d),
        border=tuple(float(v) for v in border),
        marker="L" if rng.random() < 0.75 else "R",
        marker_at=(float(rng.uniform(0.04, 0.22)), float(rng.uniform(0.02, 0.09))),
        portable=bool(portable and rng.random() < 0.6),
        leads=(0.75 if portable else 0.2) * (0.2 + 1.3 * d),
        seed=abs(seed),
    )


def expose(frame: Frame, integral: np.ndarray, look: Look) -> np.ndarray:
    """Turn line integrals into a film.

    Args:
        frame: the pixel grid.
        integral: line integral of attenuation, dimensionless, HxW.
        look: exposure and processing.

    Returns:
        uint8 HxW, bright where little radiation came through.

    Reference: Beer-Lambert law; Hurter and Driffield's film curve; scatter as a wide
        blur of the primary, as in Seibert and Boone, J Nucl Med Technol 33 (2005).
    """
    rng = np.random.default_rng([look.seed, 203])
    height, width = frame.shape
    primary = np.exp(-np.minimum(integral, np.float32(9.0)))
    open_field = np.minimum(primary, np.float32(0.35))
    total = primary + np.float32(look.scatter) * wide_blur(frame, open_field, 22.0)
    dose = np.sqrt(np.float32(1.0) / (total + np.float32(0.004)))
    density = -np.log(total)
    grain = rng.standard_normal(frame.shape, dtype=np.float32)
    grain[1:] += np.float32(0.45) * grain[:-1]  # the detector spreads each quantum
    grain[:, 1:] += np.float32(0.45) * grain[:, :-1]
    density += np.float32(look.noise * 0.32) * grain * dose
    # Multi-scale processing of digital films flattens slow changes.
    slow = wide_blur(frame, np.clip(density, look.low, look.high), 34.0)
    middle = np.float32(0.5 * (look.low + look.high))
    density -= np.float32(look.equalise) * (slow - middle)
    cols = np.linspace(-1, 1, width, dtype=np.float32)[None]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    density += np.float32(look.tilt_x) * cols + np.float32(look.tilt_y) * rows
    density -= np.float32(look.vignette) * (cols * cols + rows * rows - 0.7)
    density += _uneven(frame, look)
    tone = _film_curve(density, look)
    tone *= _collimation(frame.shape, look.border)
    _marks(tone, look, frame)
    return (tone * np.float32(253.0) + np.float32(1.0)).astype(np.uint8)


def _film_curve(density, look):
    """Density to brightness 0..1 by an S-curve, from a table of 4096 steps."""
    step = np.linspace(-0.6, 1.6, 4096)
    curve = 1 / (1 + np.exp(-5.2 * (step - 0.5)))
    curve = np.clip((curve - 0.069) / 0.862, 0, 1) ** look.gamma
    scale = 4095 / (2.2 * (look.high - look.low))
    index = (density - np.float32(look.low)) * np.float32(scale)
    index += np.float32(0.6 * 4095 / 2.2 + 0.5)
    np.clip(index, 0, 4095, out=index)
    return curve.astype(np.float32).take(index.astype(np.int32))


def _uneven(frame, look):
    """Slow shades over the film: grid cut-off, uneven scatter, local processing."""
    rng = np.random.default_rng([look.seed, 205])
    nodes = np.float32(look.uneven) * rng.standard_normal((6, 6), dtype=np.float32)
    nodes = gaussian_filter(nodes, 0.6, mode="nearest")
    every = max(frame.shape) / 5
    return enlarge(nodes, every, frame.shape)


def wide_blur(frame: Frame, image: np.ndarray, sigma_mm: float) -> np.ndarray:
    """A wide Gaussian blur, made on a coarse grid for speed."""
    factor = max(1, int(sigma_mm / frame.pose.mm_per_px / 2.5))
    height, width = image.shape
    pad = ((0, -height % factor), (0, -width % factor))
    coarse = np.pad(image, pad, mode="edge")
    shape = coarse.shape[0] // factor, factor, coarse.shape[1] // factor, factor
    coarse = coarse.reshape(shape).mean((1, 3))
    sigma = sigma_mm / frame.pose.mm_per_px / factor
    coarse = gaussian_filter(coarse, sigma, truncate=3.0, mode="nearest")
    return enlarge(coarse, factor, image.shape, 0.5 * (factor - 1))


def _collimation(shape, border):
    """1 inside the shutters, dark outside."""
    height, width = shape
    top, bottom, left, right = border
    rows = np.linspace(0, 1, height, dtype=np.float32)
    cols = np.linspace(0, 1, width, dtype=np.float32)
    row = 1 / (1 + np.exp(-220 * np.minimum(rows - top + 0.01, 1.01 - rows - bottom)))
    col = 1 / (1 + np.exp(-220 * np.minimum(cols - left + 0.01, 1.01 - cols - right)))
    return (row[:, None] * col[None, :]).astype(np.float32)


def _marks(tone, look, frame):
    """The lead letter of the side, and "PORTABLE" on some bedside films."""
    height, width = tone.shape
    scale = max(1, round(min(height, width) / 110))
    row, col = (int(f * s) for f, s in zip(look.marker_at, tone.shape, strict=True))
    if look.marker == "L":  # the patient's left is on the right of a frontal film
        col = width - col - 5 * scale
    _write(tone, look.marker, row, col, scale, 0.93)
    if look.portable:
        small = max(1, scale // 2)
        _write(tone, "PORTABLE", 2 * small, width // 8, small, 0.95)


def _write(tone, text, row, col, scale, value):
    for k, letter in enumerate(text):
        bits = np.array(
            [[(line >> (4 - c)) & 1 for c in range(5)] for line in _GLYPHS[letter]]
        )
        bits = np.kron(bits, np.ones((scale, scale))).astype(bool)
        left = col + k * 6 * scale
        patch = tone[row : row + bits.shape[0], max(left, 0) : left + bits.shape[1]]
        patch[bits[: patch.shape[0], : patch.shape[1]]] = value
