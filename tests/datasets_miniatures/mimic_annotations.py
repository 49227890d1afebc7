"""A small simulated hospital, annotated as the sets are that have no films."""

import dataclasses
import json
from pathlib import Path

from data_pipelines import annotations, records
from data_pipelines.hospital import benchmarks, simulate, simulation_folder
from data_pipelines.hospital.writer import Settings
from data_pipelines.prepare import main

PATIENTS = 8  # as --benchmarks would give them


def simulated(root: Path) -> Path:
    """A hospital of 50 patients, half of them of the test split; films of 64 px."""
    options = ["--patients", "50", "--chexpert-patients", "0", "--size", "64"]
    options += ["--test-fraction", "0.5", "--jobs", "1"]
    assert simulate.main(["--out", str(root), *options]) == 0
    return root


def annotate(name: str, folder: Path, root: Path) -> Path:
    """Writes a set of DERIVED for the hospital at `root`."""
    stored = json.loads((root / simulation_folder.RECORD).read_text())["settings"]
    settings = dataclasses.replace(Settings(**stored), benchmarks=PATIENTS)
    folder.mkdir(parents=True)
    benchmarks.module(name).write_tables(folder, settings, root)
    return folder


def prepare(name: str, raw: Path, out: Path, *more: str) -> Path:
    """Prepares a set and gives its folder."""
    arguments = ["--dataset", name, "--raw", str(raw), "--out", str(out), "--jobs", "1"]
    assert main([*arguments, *more]) == 0
    dataset = records.open_dataset(out / name)
    assert not dataset.for_pretraining and len(dataset.images) == 0
    return out / name


def rows(folder: Path, table: str) -> list[dict]:
    return annotations.read(folder, table).to_pylist()
