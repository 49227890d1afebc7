"""RSNA Pneumonia Detection Challenge (Kaggle), stage 2: lung opacities in boxes.

`--raw` holds `stage_2_train_images/` with the DICOM films, `stage_2_train_labels.csv` and
`stage_2_detailed_class_info.csv`, each perhaps gzipped. Both tables have a row a box, so that
a patient's class may stand there several times. The films of `stage_2_test_images/` have no
public labels and are left out.

    task         labels
    rsna_target  Pneumonia: Target 1 against 0; the negatives are not all normal
    rsna_class   the three classes of the class table

Others call "pneumonia against normal" what is Lung Opacity against Normal without the third
class: figures of that are of another task. Boxes are in pixels of the film, which always has
1024 x 1024. They show opacities that may be pneumonia, drawn without the patient's history: their
finding is Lung Opacity, the name of their class. Of the 14 findings, Lung Opacity gives Lung
Opacity 1, Pneumonia -1 (uncertain) and No Finding 0; Normal gives No Finding 1 and Lung Opacity and
Pneumonia 0; No Lung Opacity / Not Normal gives No Finding and Pneumonia 0 alone, since an
opacity of another kind, such as a mass, may be there.

The split is that of GLoRIA (and of MGCA's classification): patient ids in alphabetical order,
scikit-learn's train_test_split with test_size 0.3 and random_state 0, then the held-out part
in halves, the first of which is TEST. All ids of the label table count, also of films that
are left out; 26,684 give 18,678 / 4,003 / 4,003. MGCA's detection and ConVIRT have others.

Age, sex and view are in the DICOM headers alone. Reading those of 26,684 films costs about a
minute from a local disk, and as many small reads from a mount. Ages above 120 are no ages.
The films are NIH ChestX-ray14's under other names: a network pretrained on that has seen
them, and one of its patients may be several here.

Reference: Shih et al. 2019, doi 10.1148/ryai.2019180041; the challenge's data page;
marshuang80/gloria, gloria/datasets/preprocess_datasets.py.
"""

import collections
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.dicom_headers import read_headers
from data_pipelines.datasets.film_files import box_of
from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from data_pipelines.plan import FilmPlan, Scan, safe_path
from data_pipelines.tables import (
    age_of,
    find_table,
    int_of,
    need_columns,
    numbered_rows,
    sex_of,
)
from medclip_jax.errors import UserError

LABELS, CLASSES = "stage_2_train_labels", "stage_2_detailed_class_info"
FILMS, UNLABELLED_FILMS = "stage_2_train_images", "stage_2_test_images"
LABEL_COLUMNS = ["patientId", "x", "y", "width", "height", "Target"]
CLASS_COLUMNS = ["patientId", "class"]
HEADER = ("PatientAge", "PatientSex", "ViewPosition", "Rows", "Columns")
PUBLISHED = 26_684
OPACITY = FINDINGS.index("Lung Opacity")
CODES: dict[str, dict[str, int]] = {
    "Normal": {"No Finding": POSITIVE, "Lung Opacity": NEGATIVE, "Pneumonia": NEGATIVE},
    "No Lung Opacity / Not Normal": {"No Finding": NEGATIVE, "Pneumonia": NEGATIVE},
    "Lung Opacity": {
        "No Finding": NEGATIVE,
        "Lung Opacity": POSITIVE,
        "Pneumonia": UNCERTAIN,
    },
}
"""A class -> what it says of the 14 findings."""

TASKS: dict[str, Task] = {
    "rsna_target": Task(
        "binary", ("Pneumonia",), about="RSNA stage 2, Target 1 against 0"
    ),
    "rsna_class": Task(
        "multiclass", tuple(CODES), about="RSNA stage 2, detailed class info"
    ),
}
LICENSE = "RSNA Pneumonia Detection Challenge: non-commercial, research and education"
CREDIT = "RSNA Pneumonia Detection Challenge, Shih et al. 2019"


class Rsna(StudyBuilder):
    """TFDS builder for the RSNA Pneumonia Detection Challenge."""

    DESCRIPTION = (
        "Chest radiographs with boxes around lung opacities, and three classes."
    )
    NOTICE = (
        "Made from the RSNA Pneumonia Detection Challenge: for non-commercial research "
        "and education."
    )
    HOMEPAGE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    CITATION = (
        "@article{shih2019augmenting, title={Augmenting the National Institutes of "
        "Health chest radiograph dataset with expert annotations of possible pneumonia}, "
        "author={Shih, George and others}, journal={Radiology: Artificial "
        "Intelligence}, year={2019}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads both tables and the headers of the films.

        Raises:
          UserError: a table or a column is missing, or there are too few patients.
        """
        del options
        made = Scan(tasks=TASKS)
        rows = _by_patient(raw, LABELS, LABEL_COLUMNS)
        classes = _by_patient(raw, CLASSES, CLASS_COLUMNS)
        splits = gloria_splits(list(rows))
        if len(rows) != PUBLISHED:
            made.notes.append(
                f"{len(rows):,} patients, not {PUBLISHED:,}: not GLoRIA's lists, though "
                "drawn the same way"
            )
        if (raw / UNLABELLED_FILMS).is_dir():
            made.notes.append(f"{UNLABELLED_FILMS}: no labels are public, left out")
        kept = {}
        for patient in rows:
            path = f"{FILMS}/{patient}.dcm"
            try:
                name = class_of(rows[patient], classes.get(patient, []))
            except ValueError as error:
                made.reject(rejected.BAD_VALUE, patient, path, str(error))
                continue
            if safe_path(raw, path) is None:
                made.reject(rejected.OUTSIDE, patient, path)
                continue
            kept[patient] = (path, name)
        headers = read_headers([raw / path for path, _ in kept.values()], HEADER)
        for (patient, (path, name)), header in zip(kept.items(), headers, strict=True):
            _film(
                made, patient, path, name, splits[patient], rows[patient], header or {}
            )
        return made


Rows = list[tuple[int, dict[str, str]]]


def _by_patient(raw: Path, name: str, columns: list[str]) -> dict[str, Rows]:
    path = find_table(raw, name)
    if path is None:
        raise UserError(
            f"expected {name}.csv in {raw}, found none; --raw is the folder into which "
            "the challenge's archive and those of its tables were unpacked"
        )
    rows = numbered_rows(path)
    need_columns(path, [row for _, row in rows], columns)
    made: dict[str, Rows] = collections.defaultdict(list)
    for line, row in rows:
        made[row["patientId"]].append((line, row))
    return dict(sorted(made.items()))


def gloria_splits(ids: list[str]) -> dict[str, str]:
    """GLoRIA's 70/15/15 split.

    Args:
      ids: all of the label table, in any order.

    Raises:
      UserError: fewer than 4, of which no three parts can be made.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    if len(ids) < 4:
        raise UserError(f"{LABELS}: expected 4 patients or more, found {len(ids)}")
    train, held_out = train_test_split(sorted(ids), test_size=0.3, random_state=0)
    test, validate = train_test_split(held_out, test_size=0.5, random_state=0)
    named = {"train": train, "validate": validate, "test": test}
    return {id: split for split, chosen in named.items() for id in chosen}


def class_of(rows: Rows, class_rows: Rows) -> str:
    """The class of a patient, which both tables must agree on.

    Raises:
      ValueError: names table, line and column.
    """
    for line, row in rows:
        if not row["patientId"]:
            raise ValueError(
                f"{LABELS}, line {line}, patientId: expected an id, found none"
            )
        if row["Target"] not in ("0", "1"):
            raise ValueError(
                f"{LABELS}, line {line}, Target: expected 0 or 1, found "
                f"{row['Target'][:20]!r}"
            )
    for line, row in class_rows:
        if row["class"] not in CODES:
            raise ValueError(
                f"{CLASSES}, line {line}, class: expected one of {', '.join(CODES)}; "
                f"found {row['class'][:40]!r}"
            )
    targets = {row["Target"] for _, row in rows}
    names = {row["class"] for _, row in class_rows}
    if len(targets) > 1 or len(names) > 1:
        lines = ", ".join(str(line) for line, _ in (*rows, *class_rows))
        raise ValueError(
            f"expected one Target and one class a patient, found {sorted(targets)} and "
            f"{sorted(names)} in lines {lines} of {LABELS} and {CLASSES}"
        )
    if not names:
        raise ValueError(f"{CLASSES}: expected a row of the patient, found none")
    name = names.pop()
    if ("1" in targets) != (name == "Lung Opacity"):
        raise ValueError(
            f"expected Target 1 for Lung Opacity alone, found Target {targets.pop()} "
            f"({LABELS}, line {rows[0][0]}) and {name} ({CLASSES}, line {class_rows[0][0]})"
        )
    return name


def _film(
    made: Scan,
    patient: str,
    path: str,
    name: str,
    split: str,
    rows: Rows,
    header: dict[str, str],
) -> None:
    width, height = int_of(header.get("Columns", "")), int_of(header.get("Rows", ""))
    boxes = []
    for line, row in rows if name == "Lung Opacity" else ():
        try:
            cells = [row[column] for column in ("x", "y", "width", "height")]
            boxes.append(box_of(cells, width, height))
        except ValueError as error:
            made.warn("box left out", patient, path, f"{LABELS}, line {line}: {error}")
    age = header.get("PatientAge", "")
    if age and age_of(age) < 0:
        made.warn("age not believable", patient, path, f"PatientAge is {age[:10]!r}")
    view = header.get("ViewPosition", "").upper()
    if view not in ("AP", "PA"):
        made.warn("view not given", patient, path, f"ViewPosition is {view[:20]!r}")
    positive = ["Pneumonia"] if name == "Lung Opacity" else []
    made.annotate("classes", task="rsna_target", image_id=patient, positive=positive)
    made.annotate("classes", task="rsna_class", image_id=patient, positive=[name])
    made.films.append(
        FilmPlan(
            image_id=patient,
            patient_id=patient,
            study_id=patient,
            split=split,
            path=path,
            view=view if view in ("AP", "PA") else "UNKNOWN",
            sex=sex_of(header.get("PatientSex", "")),
            age=age_of(age),
            labels=tuple(CODES[name].get(finding, NOT_GIVEN) for finding in FINDINGS),
            label_source="columns",
            boxes=tuple(boxes),
            box_findings=(OPACITY,) * len(boxes),
            license=LICENSE,
            credit=CREDIT,
        )
    )
