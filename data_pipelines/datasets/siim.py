"""SIIM-ACR Pneumothorax Segmentation (Kaggle): pneumothorax or not, and where.

`--raw` is in one of three layouts:

- Stage 2: `stage_2_train.csv`, with the films of stage 1 (`dicom-images-train/`,
  `dicom-images-test/`; any folders below `--raw` do). It is read where stage 1's is there too.
- Stage 1: `train-rle.csv` with `dicom-images-train/STUDY/SERIES/IMAGE.dcm`. The films of
  `dicom-images-test/` and `stage_2_images/` have no labels here and are left out.
- The PNG re-release: `png_images/N_train_1_.png`, `png_masks/` of the same names, and
  `stage_1_train_images.csv`, `stage_1_test_images.csv` (new_filename, ImageId, has_pneumo). The
  digit is 1 for a pneumothorax. Masks are pictures: all of positive films are read.

The tables have a row a mask and name the films by ImageId, in ` EncodedPixels` with a blank
before it or without. ` -1` (stage 1) or `-1` (stage 2) is no pneumothorax: published scripts test
for one of the two and make the other table all positive. All masks of a film are united into
one, which is stored in the frame of the film.

Run lengths are pairs (offset, length). An offset counts from the end of the run before, not
from the first pixel as elsewhere on Kaggle, and pixels are counted down the columns.

    task               labels
    siim_pneumothorax  Pneumothorax, present or not

Published splits are drawn over rows, so that masks of one film are on both sides; those lists
cannot be had by film. Here a patient is in train, validate or test (80/10/10) by a hash: of
the header's PatientID, or of ImageId where it has none, as in the re-release. Both
generations of the table give a film the same split. Age, sex, view and size are in the
headers: reading those of 12,047 films costs under a minute from a local disk. The films are
NIH ChestX-ray14's under other names.

Reference: the challenge's data page and its mask_functions.py; Filice et al. 2020,
doi 10.1007/s10278-019-00299-9.
"""

import collections
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipelines import rejected
from data_pipelines.annotations import Task, encode_mask, mask_of_runs
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.dicom_headers import read_headers
from data_pipelines.datasets.film_files import find_films
from data_pipelines.findings import FINDINGS, NEGATIVE, NOT_GIVEN, POSITIVE
from data_pipelines.plan import FilmPlan, Scan, safe_path, split_of_patient
from data_pipelines.tables import (
    age_of,
    find_table,
    int_of,
    need_columns,
    numbered_rows,
    sex_of,
)
from medclip_jax.errors import UserError

TABLES = ("stage_2_train", "*train-rle")
PNG_TABLES = ("stage_1_train_images", "stage_1_test_images")
HEADER = ("PatientID", "PatientAge", "PatientSex", "ViewPosition", "Rows", "Columns")
NONE = "-1"
TASK = "siim_pneumothorax"
TASKS = {
    TASK: Task("binary", ("Pneumothorax",), about="SIIM-ACR, a film with any mask")
}
LICENSE = "SIIM-ACR Pneumothorax Segmentation: rules of the Kaggle competition"
CREDIT = (
    "SIIM-ACR Pneumothorax Segmentation, Society for Imaging Informatics in Medicine"
)
_PNG_NAME = re.compile(r"\d+_(train|test)_([01])_\.png")


class Siim(StudyBuilder):
    """TFDS builder for SIIM-ACR Pneumothorax Segmentation."""

    DESCRIPTION = "Chest radiographs with outlined pneumothoraces, or with none."
    NOTICE = (
        "Made from SIIM-ACR Pneumothorax Segmentation: see the competition's rules."
    )
    HOMEPAGE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
    CITATION = (
        "@article{filice2020crowdsourcing, title={Crowdsourcing pneumothorax "
        "annotations using machine learning annotations on the NIH chest X-ray dataset}, "
        "author={Filice, Ross W. and others}, journal={Journal of Digital Imaging}, "
        "year={2020}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the table, and the headers (or the masks) of its films.

        Raises:
          UserError: no table, or none of its columns.
        """
        del options
        made = Scan(tasks=TASKS)
        table = next((p for name in TABLES if (p := find_table(raw, name))), None)
        if table:
            _scan_dicom(made, raw, table)
        elif any(find_table(raw, name) for name in PNG_TABLES):
            _scan_png(made, raw)
        else:
            raise UserError(
                f"expected stage_2_train.csv, train-rle.csv or stage_1_train_images.csv "
                f"in {raw}, found none; --raw is the folder with the table"
            )
        return made


def runs_of(cell: str, height: int, width: int) -> list[int]:
    """The run lengths of a cell as `annotations.run_lengths` has them.

    Args:
      cell: "OFFSET LENGTH OFFSET LENGTH ...": each offset from the end of the run before.
      height, width: of the film, pixels.

    Returns:
      Lengths of runs down the columns, the first of zeros: they sum to height * width.

    Raises:
      ValueError: says what was expected and what was found.
    """
    words = cell.split()
    if not words or len(words) % 2 or not all(word.isdecimal() for word in words):
        raise ValueError(
            f"expected {NONE} or pairs of whole numbers, found {len(words)} words that "
            f"begin with {cell[:20]!r}"
        )
    runs = [int(word) for word in words]
    if sum(runs) > height * width:
        raise ValueError(
            f"expected runs within {height} x {width} = {height * width} pixels, found "
            f"{sum(runs)}"
        )
    return [*runs, height * width - sum(runs)]


def _scan_dicom(made: Scan, raw: Path, table: Path) -> None:
    rows = numbered_rows(table)
    need_columns(table, [row for _, row in rows], ["ImageId", "EncodedPixels"])
    cells: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for line, row in rows:
        cells[row["ImageId"]].append((line, row["EncodedPixels"]))
    files = find_films(raw, ".dcm")
    if unlisted := len(files.keys() - cells.keys()):
        made.notes.append(f"{unlisted:,} films are not in {table.name}: left out")
    found = []
    for image_id in sorted(cells):
        if image_id not in files:
            detail = f"{table.name}, line {cells[image_id][0][0]}: no file of this name"
            made.reject(rejected.MISSING_FILE, image_id, f"{image_id}.dcm", detail)
        elif safe_path(raw, files[image_id]) is None:
            made.reject(rejected.OUTSIDE, image_id, files[image_id])
        else:
            found.append(image_id)
    headers = read_headers([raw / files[image_id] for image_id in found], HEADER)
    for image_id, header in zip(found, headers, strict=True):
        header = header or {}
        size = int_of(header.get("Rows", "")), int_of(header.get("Columns", ""))
        try:
            mask = _united(cells[image_id], *size)
        except ValueError as error:
            detail = f"{table.name}, {error}"
            made.reject(rejected.BAD_VALUE, image_id, files[image_id], detail)
            continue
        _film(made, image_id, files[image_id], mask, header)


def _united(cells: list[tuple[int, str]], height: int, width: int) -> np.ndarray | None:
    """The union of a film's masks; None for no pneumothorax.

    A film whose size is not known cannot be read: its mask is all False, and conversion
    rejects it.
    """
    masked = [(line, cell) for line, cell in cells if cell != NONE]
    if masked and len(masked) < len(cells):
        lines = ", ".join(str(line) for line, _ in cells)
        raise ValueError(f"lines {lines}: expected masks or {NONE}, found both")
    if not masked:
        return None
    mask_HxW = np.zeros((height, width), bool)
    for line, cell in masked if height and width else ():
        try:
            runs = runs_of(cell, height, width)
        except ValueError as error:
            raise ValueError(f"line {line}, EncodedPixels: {error}") from None
        mask_HxW |= mask_of_runs(runs, height, width)
    return mask_HxW


def _scan_png(made: Scan, raw: Path) -> None:
    made.notes.append("the PNG re-release: no age, sex, view or patient is known")
    tables = [table for name in PNG_TABLES if (table := find_table(raw, name))]
    lines = []
    for table in tables:
        rows = numbered_rows(table)
        need_columns(table, [r for _, r in rows], ["new_filename", "ImageId"])
        lines += [(f"{table.name}, line {line}", row) for line, row in rows]
    for where, row in tqdm(lines, "  masks", unit=" films", mininterval=1):
        name, image_id = row["new_filename"], row["ImageId"]
        path = f"png_images/{name}"
        match = _PNG_NAME.fullmatch(name)
        told = row.get("has_pneumo", "")
        if not match or not image_id or told not in ("", match.group(2)):
            detail = (
                f"{where}: expected an ImageId and a name such as 12_train_1_.png whose "
                f"digit is has_pneumo, found {name[:40]!r} and {told[:10]!r}"
            )
            made.reject(rejected.BAD_VALUE, image_id or name, path, detail)
            continue
        mask = None
        if match.group(2) == "1":
            try:
                mask = _mask_picture(raw, name)
            except (OSError, ValueError) as error:
                detail = f"{where}: png_masks/{name}: {error}"
                made.reject(rejected.UNREADABLE, image_id, path, detail)
                continue
        _film(made, image_id, path, mask, {})


def _mask_picture(raw: Path, name: str) -> np.ndarray:
    """The mask of a positive film, bool [H, W]; raises OSError or ValueError."""
    try:
        picture = Image.open(io.BytesIO((raw / "png_masks" / name).read_bytes()))
        mask_HxW = np.asarray(picture.convert("L")) > 127
    except (OSError, SyntaxError) as error:  # Pillow: SyntaxError for a damaged PNG
        raise OSError(f"expected a picture, found {type(error).__name__}") from None
    with Image.open(raw / "png_images" / name) as film:
        size = film.height, film.width
    if mask_HxW.shape != size:
        raise ValueError(f"expected the film's size {size}, found {mask_HxW.shape}")
    if not mask_HxW.any():
        raise ValueError("expected a mask of a pneumothorax, found an empty one")
    return mask_HxW


def _film(
    made: Scan,
    image_id: str,
    path: str,
    mask_HxW: np.ndarray | None,
    header: dict[str, str],
) -> None:
    patient = header.get("PatientID", "") or image_id
    view = header.get("ViewPosition", "").upper()
    present = mask_HxW is not None
    codes = {"Pneumothorax": POSITIVE if present else NEGATIVE}
    if present:
        codes["No Finding"] = NEGATIVE
    positive = ["Pneumothorax"] if present else []
    made.annotate("classes", task=TASK, image_id=image_id, positive=positive)
    made.films.append(
        FilmPlan(
            image_id=image_id,
            patient_id=patient,
            study_id=image_id,
            split=split_of_patient(patient),
            path=path,
            view=view if view in ("AP", "PA") else "UNKNOWN",
            sex=sex_of(header.get("PatientSex", "")),
            age=age_of(header.get("PatientAge", "")),
            labels=tuple(codes.get(name, NOT_GIVEN) for name in FINDINGS),
            label_source="columns",
            masks=() if mask_HxW is None else (encode_mask(mask_HxW),),
            license=LICENSE,
            credit=CREDIT,
        )
    )
