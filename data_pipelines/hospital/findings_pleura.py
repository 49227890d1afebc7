"""Findings of the pleural space: fluid, air, thick and calcified pleura.

Reference: Hansell et al., Fleischner Society: Glossary of terms for thoracic imaging,
Radiology 246 (2008).
"""

from dataclasses import replace

import numpy as np

from data_pipelines.hospital.anatomy import SIGN, heights
from data_pipelines.hospital.organs import inside_lung, lung_chord
from data_pipelines.hospital.projection import (
    arc_volume,
    curve,
    smoothstep,
    value_noise,
)
from data_pipelines.hospital.scene import AIRY, Scene, sides
from data_pipelines.hospital.state import Finding


def _layer_share(scene: Scene, side: str, wall: np.ndarray) -> np.ndarray:
    """Share of each ray through a lung that a layer on its wall takes, HxW."""
    args = (scene.anatomy, scene.frame, scene.organs.p, scene.organs.z, side)
    whole, inner = lung_chord(*args), lung_chord(*args, wall=wall.astype(np.float32))
    return np.clip(1 - inner / np.maximum(whole, 1e-3), 0, 1) * (whole > 0)


def effusion(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Fluid: a meniscus that rises along the ribs, or a false, flat, high dome."""
    total = np.zeros(scene.frame.shape, np.float32)
    s, z = finding.severity, heights()
    for side in sides(finding):
        if finding.kind == "subpulmonic":
            total += _below(scene, side)
            depth = 6.0 + 5.0 * s
        else:
            depth = 52.0 + 78.0 * s
            depth *= rng.uniform(0.9, 1.1)
        floor = scene.healthy.domes[side].top + 44.0
        if finding.kind == "subpulmonic":
            floor = scene.anatomy.domes[side].top + 40.0
        # The layer is thick below the level and tapers off upwards over some cm.
        taper = 12.0 + 12.0 * s
        wall = 75.0 * np.exp(np.minimum((z - (floor - depth + 20)) / taper - 1.6, 0.3))
        wall *= smoothstep(floor - depth - 4.5 * taper, floor - depth, z)
        total += scene.fill(side, _layer_share(scene, side, wall) * np.float32(0.97))
    return total


def _below(scene, side):
    """What fluid under the lung took from it: chord with the true dome less the false."""
    anatomy = scene.anatomy
    domes = {**anatomy.domes, side: scene.healthy.domes[side]}
    args = (scene.frame, scene.organs.p, scene.organs.z, side)
    true = lung_chord(replace(anatomy, domes=domes), *args)
    return np.maximum(true - lung_chord(anatomy, *args), 0) * AIRY


def pneumothorax(scene: Scene, finding: Finding, rng) -> np.ndarray | None:
    """Air beyond a thin white line with no vessels in it; seen from the front."""
    if not scene.frame.frontal:
        return None
    total = np.zeros(scene.frame.shape, np.float32)
    s, anatomy, tension = finding.severity, scene.anatomy, finding.kind == "tension"
    for side in sides(finding):
        hilum = anatomy.hilum(side)
        keep = 0.70 - 0.32 * s if tension else 0.90 - 0.22 * s
        pivot_z = hilum[2] + 25 if tension else 0.93 * anatomy.domes[side].top
        pivot_x = SIGN[side] * 6 + anatomy.shift
        pivot = np.array([pivot_x, hilum[1], pivot_z])
        total += _collapse(scene, side, pivot, keep, tension)
    return total


def _collapse(scene, side, pivot, keep, tension):
    """Shrink one lung towards a pivot: pixels, pleural line and vessels."""
    back = np.float32(1 / keep)
    if tension:
        across = back
    else:  # less and less towards the base, where lung and ribs still touch
        high = np.clip((pivot[2] - scene.organs.z) / np.float32(0.7 * pivot[2]), 0, 1)
        across = 1 / (1 - (1 - np.float32(keep)) * np.sqrt(high))
    p = (scene.organs.p - np.float32(pivot[0])) * across + np.float32(pivot[0])
    z = (scene.organs.z - np.float32(pivot[2])) * back + np.float32(pivot[2])
    shrunk = lung_chord(scene.anatomy, scene.frame, p, z, side)
    lung = scene.organs.lungs[side]
    if not tension:  # the base of the lung stays on the diaphragm
        below = smoothstep(-2, 2, scene.organs.z - np.float32(pivot[2]))
        shrunk = np.maximum(shrunk, lung * below)
    inner = scene.frame.blur((shrunk > 2).astype(np.float32), 0.8)
    outer = smoothstep(2, 12, lung)
    medial = smoothstep(24, 40, scene.out(side) - SIGN[side] * np.float32(pivot[0]))
    outside = (1 - inner) * outer * medial
    dark = -(1 - AIRY) * np.float32(1.25) * lung * outside
    line = 4 * inner * (1 - inner) * outer * medial * np.float32(11.0)
    dense = scene.fill(side, inner * np.float32(0.06 + (0.2 if tension else 0.0)))
    tree = scene.trees[side]
    moved = (tree.points_Nx3 - pivot) * keep + pivot
    good = inside_lung(scene.anatomy, tree.points_Nx3, side)
    scene.trees[side] = replace(
        tree,
        points_Nx3=moved[good],
        radius=tree.radius[good],
        spacing=tree.spacing[good] * keep,
    )
    scene.add(dark + line)
    return (dark + line) + (dense if tension else 0)


def pleural_other(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """A rind along the ribs or a cap on the apex; or calcified plaques."""
    total = np.zeros(scene.frame.shape, np.float32)
    for side in sides(finding):
        if finding.kind == "plaque":
            total += _plaques(scene, finding, side, rng)
        elif finding.lobe == "upper":
            total += _apical_cap(scene, finding, side, rng)
        else:
            total += _rind(scene, finding, side, rng)
    return total


def _rind(scene, finding, side, rng):
    z, height = heights(), scene.anatomy.lung_height
    nodes = rng.uniform(0.45, 1.35, 14)
    rough = np.interp(z, np.linspace(0, 1.3 * height, 14), nodes)
    wall = (4.5 + 9.0 * finding.severity) * rough
    wall = wall * smoothstep(0.42 * height, 0.58 * height, z)
    share = _layer_share(scene, side, wall)
    return scene.fill(side, share * np.float32(0.92 * min(scene.strength, 1.05)))


def _apical_cap(scene, finding, side, rng):
    anatomy, z = scene.anatomy, scene.organs.z
    rx = np.float32(0.5 * anatomy.half_width)
    across = scene.organs.p
    centre = SIGN[side] * rx if scene.frame.frontal else np.float32(-8.0)
    radius = rx if scene.frame.frontal else np.float32(0.8 * anatomy.half_depth)
    off = (across - centre) / radius
    below = z - np.float32(56.0) * off * off
    thick = np.float32(9 + 17 * finding.severity)
    thick = thick * (1 + 0.25 * value_noise(rng, across, z, 17.0))
    share = smoothstep(-2.0, 2.5, thick - below) * (z < 0.3 * anatomy.lung_height)
    return scene.fill(side, share * np.float32(0.85 * min(scene.strength, 1.1)))


def _plaques(scene, finding, side, rng):
    """Sharp, chalk-white, map-like patches, and a line on the diaphragm."""
    anatomy, s = scene.anatomy, finding.severity
    p, z = scene.organs.p, scene.organs.z
    across = 0 if scene.frame.frontal else 1
    share = np.zeros(scene.frame.shape, np.float32)
    for _ in range(int(2 + 3 * s)):
        level = rng.uniform(*((0.4, 0.66) if finding.lobe == "middle" else (0.58, 0.9)))
        x = SIGN[side] * rng.uniform(0.5, 0.82) * anatomy.half_width
        centre = (x, rng.uniform(-30, 50), level * anatomy.lung_height)
        dp = (p - np.float32(centre[across])) / np.float32(rng.uniform(9, 13 + 11 * s))
        dz = (z - np.float32(centre[2])) / np.float32(rng.uniform(7, 11 + 7 * s))
        edge = 1 - dp * dp - dz * dz + 0.5 * value_noise(rng, p, z, 7.0)
        share = np.maximum(share, smoothstep(0.0, 0.16, edge))
    grain = np.clip(0.85 + 0.4 * value_noise(rng, p, z, 3.5), 0.3, 1.5)
    chalk = share * grain * np.float32(13 + 7 * s)
    chalk *= scene.organs.lungs[side] > 3
    return scene.add((chalk + _chalk_line(scene, side, s)) * np.float32(scene.strength))


def _chalk_line(scene, side, s):
    dome = scene.anatomy.domes[side]
    x = np.linspace(dome.x0 - 26, dome.x0 + 20 + 22 * s, 5)
    fall = dome.across * ((x - dome.x0) / scene.anatomy.half_width) ** 2
    fall = np.where(x < dome.x0, 0.25 * fall, fall)
    points = np.stack([SIGN[side] * x, np.full(5, dome.y0), dome.top + fall - 1], 1)
    line = curve(points, 0.8 * scene.frame.pose.mm_per_px)
    return scene.frame.draw(line, arc_volume(line, 42.0), 0.8)
