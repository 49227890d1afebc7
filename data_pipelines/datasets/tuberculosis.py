"""The tuberculosis sets of Shenzhen and Montgomery County, of the NLM.

    shenzhen    ChinaSet_AllFiles/  CXR_png/CHNCXR_0001_0.png  326 normal, 336 with TB
    montgomery  MontgomerySet/      CXR_png/MCUCXR_0001_0.png   80 normal,  58 with TB

`--raw` is that folder or the one above it. The label is the last digit of a film's name and
nothing else: task `tb`, label Tuberculosis. Normal gives the finding No Finding;
tuberculosis none, since no film tells which of its signs it shows. All films are PA, one a
patient, and a note tells where there are fewer or more than were published.

`ClinicalReadings/*.txt` tell sex and age, in many spellings. What else they say is a few
words that name the diagnosis; it is not stored as a report. Montgomery's films have lungs
outlined by hand, `ManualMask/leftMask` and `rightMask`: their union is the film's one mask.
It shows lungs and no finding. Shenzhen's masks are others' work, and are not read.

There is no published split: each class is cut 70/10/20 by a hash of the names. The sets are
very small, and each has one kind of machine: never take the normal films of one and those
with tuberculosis of the other.

Reference: Jaeger et al. 2014, Quantitative Imaging in Medicine and Surgery 4(6):475-477.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from data_pipelines import rejected
from data_pipelines.annotations import Task, encode_mask
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.film_files import find_films
from data_pipelines.findings import NO_FINDING, POSITIVE
from data_pipelines.plan import UNLABELLED, FilmPlan, Scan, stratified_splits
from medclip_jax.errors import UserError

TASK = "tb"
FOLDER, READINGS, MASKS = "CXR_png", "ClinicalReadings", "ManualMask"
LABELS = {"0": UNLABELLED[:NO_FINDING] + (POSITIVE,) + UNLABELLED[NO_FINDING + 1 :]}
CREDIT = "U.S. National Library of Medicine; Jaeger et al. 2014"
_NAME = re.compile(r"(CHNCXR|MCUCXR)_\d{4}_([01])")
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*-?\s*(y|mo|d)", re.IGNORECASE)
_YEARS = {"y": 1.0, "mo": 1 / 12, "d": 1 / 365.25}


class _Tuberculosis(StudyBuilder):
    """What both sets share."""

    ROOT: ClassVar[str] = ""
    PREFIX: ClassVar[str] = ""
    PUBLISHED: ClassVar[tuple[int, int]] = (0, 0)
    """Normal films, and those with tuberculosis."""

    HOMEPAGE = "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html"
    CITATION = (
        "@article{jaeger2014two, title={Two public chest X-ray datasets for "
        "computer-aided screening of pulmonary diseases}, author={Jaeger, Stefan and "
        "others}, journal={Quantitative Imaging in Medicine and Surgery}, year={2014}}"
    )

    @classmethod
    def scan(cls, raw: Path, options: Any) -> Scan:  # type: ignore[override]
        """Reads file names, readings and masks.

        Raises:
          UserError: there is no film of the set.
        """
        del options
        root = raw / cls.ROOT if (raw / cls.ROOT).is_dir() else raw
        made = Scan()
        made.tasks[TASK] = Task(
            "binary", ("Tuberculosis",), about="last digit of a name"
        )
        below = root.relative_to(raw).as_posix()
        folder = FOLDER if below == "." else f"{below}/{FOLDER}"
        films: dict[str, str] = {}
        for stem, path in sorted(find_films(raw, ".png", folder).items()):
            match = _NAME.fullmatch(stem)
            if match is None:
                detail = f"expected a name such as {cls.PREFIX}_0001_0.png, whose last "
                detail += "digit is 0 (normal) or 1 (tuberculosis)"
                made.reject(rejected.BAD_VALUE, stem, path, detail)
            elif match.group(1) == cls.PREFIX:  # some copies hold both sets
                films[stem] = path
        if not films:
            raise UserError(
                f"expected {FOLDER}/{cls.PREFIX}_0001_0.png and so on in {root}, found "
                f"no such film; --raw is {cls.ROOT}/ or the folder above it"
            )
        classes = {digit: [s for s in films if s[-1] == digit] for digit in "01"}
        found = tuple(len(stems) for stems in classes.values())
        if found != cls.PUBLISHED:
            made.notes.append(
                f"{found[0]} normal films and {found[1]} with tuberculosis, published "
                f"were {cls.PUBLISHED[0]} and {cls.PUBLISHED[1]}"
            )
        if not (root / READINGS).is_dir():
            made.notes.append(f"no folder {READINGS}: sex and age are not known")
        splits = stratified_splits(classes)
        for stem, path in films.items():
            made.films.append(_film(made, root, stem, path, splits[stem]))
            positive = ["Tuberculosis"] if stem[-1] == "1" else []
            made.annotate("classes", task=TASK, image_id=stem, positive=positive)
        return made


class Shenzhen(_Tuberculosis):
    """TFDS builder for the Shenzhen set."""

    ROOT, PREFIX, PUBLISHED = "ChinaSet_AllFiles", "CHNCXR", (326, 336)
    DESCRIPTION = (
        "Chest radiographs of Shenzhen Hospital No. 3, tuberculosis or normal."
    )
    NOTICE = "Made from the NLM's Shenzhen set: cite Jaeger et al. 2014."


class Montgomery(_Tuberculosis):
    """TFDS builder for the Montgomery County set."""

    ROOT, PREFIX, PUBLISHED = "MontgomerySet", "MCUCXR", (80, 58)
    DESCRIPTION = "Chest radiographs of Montgomery County, tuberculosis or normal."
    NOTICE = "Made from the NLM's Montgomery County set: cite Jaeger et al. 2014."


def sex_and_age(text: str) -> tuple[str, float]:
    """Reads the first words of a clinical reading.

    Args:
      text: "male 45yrs", "Female , 8 months", or "Patient's Sex: F" and, in the next
        line, "Patient's Age: 027Y".

    Returns:
      "M", "F" or ""; years, -1 where they are not told or not believable.
    """
    named = re.search(r"Sex:\s*([MF])|\b(f|m)(?:e?m?ale?)\b", text, re.IGNORECASE)
    sex = (named.group(1) or named.group(2)).upper() if named else ""
    told = _AGE.search(text)
    age = float(told.group(1)) * _YEARS[told.group(2).lower()] if told else -1.0
    return sex, age if age <= 120 else -1.0


def _film(made: Scan, root: Path, stem: str, path: str, split: str) -> FilmPlan:
    sex, age = "", -1.0
    if (root / READINGS).is_dir():
        reading = root / READINGS / f"{stem}.txt"
        try:
            sex, age = sex_and_age(reading.read_text("utf-8", errors="replace"))
        except OSError:
            made.warn("no clinical reading", stem, f"{READINGS}/{stem}.txt")
        if reading.is_file() and not (sex and age >= 0):
            detail = "expected sex and age, such as `male 45yrs`"
            made.warn("reading not understood", stem, f"{READINGS}/{stem}.txt", detail)
    return FilmPlan(
        image_id=stem,
        patient_id=stem,
        study_id=stem,
        split=split,
        path=path,
        view="PA",
        sex=sex,
        age=age,
        labels=LABELS.get(stem[-1], UNLABELLED),
        label_source="label_map" if stem[-1] in LABELS else "none",
        masks=_masks(made, root, stem),
        credit=CREDIT,
    )


def _masks(made: Scan, root: Path, stem: str) -> tuple[str, ...]:
    """Both lungs as one mask, in a tuple that is empty where they were not outlined."""
    if not (root / MASKS).is_dir():
        return ()
    lungs_HxW: np.ndarray | None = None
    for side in ("leftMask", "rightMask"):
        place = f"{MASKS}/{side}/{stem}.png"
        try:
            with (
                Image.open(root / place) as image,
                Image.open(root / FOLDER / f"{stem}.png") as film,
            ):
                size = film.size
                mask_HxW = np.asarray(image.convert("L")) > 0
        except (OSError, SyntaxError) as error:
            detail = f"expected a mask and a film ({type(error).__name__})"
            made.warn("no lung mask", stem, place, detail)
            return ()
        if mask_HxW.shape[::-1] != size:
            height, width = mask_HxW.shape
            detail = f"expected the film's {size[0]} x {size[1]} pixels, found "
            made.warn("no lung mask", stem, place, f"{detail}{width} x {height}")
            return ()
        lungs_HxW = mask_HxW if lungs_HxW is None else lungs_HxW | mask_HxW
    assert lungs_HxW is not None
    return (encode_mask(lungs_HxW),)
