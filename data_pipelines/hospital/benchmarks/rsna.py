"""RSNA stage 2: three patients of a number, one of each class, and boxes of opacities.

Lung Opacity has a pneumonia, consolidation or patchy opacity; No Lung Opacity / Not Normal
has something else; Normal has nothing. Boxes are those of the truth, so that a patient has
one or two. The real films have 1024 x 1024 px; here they are as rendered. Most are JPEG
compressed as the real ones, every fourth is not. Every seventh patient has an age that is
none. Both tables repeat a patient once a box, in an order of their own.
"""

import random
import uuid
from pathlib import Path

from data_pipelines.hospital import layouts, truth
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.hospital.render import render
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.writer import Settings

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
OPACITIES = (
    ("Pneumonia", "bronchopneumonia"),
    ("Pneumonia", "round"),
    ("Consolidation", "lobar"),
    ("Lung Opacity", "patchy"),
)
OTHERS = ("Cardiomegaly", "Pneumothorax", "Pleural Effusion", "Fracture", "Lung Lesion")
FILMS = "stage_2_train_images"


def findings_of(rng: random.Random, name: str, hard: float) -> tuple[Finding, ...]:
    """What a film of a class shows."""
    if name == "Normal":
        return ()
    if name == "Lung Opacity":
        finding, kind = rng.choice(OPACITIES)
        return (draw_finding(rng, finding, hard, kind),)
    return (draw_finding(rng, rng.choice(OTHERS), hard),)


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes three films; the rows tell class, boxes, and the header's values."""
    (folder / FILMS).mkdir(exist_ok=True)
    rows = []
    for at, name in enumerate(CLASSES):
        rng = stream(settings.seed, "rsna", number, at)
        body = draw_body(rng)
        age = rng.choice((148, 155)) if (3 * number + at) % 7 == 6 else body.age
        patient = str(uuid.UUID(int=rng.getrandbits(128)))
        view, seed = rng.choice(("PA", "AP")), rng.getrandbits(31)
        findings = findings_of(rng, name, settings.difficulty)
        film = render(body, findings, view, settings.size, seed, settings.difficulty)
        boxes = [
            box
            for index, mask in film.masks.items()
            for box in truth.boxes_of(mask, findings[index], view)
        ]
        data = dicom(
            film.pixels_HxW,
            patient,
            compression="" if rng.random() < 0.25 else "jpeg",
            PatientID=patient,
            PatientAge=str(age),
            PatientSex=body.sex,
            ViewPosition=view,
            BodyPartExamined="CHEST",
            ConversionType="WSD",
        )
        (folder / FILMS / f"{patient}.dcm").write_bytes(data)
        rows.append(
            {
                "patient": patient,
                "class": name,
                "boxes": boxes if name == "Lung Opacity" else [],
                "age": age,
                "sex": body.sex,
                "view": view,
            }
        )
    return {"patients": rows}


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes both tables, a template for submissions, and a film without labels."""
    labels, classes = [], []
    for row in rows.get("patients", ()):
        patient = {"patientId": row["patient"]}
        for box in row["boxes"]:
            cells = dict(zip(("x", "y", "width", "height"), box, strict=True))
            cells = {name: f"{float(value)}" for name, value in cells.items()}
            labels.append({**patient, **cells, "Target": "1"})
        if not row["boxes"]:
            target = "1" if row["class"] == "Lung Opacity" else "0"
            labels.append({**patient, "Target": target})
        classes += [{**patient, "class": row["class"]}] * max(1, len(row["boxes"]))
    stream(settings.seed, "rsna", "order").shuffle(classes)
    columns = ("patientId", "x", "y", "width", "height", "Target")
    layouts.write_csv(folder / "stage_2_train_labels.csv", columns, labels)
    path = folder / "stage_2_detailed_class_info.csv"
    layouts.write_csv(path, ("patientId", "class"), classes)
    hidden = stream(settings.seed, "rsna", "hidden")
    name = str(uuid.UUID(int=hidden.getrandbits(128)))
    film = render(draw_body(hidden), (), "PA", settings.size, 0, settings.difficulty)
    (folder / "stage_2_test_images").mkdir(exist_ok=True)
    path = folder / "stage_2_test_images" / f"{name}.dcm"
    path.write_bytes(dicom(film.pixels_HxW, name, compression="jpeg"))
    template = {"patientId": name, "PredictionString": "0.5 0 0 100 100"}
    layouts.write_csv(
        folder / "stage_2_sample_submission.csv", tuple(template), [template]
    )
