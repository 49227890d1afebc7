"""Reading the tables that come with films: cells, labels, views, times."""

import csv
import datetime
import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from medclip_jax.errors import UserError

ALIASES: dict[str, str] = {"Airspace Opacity": "Lung Opacity"}
"""Other names of a finding's column (CheXlocalize; MIMIC-CXR-JPG 2.1.0 test set)."""

MAX_SECONDS = 10**12
"""More than the seconds of 9999 years: what is above is no time."""

_CODES = {POSITIVE, NEGATIVE, UNCERTAIN, NOT_GIVEN}
_SPLIT_WORDS: dict[str, str] = {
    "train": "train",
    "training": "train",
    "val": "validate",
    "valid": "validate",
    "validate": "validate",
    "validation": "validate",
    "dev": "validate",
    "test": "test",
    "testing": "test",
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV (or .csv.gz) with its empty strings kept; see `numbered_rows`."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV (or .csv.gz) with its empty strings kept.

    Returns:
      The line in the file (its last, where a cell holds line breaks) and one dict for
      each row, cells stripped; rows without any cell filled, columns without a name
      and a byte order mark are ignored.

    Raises:
      UserError: the file is missing, damaged, not UTF-8, has no header, an open
        quote, or a row of more cells than the header: a comma without quotes would
        cut a report short.
    """
    csv.field_size_limit(1 << 26)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = []
            for row in reader:
                if any(row.pop(None, None) or ()):
                    raise UserError(
                        f"{path}, line {reader.line_num}: more cells than the header; "
                        "put cells that hold a comma into double quotes"
                    )
                cells = {k.strip(): (v or "").strip() for k, v in row.items() if k}
                if any(cells.values()):
                    rows.append((reader.line_num, cells))
            header = reader.fieldnames
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        why = str(error) if isinstance(error, csv.Error) else type(error).__name__
        raise UserError(
            f"cannot read {path} ({why}); expected a UTF-8 CSV file"
        ) from None
    if not header:
        raise UserError(f"{path} is empty; expected a CSV file with a header line")
    return rows


def find_table(folder: Path, pattern: str) -> Path | None:
    """The one file that matches, as .csv or .csv.gz; the unpacked one if both are."""
    found = sorted(folder.glob(pattern + ".csv")) or sorted(
        folder.glob(pattern + ".csv.gz")
    )
    return found[-1] if found else None


def need_columns(path: Path, rows: list[dict[str, str]], names: list[str]) -> None:
    """Raises UserError unless the table has rows and the columns."""
    if not rows:
        raise UserError(f"{path} has a header and no rows")
    missing = [name for name in names if name not in rows[0]]
    if missing:
        raise UserError(
            f"{path}: expected the columns {', '.join(names)}; missing "
            f"{', '.join(missing)}; found {', '.join(list(rows[0])[:30])}"
        )


def label_columns(header: Mapping[str, str] | list[str]) -> dict[int, str]:
    """Finds the findings' columns by their CheXpert names.

    Args:
      header: column names; letter case counts.

    Returns:
      Index into FINDINGS -> the column's name, for those present.
    """
    found = {}
    for column in header:
        name = ALIASES.get(column, column)
        if name in FINDINGS:
            found[FINDINGS.index(name)] = column
    return found


def labels_of(row: Mapping[str, str], columns: dict[int, str]) -> tuple[int, ...]:
    """The 14 codes of a row; a blank cell is "not given".

    Raises:
      ValueError: names the column whose cell is none of 1, 0, -1, -2 or blank.
    """
    made = [NOT_GIVEN] * len(FINDINGS)
    for at, column in columns.items():
        cell = row.get(column, "")
        if not cell:
            continue
        try:
            code = float(cell)
        except ValueError:
            code = float("nan")
        if code not in _CODES:
            raise ValueError(f"{column} is {cell[:20]!r}, expected 1, 0, -1 or blank")
        made[at] = int(code)
    return tuple(made)


def split_of(cell: str) -> str | None:
    """The split that a word means ("val" -> "validate"), or None."""
    return _SPLIT_WORDS.get(cell.casefold())


def sex_of(cell: str) -> str:
    """ "M", "F", or "" for anything else."""
    first = cell[:1].upper()
    return first if first in ("M", "F") else ""


def age_of(cell: str) -> float:
    """Years, or -1 when not given or not believable (0 to 120)."""
    match = re.fullmatch(r"0*(\d+(?:\.\d+)?)\s*[yY]?", cell)
    age = float(match.group(1)) if match else -1.0
    return age if age <= 120 else -1.0


def int_of(cell: str, default: int = 0) -> int:
    """A whole number of 32 bits, or the default for an empty or other cell."""
    try:
        value = int(float(cell))
    except (ValueError, OverflowError):
        return default
    return value if abs(value) < 2**31 else default


def seconds_since_year_one(moment: datetime.datetime) -> int:
    """Seconds since 0001-01-01: positive for shifted and for real dates alike."""
    return int((moment - datetime.datetime(1, 1, 1)).total_seconds())


def dicom_time(date: str, time: str) -> int:
    """Seconds since 0001-01-01 of a DICOM date and time whose zeros may be lost.

    Args:
      date: YYYYMMDD, perhaps written as a float.
      time: HHMMSS.fff; the integer part is padded to 6 digits (80556.875 is
        08:05:56).

    Returns:
      Seconds, or -1 when the date cannot be read. A missing time is midnight.

    Reference: MIMIC-CXR-JPG, metadata table, StudyDate and StudyTime.
    """
    day = date.split(".")[0]
    clock = time.split(".")[0].zfill(6)
    try:
        return seconds_since_year_one(
            datetime.datetime.strptime(f"{day} {clock}", "%Y%m%d %H%M%S")
        )
    except ValueError:
        return -1


def time_of(cell: str) -> int | None:
    """Seconds of a cell with whole seconds or an ISO date; -1 if empty, None if bad."""
    if not cell:
        return -1
    if re.fullmatch(r"\d+(\.0*)?", cell):
        seconds = int(float(cell))
        return seconds if seconds < MAX_SECONDS else None
    try:
        return seconds_since_year_one(
            datetime.datetime.fromisoformat(cell).replace(tzinfo=None)
        )
    except ValueError:
        return None
