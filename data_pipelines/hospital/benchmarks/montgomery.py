"""Montgomery: 16-bit films whose name tells tuberculosis, readings, masks of each lung.

The films hold 12 bits in a PNG of 16, with the values of a detector. The masks are of the
healthy lungs of that body: readers outline lungs as if nothing were in them. The real films
are of 4,020 x 4,892 px.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.hospital.benchmarks.shenzhen import tuberculosis
from data_pipelines.hospital.course import draw_body, stream
from data_pipelines.hospital.render import lung_fields, render
from data_pipelines.hospital.writer import Settings

ROOT = "MontgomerySet"
FIRST = {0: 1, 1: 104}  # of the films of each class


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes one film, its reading and masks; the row tells what they say."""
    rng = stream(settings.seed, "montgomery", number)
    body, sick = draw_body(rng), number % 2
    findings = tuberculosis(rng, settings.difficulty) if sick else ()
    seed = rng.getrandbits(31)
    arguments = ("PA", settings.size, seed, settings.difficulty)
    film_HxW = render(body, findings, *arguments).pixels_HxW
    stem = f"MCUCXR_{FIRST[sick] + number // 2:04d}_{sick}"
    for name in ("CXR_png", "ClinicalReadings", "ManualMask/leftMask"):
        (folder / ROOT / name).mkdir(parents=True, exist_ok=True)
    (folder / ROOT / "ManualMask" / "rightMask").mkdir(exist_ok=True)
    deep = Image.fromarray(np.round(film_HxW * (4095 / 255)).astype(np.uint16))
    deep.save(folder / ROOT / "CXR_png" / f"{stem}.png")
    area = 0
    for side, mask_HxW in lung_fields(body, *arguments).items():
        path = folder / ROOT / "ManualMask" / f"{side}Mask" / f"{stem}.png"
        Image.fromarray(mask_HxW).save(path)
        area += int(mask_HxW.sum())
    reading = "upper lobe infiltrates, active TB" if sick else "normal"
    path = folder / ROOT / "ClinicalReadings" / f"{stem}.txt"
    path.write_text(
        f"Patient's Sex: {body.sex}\nPatient's Age: {body.age:03d}Y\n{reading}\n",
        "utf-8",
    )
    row = {"film": stem, "sick": sick, "sex": body.sex, "age": body.age, "lungs": area}
    return {"films": [row]}


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the stray files; the set has no table."""
    del settings
    if rows:
        (folder / ROOT / "NLM-MontgomeryCXRSet-ReadMe.pdf").write_bytes(b"%PDF")
        (folder / ROOT / "ManualMask" / "leftMask" / "Thumbs.db").write_bytes(b"\xd0")
