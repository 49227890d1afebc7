"""Writes the files of one patient and returns the rows for the tables.

Runs in worker processes: everything comes by argument, nothing is shared, and the
bytes depend on the arguments alone.
"""

from dataclasses import dataclass
from pathlib import Path

import simplejpeg

from data_pipelines.findings import FINDINGS
from data_pipelines.hospital import layouts, truth
from data_pipelines.hospital.course import draw_patient, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.reports_text import Report, write_report
from data_pipelines.hospital.state import Patient, Study

_GOLDEN = 0.6180339887498949
TABLES = (
    "metadata",
    "split",
    "chexpert",
    "negbio",
    "train",
    "valid",
    "studies",
    "sentences",
    "boxes",
    "masks",
    "progression",
)


@dataclass(frozen=True)
class Settings:
    """Everything that the content of a simulation depends on.

    Attributes:
      patients: number of patients with reports (the MIMIC-CXR layout).
      chexpert_patients: number of patients without (the CheXpert layout).
      seed: of everything.
      size: short side of the films, pixels.
      prevalence: 0..1, share of studies with a finding other than devices.
      difficulty: 0..1, see `draw_patient` and `render`.
      test_fraction, validate_fraction: of the patients.
      quality: of the JPEGs, 1..100.
      benchmarks: number of patients of each set of `benchmarks/`.
    """

    patients: int
    chexpert_patients: int
    seed: int
    size: int
    prevalence: float
    difficulty: float
    test_fraction: float
    validate_fraction: float
    quality: int
    benchmarks: int = 0


def split_of(settings: Settings, dataset: str, number: int) -> str:
    """The split of a patient: the fractions hold closely in every run of numbers."""
    start = stream(settings.seed, dataset, "split").random()
    place = (start + number * _GOLDEN) % 1.0
    if dataset == "chexpert":
        return "valid" if place < settings.validate_fraction else "train"
    if place < settings.test_fraction:
        return "test"
    held_out = settings.test_fraction + settings.validate_fraction
    return "validate" if place < held_out else "train"


def write_patient(
    root: Path, settings: Settings, dataset: str, number: int
) -> dict[str, list[dict]]:
    """Draws, renders and writes one patient.

    Args:
      root: folder of the simulation.
      settings: of the simulation.
      dataset: "mimic_cxr" or "chexpert".
      number: which patient.

    Returns:
      The patient's rows of each of TABLES.
    """
    patient = draw_patient(
        settings.seed,
        number,
        dataset=dataset,
        prevalence=settings.prevalence,
        difficulty=settings.difficulty,
    )
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    split = split_of(settings, dataset, number)
    before = None
    for study in patient.studies:
        report = write_report(settings.seed, patient.body, study, before, dataset)
        write = _write_mimic if dataset == "mimic_cxr" else _write_chexpert
        images = write(root, settings, split, patient, study, report, rows)
        rows["studies"].append(
            truth.study_record(dataset, split, patient, study, images, report)
        )
        rows["progression"] += truth.progression_rows(dataset, split, before, study)
        before = study
    return rows


def _write_mimic(
    root: Path,
    settings: Settings,
    split: str,
    patient: Patient,
    study: Study,
    report: Report,
    rows: dict[str, list[dict]],
) -> list[str]:
    folder = root / layouts.MIMIC / layouts.mimic_study(study)
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_name(folder.name + ".txt").write_text(report.text, "utf-8")
    images = []
    for view in study.views:
        image = layouts.dicom_id(settings.seed, study, view)
        where = {
            "dataset": "mimic_cxr",
            "split": split,
            "image": image,
            "view": view,
        }
        path = folder / f"{image}.jpg"
        height, width = _film(path, settings, where, patient, study, report, rows)
        rows["metadata"].append(
            layouts.metadata_row(settings.seed, study, view, height, width)
        )
        rows["split"].append(
            {
                "dicom_id": image,
                "study_id": study.study_id,
                "subject_id": study.patient_id,
                "split": split,
            }
        )
        images.append(image)
    rows["chexpert"].append(layouts.label_row(study, report.labels))
    second = layouts.negbio_codes(settings.seed, study, report.labels)
    rows["negbio"].append(layouts.label_row(study, second))
    rows["sentences"] += truth.sentence_rows(study, report)
    return images


def _write_chexpert(
    root: Path,
    settings: Settings,
    split: str,
    patient: Patient,
    study: Study,
    report: Report,
    rows: dict[str, list[dict]],
) -> list[str]:
    """Images and labels; train has those of the unseen report, valid those of the film."""
    codes = report.labels
    if split == "valid":
        codes = tuple(study.truth()[name] for name in FINDINGS)
    images = []
    for number, view in enumerate(study.views, 1):
        image = layouts.chexpert_path(split, study, number, view)
        path = root / layouts.CHEXPERT / image
        path.parent.mkdir(parents=True, exist_ok=True)
        where = {"dataset": "chexpert", "split": split, "image": image, "view": view}
        silent = Report("", (), report.labels)
        _film(path, settings, where, patient, study, silent, rows)
        rows[split].append(layouts.chexpert_row(image, patient.body, view, codes))
        images.append(image)
    return images


def _film(
    path: Path,
    settings: Settings,
    where: dict[str, str],
    patient: Patient,
    study: Study,
    report: Report,
    rows: dict[str, list[dict]],
) -> tuple[int, int]:
    """Renders and writes one film; its height and width."""
    name = (settings.seed, where["dataset"], study.patient_id, study.study_id)
    film = render(
        patient.body,
        study.findings,
        where["view"],
        settings.size,
        stream(*name, where["view"], "film").getrandbits(31),
        settings.difficulty,
    )
    data = simplejpeg.encode_jpeg(
        film.pixels_HxW[..., None], quality=settings.quality, colorspace="GRAY"
    )
    path.write_bytes(data)
    boxes, masks = truth.film_rows(where, study, film.masks, report)
    rows["boxes"] += boxes
    rows["masks"] += masks
    height, width = film.pixels_HxW.shape
    return height, width
