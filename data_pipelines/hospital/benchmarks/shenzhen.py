"""Shenzhen: films whose name tells tuberculosis, readings in many spellings.

A simulated film of tuberculosis has opacities or a nodule of an upper lobe, at times with
an effusion. There are no cavities, and no children. The real films are of about
3,000 x 3,000 px, many of three channels; here the short side is `size` px.
"""

import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.writer import Settings

ROOT = "ChinaSet_AllFiles"
FIRST = {0: 1, 1: 327}  # of the films of each class
AGES = ("{sex} {age}yrs", "{Sex} , {age}yrs", "{sex}  {age} years", "{Sex},{age}yr")


def tuberculosis(rng: random.Random, difficulty: float) -> tuple[Finding, ...]:
    """What a film of tuberculosis shows."""
    name, kind = rng.choice(
        (("Consolidation", "patchy"), ("Lung Opacity", "patchy"), ("Lung Lesion", ""))
    )
    main = replace(draw_finding(rng, name, difficulty, kind), lobe="upper")
    if rng.random() < 0.7:
        return (main,)
    more = draw_finding(rng, "Pleural Effusion", difficulty, "free")
    return (main, replace(more, side=rng.choice(("left", "right"))))


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes one film and its reading; the row tells what they say."""
    rng = stream(settings.seed, "shenzhen", number)
    body, sick = draw_body(rng), number % 2
    findings = tuberculosis(rng, settings.difficulty) if sick else ()
    seed = rng.getrandbits(31)
    film = render(body, findings, "PA", settings.size, seed, settings.difficulty)
    stem = f"CHNCXR_{FIRST[sick] + number // 2:04d}_{sick}"
    for name in ("CXR_png", "ClinicalReadings"):
        (folder / ROOT / name).mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(film.pixels_HxW).convert(
        "RGB" if rng.random() < 0.5 else "L"
    )
    image.save(folder / ROOT / "CXR_png" / f"{stem}.png")
    word = "male" if body.sex == "M" else "female"
    told = rng.choice(AGES).format(sex=word, Sex=word.title(), age=body.age)
    reading = "PTB of the upper field" if sick else "normal"
    path = folder / ROOT / "ClinicalReadings" / f"{stem}.txt"
    path.write_text(f"{told}\n{reading}\n\n", "utf-8")
    return {"films": [{"film": stem, "sick": sick, "sex": body.sex, "age": body.age}]}


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the stray files; the set has no table."""
    del settings
    if rows:
        (folder / ROOT / "NLM-ChinaCXRSet-ReadMe.docx").write_bytes(b"PK\3\4")
        (folder / ROOT / "CXR_png" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (folder / ROOT / "CXR_png" / "._CHNCXR_0001_0.png").write_bytes(b"\0\5\x16\7")
