"""SIIM-ACR, stage 1's table and folders: two patients of a number, one with pneumothorax.

The mask is the truth's; as in the real table a film may have several rows, here its upper
and its lower part, which meet. The real films have 1024 x 1024 px; here they are as
rendered. No pneumothorax is ` -1` with a blank, the second column's name begins with one,
and one film more than the table has stands in the folders.
"""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.annotations import run_lengths
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.hospital.render import render
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import split_of_patient

ROOT = "1.2.276.0.7230010.3.1"
OTHERS = ("", "", "Pleural Effusion", "Cardiomegaly", "Lung Opacity", "Pleural Other")
SPLITS = ("train", "train", "train", "validate", "test")
ROWS = (1, 1, 1, 2)


def relative_runs(mask_HxW: np.ndarray) -> str:
    """A mask (bool) in the challenge's form: offset and length, offset and length, ..."""
    runs = run_lengths(mask_HxW)
    return " ".join(map(str, runs[: len(runs) // 2 * 2]))


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes two films; the rows are those of the table, with the masks' sizes."""
    rows = []
    for present in (False, True):
        rng = stream(settings.seed, "siim", number, int(present))
        body = draw_body(rng)
        name = "Pneumothorax" if present else rng.choice(OTHERS)
        view = rng.choice(("PA", "AP"))
        mask, tries = None, 0
        while mask is None and tries < 20:  # a slight one may be in front of nothing
            found = (draw_finding(rng, name, settings.difficulty),) if name else ()
            seed = rng.getrandbits(31)
            film = render(body, found, view, settings.size, seed, settings.difficulty)
            mask = film.masks.get(0) if present else np.zeros((1, 1), bool)
            tries += 1
        image, path = _place(folder, rng, SPLITS[number % len(SPLITS)])
        tags = {"PatientAge": str(body.age), "PatientSex": body.sex}
        path.write_bytes(
            dicom(
                film.pixels_HxW,
                image,
                compression="jpeg" if number % 2 else "jpeg2000",
                SOPInstanceUID=image,
                PatientID=image,
                ViewPosition=view,
                PatientAge=tags["PatientAge"],
                PatientSex=tags["PatientSex"],
            )
        )
        cells = ["-1"]
        if mask is not None and present:
            cells = [relative_runs(part) for part in _parts(mask, rng.choice(ROWS))]
        about = {"ImageId": image, "cells": cells, "view": view, **tags}
        area = int(mask.sum()) if mask is not None else 0
        rows.append({**about, "present": int(cells != ["-1"]), "area": area})
    return {"films": rows}


def _place(folder: Path, rng: random.Random, split: str) -> tuple[str, Path]:
    """An id whose hash gives the split wanted, and where its file goes."""
    for _ in itertools.count():
        a, b, c = (rng.randrange(10**4, 10**5) for _ in range(3))
        image = f"{ROOT}.4.8323329.{a}.1517875{b}.{c}"
        if split_of_patient(image) == split:
            break
    home = (
        folder
        / "dicom-images-train"
        / f"{ROOT}.2.{a}.{b}.{c}"
        / f"{ROOT}.3.{a}.{b}.{c}"
    )
    home.mkdir(parents=True, exist_ok=True)
    return image, home / f"{image}.dcm"


def _parts(mask_HxW: np.ndarray, many: int) -> Sequence[np.ndarray]:
    rows = np.flatnonzero(mask_HxW.any(1))
    if many == 1 or len(rows) < 2:
        return (mask_HxW,)
    upper = mask_HxW.copy()
    upper[int(rows.mean()) + 1 :] = False
    return upper, mask_HxW & ~upper


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the table, and a film that is not in it."""
    lines = ["ImageId, EncodedPixels\n"]
    for row in rows.get("films", ()):
        lines += [f"{row['ImageId']}, {cell}\n" for cell in row["cells"]]
    (folder / "train-rle.csv").write_text("".join(lines), "utf-8")
    rng = stream(settings.seed, "siim", "unlisted")
    film = render(draw_body(rng), (), "PA", settings.size, 0, settings.difficulty)
    image, path = _place(folder, rng, "train")
    path.write_bytes(dicom(film.pixels_HxW, image, SOPInstanceUID=image))
