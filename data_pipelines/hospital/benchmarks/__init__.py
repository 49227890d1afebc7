"""Miniatures of the sets that models are judged on, in their published layouts.

One module a layout, each with two functions:

    write_patient(folder, settings, number) -> rows
        Draws patient `number` of the layout, writes the films below `folder` and
        returns rows for the tables, as lists of plain dicts by a name of its own.
        Runs in worker processes and depends on its arguments alone.
    write_tables(folder, settings, rows)
        Writes the layout's tables from the rows of all patients, in order.

Layouts of DERIVED annotate the simulated MIMIC-CXR and have no films of their own:

    write_tables(folder, settings, root)
        Reads the truth below `root` and writes the annotation files.

A module may name in DATASET the adapter that reads it, where that is not its own name.
Every layout holds the traps of the real one: its odd headers, spellings and orders.
"""

import importlib
from types import ModuleType

FOLDER = "benchmarks"
"""Below the simulation's folder; each layout has its own folder there."""

LAYOUTS: tuple[str, ...] = (
    "covidx",
    "covid_radiography",
    "rsna",
    "mura",
    "siim",
    "nih_cxr14",
    "openi",
    "shenzhen",
    "montgomery",
    "roco",
    "roco_v2",
    "padchest",
    "vindr_cxr",
)
"""With films of their own, in the order of writing."""

DERIVED: tuple[str, ...] = ("ms_cxr", "ms_cxr_t", "radnli", "mednli", "mimic_dicom")
"""Annotations of the simulated MIMIC-CXR."""


def module(name: str) -> ModuleType:
    """The module of a layout."""
    return importlib.import_module(f"data_pipelines.hospital.benchmarks.{name}")
