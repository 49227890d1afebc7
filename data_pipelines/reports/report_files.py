"""Reads reports and reference labels from CSV files and folders of text files."""

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from data_pipelines.findings import FINDINGS, NOT_GIVEN
from medclip_jax.errors import UserError

SENTENCE_COLUMNS = ("sentence", "sentences")
REPORT_COLUMNS = ("report", "reports", "report impression", "impression", "text")
ID_COLUMNS = ("study", "study_id", "report_id", "id", "index", "filename", "uid")
_CODES = {"": NOT_GIVEN, "-2": NOT_GIVEN, "1": 1, "0": 0, "-1": -1}


@dataclass(frozen=True)
class TextRow:
    """One text to label.

    Attributes:
      id: study id, file stem or row number: what may be shown of it.
      section: its section, "" where not given.
      text: a report or a sentence; never shown.
      labels: int8 [14] of the reference, None without one.
    """

    id: str
    section: str
    text: str
    labels: np.ndarray | None


@dataclass(frozen=True)
class Texts:
    """Texts of one source; `sentences` says whether each is a single sentence."""

    rows: list[TextRow]
    sentences: bool


def _open(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _read_rows(path: Path) -> list[list[str]]:
    # A report may be longer than the csv module's default of 128 KiB a field.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with _open(path) as lines:
            rows = [row for row in csv.reader(lines, strict=True) if any(row)]
    except (csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a CSV file, found: {error}") from None
    if not rows:
        raise UserError(f"{path}: expected a CSV file with reports, found no row")
    return rows


def _find_column(header: list[str], names: tuple[str, ...]) -> int | None:
    lowered = [name.strip().lower() for name in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def _text_column(
    path: Path, header: list[str], text_column: str | None
) -> tuple[int, bool] | None:
    """Index of the text column and whether it holds sentences; None: no header."""
    if text_column is not None:
        index = _find_column(header, (text_column.lower(),))
        if index is None:
            raise UserError(
                f"{path}: expected a column {text_column!r} (--text-column), found "
                f"columns {len(header)}; give the name as it stands in the first line"
            )
        return index, text_column.lower() in SENTENCE_COLUMNS
    for names, sentences in ((SENTENCE_COLUMNS, True), (REPORT_COLUMNS, False)):
        index = _find_column(header, names)
        if index is not None:
            return index, sentences
    return None


def _label_columns(path: Path, header: list[str]) -> list[int]:
    found = [_find_column(header, (name.lower(),)) for name in FINDINGS]
    missing = [
        name for name, index in zip(FINDINGS, found, strict=True) if index is None
    ]
    if missing:
        raise UserError(
            f"{path}: expected a column for each of the 14 findings in a reference, "
            f"found none for {', '.join(missing)}"
        )
    return [index for index in found if index is not None]


def _parse_code(path: Path, line: int, finding: str, value: str) -> int:
    text = value.strip().removesuffix(".0")
    if text not in _CODES:
        raise UserError(
            f"{path}, row {line}: expected 1, 0, -1, -2 or blank under {finding}, "
            f"found a value of {len(value)} characters"
        )
    return _CODES[text]


def read_csv(
    path: Path, text_column: str | None = None, reference: bool = False
) -> Texts:
    """Reads texts from a CSV file, gzipped or not.

    Args:
      path: a file with a header that names a text column (`report`, `Reports`,
        `sentence`, ...), or with one column and no header (the CheXpert labeler's
        input).
      text_column: the text column's name where it has another.
      reference: also read the 14 label columns by name.

    Returns:
      The texts in the file's order.

    Raises:
      UserError: no such column, a row too short, a label that is no code.
    """
    rows = _read_rows(path)
    chosen = _text_column(path, rows[0], text_column)
    if chosen is None:
        if len(rows[0]) > 1 or reference:
            raise UserError(
                f"{path}: expected a text column ({', '.join(SENTENCE_COLUMNS[:1])}, "
                f"{', '.join(REPORT_COLUMNS)}), found {len(rows[0])} columns of other "
                "names; name it with --text-column"
            )
        texts = [TextRow(str(i), "", row[0], None) for i, row in enumerate(rows)]
        return Texts(texts, sentences=False)
    text, sentences = chosen
    columns = _label_columns(path, rows[0]) if reference else []
    return Texts(list(_parse_rows(path, rows, text, columns)), sentences)


def _parse_rows(
    path: Path, rows: list[list[str]], text: int, columns: list[int]
) -> Iterator[TextRow]:
    header = rows[0]
    name, section = _find_column(header, ID_COLUMNS), _find_column(header, ("section",))
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {line}: expected {len(header)} fields, found {len(row)}; "
                "texts with commas or line breaks must be quoted"
            )
        labels = None
        if columns:
            labels = np.array(
                [
                    _parse_code(path, line, finding, row[column])
                    for finding, column in zip(FINDINGS, columns, strict=True)
                ],
                np.int8,
            )
        yield TextRow(
            id=str(line - 2) if name is None else row[name],
            section="" if section is None else row[section],
            text=row[text],
            labels=labels,
        )


def read_folder(path: Path) -> Texts:
    """Reads every .txt file below a folder; the file's stem is the id.

    Raises:
      UserError: no .txt file there.
    """
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise UserError(f"{path}: expected .txt files below this folder, found none")
    rows = [
        TextRow(file.stem, "", file.read_text("utf-8", errors="replace"), None)
        for file in files
    ]
    return Texts(rows, sentences=False)


def read_texts(path: Path, text_column: str | None = None) -> Texts:
    """Reads texts from a folder of .txt files or from a CSV file."""
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise UserError(
            f"{path}: expected a CSV file or a folder of .txt reports, found nothing"
        )
    return read_csv(path, text_column)
