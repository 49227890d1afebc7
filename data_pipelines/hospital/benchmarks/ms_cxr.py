"""MS-CXR 1.1.0 of the simulated MIMIC-CXR: phrases of its reports, and their boxes.

The films of the 8 categories in the test split and, as in the real set, some of MIMIC's
train split. Frontal films, at most 3 phrases a patient of --benchmarks. The split column
follows patients and not MIMIC-CXR. Boxes are those of the truth; a bilateral finding has
two rows. The JSON lists a film once for each of its categories, as the real one does.
"""

import json
from pathlib import Path

from data_pipelines.datasets.ms_cxr import CATEGORIES, COLUMNS
from data_pipelines.hospital import layouts
from data_pipelines.hospital.course import stream
from data_pipelines.hospital.writer import Settings
from data_pipelines.tables import read_rows

NAME = "MS_CXR_Local_Alignment_v1.1.0"
TRAIN_SHARE = 0.15
PHRASES_A_PATIENT = 3


def write_tables(folder: Path, settings: Settings, root: Path) -> None:
    """Writes the CSV and the JSON from `truth/boxes.csv` below `root`."""
    rng = stream(settings.seed, "ms_cxr")
    most = PHRASES_A_PATIENT * settings.benchmarks
    phrases: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in read_rows(root / "truth" / "boxes.csv"):
        wanted = row["dataset"] == "mimic_cxr" and row["view"] != "LATERAL"
        if wanted and row["phrase"] and row["name"] in CATEGORIES:
            key = (row["image"], row["name"], row["phrase"])
            phrases.setdefault(key, []).append(row)
    chosen: list[list[dict[str, str]]] = []
    for share, splits in ((TRAIN_SHARE, {"train"}), (1.0, {"test"})):
        pool = [rows for rows in phrases.values() if rows[0]["split"] in splits]
        rng.shuffle(pool)
        chosen += pool[: max(1, int(share * most)) - len(chosen)]
    chosen.sort(key=lambda rows: (rows[0]["name"], rows[0]["image"]))
    made = [_row(settings.seed, row) for rows in chosen for row in rows]
    if not made:
        return
    layouts.write_csv(folder / f"{NAME}.csv", [*COLUMNS, "split"], made)
    (folder / f"{NAME}.json").write_text(json.dumps(_coco(made)) + "\n", "utf-8")


def _row(seed: int, box: dict[str, str]) -> dict[str, str]:
    patient, study = box["patient_id"], box["study_id"]
    draw = stream(seed, "ms_cxr", patient, "split").random()
    home = f"files/p{patient[:2]}/p{patient}/s{study}"
    return {
        "dicom_id": box["image"],
        "category_name": box["name"],
        "label_text": box["phrase"],
        "path": f"{home}/{box['image']}.jpg",
        **{name: box[name] for name in (*"xywh", "image_width", "image_height")},
        "split": "train" if draw < 0.7 else ("val" if draw < 0.85 else "test"),
    }


def _coco(rows: list[dict[str, str]]) -> dict:
    """The same rows as the release's COCO file has them."""
    images: dict[tuple[str, str], dict] = {}
    annotations = []
    for number, row in enumerate(rows):
        image = images.setdefault(
            (row["path"], row["category_name"]),
            {
                "file_name": row["path"].rsplit("/", 1)[1],
                "path": row["path"],
                "width": int(row["image_width"]),
                "height": int(row["image_height"]),
                "id": len(images),
            },
        )
        annotations.append(
            {
                "id": number,
                "category_id": CATEGORIES.index(row["category_name"]) + 1,
                "image_id": image["id"],
                "bbox": [float(row[name]) for name in "xywh"],
                "label_text": row["label_text"],
                "split": row["split"],
            }
        )
    return {
        "info": {"description": "simulated"},
        "licenses": [],
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [
            {"id": at, "name": name, "supercategory": "finding"}
            for at, name in enumerate(CATEGORIES, 1)
        ],
    }
