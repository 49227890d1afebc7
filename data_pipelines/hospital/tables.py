"""Gathers the rows of all patients into the tables of a simulation."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from data_pipelines.findings import EVAL_FIVE
from data_pipelines.hospital import layouts, truth
from data_pipelines.hospital.writer import TABLES, Settings

README = """# A simulated hospital

Everything here is simulated: no film, report or patient is real. Every result made
from it is a result on simulated data.

Written by `medclip-jax simulate` with the settings in `simulation.json`; the same
settings give the same bytes.

- `mimic-cxr/`: the layout of MIMIC-CXR-JPG 2.0.0 with the reports beside the study
  folders. `mimic-cxr-2.0.0-chexpert.csv.gz` holds what each report tells in its
  findings and impression together; `-negbio.csv.gz` differs in some uncertain cells.
- `chexpert/CheXpert-v1.0-small/`: the layout of CheXpert, other patients, images and
  labels without text. `train.csv` has the labels of reports that are not shown;
  `valid.csv` those of the films themselves (0 and 1, no blanks).
- `truth/`: what no real data has; see the README there.

Settings: {settings}
"""

TRUTH_README = """# The truth of a simulation

Nothing in training may read this folder; it is there to measure against.

- `studies.jsonl`: a study a line. `findings` is the state (name, side, lobe, severity
  0..1, kind; `seed` names the same finding over a patient's studies), `truth` what is in
  the film (1, 0), `told` what the report tells (1, 0, -1 uncertain, -2 not given),
  `hedged` the findings told with uncertainty, present or not, `time` seconds since 1970.
- `sentences.csv`: a sentence of a report a row with its 14 codes (blank: not given), as
  the CheXpert labeler means them: No Finding is 1 where no finding but Support Devices
  is positive or uncertain and no other abnormality is named. The report's own code of a
  finding: any uncertain beside any negative is uncertain, otherwise any positive wins.
- `boxes.csv`: x, y, w, h in pixels of the film; `phrase` is the sentence that tells the
  finding (blank where there is no report or it is not told). `finding` is the index into
  the study's findings. Bilateral findings have a box a side in frontal films.
- `masks.jsonl`: `counts` are run lengths down the columns, starting with zeros (COCO's
  uncompressed form); `size` is [height, width].
- `progression.csv`: improving, stable, worsening, new or resolved, since the patient's
  study before.
"""

_NAMES = {
    "metadata": f"{layouts.MIMIC}/mimic-cxr-2.0.0-metadata.csv.gz",
    "split": f"{layouts.MIMIC}/mimic-cxr-2.0.0-split.csv.gz",
    "chexpert": f"{layouts.MIMIC}/mimic-cxr-2.0.0-chexpert.csv.gz",
    "negbio": f"{layouts.MIMIC}/mimic-cxr-2.0.0-negbio.csv.gz",
    "train": f"{layouts.CHEXPERT}/train.csv",
    "valid": f"{layouts.CHEXPERT}/valid.csv",
    "studies": "truth/studies.jsonl",
    "sentences": "truth/sentences.csv",
    "boxes": "truth/boxes.csv",
    "masks": "truth/masks.jsonl",
    "progression": "truth/progression.csv",
}
_COLUMNS = {
    "metadata": layouts.METADATA_COLUMNS,
    "split": layouts.SPLIT_COLUMNS,
    "chexpert": layouts.LABEL_COLUMNS,
    "negbio": layouts.LABEL_COLUMNS,
    "train": layouts.CHEXPERT_COLUMNS,
    "valid": layouts.CHEXPERT_COLUMNS,
    "sentences": truth.SENTENCE_COLUMNS,
    "boxes": truth.BOX_COLUMNS,
    "progression": truth.PROGRESSION_COLUMNS,
}
_SORTED = {
    "metadata": ("subject_id", "study_id", "dicom_id"),
    "split": ("subject_id", "study_id", "dicom_id"),
    "chexpert": ("subject_id", "study_id"),
    "negbio": ("subject_id", "study_id"),
}
"""The real tables stand in the order of the ids, which is not that of time."""


def write_tables(root: Path, parts: Iterable[dict[str, list[dict]]]) -> Counter:
    """Writes every CSV and JSON-lines file.

    Args:
      root: folder of the simulation.
      parts: the rows of groups of patients, in order.

    Returns:
      Counts for the summary: "patients", "studies", "films", "reports", "sentences",
      "alone", ("truth", finding) and ("told", finding, code).
    """
    rows: dict[str, list[dict]] = {name: [] for name in TABLES if name in _COLUMNS}
    counts: Counter = Counter()
    (root / "truth").mkdir(exist_ok=True)
    with (
        (root / _NAMES["studies"]).open("w", encoding="utf-8") as studies,
        (root / _NAMES["masks"]).open("w", encoding="utf-8") as masks,
    ):
        for part in parts:
            studies.writelines(json.dumps(row) + "\n" for row in part["studies"])
            masks.writelines(json.dumps(row) + "\n" for row in part["masks"])
            _count(counts, part)
            for name in rows:
                rows[name] += part[name]
    for name, columns in _COLUMNS.items():
        table = rows[name]
        if name in _SORTED:
            table.sort(key=lambda row: tuple(row[key] for key in _SORTED[name]))
        if table or not _absent(name, rows):
            layouts.write_csv(root / _NAMES[name], columns, table)
    return counts


def _absent(name: str, rows: dict[str, list[dict]]) -> bool:
    """Whether a table belongs to a layout that the simulation does not have."""
    if name in ("train", "valid"):
        return not rows["train"] and not rows["valid"]
    return name in _SORTED and not rows["metadata"]


def _count(counts: Counter, part: dict[str, list[dict]]) -> None:
    for study in part["studies"]:
        counts["studies"] += 1
        counts["patients"] += study["index"] == 0
        counts["films"] += len(study["images"])
        counts["reports"] += study["dataset"] == "mimic_cxr"
        counts["alone"] += sum(study["truth"][name] for name in EVAL_FIVE) == 1
        for name, value in study["truth"].items():
            counts["truth", name] += value
        for name, code in study["told"].items():
            counts["told", name, code] += 1
    counts["sentences"] += len(part["sentences"])


def write_readmes(root: Path, settings: Settings) -> None:
    """Says in the folder itself that it is a simulation."""
    told = ", ".join(f"{name} {value}" for name, value in asdict(settings).items())
    (root / "README.md").write_text(README.format(settings=told), "utf-8")
    (root / "truth" / "README.md").write_text(TRUTH_README, "utf-8")
