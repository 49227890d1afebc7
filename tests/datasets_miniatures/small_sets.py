"""Writing the miniature of a set with films, preparing it, and looking at the result."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import annotations, records
from data_pipelines.hospital import benchmarks
from data_pipelines.hospital.writer import Settings
from data_pipelines.prepare import main
from data_pipelines.tables import read_rows

SETTINGS = Settings(
    patients=0,
    chexpert_patients=0,
    seed=3,
    size=64,
    prevalence=0.8,
    difficulty=0.2,
    test_fraction=0.25,
    validate_fraction=0.05,
    quality=95,
)


def write(name: str, folder: Path, patients: int) -> dict[str, list[dict]]:
    """Writes a set of LAYOUTS and gives the rows of all patients."""
    layout = benchmarks.module(name)
    rows: dict[str, list[dict]] = {}
    folder.mkdir(parents=True)
    for number in range(patients):
        for table, more in layout.write_patient(folder, SETTINGS, number).items():
            rows.setdefault(table, []).extend(more)
    layout.write_tables(folder, SETTINGS, rows)
    return rows


def prepare(name: str, raw: Path, out: Path, *more: str) -> records.Dataset:
    """Prepares a set, and opens it."""
    arguments = ["--dataset", name, "--raw", str(raw), "--out", str(out), "--jobs", "1"]
    assert main([*arguments, "--size", "64", *more]) == 0
    dataset = records.open_dataset(out / name)
    assert not dataset.for_pretraining
    return dataset


def films(dataset: records.Dataset) -> dict[str, dict]:
    found = (dataset.images[row] for row in range(len(dataset.images)))
    return {record["image_id"]: record for record in found}


def reports(dataset: records.Dataset) -> dict[str, dict]:
    found = (dataset.reports[row] for row in range(len(dataset.reports)))
    return {record["study_id"]: record for record in found}


def classes(folder: Path, task: str) -> dict[str, dict]:
    """A film to its row of the task."""
    rows = annotations.read(folder, "classes").to_pylist()
    return {row["image_id"]: row for row in rows if row["task"] == task}


def listed(folder: Path, name: str = "rejected") -> list[dict[str, str]]:
    return read_rows(folder / f"{name}.csv")


def film(path: Path, seed: int = 0, mode: str = "L", size=(72, 80)) -> Path:
    """A small film that passes the checks, in the form that the name tells."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gray = 180 * np.exp(-2 * (x**2 + y**2)) + rng.normal(20, 4, x.shape)
    image = Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
