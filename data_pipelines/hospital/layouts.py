"""The on-disk layouts of MIMIC-CXR-JPG 2.0.0 (with reports) and CheXpert-v1.0-small.

Reference: MIT-LCP/mimic-cxr (website/content/data), stanfordmlgroup/chexpert.
"""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from data_pipelines.findings import FINDINGS, NOT_GIVEN, POSITIVE, UNCERTAIN
from data_pipelines.hospital.course import stream
from data_pipelines.hospital.state import Body, Study

MIMIC = "mimic-cxr"
CHEXPERT = "chexpert/CheXpert-v1.0-small"
"""Folders of the two layouts below the simulation's own."""

METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
SPLIT_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
MIMIC_LABELS = tuple(sorted(FINDINGS))
LABEL_COLUMNS = ("subject_id", "study_id", *MIMIC_LABELS)
CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    *FINDINGS[5:],
)
"""CheXpert's own order has Lung Opacity before Lung Lesion."""
CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)

NEGBIO_CHANGE_RATE = 0.15
"""Of the uncertain cells of the chexpert file: positive or blank in the negbio file."""


# --- MIMIC-CXR-JPG ---------------------------------------------------------------


def dicom_id(seed: int, study: Study, view: str) -> str:
    """Five groups of eight hexadecimal digits, as MIMIC names its images."""
    name = f"{seed}/{study.patient_id}/{study.study_id}/{view}"
    digits = hashlib.sha256(name.encode()).hexdigest()[:40]
    return "-".join(digits[i : i + 8] for i in range(0, 40, 8))


def mimic_study(study: Study) -> str:
    """`files/p10/p10000032/s50414267`: the images' folder; the report adds `.txt`."""
    subject = study.patient_id
    return f"files/p{subject[:2]}/p{subject}/s{study.study_id}"


def metadata_row(
    seed: int, study: Study, view: str, height: int, width: int
) -> dict[str, str]:
    """One image's row of the metadata CSV.

    Args:
      seed: of the simulation.
      study: of the image.
      view: "AP", "PA" or "LATERAL".
      height, width: of the JPEG, pixels.

    Returns:
      The 12 columns as text; StudyTime is HHMMSS.fff with its leading zeros lost.
    """
    rng = stream(seed, "mimic_cxr", study.study_id, "metadata")
    when = datetime.fromtimestamp(study.time, UTC)
    clock = float(f"{when:%H%M%S}.{rng.randrange(1000):03d}")
    portable = "LATERAL" not in study.views
    exam = "CHEST (PORTABLE AP)" if portable else "CHEST (PA AND LAT)"
    position = view
    if view == "LATERAL" and rng.random() < 0.3:
        position = "LL"
    code = {
        "AP": "antero-posterior",
        "PA": "postero-anterior",
        "LATERAL": "lateral",
        "LL": "left lateral",
    }
    return {
        "dicom_id": dicom_id(seed, study, view),
        "subject_id": study.patient_id,
        "study_id": study.study_id,
        "PerformedProcedureStepDescription": exam,
        "ViewPosition": position,
        "Rows": str(height),
        "Columns": str(width),
        "StudyDate": f"{when:%Y%m%d}",
        "StudyTime": repr(clock),
        "ProcedureCodeSequence_CodeMeaning": exam,
        "ViewCodeSequence_CodeMeaning": code[position],
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }


def label_row(study: Study, codes: Sequence[int]) -> dict[str, str]:
    """One study's row of the chexpert CSV: 1.0, 0.0, -1.0, or blank (not mentioned)."""
    row = {"subject_id": study.patient_id, "study_id": study.study_id}
    return row | {name: _cell(codes[FINDINGS.index(name)]) for name in MIMIC_LABELS}


def negbio_codes(seed: int, study: Study, codes: Sequence[int]) -> tuple[int, ...]:
    """The second labeler: it agrees but for some uncertain cells, as NegBio does."""
    rng = stream(seed, "mimic_cxr", study.study_id, "negbio")
    out = []
    for code in codes:
        change = rng.random() < NEGBIO_CHANGE_RATE
        other = POSITIVE if rng.random() < 0.5 else NOT_GIVEN
        out.append(other if change and code == UNCERTAIN else code)
    return tuple(out)


def _cell(code: int) -> str:
    return "" if code == NOT_GIVEN else f"{float(code):.1f}"


# --- CheXpert --------------------------------------------------------------------


def chexpert_path(split: str, study: Study, view_number: int, view: str) -> str:
    """`train/patient00001/study1/view1_frontal.jpg`, below CHEXPERT."""
    direction = "lateral" if view == "LATERAL" else "frontal"
    folder = f"{split}/patient{study.patient_id}/study{study.study_id}"
    return f"{folder}/view{view_number}_{direction}.jpg"


def chexpert_row(
    path: str, body: Body, view: str, codes: Sequence[int]
) -> dict[str, str]:
    """One image's row of train.csv or valid.csv.

    Args:
      path: of `chexpert_path`.
      body: of the patient, for Sex and Age.
      view: "AP", "PA" or "LATERAL".
      codes: int of each of FINDINGS in their order.

    Returns:
      The 19 columns as text.
    """
    lateral = view == "LATERAL"
    row = {
        "Path": f"{Path(CHEXPERT).name}/{path}",
        "Sex": "Female" if body.sex == "F" else "Male",
        "Age": str(body.age),
        "Frontal/Lateral": "Lateral" if lateral else "Frontal",
        "AP/PA": "" if lateral else view,
    }
    return row | {name: _cell(codes[FINDINGS.index(name)]) for name in CHEXPERT_LABELS}


# --- Writing ---------------------------------------------------------------------


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]
) -> None:
    """Writes a CSV, gzipped where the name ends in .gz; the bytes hold no time."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode("utf-8")
    if path.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
