"""NIH ChestX-ray14: patients with follow-ups, the 2017 table with its trailing comma.

The hospital draws no emphysema and no hernia: those labels stay empty. Fibrosis is drawn as
interstitial opacity, Infiltration as a patchy one. The real films have 1024 x 1024 px; here
they are as rendered, and the sizes "before" in the table are others, as in the real one. Some
films are RGBA, one patient of nine has an impossible age, and follow-ups have gaps.
"""

import itertools
from pathlib import Path

from PIL import Image

from data_pipelines.datasets.nih_cxr14 import LABELS
from data_pipelines.hospital import truth
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import carve_validate

DRAWN: dict[str, tuple[str, str]] = {
    "Atelectasis": ("Atelectasis", ""),
    "Cardiomegaly": ("Cardiomegaly", ""),
    "Consolidation": ("Consolidation", ""),
    "Edema": ("Edema", ""),
    "Effusion": ("Pleural Effusion", ""),
    "Fibrosis": ("Lung Opacity", "interstitial"),
    "Infiltration": ("Lung Opacity", "patchy"),
    "Mass": ("Lung Lesion", "mass"),
    "Nodule": ("Lung Lesion", "nodule"),
    "Pleural_Thickening": ("Pleural Other", "thickening"),
    "Pneumonia": ("Pneumonia", ""),
    "Pneumothorax": ("Pneumothorax", ""),
}
BOXED: dict[str, str] = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Effusion",
    "Infiltration": "Infiltrate",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
"""A label -> its name in the table of boxes."""

SPLITS = ("train", "test", "train", "validate")
FILMS = (1, 2, 2, 3)
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes a patient's films; rows tell labels, boxes and the list they are in."""
    rng = stream(settings.seed, "nih_cxr14", number)
    body = draw_body(rng)
    split = SPLITS[number % len(SPLITS)]
    wanted = "validate" if split == "validate" else "train"
    ids = (number + 1 + 10_000 * more for more in itertools.count())
    patient = next(id for id in ids if carve_validate(f"{id:08d}") == wanted)
    age = rng.choice((148, 414)) if number % 9 == 4 else body.age
    choices = [*DRAWN, "No Finding"]
    rows, follow_up = [], 0
    for at in range(rng.choice(FILMS)):
        first = choices[(number // len(SPLITS) + at) % len(choices)]
        labels = {first}
        if first != "No Finding" and rng.random() < 0.4:
            labels.add(rng.choice(list(DRAWN)))
        findings = tuple(
            draw_finding(rng, DRAWN[label][0], settings.difficulty, DRAWN[label][1])
            for label in sorted(labels - {"No Finding"})
        )
        view, seed = rng.choice(("PA", "AP")), rng.getrandbits(31)
        film = render(body, findings, view, settings.size, seed, settings.difficulty)
        name = f"{patient:08d}_{follow_up:03d}.png"
        home = folder / f"images_{number // 8 % 12 + 1:03d}" / "images"
        home.mkdir(parents=True, exist_ok=True)
        form = "RGBA" if rng.random() < 0.15 else "L"
        Image.fromarray(film.pixels_HxW).convert(form).save(home / name)
        boxes = [
            (
                label,
                [float(f"{value + 0.25:.13f}") for value in box[:2]] + list(box[2:]),
            )
            for index, label in enumerate(sorted(labels - {"No Finding"}))
            if label in BOXED and index in film.masks
            for box in truth.boxes_of(film.masks[index], findings[index], view)
            if max(box[0] + box[2], box[1] + box[3]) < settings.size
        ]
        rows.append(
            {
                "image": name,
                "labels": sorted(labels, key=[*LABELS, "No Finding"].index),
                "follow_up": follow_up,
                "patient": patient,
                "age": age,
                "sex": body.sex,
                "view": view,
                "split": split,
                "boxes": boxes,
            }
        )
        follow_up += rng.choice((1, 1, 2))
    return {"films": rows}


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the table of 2017, both lists and the boxes."""
    films = sorted(rows.get("films", ()), key=lambda row: row["image"])
    entries, boxes = [HEADER], [BOX_HEADER]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for row in films:
        size = stream(settings.seed, row["image"]).choice(("2682,2749", "2992,2991"))
        entries.append(
            f"{row['image']},{'|'.join(row['labels'])},{row['follow_up']},"
            f"{row['patient']},{row['age']},{row['sex']},{row['view']},"
            f"{size},0.14300000000000002,0.14300000000000002,\n"
        )
        name = "test_list.txt" if row["split"] == "test" else "train_val_list.txt"
        lists[name].append(row["image"] + "\n")
        for label, box in row["boxes"]:
            cells = ",".join(str(float(value)) for value in box)
            boxes.append(f"{row['image']},{BOXED[label]},{cells}\n")
    (folder / "Data_Entry_2017.csv").write_text("".join(entries), "utf-8")
    (folder / "BBox_List_2017.csv").write_text("".join(boxes), "utf-8")
    for name, lines in lists.items():
        (folder / name).write_text("".join(lines), "utf-8")
