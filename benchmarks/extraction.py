"""Speed and agreement of knowledge extraction, for both rule sets.

Command:
  medclip-jax simulate --out DIR --patients 90 --seed 77 --size 64
  python -m benchmarks.extraction --reference DIR/truth/sentences.csv \
      --reports DIR/mimic-cxr/files

Prints, for each rule set, macro F1 against the reference and sentences a second a
core (CPU time, one process, rule tables loaded before); and for whole reports the
same with sections and splitting. Figures only: no text of a report.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from data_pipelines.reports.extract import RULE_SETS, Extractor, process_report
from data_pipelines.reports.measure import CODES, macro_f1, score_labels
from data_pipelines.reports.report_files import read_csv, read_folder
from medclip_jax import cli

MINIMUM_SECONDS = 3.0


def time_sentences(extractor: Extractor, sentences: list[str]) -> float:
    """Sentences labelled in a second of CPU time."""
    count, start = 0, time.process_time()
    while time.process_time() - start < MINIMUM_SECONDS:
        extractor.label_sentences(sentences)
        count += len(sentences)
    return count / (time.process_time() - start)


def time_reports(rules: str, reports: list[str]) -> tuple[float, float]:
    """Reports, and their sentences, read in a second of CPU time."""
    process_report("", rules)
    n_reports = n_sentences = 0
    start = time.process_time()
    while time.process_time() - start < MINIMUM_SECONDS:
        for text in reports:
            n_sentences += len(process_report(text, rules).sentences)
        n_reports += len(reports)
    seconds = time.process_time() - start
    return n_reports / seconds, n_sentences / seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--reports", type=Path, help="folder of .txt reports")
    args = parser.parse_args(argv)
    reference = read_csv(args.reference, reference=True)
    sentences = [row.text for row in reference.rows]
    truth = np.stack([row.labels for row in reference.rows if row.labels is not None])
    reports = (
        [row.text for row in read_folder(args.reports).rows] if args.reports else []
    )
    print(f"{len(sentences)} sentences, {len(reports)} reports")
    for rules in sorted(RULE_SETS):
        extractor = Extractor(rules)
        scores = score_labels(truth, extractor.label_sentences(sentences))
        figures = ", ".join(f"{code} {macro_f1(scores, code):.3f}" for code in CODES)
        rate = time_sentences(extractor, sentences)
        print(f"{rules}: macro F1 {figures}; {rate:.0f} sentences/s/core")
        if reports:
            n_reports, n_sentences = time_reports(rules, reports)
            print(
                f"{rules}, whole reports: {n_reports:.0f} reports/s/core, "
                f"{n_sentences:.0f} sentences/s/core"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
