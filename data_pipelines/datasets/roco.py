"""ROCO and ROCOv2: figures of open articles in PubMed Central, and their captions.

ROCO (razorx89/roco-dataset): `--raw` is the repository or its `data/`, with
`{train,validation,test}/radiology/captions.txt` and `licences.txt`. Images are not part of
it: `scripts/fetch.py` gets them into `images/ROCO_00020.jpg`; copies named by their article
(`PMC3160360_1749-7922-6-23-1.jpg`) are found by licences.txt. Archives move: the caption of a
figure that is not there is kept as a text, and its film is rejected. Where more than one of
a hundred is gone, `--max-rejected-percent 20` goes on; a folder without any image gives
texts alone. `--roco-all` adds the figures of `non-radiology/`.

ROCOv2 (Zenodo): `--raw` holds `{train,valid,test}_captions.csv` (ID, Caption), the images in
any folder, and `license_information.csv` (ID, PMCID, Attribution), if there.

All modalities are in it, X-ray being one of many, and nothing tells which: views are OTHER,
films have no labels, and the 14 codes that captions get are those of words, of whatever part
of the body. Captions are reports without sections. Keywords and concepts are not stored.

The split is the published one, which is of figures: an article may be on both sides, and
with it a patient. A patient here is an article, and in each split another; a note tells how
many articles that are. The two releases share articles: prepare them apart, and never judge
by the test split of one what was trained on the other. Each figure has a licence of its own.

Reference: Pelka et al. 2018, LABELS at MICCAI; Rueckert et al. 2024, arXiv 2405.10004.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.film_files import find_films
from data_pipelines.plan import UNLABELLED, FilmPlan, ReportPlan, Scan
from data_pipelines.reports.sections import parse_sections
from data_pipelines.tables import need_columns, numbered_rows, split_of
from medclip_jax.errors import UserError

FIRST_SPLITS = ("train", "validation", "test")
SECOND_SPLITS = ("train", "valid", "test")
CREDIT = "ROCO, Pelka et al. 2018"
CREDIT_2 = "ROCOv2, Rueckert et al. 2024"


@dataclasses.dataclass(frozen=True)
class _Figure:
    """One line of a list of captions."""

    where: str  # list and line number
    image: str  # its id
    caption: str = dataclasses.field(repr=False)
    split: str = ""
    path: str = ""  # below the raw folder, "" where it is not there
    article: str = ""
    license: str = ""
    expected: bool = True  # other images of its folder are there


class Roco(StudyBuilder):
    """TFDS builder for both releases of ROCO."""

    DESCRIPTION = "Figures of all modalities from open articles, with their captions."
    NOTICE = "Made from ROCO: each figure has the licence of its article."
    HOMEPAGE = "https://github.com/razorx89/roco-dataset"
    CITATION = (
        "@inproceedings{pelka2018radiology, title={Radiology Objects in COntext (ROCO): "
        "A Multimodal Image Dataset}, author={Pelka, Obioma and others}, "
        "booktitle={LABELS, MICCAI}, year={2018}}"
    )

    @staticmethod
    def add_arguments(parser) -> None:
        parser.add_argument(
            "--roco-all",
            action="store_true",
            help="of ROCO's first release also the figures that are no radiology",
        )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the lists of one release.

        Raises:
          UserError: no list, lists of both, or a list that cannot be read.
        """
        made = Scan()
        root = raw / "data" if (raw / "data" / "train").is_dir() else raw
        first = any((root / s / "radiology").is_dir() for s in FIRST_SPLITS)
        second = any((raw / f"{s}_captions.csv").is_file() for s in SECOND_SPLITS)
        if first == second:
            raise UserError(
                f"expected train/radiology/captions.txt (ROCO) or train_captions.csv "
                f"(ROCOv2) in {raw}, found {'both' if first else 'neither'}; the two "
                "share articles: prepare each from a folder of its own"
            )
        if first:
            kinds = (
                ("radiology", "non-radiology") if options.roco_all else ("radiology",)
            )
            figures = list(_first(made, raw, root, kinds))
        else:
            figures = list(_second(made, raw))
        splits = collections.defaultdict(set)
        for figure in figures:
            splits[figure.article].add(figure.split)
        for figure in figures:
            _add(made, figure, splits[figure.article], CREDIT if first else CREDIT_2)
        shared = sum(len(found) > 1 for article, found in splits.items() if article)
        made.notes.append(
            f"{shared:,} of {len(splits):,} articles are in more than one split: the "
            "published split is of figures"
        )
        return made


def _first(
    made: Scan, raw: Path, root: Path, kinds: tuple[str, ...]
) -> Iterator[_Figure]:
    """The figures of ROCO's first release."""
    for split in FIRST_SPLITS:
        for kind in kinds:
            home = root / split / kind
            folder = (home / "images").relative_to(raw).as_posix()
            images = find_films(raw, ".jpg", folder)
            if not images:
                made.notes.append(f"no image in {folder}: captions only")
            licences = _licences(made, home / "licences.txt")
            for number, line in enumerate(_text(home / "captions.txt").split("\n"), 1):
                where = f"{split}/{kind}/captions.txt, line {number}"
                image, tab, caption = line.partition("\t")
                if not line.strip():
                    continue
                if not tab or not re.fullmatch(r"ROCO_\d+", image):
                    detail = f"{where}: expected an id such as ROCO_00020, a tab and a "
                    detail += f"caption; found {image[:20]!r}"
                    made.reject(rejected.BAD_VALUE, image[:20], "", detail)
                    continue
                name, license = licences.get(image, ("", ""))
                path = images.get(image) or images.get(name.removesuffix(".jpg"), "")
                article = name.partition("_")[0]
                to, some = split_of(split) or "", bool(images)
                yield _Figure(where, image, caption, to, path, article, license, some)


def _licences(made: Scan, path: Path) -> dict[str, tuple[str, str]]:
    """Id -> (file name at the article's, licence)."""
    if not path.is_file():
        made.notes.append(f"no {path}: neither licences nor articles are known")
        return {}
    rows = [row for _, row in numbered_rows(path)]
    need_columns(path, rows, ["ROCO_ID", "PMC_ID", "CC"])
    return {row["ROCO_ID"]: (row["PMC_ID"], row["CC"]) for row in rows}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}); expected UTF-8 text, a "
            "figure a line"
        ) from None


def _second(made: Scan, raw: Path) -> Iterator[_Figure]:
    """The figures of ROCOv2."""
    images = find_films(raw, ".jpg")
    if not images:
        made.notes.append("no image below the raw folder: captions only")
    about: dict[str, dict[str, str]] = {}
    path = raw / "license_information.csv"
    if path.is_file():
        rows = [row for _, row in numbered_rows(path)]
        need_columns(path, rows, ["ID", "PMCID", "Attribution"])
        about = {row["ID"]: row for row in rows}
    else:
        made.notes.append(f"no {path.name}: neither licences nor articles are known")
    for split in SECOND_SPLITS:
        path = raw / f"{split}_captions.csv"
        numbered = numbered_rows(path)
        need_columns(path, [row for _, row in numbered], ["ID", "Caption"])
        for number, row in numbered:
            where, image = f"{path.name}, line {number}", row["ID"]
            if not re.fullmatch(r"[\w.-]+", image):
                detail = f"{where}: expected an id such as ROCOv2_2023_train_000001"
                made.reject(rejected.BAD_VALUE, image[:40], "", detail)
                continue
            told = about.get(image, {})
            yield _Figure(
                where,
                image,
                row["Caption"],
                split_of(split) or "",
                images.get(image, ""),
                told.get("PMCID", ""),
                told.get("Attribution", ""),
                bool(images),
            )


def _add(made: Scan, figure: _Figure, splits: set[str], credit: str) -> None:
    patient = figure.article or figure.image
    if figure.article and len(splits) > 1:
        patient = f"{figure.article}/{figure.split}"
    shared: dict[str, Any] = {
        "patient_id": patient,
        "study_id": figure.image,
        "split": figure.split,
        "license": figure.license,
        "credit": f"{credit}; {figure.article}" if figure.article else credit,
    }
    caption = re.sub(r"\s+", " ", figure.caption).strip()
    if re.search(r"[^\W\d_]", caption):
        if list(parse_sections(caption)) != ["full report"]:
            # "MRI: a mass" would be read as a heading of no finding.
            caption = f"FINDINGS: {caption}"
        made.reports.append(ReportPlan(text=caption, **shared))
    else:
        made.warn("figure without caption", figure.image, "", figure.where)
    if figure.path:
        made.films.append(
            FilmPlan(
                image_id=figure.image,
                path=figure.path,
                view="OTHER",
                labels=UNLABELLED,
                **shared,
            )
        )
    elif figure.expected:
        detail = f"{figure.where}: no such JPEG; its caption is kept as a text"
        made.reject(rejected.MISSING_FILE, figure.image, "", detail)
