"""Findings that take the air out of the lung: how each fills it.

Reference: Hansell et al., Fleischner Society: Glossary of terms for thoracic imaging,
Radiology 246 (2008), for the sign that each function draws.
"""

import numpy as np

from data_pipelines.hospital.anatomy import SIGN
from data_pipelines.hospital.projection import (
    arc_volume,
    curve,
    smoothstep,
    value_noise,
)
from data_pipelines.hospital.scene import Scene, lobe_share, sides
from data_pipelines.hospital.state import Finding


def _clumps(rng, scene, cell_mm: float) -> np.ndarray:
    """Two octaves of noise, about N(0, 1)."""
    p, z = scene.organs.p, scene.organs.z
    coarse = value_noise(rng, p, z, cell_mm)
    return 0.95 * coarse + 0.6 * value_noise(rng, p, z, 0.45 * cell_mm)


def _region(scene, rng, centre, radii, rough: float) -> np.ndarray:
    """1 at the middle of an irregular region, 0 on its edge, below 0 outside."""
    across = 0 if scene.frame.frontal else 1
    dp = (scene.organs.p - np.float32(centre[across])) * np.float32(1 / radii[across])
    dz = (scene.organs.z - np.float32(centre[2])) * np.float32(1 / radii[2])
    edge = rough * _clumps(rng, scene, 0.55 * float(radii[2]))
    return 1 - np.sqrt(dp * dp + dz * dz) + edge.astype(np.float32)


def consolidation(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Dense, homogeneous, cut off at the fissures, with dark bronchi in it."""
    total = np.zeros(scene.frame.shape, np.float32)
    s, size = finding.severity, scene.healthy.lung_height
    for side in sides(finding):
        count = 1 if finding.kind == "lobar" else 2 + int(rng.integers(0, 2))
        reach = (0.17 + 0.20 * s) if finding.kind == "lobar" else 0.10 + 0.11 * s
        share = np.zeros(scene.frame.shape, np.float32)
        for _ in range(count):
            radii = reach * size * rng.uniform(0.85, 1.2, 3)
            level = _region(
                scene, rng, scene.place(side, finding.lobe, rng), radii, 0.2
            )
            share = np.maximum(share, smoothstep(-0.1, 0.42, level))
        lobe = lobe_share(scene, finding.lobe if finding.kind == "lobar" else "none")
        share *= np.minimum(1, 1.35 * lobe) * np.float32(0.48 + 0.27 * s)
        added = scene.fill(side, share * np.float32(min(scene.strength, 1.15)))
        total += added - _bronchogram(scene, side, added, share)
    return total


def _bronchogram(scene, side, added, share) -> np.ndarray:
    """Air-filled bronchi: they follow the vessels, and show where lung is solid."""
    tree = scene.trees[side]
    wide = tree.radius > 1.0
    points = tree.points_Nx3[wide] + np.array([3.5, 0, 2.5])
    volume = np.pi * (1.35 * tree.radius[wide]) ** 2 * tree.spacing[wide]
    if not len(points):
        return np.zeros_like(added)
    air = scene.frame.draw(points, volume, 0.7)
    air = np.minimum(1.5 * air * smoothstep(0.25, 0.5, share), 0.32 * added)
    scene.water -= air
    return air


def pneumonia(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Many soft clumps about the bronchi of a lobe, or one round soft opacity."""
    total = np.zeros(scene.frame.shape, np.float32)
    s, size = finding.severity, scene.healthy.lung_height
    for side in sides(finding):
        centre = scene.place(side, finding.lobe, rng)
        if finding.kind == "round":
            radii = (0.07 + 0.08 * s) * size * rng.uniform(0.9, 1.1, 3)
            level = _region(scene, rng, centre, radii, 0.14)
            share = (0.40 + 0.2 * s) * smoothstep(-0.25, 0.55, level)
        else:
            share = _bronchopneumonia(scene, rng, centre, s, size)
        total += scene.fill(side, share * np.float32(scene.strength))
    return total


def _bronchopneumonia(scene, rng, centre, s, size):
    count = int(12 + 20 * s)
    spread = np.array([0.11, 0.12, 0.13]) * (0.7 + 0.6 * s) * size
    points = centre + rng.normal(0, 1, (count, 3)) * spread
    share = np.zeros(scene.frame.shape, np.float32)
    for k, sigma in enumerate((3.0, 5.5)):
        part = points[k::2]
        # A blob of unit height at its middle holds 2 pi sigma^2 of area.
        mass = 2 * np.pi * sigma**2 * rng.uniform(0.6, 1.4, len(part))
        share += scene.frame.draw(part, mass, sigma)
    share *= 1 + 0.3 * value_noise(rng, scene.organs.p, scene.organs.z, 4.5)
    return (0.34 + 0.22 * s) * (1 - np.exp(-np.maximum(share, 0)))


def opacity(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Ground glass with vessels seen through it, or a fine net of lines."""
    total = np.zeros(scene.frame.shape, np.float32)
    s, size = finding.severity, scene.healthy.lung_height
    net = finding.kind == "interstitial"
    mesh = _mesh(scene, rng) if net else np.zeros(1, np.float32)
    for side in sides(finding):
        if net:
            height = scene.organs.z * np.float32(1 / size)
            share = (0.11 + 0.14 * s) * mesh
            if finding.lobe == "lower":
                share = share * smoothstep(0.3, 0.8, height)
        else:
            share = np.zeros(scene.frame.shape, np.float32)
            for _ in range(1 + int(rng.integers(1, 3))):
                radii = (0.12 + 0.12 * s) * size * rng.uniform(0.8, 1.3, 3)
                centre = scene.place(side, finding.lobe, rng)
                level = _region(scene, rng, centre, radii, 0.3)
                share = np.maximum(share, smoothstep(-0.1, 0.8, level))
            share *= np.float32(0.22 + 0.2 * s)
        total += scene.fill(side, share * np.float32(scene.strength))
    return total


def _mesh(scene, rng) -> np.ndarray:
    """Lines where smooth noise changes its sign: a net with cells of about 9 mm."""
    p, z = scene.organs.p, scene.organs.z
    net = np.zeros(scene.frame.shape, np.float32)
    for turn in (0.0, 0.9):
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        noise = value_noise(rng, c * p + s * z, c * z - s * p, 9.0)
        net = np.maximum(net, np.exp(-((noise * np.float32(1 / 0.16)) ** 2)))
    return net


def edema(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """Fluid about both hila: bat wings, or septal lines and wide upper vessels."""
    total = np.zeros(scene.frame.shape, np.float32)
    s = finding.severity
    alveolar = finding.kind == "alveolar"
    clumps = _clumps(rng, scene, 15.0)
    mesh = _mesh(scene, rng)
    for side in sides(finding):
        wing = _wing(scene, side, s, alveolar)
        if alveolar:
            share = wing * np.clip(0.6 + 0.42 * clumps, 0.08, 1.2) * (0.29 + 0.26 * s)
        else:
            share = wing * (0.10 + 0.12 * s + (0.16 + 0.16 * s) * mesh)
        total += scene.fill(side, (share * scene.strength).astype(np.float32))
        lines = _septal_lines(scene, side, rng, s * (0.5 if alveolar else 1.0))
        total += scene.add(lines * (scene.organs.lungs[side] > 4))
    scene.hazy = max(scene.hazy, 0.35 + 0.45 * s)
    total += _upper_vessels(scene, s)
    return total


def _wing(scene, side, s, alveolar):
    anatomy = scene.anatomy
    x, y, z = anatomy.hilum(side)
    centre = (x + SIGN[side] * 12, y, z + 10)
    grow = 0.75 + 0.35 * s
    radii = np.array([0.62, 0.62, 0.0]) * anatomy.half_width * grow
    radii[2] = (0.44 if alveolar else 0.52) * anatomy.lung_height * grow
    across = 0 if scene.frame.frontal else 1
    dp = (scene.organs.p - np.float32(centre[across])) * np.float32(1 / radii[across])
    dz = (scene.organs.z - np.float32(centre[2])) * np.float32(1 / radii[2])
    return smoothstep(0.0, 0.75, 1 - np.sqrt(dp * dp + dz * dz))


def _septal_lines(scene, side, rng, s):
    """Kerley B: short horizontal lines that end at the pleura of the lower lung."""
    anatomy = scene.anatomy
    lines, volumes = [], []
    for _ in range(int(6 + 16 * s)):
        z = rng.uniform(0.52, 0.98) * anatomy.lung_height
        a = float(anatomy.half_width_at(z)) - 2
        length, y = rng.uniform(12, 26), rng.uniform(-25, 35)
        start = (SIGN[side] * a, y, z)
        end = (SIGN[side] * (a - length), y, z + rng.normal(0, 1.5))
        line = curve(np.array([start, end]), 0.8 * scene.frame.pose.mm_per_px)
        lines.append(line)
        volumes.append(arc_volume(line, 13.0))
    points, volume = np.concatenate(lines), np.concatenate(volumes)
    return scene.frame.draw(points, volume, 0.5)


def _upper_vessels(scene, s):
    """Cephalisation: what is above the hila grows wider, with cuffed walls."""
    points, volumes = [], []
    level = 0.47 * scene.anatomy.lung_height
    for tree in scene.trees.values():
        upper = (tree.points_Nx3[:, 2] < level) & (tree.radius > 0.8)
        points.append(tree.points_Nx3[upper])
        area = np.pi * tree.radius[upper] ** 2 * (0.9 + 1.3 * s)
        volumes.append(area * tree.spacing[upper])
    image = scene.frame.draw(np.concatenate(points), np.concatenate(volumes), 1.4)
    return scene.add(image)


def lesion(scene: Scene, finding: Finding, rng) -> np.ndarray:
    """A sharp sphere, or a larger lobulated mass with a few spicules."""
    total = np.zeros(scene.frame.shape, np.float32)
    s = finding.severity
    across = 0 if scene.frame.frontal else 1
    for side in sides(finding):
        centre = scene.place(side, finding.lobe, rng)
        mass = finding.kind == "mass"
        radius = 17 + 24 * s if mass else 6.0 + 8.5 * s
        dp = scene.organs.p - np.float32(centre[across])
        dz = scene.organs.z - np.float32(centre[2])
        turn, lobes = rng.uniform(0, 6.28, 2), 3 + int(rng.integers(0, 4))
        angle = np.arctan2(dz, dp)
        wavy = 0.07 * np.sin(lobes * angle + turn[0]) + 0.05 * np.sin(
            (2 * lobes - 1) * angle + turn[1]
        )
        r = np.float32(radius) * (1 + (wavy if mass else 0.4 * wavy))
        chord = 2 * np.sqrt(np.maximum(r * r - dp * dp - dz * dz, 0))
        dense = 0.95 if mass else 1.9 - 0.5 * s
        total += scene.add(chord * np.float32(dense * scene.strength))
        if mass:
            total += scene.add(_spicules(scene, centre, radius, rng))
    return total


def _spicules(scene, centre, radius, rng):
    lines, volumes = [], []
    for angle in rng.uniform(0, 2 * np.pi, 12):
        way = np.array([np.cos(angle), np.cos(angle), np.sin(angle)])
        ends = np.array([centre + 0.8 * radius * way, centre + 1.45 * radius * way])
        line = curve(ends, 0.8 * scene.frame.pose.mm_per_px)
        lines.append(line)
        volumes.append(arc_volume(line, 5.0) * np.linspace(1, 0.2, len(line)))
    return scene.frame.draw(np.concatenate(lines), np.concatenate(volumes), 0.5)
