"""MS-CXR: phrases of reports and the boxes of what they tell, on films of MIMIC-CXR-JPG.

`--raw` is the folder of the release, or one above it:

    MS_CXR_Local_Alignment_v1.0.0.csv (release 0.1) or _v1.1.0.csv (release 1.1.0)
                  dicom_id, category_name, label_text, path, x, y, w, h, image_width,
                  image_height; from 1.1.0 on also split
    or the .json of the same name (COCO), read where there is no .csv

The newest version is read. It has no films: the side table `phrases` names those of
mimic_cxr by their dicom_id, and patients as mimic_cxr does. A row is a box; rows of one
film, category and text are one phrase with several boxes, whose union is what it tells.
Boxes are x, y, width, height in pixels of the original film; the JSON's are cut to whole
pixels, as the release's own converter to CSV does. A box that does not lie in its film is
rejected and the phrase keeps its other boxes. Figures are the mean over the 8 categories.

`split` is that of release 1.1.0 (train, validate, test; "" in the older one). It is not
that of MIMIC-CXR-JPG: films of MS-CXR are in MIMIC's train split. Train on mimic_cxr
prepared with `--hold-out MS_CXR_Local_Alignment_v1.1.0.csv`.

Reference: https://physionet.org/content/ms-cxr/1.1.0/ (convert_coco_json_to_csv.py of
release 0.1); Boecking et al., ECCV 2022, arXiv 2204.09817.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.plan import Scan
from data_pipelines.tables import need_columns, numbered_rows, split_of
from medclip_jax.errors import UserError

CATEGORIES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
COLUMNS = [
    "dicom_id",
    "category_name",
    "label_text",
    "path",
    *"xywh",
    "image_width",
    "image_height",
]
NOTICE = (
    "Made from annotations of MIMIC-CXR (PhysioNet Credentialed Health Data License): "
    "share neither the data nor what can give it back with anyone without a licence."
)
_NAMED = {name.casefold(): name for name in CATEGORIES}
_PATH = re.compile(r"(?:.*/)?p\d\d/(p\d{8})/s\d{8}/([0-9a-f-]+)(?:\.\w+)?")


class MsCxr(StudyBuilder):
    """TFDS builder for MS-CXR."""

    DESCRIPTION = "Phrases with boxes on films of MIMIC-CXR-JPG, 8 categories."
    NOTICE = NOTICE
    HOMEPAGE = "https://physionet.org/content/ms-cxr/"
    CITATION = (
        "@inproceedings{boecking2022making, title={Making the most of text semantics "
        "to improve biomedical vision-language processing}, author={Boecking, Benedikt "
        "and others}, booktitle={ECCV}, year={2022}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the newest table.

        Raises:
          UserError: no table, a table without its columns, a JSON that is not COCO.
        """
        del options
        path = find_file(raw, "MS_CXR_Local_Alignment_v*.csv") or find_file(
            raw, "MS_CXR_Local_Alignment_v*.json"
        )
        if path is None:
            raise UserError(
                f"expected MS_CXR_Local_Alignment_v1.1.0.csv (or .json, or v1.0.0) in "
                f"{raw} or a folder below it, found none"
            )
        made = Scan(notes=[f"read {path.name}"])
        rows = _coco_rows(path) if path.suffix == ".json" else _csv_rows(path)
        phrases: dict[tuple[str, str, str], dict] = {}
        for place, row in rows:
            try:
                key, phrase, box = _read(row)
                known = phrases.setdefault(key, phrase)
                if {**known, "boxes": []} != phrase:
                    raise ValueError("patient, size or split differ from the phrase's")
                if box in known["boxes"]:
                    raise ValueError("the same box of the same phrase again")
            except ValueError as error:
                detail = f"{place}: {error}"
                made.reject(rejected.BAD_VALUE, row["dicom_id"], path.name, detail)
                continue
            known["boxes"].append(box)
        for number, (key, phrase) in enumerate(sorted(phrases.items())):
            phrase["boxes"].sort()
            made.annotate(
                "phrases", phrase_id=f"{number:05d}", category=key[1], **phrase
            )
        return made


def find_file(raw: Path, pattern: str) -> Path | None:
    """The last by name of the files that match, in the raw folder or one below."""
    found = [*raw.glob(pattern), *raw.glob(f"*/{pattern}")]
    return max(found, key=lambda path: (path.name, str(path)), default=None)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    rows = numbered_rows(path)
    need_columns(path, [row for _, row in rows], COLUMNS)
    for line, row in rows:
        yield f"line {line}", row


def _coco_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The annotations as rows of the CSV."""
    try:
        coco = json.loads(path.read_text("utf-8-sig"))
        images = {image["id"]: image for image in coco["images"]}
        names = {category["id"]: category["name"] for category in coco["categories"]}
        annotations = list(coco["annotations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a COCO file with images, categories and annotations, "
            f"found none ({type(error).__name__})"
        ) from None
    for number, annotation in enumerate(annotations, 1):
        image = images.get(annotation.get("image_id"), {})
        text = annotation.get("label_text", "")
        cells: dict[str, Any] = {
            "dicom_id": Path(str(image.get("path", "(no image)"))).stem,
            "category_name": names.get(annotation.get("category_id"), ""),
            "label_text": " ".join(text) if isinstance(text, list) else text,
            "path": image.get("path", ""),
            "image_width": image.get("width", ""),
            "image_height": image.get("height", ""),
            "split": annotation.get("split", image.get("split", "")),
        }
        box = annotation.get("bbox", [])
        cells |= dict(zip("xywh", box if len(box) == 4 else [""] * 4))
        yield f"annotation {number}", {key: str(cell) for key, cell in cells.items()}


def _read(row: dict[str, str]) -> tuple[tuple[str, str, str], dict, list[float]]:
    """(film, category, text), the phrase without its boxes, and a box.

    Raises:
      ValueError: names the column, what was expected and what was found.
    """
    match = _PATH.fullmatch(row["path"])
    if not match or match.group(2) != row["dicom_id"]:
        raise ValueError("path: expected files/pNN/pSUBJECT/sSTUDY/DICOM_ID.jpg")
    category = _NAMED.get(row["category_name"].casefold())
    if category is None:
        raise ValueError(f"category_name is {row['category_name'][:30]!r}")
    text = row["label_text"].strip()
    if not text:
        raise ValueError("label_text is blank")
    split = split_of(row.get("split", "")) if row.get("split") else ""
    if split is None:
        raise ValueError(f"split is {row['split'][:20]!r}")
    names = (*"xywh", "image_width", "image_height")
    try:
        x, y, w, h, width, height = (int(float(row[name])) for name in names)
    except (ValueError, OverflowError):
        raise ValueError(f"{', '.join(names)}: expected six numbers") from None
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise ValueError(
            f"x, y, w, h = {x}, {y}, {w}, {h}: not in a film of {width} x {height}"
        )
    phrase: dict[str, Any] = {
        "image_id": row["dicom_id"],
        "patient_id": match.group(1),
        "text": text,
        "boxes": [],
        "image_width": width,
        "image_height": height,
        "split": split,
    }
    return (row["dicom_id"], category, text), phrase, [x, y, w, h]
