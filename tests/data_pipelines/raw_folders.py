"""Small raw folders in the layouts of MIMIC-CXR-JPG, CheXpert and csv, for tests."""

import csv
import gzip
from pathlib import Path

import numpy as np
import simplejpeg

from data_pipelines.findings import FINDINGS

ALPHABETICAL = sorted(FINDINGS)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough.

 FINDINGS:

 There is a small left pleural effusion. The heart is normal in size. There is
 no pneumothorax.

 IMPRESSION:

 Small left pleural effusion.
"""


def film(seed: int, height: int = 80, width: int = 64) -> np.ndarray:
    """A smooth film with noise, uint8 [height, width], dark at the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    smooth = 200 * np.exp(-2 * (x**2 + y**2)) + 20 * rng.random()
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[..., None]), quality, "GRAY", "Gray"
    )


def write_csv(path: Path, rows: list[dict], packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path = path.with_name(path.name + ".gz")
    opener = gzip.open if packed else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def labels_row(labels: dict[str, float], order: list[str]) -> dict[str, str]:
    return {name: str(labels[name]) if name in labels else "" for name in order}


def dicom_id(number: int) -> str:
    return "-".join([f"{number:08x}"] * 5)


def mimic(
    root: Path,
    patients: int = 3,
    *,
    files: str = "files/",
    reports: str = "files/{folder}.txt",
    packed: bool = True,
) -> list[dict]:
    """MIMIC-CXR-JPG with two studies of two films for each patient.

    Args:
      root: the folder to write.
      patients: how many; the last two are of validate and test.
      files: prefix of the films.
      reports: where a report goes; {folder} is p10/pSUBJECT/sSTUDY, {study} sSTUDY.
      packed: .csv.gz instead of .csv.

    Returns:
      The rows of the metadata.
    """
    rows, splits, labels = [], [], []
    for p in range(patients):
        subject = 10000032 + p
        split = {patients - 1: "test", patients - 2: "validate"}.get(p, "train")
        for s in range(2):
            study = 50000000 + 10 * p + (1 - s)  # ids run against time
            folder = f"p10/p{subject}/s{study}"
            for view in ("PA", "LATERAL"):
                name = dicom_id(len(rows) + 1)
                path = root / f"{files}{folder}/{name}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(film(len(rows))))
                rows.append(
                    {
                        "dicom_id": name,
                        "subject_id": subject,
                        "study_id": study,
                        "ViewPosition": view,
                        "Rows": 3056,
                        "Columns": 2544,
                        "StudyDate": 21800506 + s,
                        "StudyTime": 80556.875,
                    }
                )
                splits.append(
                    {
                        "dicom_id": name,
                        "study_id": study,
                        "subject_id": subject,
                        "split": split,
                    }
                )
            given = {"Edema": 1.0, "Pneumonia": -1.0, "Fracture": 0.0}
            labels.append(
                {"subject_id": subject, "study_id": study}
                | labels_row(given, ALPHABETICAL)
            )
            report = root / reports.format(folder=folder, study=f"s{study}")
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(REPORT)
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv", rows, packed)
    write_csv(root / "mimic-cxr-2.0.0-split.csv", splits, packed)
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv", labels, packed)
    return rows


def chexpert_rows(split: str, patients: range, prefix: str) -> list[dict]:
    rows = []
    for p in patients:
        for view, side, ap in (
            ("view1_frontal", "Frontal", "AP"),
            ("view2_lateral", "Lateral", ""),
        ):
            rows.append(
                {
                    "Path": f"{prefix}{split}/patient{p:05d}/study1/{view}.jpg",
                    "Sex": "Female",
                    "Age": p,
                    "Frontal/Lateral": side,
                    "AP/PA": ap,
                }
                | labels_row({"Cardiomegaly": 1.0, "Edema": 0.0}, list(FINDINGS))
            )
    return rows


def write_films(rows: list[dict], place) -> None:
    """Writes a film for each CheXpert row, at `place(path without the prefix)`."""
    for number, row in enumerate(rows):
        path = place(row["Path"].split("/", 1)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(film(number)))


def csv_folder(root: Path, patients: int = 6, **columns) -> list[dict]:
    """A csv folder: two films a patient, the second of a later study with a text."""
    rows = []
    for p in range(patients):
        for s in range(2):
            name = f"images/p{p}_{s}.jpg"
            rows.append(
                {
                    "image": name,
                    "patient_id": f"P{p}",
                    "study_id": f"P{p}_s{s}",
                    "view": "PA",
                    "report": "Small left pleural effusion." if s else "",
                    "split": ("train", "val", "test")[p % 3],
                }
                | columns
            )
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(film(2 * p + s)))
    write_csv(root / "metadata.csv", rows)
    return rows
