"""MS-CXR-T: how findings changed between two films of MIMIC-CXR-JPG, and sentence pairs.

`--raw` is the folder of the release, or one above it; each file alone will do:

    MS_CXR_T_temporal_image_classification_v1.0.0.csv
                  dicom_id, previous_dicom_id, subject_id, and <finding>_progression
                  (improving, stable, worsening, or blank: not labelled) and perhaps
                  <finding>_label_quality for consolidation, edema, pleural_effusion,
                  pneumonia and pneumothorax
    MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv
                  sentence_1, sentence_2, category (paraphrase or contradiction), and
                  perhaps subset_name (RadGraph: mined; Swaps: a word was exchanged)

The first gives the side table `progression`, a row a film pair and finding; the second
`sentence_pairs` (split "test": all of it is there to be evaluated on). Films are those of
mimic_cxr: of a path like p10/p10002428/s55758034/DICOM_ID the last part counts. Values
are compared without regard to case, findings are named as in the 14. Figures are macro
accuracy over the three classes of each finding.

Train on mimic_cxr prepared with `--hold-out` and the first file.

Reference: https://physionet.org/content/ms-cxr-t/1.0.0/ ; Bannur et al., CVPR 2023,
arXiv 2301.04558.
"""

import collections
import re
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.ms_cxr import NOTICE, find_file
from data_pipelines.plan import Scan
from data_pipelines.tables import need_columns, numbered_rows
from medclip_jax.errors import UserError

IMAGES = "MS_CXR_T_temporal_image_classification_v1.0.0.csv"
SENTENCES = "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv"
FINDINGS_OF: dict[str, str] = {
    "consolidation": "Consolidation",
    "edema": "Edema",
    "pleural_effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
}
LABELS = ("improving", "stable", "worsening")
QUALITIES = ("", "one_expert", "multiple_experts", "disagreement")
CATEGORIES = ("paraphrase", "contradiction")


class MsCxrT(StudyBuilder):
    """TFDS builder for MS-CXR-T."""

    DESCRIPTION = "Change of five findings between films of MIMIC-CXR-JPG; sentences."
    NOTICE = NOTICE
    HOMEPAGE = "https://physionet.org/content/ms-cxr-t/"
    CITATION = (
        "@inproceedings{bannur2023learning, title={Learning to exploit temporal "
        "structure for biomedical vision-language processing}, author={Bannur, Shruthi "
        "and others}, booktitle={CVPR}, year={2023}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads both tables.

        Raises:
          UserError: neither is there, or one lacks its columns.
        """
        del options
        made = Scan()
        found = 0
        for name, read in ((IMAGES, _progression), (SENTENCES, _pairs)):
            path = find_file(raw, name.replace("1.0.0", "*"))
            if path is None:
                made.notes.append(f"no {name}")
            else:
                read(path, made)
                found += 1
        if not found:
            raise UserError(
                f"expected {IMAGES} or {SENTENCES} in {raw} or a folder below it, found "
                "neither"
            )
        return made


def _progression(path: Path, made: Scan) -> None:
    rows = numbered_rows(path)
    names = [f"{finding}_progression" for finding in FINDINGS_OF]
    columns = ["dicom_id", "previous_dicom_id", "subject_id", *names]
    need_columns(path, [row for _, row in rows], columns)
    labels: dict[tuple[str, str, str], dict] = {}
    differing = set()
    for line, row in rows:
        image, previous = (
            PurePosixPath(row[name].replace("\\", "/")).stem
            for name in ("dicom_id", "previous_dicom_id")
        )
        subject = row["subject_id"].removeprefix("p").removesuffix(".0")
        if not image or not previous or image == previous:
            detail = f"line {line}: dicom_id and previous_dicom_id: expected two films"
            made.reject(rejected.BAD_VALUE, image or "(no id)", path.name, detail)
            continue
        if not re.fullmatch(r"\d{8}", subject):
            detail = f"line {line}: subject_id: expected 8 digits"
            made.reject(rejected.BAD_VALUE, image, path.name, detail)
            continue
        for prefix, finding in FINDINGS_OF.items():
            cell = row[f"{prefix}_progression"]
            label = cell.casefold()
            if not label:
                continue
            if label not in LABELS:
                detail = f"line {line}: {prefix}_progression is {cell[:20]!r}"
                made.reject(rejected.BAD_VALUE, image, path.name, detail)
                continue
            quality = row.get(f"{prefix}_label_quality", "").casefold()
            if quality not in QUALITIES:
                detail = f"line {line}: {prefix}_label_quality is {quality[:20]!r}"
                made.warn("unknown label quality", image, path.name, detail)
            known = labels.setdefault(
                (image, previous, finding),
                {"patient_id": f"p{subject}", "label": label, "quality": quality},
            )
            if (known["label"], known["patient_id"]) != (label, f"p{subject}"):
                differing.add((image, previous, finding))
    for key in sorted(differing):
        del labels[key]
        detail = f"{key[2]}: rows that differ; none is used"
        made.reject(rejected.DUPLICATE_ID, key[0], path.name, detail)
    for (image, previous, finding), row in sorted(labels.items()):
        made.annotate(
            "progression",
            image_id=image,
            previous_image_id=previous,
            finding=finding,
            **row,
        )


def _pairs(path: Path, made: Scan) -> None:
    rows = numbered_rows(path)
    need_columns(
        path, [row for _, row in rows], ["sentence_1", "sentence_2", "category"]
    )
    counts: collections.Counter = collections.Counter()
    for number, (line, row) in enumerate(rows):
        label = row["category"].casefold()
        if label not in CATEGORIES or not (row["sentence_1"] and row["sentence_2"]):
            detail = f"line {line}: category is {row['category'][:20]!r}"
            if label in CATEGORIES:
                detail = f"line {line}: sentence_1 or sentence_2 is blank"
            made.reject(rejected.BAD_VALUE, f"{number:04d}", path.name, detail)
            continue
        counts[label] += 1
        made.annotate(
            "sentence_pairs",
            pair_id=f"{number:04d}",
            sentence1=row["sentence_1"],
            sentence2=row["sentence_2"],
            label=label,
            subset=row.get("subset_name", ""),
            split="test",
        )
    told = ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items()))
    made.notes.append(f"{path.name}: {told}")
