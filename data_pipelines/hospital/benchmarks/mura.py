"""MURA 1.1: limbs of seven types, half of the studies with a fracture or a plate.

Some patients have a second study, of another part of the body. The real films are of every
size and often RGB; here the short side is `size` px and every tenth film is RGB.
"""

import itertools
from pathlib import Path

from PIL import Image

from data_pipelines.hospital.benchmarks.bones import TYPES, render_limb
from data_pipelines.hospital.course import stream
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import carve_validate

ROOT = "MURA-v1.1"
TURNS = (0.0, 1.35, 0.6)  # radians: two views, and a third that some studies have


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes a patient's films; rows for both lists of its split."""
    rng = stream(settings.seed, "mura", number)
    group = number // 2 % 10
    split = "valid" if group in (0, 5) else "train"
    wanted = "validate" if group == 3 else "train"
    patient = next(
        name
        for more in itertools.count(number + 1, 1000)
        if carve_validate(name := f"patient{more:05d}") == wanted
    )
    rows: dict[str, list[dict]] = {f"{split}_studies": [], f"{split}_films": []}
    types = rng.sample(sorted(TYPES), 2 if rng.random() < 0.25 else 1)
    for part in types:
        sick = number % 2 if part == types[0] else rng.randrange(2)
        fault = rng.choice(("fracture", "fracture", "plate")) if sick else ""
        label = "positive" if sick else "negative"
        study = f"{ROOT}/{split}/{part}/{patient}/study1_{label}"
        (folder / study).mkdir(parents=True)
        for at, turned in enumerate(TURNS[: rng.choice((1, 2, 2, 3))]):
            # The same stream for each view: it is the same limb.
            limb = stream(settings.seed, "mura", number, part)
            pose = stream(settings.seed, "mura", number, part, at)
            pixels = render_limb(
                limb, part, fault, settings.size, settings.difficulty, turned, pose
            )
            film = f"{study}/image{at + 1}.png"
            colour = "RGB" if rng.random() < 0.1 else "L"
            Image.fromarray(pixels).convert(colour).save(folder / film)
            rows[f"{split}_films"].append({"path": film})
        (folder / study / "._image1.png").write_bytes(b"\0\5\x16\7\0\2\0\0")
        rows[f"{split}_studies"].append({"path": f"{study}/", "label": sick})
    return rows


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the four lists, which have no header."""
    del settings
    for split in ("train", "valid"):
        films = [f"{row['path']}\n" for row in rows.get(f"{split}_films", ())]
        studies = [
            f"{row['path']},{row['label']}\n"
            for row in rows.get(f"{split}_studies", ())
        ]
        (folder / ROOT).mkdir(parents=True, exist_ok=True)
        (folder / ROOT / f"{split}_image_paths.csv").write_text("".join(films))
        (folder / ROOT / f"{split}_labeled_studies.csv").write_text("".join(studies))
