"""VinDr-CXR in PhysioNet's layout: three readers who differ, DICOM files of many kinds.

A reader misses a finding now and then, but two of three see the first. Boxes are the truth's,
a little off for each reader. The test set has the truth as its consensus. Films are 8 to 16
bits, MONOCHROME1 or 2, plain or compressed. The hospital draws half of the 28 labels, by the names
in DRAWN; the others are 0 everywhere.
"""

import itertools
import random
from pathlib import Path

import numpy as np

from data_pipelines.datasets.vindr_cxr import CORNERS, LABELS, NO_FINDING
from data_pipelines.hospital import layouts, truth
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.hospital.render import render
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import carve_validate

DRAWN: dict[str, tuple[str, str]] = {
    "Aortic enlargement": ("Enlarged Cardiomediastinum", ""),
    "Atelectasis": ("Atelectasis", ""),
    "Cardiomegaly": ("Cardiomegaly", ""),
    "Clavicle fracture": ("Fracture", "clavicle"),
    "Consolidation": ("Consolidation", ""),
    "Edema": ("Edema", ""),
    "ILD": ("Lung Opacity", "interstitial"),
    "Lung Opacity": ("Lung Opacity", "patchy"),
    "Nodule/Mass": ("Lung Lesion", ""),
    "Pleural effusion": ("Pleural Effusion", ""),
    "Pleural thickening": ("Pleural Other", "thickening"),
    "Pneumonia": ("Pneumonia", ""),
    "Pneumothorax": ("Pneumothorax", ""),
    "Rib fracture": ("Fracture", "rib"),
}
GLOBAL = ("Edema", "Pneumonia")
"""Without a box: of the whole film, or too spread to be drawn around."""

SPLITS = ("train", "test", "validate")
KINDS: tuple[tuple[int, bool, str], ...] = (
    (12, False, ""),
    (14, True, ""),
    (8, False, "jpeg"),
    (12, True, "jpeg2000"),
    (16, False, "rle"),
)
"""Bits, whether MONOCHROME1, compression."""

READERS = tuple(f"R{number}" for number in range(1, 18))
SEEN = 0.8


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes a film; rows tell each reader's labels and boxes."""
    rng = stream(settings.seed, "vindr_cxr", number)
    body = draw_body(rng)
    split = SPLITS[number % 3]
    image = next(
        id
        for _ in itertools.count()
        if (carve_validate(id := f"{rng.getrandbits(128):032x}") == "validate")
        == (split == "validate")
    )
    choices = [*DRAWN, NO_FINDING]
    first = choices[number // 3 % len(choices)]
    names = [first]
    if first != NO_FINDING and rng.random() < 0.5:
        names += [n for n in rng.sample(list(DRAWN), 2) if n != first][:1]
    sick = [name for name in names if name != NO_FINDING]
    findings = tuple(draw_finding(rng, *_drawn(name, settings)) for name in sick)
    seed = rng.getrandbits(31)
    film = render(body, findings, "PA", settings.size, seed, settings.difficulty)
    home = folder / ("test" if split == "test" else "train")
    home.mkdir(exist_ok=True)
    bits, inverted, compression = KINDS[number % len(KINDS)]
    told = rng.random() < 0.5
    (home / f"{image}.dicom").write_bytes(
        dicom(
            film.pixels_HxW,
            image,
            bits=bits,
            inverted=inverted,
            compression=compression,
            PatientAge=f"{body.age:03d}Y" if told else "000Y",
            PatientSex=body.sex if told else "O",
        )
    )
    boxes = {
        name: truth.boxes_of(film.masks[at], findings[at], "PA")
        for at, name in enumerate(sick)
        if name not in GLOBAL and at in film.masks
    }
    readers = [""] if split == "test" else rng.sample(READERS, 3)
    reads = []
    for at, reader in enumerate(readers):
        seen = [n for n in names if n == first and at < 2 or rng.random() < SEEN]
        seen = names if split == "test" else seen or [NO_FINDING]
        corners = [
            [name, *_off(rng, box, film.pixels_HxW.shape, 0 if split == "test" else 1)]
            for name in seen
            for box in boxes.get(name, ())
        ]
        reads.append({"reader": reader, "labels": seen, "boxes": corners})
    rng.shuffle(reads)
    row = {"image": image, "split": split, "truth": names, "reads": reads}
    header = {"age": body.age if told else -1, "sex": body.sex if told else ""}
    return {"films": [row | header | {"bits": bits, "inverted": inverted}]}


def _drawn(name: str, settings: Settings) -> tuple[str, float, str]:
    finding, kind = DRAWN[name]
    return finding, settings.difficulty, kind


def _off(
    rng: random.Random, box: tuple[int, ...], shape: tuple[int, ...], far: int
) -> list[float]:
    """Corners of a box as one reader draws them, within the film."""
    x, y, w, h = box
    corners = [v + rng.uniform(-far, far) / 2 for v in (x, y, x + w, y + h)]
    height, width = shape
    found = np.clip(corners, 0, [width, height, width, height])
    return [round(float(value), 2) for value in found]


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the four tables, with the odd headers of the real ones."""
    del settings
    for split in ("train", "test"):
        films = [
            r
            for r in rows.get("films", ())
            if (r["split"] == "test") == (split == "test")
        ]
        if not films:
            continue
        other = "Other diseases" if split == "train" else "Other disease"
        reader = ["rad_ID"] if split == "train" else []
        labels, boxes = [], []
        for film in films:
            for read in film["reads"]:
                who = {"image_id": film["image"]} | dict.fromkeys(
                    reader, read["reader"]
                )
                votes = {name: str(int(name in read["labels"])) for name in LABELS}
                votes[other] = votes.pop("Other diseases")
                labels.append(who | votes)
                who = {"image_id": film["image"], "rad_id": read["reader"]}
                for name, *corners in read["boxes"]:
                    cells = dict(zip(CORNERS, map(str, corners), strict=True))
                    boxes.append({**who, "class_name": name, **cells})
                if read["labels"] == [NO_FINDING]:
                    blank = dict.fromkeys(CORNERS, "")
                    boxes.append({**who, "class_name": NO_FINDING, **blank})
        names = [other if name == "Other diseases" else name for name in LABELS]
        home = folder / "annotations"
        layouts.write_csv(
            home / f"image_labels_{split}.csv", ["image_id", *reader, *names], labels
        )
        columns = ["image_id", *(["rad_id"] if reader else []), "class_name", *CORNERS]
        kept = [{column: row[column] for column in columns} for row in boxes]
        layouts.write_csv(home / f"annotations_{split}.csv", columns, kept)
