"""ROCO: figures with captions, in the six lists of each split, and licences of each.

A patient is an article with one to three figures, which the split parts from each other, as
the real one does. Figures are chest films and limbs, most with an arrow or a letter; where
they point says nothing. Every seventh is no radiology but a diagram. Keywords and concepts
are few and not of a real vocabulary. Some figures are progressive or in colour.
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.hospital.benchmarks.bones import TYPES, render_limb
from data_pipelines.hospital.course import draw_patient, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.reports_text import write_report
from data_pipelines.hospital.writer import Settings

SPLITS = ("train",) * 7 + ("validation", "test", "test")
"""Of every ten figures."""

LICENCES = ("CC BY", "CC BY", "CC BY-NC", "CC BY-NC-SA", "NO-CC CODE")
OPENINGS = (
    "",
    "Chest X-ray. ",
    "(a) ",
    "PA CHEST RADIOGRAPH: ",  # as if it were a heading
    'The "plain" film, 1" from the apex: ',
)
LISTS = ("captions", "keywords", "cuis", "semtypes", "dlinks")


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes the figures of one article; rows are lines of the lists."""
    rows: dict[str, list[dict]] = {}
    for at, (image, text) in enumerate(figures(settings, "roco", number)):
        place = 3 * number + at
        split = SPLITS[place % 10]
        kind = "non-radiology" if image is None else "radiology"
        rng = stream(settings.seed, "roco", number, at, "file")
        image = image or diagram(rng, settings.size)
        name, pmc = f"ROCO_{place:05d}", f"PMC{3000000 + number}"
        home = folder / "data" / split / kind / "images"
        save(rng, image, home / f"{name}.jpg", settings.quality)
        rows.setdefault(f"{split}/{kind}", []).append(
            {
                "captions": f"{name}\t {text}",
                "keywords": f"{name}\t\tfilm\tshow",
                "cuis": f"{name}\t\tC0043299\tC1306645",
                "semtypes": f"{name}\t\tT060\tDiagnostic Procedure",
                "dlinks": f"{name}\twget ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/"
                f"{pmc}.tar.gz\tfig-{at}.jpg",
                "licence": f"{name},{pmc}_fig-{at}.jpg,{rng.choice(LICENCES)}",
                "figure": name,
                "article": pmc,
                "text": text,
            }
        )
    return rows


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the six lists of each split and kind."""
    del settings
    for split in dict.fromkeys(SPLITS):
        for kind in ("radiology", "non-radiology"):
            home = folder / "data" / split / kind
            home.mkdir(parents=True, exist_ok=True)
            found = rows.get(f"{split}/{kind}", ())
            for name in LISTS:
                lines = "".join(f"{row[name]}\n" for row in found)
                (home / f"{name}.txt").write_text(lines, "utf-8")
            lines = "".join(f"{row['licence']}\n" for row in found)
            (home / "licences.txt").write_text(f"ROCO_ID,PMC_ID,CC\n{lines}", "utf-8")


def figures(
    settings: Settings, name: str, number: int
) -> list[tuple[Image.Image | None, str]]:
    """The figures of one article and their captions; None is a diagram."""
    rng = stream(settings.seed, name, number)
    made: list[tuple[Image.Image | None, str]] = []
    for at in range(rng.choice((1, 1, 2, 3))):
        if (3 * number + at) % 7 == 6:
            made.append((None, "Flow diagram of the patients who were included."))
        elif rng.random() < 0.3:
            made.append(_limb(rng, settings, stream(settings.seed, name, number, at)))
        else:
            made.append(_chest(rng, settings, f"{name}{at}", number))
    return made


def _chest(
    rng: random.Random, settings: Settings, name: str, number: int
) -> tuple[Image.Image, str]:
    patient = draw_patient(
        settings.seed,
        number,
        dataset=name,
        prevalence=settings.prevalence,
        difficulty=settings.difficulty,
    )
    study, seed = patient.studies[0], rng.getrandbits(31)
    view = rng.choice(study.views)
    film = render(
        patient.body, study.findings, view, settings.size, seed, settings.difficulty
    )
    told = write_report(settings.seed, patient.body, study, None, name).sentences
    text = " ".join(s.text for s in told[: rng.choice((1, 2, 3))])
    return Image.fromarray(film.pixels_HxW), rng.choice(OPENINGS) + text


def _limb(
    rng: random.Random, settings: Settings, pose: random.Random
) -> tuple[Image.Image, str]:
    part = rng.choice(sorted(TYPES))
    fault = rng.choice(("", "fracture", "plate"))
    pixels = render_limb(
        rng, part, fault, settings.size, settings.difficulty, 0.0, pose
    )
    told = {
        "": "shows no fracture",
        "fracture": "shows a displaced fracture (arrow)",
        "plate": "after internal fixation with a plate",
    }[fault]
    word = part.removeprefix("XR_").casefold()
    return Image.fromarray(pixels), f"Radiograph of the {word} {told}."


def diagram(rng: random.Random, size: int) -> Image.Image:
    """A diagram: bars of many grays on white."""
    pixels = np.full((size, round(1.3 * size)), 250, np.uint8)
    for bar in range(8):
        left, top = round((0.1 + 0.14 * bar) * size), rng.randrange(size // 2)
        pixels[top : size - 8, left : left + size // 10] = 20 + 25 * bar
    return Image.fromarray(pixels)


def save(rng: random.Random, image: Image.Image, path: Path, quality: int) -> None:
    """Writes a figure as journals do: with an arrow or a letter, in any kind of JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw, side = ImageDraw.Draw(image), min(image.size)
    if rng.random() < 0.6:
        x, y = (rng.uniform(0.2, 0.8) * length for length in image.size)
        near, far = 0.04 * side, 0.12 * side
        draw.line((x + near, y + near, x + far, y + far), 255, max(1, side // 60))
        draw.polygon(((x, y), (x + 1.6 * near, y), (x, y + 1.6 * near)), 255)
    if rng.random() < 0.3:
        draw.text((0.04 * side, 0.86 * side), rng.choice("abAB"), 255)
    colour = rng.choice(("L", "L", "L", "RGB", "CMYK"))
    image.convert(colour).save(
        path, "JPEG", quality=quality, progressive=rng.random() < 0.3
    )
