"""ROCOv2: figures in nested folders, captions in CSV files with quotes and line breaks.

The figures are drawn as those of `roco`; none is a diagram. Prepare it with `--dataset roco
--name roco_v2`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.hospital.benchmarks.roco import figures, save
from data_pipelines.hospital.course import stream
from data_pipelines.hospital.writer import Settings

DATASET = "roco"
"""The adapter that reads it."""

SPLITS = ("train",) * 7 + ("valid", "test", "test")


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes the figures of one article; rows are lines of the tables."""
    rows: dict[str, list[dict]] = {}
    for at, (image, text) in enumerate(figures(settings, "roco_v2", number)):
        if image is None:
            continue
        place = 3 * number + at
        split = SPLITS[place % 10]
        rng = stream(settings.seed, "roco_v2", number, at, "file")
        name = f"ROCOv2_2023_{split}_{place:06d}"
        path = folder / f"{split}_images" / split / f"{name}.jpg"
        save(rng, image, path, settings.quality)
        broken = text.replace(". ", ".\n", 1)
        told = f"CC BY [Simulated et al. ({2010 + number % 12})]"
        rows.setdefault(split, []).append(
            {"ID": name, "Caption": broken, "PMCID": f"PMC{9000 + number}", "by": told}
        )
    return rows


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes captions, concepts and licences."""
    del settings
    found = [row for split in dict.fromkeys(SPLITS) for row in rows.get(split, ())]
    link = "https://www.ncbi.nlm.nih.gov/pmc/articles/"
    tables: dict[str, tuple[list[str], Sequence[Sequence[str]]]] = {
        "license_information": (
            ["ID", "PMCID", "Attribution", "Link"],
            [(r["ID"], r["PMCID"], r["by"], link + r["PMCID"]) for r in found],
        ),
        "cui_mapping": (["CUI", "Canonical name"], [("C1306645", "Plain x-ray")]),
    }
    for split in dict.fromkeys(SPLITS):
        told = rows.get(split, ())
        captions = [(row["ID"], row["Caption"]) for row in told]
        tables[f"{split}_captions"] = (["ID", "Caption"], captions)
        concepts = [(row["ID"], "C1306645;C0817096") for row in told]
        tables[f"{split}_concepts"] = (["ID", "CUIs"], concepts)
    for name, (header, lines) in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])
