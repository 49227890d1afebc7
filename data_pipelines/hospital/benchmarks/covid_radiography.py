"""COVID-19 Radiography Database: four folders, square films, smaller lung masks.

The real films are 299 x 299 px and the masks 256 x 256; here they are `size` px and in the
same proportion. Some films are RGB, as in the real set. Spreadsheets are left out: nothing
reads them. Each class has the same machines and ages, which the real one has not.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.hospital.benchmarks.covidx import covid, pneumonia
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.render import lung_fields, render
from data_pipelines.hospital.writer import Settings

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes one film and its mask; the row tells the class."""
    rng = stream(settings.seed, "covid_radiography", number)
    body = draw_body(rng)
    name = CLASSES[number % 4]
    hard = settings.difficulty
    findings = {
        "COVID": lambda: covid(rng, hard),
        "Lung_Opacity": lambda: (draw_finding(rng, "Lung Opacity", hard),),
        "Normal": tuple,
        "Viral Pneumonia": lambda: pneumonia(rng, hard),
    }[name]()
    view, seed = rng.choice(("PA", "AP")), rng.getrandbits(31)
    film = render(body, findings, view, settings.size, seed, hard).pixels_HxW
    fields = lung_fields(body, view, settings.size, seed, hard)
    lungs = (fields["left"] | fields["right"]).astype(np.uint8) * 255
    file = f"{name}-{number // 4 + 1}.png"
    for kind, pixels, side in (
        ("images", film, settings.size),
        ("masks", lungs, round(settings.size * 256 / 299)),
    ):
        path = folder / "COVID-19_Radiography_Dataset" / name / kind / file
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = "RGB" if rng.random() < 0.1 or kind == "masks" else "L"
        square = _middle(pixels).resize((side, side)).convert(colour)
        square.save(path)
    return {"films": [{"file": f"{name}/{file}", "class": name}]}


def _middle(pixels_HxW: np.ndarray) -> Image.Image:
    """The square in the middle of a film."""
    height, width = pixels_HxW.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return Image.fromarray(pixels_HxW[top : top + side, left : left + side])


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the README and a stray file; the set has no table of labels."""
    del settings
    if rows:
        root = folder / "COVID-19_Radiography_Dataset"
        (root / "README.md.txt").write_text("Simulated films.\n", "utf-8")
        (root / "COVID" / "images" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
