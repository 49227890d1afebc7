"""Simulated chest films: a body and its findings in, pixels and masks out.

The film is a projection by Beer-Lambert's law of a chest made of simple solids. It is a
simulation: fit to exercise and compare learning systems, not to teach or test readers.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.hospital import film, fractures, organs, skeleton, vessels
from data_pipelines.hospital.anatomy import LEFT, RIGHT, build
from data_pipelines.hospital.clutter import clutter
from data_pipelines.hospital.devices import device
from data_pipelines.hospital.findings_collapse import (
    atelectasis,
    cardiomegaly,
    mediastinum,
    reshape,
)
from data_pipelines.hospital.findings_lung import (
    consolidation,
    edema,
    lesion,
    opacity,
    pneumonia,
)
from data_pipelines.hospital.findings_pleura import (
    effusion,
    pleural_other,
    pneumothorax,
)
from data_pipelines.hospital.projection import VIEWS, Frame, value_noise
from data_pipelines.hospital.scene import AIRY, Scene, support
from data_pipelines.hospital.state import Body, Finding

PAINTERS = {
    # In the order of painting: what moves the vessels comes first, and fluid takes
    # the air before anything else can fill the same lung.
    "Pneumothorax": pneumothorax,
    "Cardiomegaly": cardiomegaly,
    "Enlarged Cardiomediastinum": mediastinum,
    "Pleural Effusion": effusion,
    "Atelectasis": atelectasis,
    "Consolidation": consolidation,
    "Pneumonia": pneumonia,
    "Edema": edema,
    "Lung Opacity": opacity,
    "Lung Lesion": lesion,
    "Pleural Other": pleural_other,
    "Support Devices": device,
}
"""Each takes (scene, finding, rng), adds to the scene, and returns what it added in mm
of water (None where the view does not show it)."""


@dataclass(frozen=True)
class Film:
    """One film.

    Attributes:
        pixels_HxW: uint8, 255 where nothing came through (bone, metal).
        masks: true support of each finding that the view shows, bool HxW by its index
            in the findings.
    """

    pixels_HxW: np.ndarray
    masks: dict[int, np.ndarray]


def render(
    body: Body,
    findings: tuple[Finding, ...],
    view: str,
    size: int,
    seed: int,
    difficulty: float = 0.5,
) -> Film:
    """Make one film. The same arguments give the same bits.

    Position, exposure, noise and marks depend on (body, view, seed, difficulty) alone,
    so films of one seed with and without a finding differ by the finding.

    Args:
        body: the patient.
        findings: what he has; the places depend on each finding's own seed.
        view: "AP", "PA" or "LATERAL".
        size: short side, pixels (at least 32).
        seed: of this film.
        difficulty: 0..1; scales position, exposure, noise and habitus up and the
            contrast of findings down.

    Returns:
        The film and its masks.

    Raises:
        ValueError: for an unknown view, or a size or difficulty out of range.
    """
    if view not in VIEWS:
        raise ValueError(f"expected a view out of {VIEWS}, found {view!r}")
    if size < 32 or not 0 <= difficulty <= 1:
        raise ValueError(
            "expected size >= 32 and difficulty in 0..1, "
            f"found size {size} and difficulty {difficulty}"
        )
    pose = film.draw_pose(body, view, size, seed, difficulty)
    look = film.draw_look(body, view, seed, difficulty)
    frame = Frame(pose)
    healthy = build(body, pose, difficulty)
    anatomy = healthy
    for finding in findings:
        anatomy = reshape(anatomy, finding)
    step = 0.9 * pose.mm_per_px
    scene = Scene(
        frame=frame,
        healthy=healthy,
        anatomy=anatomy,
        organs=organs.project(anatomy, frame),
        trees={side: vessels.grow(healthy, side, step) for side in (LEFT, RIGHT)},
        strength=1.15 - 0.3 * difficulty,
    )
    masks = _paint(scene, findings)
    bone, broken = _bones(scene, findings, 1.4 * step)
    masks.update(broken)
    integral = film.MU * _water(scene, bone, look, step)
    pixels = film.expose(frame, integral, look)
    return Film(pixels, {k: m for k, m in sorted(masks.items()) if m.any()})


def lung_fields(
    body: Body, view: str, size: int, seed: int, difficulty: float = 0.5
) -> dict[str, np.ndarray]:
    """Where a frontal film of the same arguments shows each healthy lung.

    As a reader outlines them: beside heart and mediastinum and above the diaphragm.

    Returns:
        bool HxW of "left" and "right", the patient's sides.
    """
    pose = film.draw_pose(body, view, size, seed, difficulty)
    chest = organs.project(build(body, pose, difficulty), Frame(pose))
    beside = chest.heart < 20
    return {side: (chest.lungs[side] > 35) & beside for side in (LEFT, RIGHT)}


def _paint(scene: Scene, findings) -> dict[int, np.ndarray]:
    masks = {}
    for name, painter in PAINTERS.items():
        for index, finding in enumerate(findings):
            if finding.name != name:
                continue
            rng = np.random.default_rng([abs(finding.seed), 302])
            added = painter(scene, finding, rng)
            if added is not None:
                masks[index] = support(added)
    return masks


def _bones(scene: Scene, findings, step: float):
    """Bones with their breaks, mm HxW, and the masks of the breaks."""
    anatomy, frame = scene.healthy, scene.frame
    breaks = {
        index: fractures.locate(anatomy, finding)
        for index, finding in enumerate(findings)
        if finding.name == "Fracture"
    }
    clouds = [
        skeleton.ribs(anatomy, step, [b.rib for b in breaks.values() if b.rib]),
        skeleton.clavicles(
            anatomy, step, [b.clavicle for b in breaks.values() if b.clavicle]
        ),
        skeleton.sternum(anatomy, step),
    ]
    if frame.frontal:
        clouds.append(skeleton.shoulders(anatomy, frame.pose.arms, step))
    points, volumes = (np.concatenate(v) for v in zip(*clouds, strict=True))
    bone = frame.draw(points, volumes, 0.9) + skeleton.spine(anatomy, frame)
    for place in breaks.values():
        bone += fractures.callus(frame, place)
    masks = {
        index: fractures.region(frame, place)
        for index, place in breaks.items()
        if frame.frontal
    }
    return bone, masks


def _water(scene: Scene, bone: np.ndarray, look, step: float) -> np.ndarray:
    """Everything on each ray as mm of water."""
    frame, chest = scene.frame, scene.organs
    air = sum(AIRY * chest.lungs[side] * scene.open[side] for side in (RIGHT, LEFT))
    full = sum(AIRY * chest.lungs[side] for side in (RIGHT, LEFT))
    markings = vessels.draw(frame, [scene.trees[s] for s in (RIGHT, LEFT)], scene.hazy)
    markings *= np.clip(air / np.maximum(0.6 * full, 1e-3), 0, 1)
    rng = np.random.default_rng([scene.healthy.seed, 106])
    texture = value_noise(rng, chest.p, chest.z, 5.0)
    texture += value_noise(rng, chest.p, chest.z, 19.0)
    gas = chest.gas + vessels.airways(scene.anatomy, frame, step)
    water = chest.soft - full - gas + scene.water + look.anatomic * texture * air
    water = np.maximum(water, 0) + 1.5 * markings + bone
    return water + clutter(frame, scene.healthy, look, step)
