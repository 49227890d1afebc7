"""MIMIC-CXR 2.1.0, the DICOM release, of the simulation's test patients.

The films of `mimic-cxr/` again, as 12-bit DICOM: at most one patient for each of
--benchmarks. No table tells view or date: they are in the headers. The split table of
the JPG release lies beside it, without which they would be split anew. Every fourth patient's
films are MONOCHROME1 (high values dark). Reports stand beside the study folders, and
cxr-record-list, cxr-study-list and cxr-provider-list have the columns of the release.
Nothing but the rendering differs from the films of `mimic-cxr/`, whose JPEGs they are.

Prepare it with `--dataset mimic_cxr --name mimic_dicom`.
"""

import shutil
from pathlib import Path

import simplejpeg

from data_pipelines.hospital import dicom_files, layouts
from data_pipelines.hospital.writer import Settings
from data_pipelines.tables import read_rows

DATASET = "mimic_cxr"
"""The adapter that reads it."""

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
"""Digital X-Ray Image Storage - For Presentation (DICOM PS3.6)."""

SPLITS = "mimic-cxr-2.0.0-split.csv.gz"
RECORD_COLUMNS = ("subject_id", "study_id", "dicom_id", "path")
STUDY_COLUMNS = ("subject_id", "study_id", "path")
PROVIDER_COLUMNS = (
    "subject_id",
    "study_id",
    "ordering_provider_id",
    "attending_provider_id",
    "resident_provider_id",
)


def write_tables(folder: Path, settings: Settings, root: Path) -> None:
    """Writes films, reports and tables from those of `mimic-cxr/` below `root`."""
    source = root / layouts.MIMIC
    splits = read_rows(source / SPLITS)
    test = sorted({row["subject_id"] for row in splits if row["split"] == "test"})
    chosen = {subject: at for at, subject in enumerate(test[: settings.benchmarks])}
    shutil.copy(source / SPLITS, folder)
    records, studies = [], {}
    for row in read_rows(source / "mimic-cxr-2.0.0-metadata.csv.gz"):
        subject, study = row["subject_id"], row["study_id"]
        if subject not in chosen:
            continue
        home = f"files/p{subject[:2]}/p{subject}/s{study}"
        path = f"{home}/{row['dicom_id']}.dcm"
        (folder / home).mkdir(parents=True, exist_ok=True)
        jpeg = (source / path).with_suffix(".jpg").read_bytes()
        data = dicom(jpeg, row, inverted=chosen[subject] % 4 == 3)
        (folder / path).write_bytes(data)
        shutil.copyfile(source / f"{home}.txt", folder / f"{home}.txt")
        who = {"subject_id": subject, "study_id": study}
        records.append({**who, "dicom_id": row["dicom_id"], "path": path})
        studies[study] = {**who, "path": f"{home}.txt"}
    columns = {
        "record": (RECORD_COLUMNS, records),
        "study": (STUDY_COLUMNS, list(studies.values())),
        "provider": (PROVIDER_COLUMNS, list(studies.values())),
    }
    for name, (header, rows) in columns.items():  # who read a film is left blank
        cells = [{column: row.get(column, "") for column in header} for row in rows]
        layouts.write_csv(folder / f"cxr-{name}-list.csv.gz", header, cells)


def dicom(jpeg: bytes, row: dict[str, str], inverted: bool) -> bytes:
    """A film as a DICOM file of 12 bits stored.

    Args:
      jpeg: the film, 8-bit gray.
      row: of the metadata table, for the header.
      inverted: MONOCHROME1, with the values turned over.

    Raises:
      UserError: pydicom is not installed.
    """
    clock, _, fraction = row["StudyTime"].partition(".")
    return dicom_files.dicom(
        simplejpeg.decode_jpeg(jpeg, "GRAY")[..., 0],
        row["dicom_id"],
        bits=12,
        inverted=inverted,
        SOPClassUID=DX_FOR_PRESENTATION,
        Modality="DX",
        PatientID=row["subject_id"],
        StudyID=row["study_id"],
        StudyDate=row["StudyDate"],
        StudyTime=f"{clock.zfill(6)}.{fraction}",
        ViewPosition=row["ViewPosition"],
        WindowCenter="2048",
        WindowWidth="4096",
    )
