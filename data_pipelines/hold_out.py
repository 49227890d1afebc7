"""`prepare --hold-out`: patients of evaluation sets go to the test split.

Phrases, film pairs and lists like MIMIC-5x200 are of patients of whom many are in the
published train split. Films of one patient resemble each other and reports repeat
themselves, so the patient counts, not the film.
"""

import argparse
import dataclasses
import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.plan import Scan
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

PATTERNS = ("*.csv", "*.csv.gz", "*.json", "*.jsonl")


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hold-out",
        action="append",
        default=[],
        metavar="FILE",
        help="mimic_cxr, chexpert: patients named in the file (or in the files of a "
        "folder) of an evaluation set go to the test split; may be repeated. Taken are "
        "MS-CXR, MS-CXR-T, RadGraph's test.json, and any CSV or JSON with a column "
        "subject_id or with paths of the dataset's films (MIMIC-5x200, CheXpert-5x200, "
        "ConVIRT's lists)",
    )


def identity(names: Sequence[str]) -> list[str]:
    """The files with a hash of their contents: what a prepared dataset depends on."""
    made = []
    for name in names:
        digest = hashlib.sha256()
        for path in _files(name):
            digest.update(path.read_bytes())
        made.append(f"{name} {digest.hexdigest()[:16]}")
    return made


def apply(scan: Scan, names: Sequence[str], builder_class: Any) -> None:
    """Moves the films and reports of held-out patients to the test split.

    Args:
      scan: of an adapter; changed, with a note for each file.
      names: files or folders.
      builder_class: of the dataset; its PATIENT_IN_PATH and PATIENT_COLUMN say how
        others name its patients.

    Raises:
      UserError: the dataset's patients are in no other set, a file names none of them,
        or no patient would be left to train.
    """
    if names and not builder_class.PATIENT_IN_PATH:
        raise UserError(
            f"--hold-out: expected --dataset mimic_cxr or chexpert, found "
            f"{builder_class.name}; no evaluation set names its patients"
        )
    for name in names:
        found: set[str] = set()
        for path in _files(name):
            found |= patients_in(path, builder_class)
        if not found:
            raise UserError(
                f"--hold-out {name}: expected patients of {builder_class.name}, in a "
                "column subject_id or in paths of its films, found none"
            )
        _move(scan, name, found)


def patients_in(path: Path, builder_class: Any) -> set[str]:
    """The patients that a file names, as the dataset's records do."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"--hold-out: cannot read {path} ({type(error).__name__}); is it complete?"
        ) from None
    found = set(re.findall(builder_class.PATIENT_IN_PATH, text))
    column, prefix = builder_class.PATIENT_COLUMN
    if column and ".csv" in path.suffixes and column in text.partition("\n")[0]:
        for row in read_rows(path):
            number = row.get(column, "").removeprefix(prefix).removesuffix(".0")
            if re.fullmatch(r"\d{8}", number):
                found.add(prefix + number)
    return found


def _files(name: str) -> list[Path]:
    """The file, or the tables below a folder."""
    path = Path(name)
    if path.is_file():
        return [path]
    found = {file for pattern in PATTERNS for file in path.rglob(pattern)}
    if not found:
        raise UserError(
            f"--hold-out: expected a file, or a folder with {', '.join(PATTERNS)}, "
            f"found neither at {name}"
        )
    return sorted(found)


def _move(scan: Scan, name: str, held: set[str]) -> None:
    everything: list[Any] = [*scan.films, *scan.reports]
    here = {item.patient_id for item in everything} & held
    moved = here - {i.patient_id for i in everything if i.split == "test"}
    train = {item.patient_id for item in everything if item.split == "train"}
    if train and train <= here:
        raise UserError(
            f"--hold-out {name}: names every patient of the train split; expected the "
            "list of an evaluation set, found perhaps a table of the dataset itself"
        )

    def placed(item: Any) -> Any:
        held_out = item.patient_id in here
        return dataclasses.replace(item, split="test") if held_out else item

    scan.films = [placed(film) for film in scan.films]
    scan.reports = [placed(report) for report in scan.reports]
    films = sum(film.patient_id in moved for film in scan.films)
    scan.notes.append(
        f"--hold-out {Path(name).name}: {len(held):,} patients, {len(here):,} of them "
        f"here; {len(moved):,} moved to test with {films:,} films"
    )
