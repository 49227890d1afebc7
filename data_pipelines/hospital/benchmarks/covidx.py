"""COVIDx 9A: three classes, patients with several films, the oddities of its lists.

A patient with COVID-19 has bilateral patchy opacities, one with another pneumonia has it on
one side, and a normal one has nothing. The real list's sources have their own machines and
ages; here every class has the same, so that nothing but the disease tells them apart.
"""

import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import carve_validate

CLASSES = ("normal", "pneumonia", "COVID-19")
SOURCES: dict[str, tuple[str, ...]] = {
    "normal": ("rsna", "rnsa"),
    "pneumonia": ("rsna", "cohen"),
    "COVID-19": ("sirm", "ricord", "bimcv"),
}
EXTENSIONS = ("png", "jpg", "jpeg", "JPG", "PNG")
TEST_EVERY, VALIDATE_EVERY = 5, 10  # patients of each class
FILMS = (1, 1, 2, 3)


def covid(rng: random.Random, difficulty: float) -> tuple[Finding, ...]:
    """What a film of COVID-19 shows: opacities of both lungs, mostly low."""
    made = draw_finding(rng, "Lung Opacity", difficulty, "patchy")
    low = replace(made, side="bilateral", lobe="lower")
    if rng.random() < 0.5:
        return (low,)
    more = draw_finding(rng, "Lung Opacity", difficulty, "patchy")
    return (low, replace(more, side="bilateral", lobe="upper"))


def pneumonia(rng: random.Random, difficulty: float) -> tuple[Finding, ...]:
    """What a film of a common pneumonia shows: one lobe of one side."""
    name = rng.choice(("Pneumonia", "Consolidation"))
    kind = {"Pneumonia": "bronchopneumonia", "Consolidation": "lobar"}[name]
    made = draw_finding(rng, name, difficulty, kind)
    return (replace(made, side=rng.choice(("left", "right"))),)


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes a patient's films; rows are lines of a list."""
    rng = stream(settings.seed, "covidx", number)
    body = draw_body(rng)
    name = CLASSES[number % 3]
    findings = {"COVID-19": covid, "pneumonia": pneumonia}.get(name, lambda *_: ())(
        rng, settings.difficulty
    )
    split = "test" if number // 3 % TEST_EVERY == 2 else "train"
    source = rng.choice(SOURCES[name])
    wanted = "validate" if number // 3 % VALIDATE_EVERY == 1 else "train"
    patient = next(p for p in _ids(rng, source, number) if carve_validate(p) == wanted)
    lines = []
    for film in range(rng.choice(FILMS)):
        extension = rng.choice(EXTENSIONS)
        stem = patient.replace(" ", "-") if source == "sirm" else patient
        file = f"{stem}-{film}.{extension}"
        view = rng.choice(("PA", "AP"))
        seed = rng.getrandbits(31)
        pixels = render(
            body, findings, view, settings.size, seed, settings.difficulty
        ).pixels_HxW
        path = folder / split / (file.lower() if rng.random() < 0.2 else file)
        path.parent.mkdir(parents=True, exist_ok=True)
        form = "PNG" if extension.lower() == "png" else "JPEG"
        Image.fromarray(pixels).save(path, form, quality=settings.quality)
        told = "" if split == "test" and rng.random() < 0.5 else f" {source}"
        lines.append(f"{patient} {file} {name}{told}")
    return {split: [{"line": line} for line in lines]}


def _ids(rng: random.Random, source: str, number: int) -> Iterator[str]:
    """Ids as the source has them; one is taken whose hash gives the split wanted."""
    for more in itertools.count(number, 1000):
        if source == "sirm":
            yield f"COVID {more}"
        elif source == "cohen":
            yield str(more)
        else:
            yield str(uuid.UUID(int=rng.getrandbits(128)))


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes both lists, which have no header."""
    del settings
    for split in ("train", "test"):
        lines = [row["line"] + "\n" for row in rows.get(split, ())]
        (folder / f"{split}_COVIDx9A.txt").write_text("".join(lines), "utf-8")
