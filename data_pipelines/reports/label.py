"""Verb `medclip-jax label`: extract the 14 findings from report text, or measure it."""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from data_pipelines.findings import FINDINGS, NOT_GIVEN
from data_pipelines.reports.extract import RULE_SETS, Extractor, process_report
from data_pipelines.reports.measure import format_scores, score_labels
from data_pipelines.reports.report_files import (
    Texts,
    read_csv,
    read_texts,
)
from medclip_jax import cli
from medclip_jax.errors import UserError

_EPILOG = """examples:
  medclip-jax label reports.csv --out labels.csv
      a CSV with a column `report` or `Reports`, or one column without a header
  medclip-jax label mimic-cxr/files --out sentence-labels.csv --sentences
      every .txt report below a folder, one row a sentence
  medclip-jax label --reference truth/sentences.csv
      precision, recall and F1 per finding against a CSV with a text column
      (`sentence`, `report`, ...) and the 14 findings' columns
  medclip-jax label --reference labeled_reports.csv --rules chexpert

Labels are 1 positive, 0 negative, -1 uncertain, blank not mentioned. Nothing that
this verb prints holds report text; output files hold it only with --with-text.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medclip-jax label",
        description=__doc__.split(": ", 1)[1],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "input", nargs="?", type=Path, help="CSV file or folder of .txt reports"
    )
    parser.add_argument("--out", type=Path, help="CSV file to write labels to")
    parser.add_argument(
        "--sentences", action="store_true", help="one row a sentence, not a report"
    )
    parser.add_argument(
        "--with-text", action="store_true", help="also write the text (column Reports)"
    )
    parser.add_argument("--text-column", help="name of the text column of a CSV")
    parser.add_argument(
        "--rules",
        choices=sorted(RULE_SETS),
        default="medclip_jax",
        help="rule tables (default: %(default)s)",
    )
    parser.add_argument(
        "--reference", type=Path, help="CSV with text and labels to measure against"
    )
    parser.add_argument(
        "--errors", type=Path, help="with --reference: CSV of disagreements, ids only"
    )
    return parser


def format_code(code: int) -> str:
    """Writes a code as the CheXpert labeler does: blank for not mentioned."""
    return "" if code == NOT_GIVEN else str(code)


def _labels_of_texts(texts: Texts, rules: str) -> tuple[np.ndarray, int, float]:
    """Labels each text: int8 [N, 14], number of sentences, CPU seconds."""
    extractor = Extractor(rules)
    labels = np.full((len(texts.rows), len(FINDINGS)), NOT_GIVEN, np.int8)
    n_sentences = 0
    process_report("", rules)  # reads the rule tables before the clock starts
    start = time.process_time()
    for index, row in enumerate(texts.rows):
        if texts.sentences:
            labels[index] = extractor.label_sentence(row.text)
            n_sentences += 1
        else:
            report = process_report(row.text, rules, row.id)
            labels[index] = report.labels
            n_sentences += len(report.sentences)
    return labels, n_sentences, time.process_time() - start


def _format_rate(n_sentences: int, seconds: float) -> str:
    rate = n_sentences / seconds if seconds else float("inf")
    return f"{n_sentences} sentences, {rate:.0f} sentences a second a core"


def _open_output(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _write_errors(
    path: Path, texts: Texts, truth: np.ndarray, found: np.ndarray
) -> None:
    with _open_output(path) as lines:
        writer = csv.writer(lines)
        writer.writerow(["row", "id", "section", "finding", "reference", "extracted"])
        for row, finding in np.argwhere(truth != found):
            text = texts.rows[row]
            codes = (truth[row, finding], found[row, finding])
            writer.writerow(
                [
                    row,
                    text.id,
                    text.section,
                    FINDINGS[finding],
                    *map(format_code, codes),
                ]
            )


def measure_reference(args: argparse.Namespace) -> None:
    """Prints agreement with a reference CSV, and the speed."""
    if not args.reference.is_file():
        raise UserError(f"{args.reference}: expected a CSV file, found none")
    texts = read_csv(args.reference, args.text_column, reference=True)
    if not texts.rows:
        raise UserError(f"{args.reference}: expected rows below the header, found none")
    truth = np.stack([row.labels for row in texts.rows if row.labels is not None])
    found, n_sentences, seconds = _labels_of_texts(texts, args.rules)
    print(f"rules {args.rules} against {args.reference}: {len(texts.rows)} rows")
    print(format_scores(score_labels(truth, found)))
    wrong = truth != found
    print(
        f"cells that agree: {(~wrong).sum()} of {wrong.size}; "
        f"rows that agree in all 14: {(~wrong.any(axis=1)).sum()} of {len(wrong)}"
    )
    print(_format_rate(n_sentences, seconds))
    if args.errors is not None:
        _write_errors(args.errors, texts, truth, found)
        print(f"wrote {args.errors}: disagreements by id, without text")


def _sentence_rows(
    texts: Texts, args: argparse.Namespace
) -> Iterator[tuple[int, list[list[str]]]]:
    """Yields for each text its number of sentences and one row a sentence."""
    extractor = Extractor(args.rules)
    for row in texts.rows:
        if texts.sentences:
            parts = [(row.section, row.text)]
            labels = extractor.label_sentences([row.text])
        else:
            report = process_report(row.text, args.rules, row.id)
            parts = list(zip(report.sentence_sections, report.sentences, strict=True))
            labels = report.sentence_labels
        yield (
            len(parts),
            [
                [row.id, section, str(index)]
                + ([text] if args.with_text else [])
                + [format_code(code) for code in codes]
                for index, ((section, text), codes) in enumerate(
                    zip(parts, labels, strict=True)
                )
            ],
        )


def _report_rows(
    texts: Texts, args: argparse.Namespace
) -> Iterator[tuple[int, list[list[str]]]]:
    """Yields for each text its number of sentences and its row."""
    for row in texts.rows:
        report = process_report(row.text, args.rules, row.id)
        shown = [row.text] if args.with_text else []
        codes = [format_code(code) for code in report.labels]
        yield len(report.sentences), [[row.id, *shown, *codes]]


def label_input(args: argparse.Namespace) -> None:
    """Writes the labels of the input, and prints how many and how fast."""
    if args.out is not None and Path(args.out).absolute() == args.input.absolute():
        raise UserError(f"--out is the input itself, {args.input}: name another file")
    texts = read_texts(args.input, args.text_column)
    process_report("", args.rules)
    text_columns = ["Reports"] if args.with_text else []
    head = ["study", "section", "index"] if args.sentences else ["study"]
    rows = (_sentence_rows if args.sentences else _report_rows)(texts, args)
    n_sentences, start = 0, time.process_time()
    with _open_output(args.out) as lines:
        writer = csv.writer(lines)
        writer.writerow([*head, *text_columns, *FINDINGS])
        for count, block in tqdm(
            rows, total=len(texts.rows), unit="report", disable=None
        ):
            writer.writerows(block)
            n_sentences += count
    seconds = time.process_time() - start
    print(f"wrote {args.out}: {len(texts.rows)} texts")
    print(_format_rate(n_sentences, seconds))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.reference is None and args.input is None:
        raise UserError("expected an input to label or --reference; see --help")
    if args.input is not None and args.out is None:
        raise UserError("expected --out, the CSV file to write the labels to")
    if args.reference is not None:
        measure_reference(args)
    if args.input is not None:
        label_input(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
