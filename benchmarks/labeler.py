"""Knowledge extraction against references, per finding, and its speed.

Command:
  python -m benchmarks.labeler --folder REFERENCES
  python -m benchmarks.labeler --reference DIR/truth/sentences.csv \
      --reports DIR/mimic-cxr/files
  python -m benchmarks.labeler --texts captions.csv

Each of these adds a comparison, for both rule sets where that makes sense:

  --reference  a CSV with a text column (`sentence`, `report`, ...) and the 14
               findings' columns: precision, recall and F1 of each finding, for what is
               stated, denied and doubted.
  --folder     a folder with any of
                 chexpert_labeler/labeled_reports.csv   read as a --reference
                 chexpert_labeler/phrases/mention/FINDING.txt, unmention/FINDING.txt
                     one phrase a line, from stanfordmlgroup/chexpert-labeler. Each is
                     put into "There is X.", "There is no X.", "There may be X."; the
                     list says nothing of other findings, so there is only recall: the
                     share labelled 1, 0 and -1, and of the unmention list the share
                     not labelled. Some lines are stems ("atelecta", "opaci"), which rules by
                     words miss; no_finding.txt, mostly stems, is left out.
                 negbio/openi_gld_std14.csv   from ncbi-nlp/NegBio: file name and 0 or 1
                     for findings of ChestX-ray14, by hand, of Open-i reports. Needs
                     --openi, the reports: CXR1.txt, ... or the published 1.xml, ...
                     Infiltration, Emphysema, Fibrosis and Hernia have no counterpart
                     among the 14; Mass or Nodule is Lung Lesion, Pleural_Thickening is
                     Pleural Other.
  --texts      texts without labels, a CSV or a folder of .txt: the project's own rules
               against the CheXpert labeler's (`chexpert`), which is no truth but
               shows where they part on real language.
  --reports    a folder of .txt reports: the speed of sections, splitting and labels.

Rates are in CPU seconds of one process, the rule tables loaded before. Only figures are
printed, no text of a report.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NO_FINDING,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from data_pipelines.reports.extract import RULE_SETS, Extractor, process_report
from data_pipelines.reports.measure import CODES, macro_f1, score_labels
from data_pipelines.reports.report_files import Texts, read_csv, read_folder, read_texts
from medclip_jax import cli
from medclip_jax.errors import UserError

OWN, CHEXPERT = "medclip_jax", "chexpert"
TEMPLATES = {
    "There is {}.": POSITIVE,
    "There is no {}.": NEGATIVE,
    "There may be {}.": UNCERTAIN,
}
OPENI = {
    "normal": "No Finding",
    "Cardiomegaly": "Cardiomegaly",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Effusion": "Pleural Effusion",
    "Pleural_Thickening": "Pleural Other",
}


def label_texts(texts: Texts, rules: str) -> np.ndarray:
    """Labels each text as what it is, a sentence or a report; int8 [N, 14]."""
    extractor = Extractor(rules)
    rows = tqdm(texts.rows, desc=rules, unit="text", leave=False)
    labels = [
        extractor.label_sentence(row.text)
        if texts.sentences
        else process_report(row.text, rules, row.id).labels
        for row in rows
    ]
    return np.stack(labels)


def format_table(truth: np.ndarray, found: np.ndarray, codes: list[str]) -> str:
    """Precision, recall, F1 and support of each finding and code, in Markdown.

    Args:
      truth, found: int8 [N, 14].
      codes: of "positive", "negative", "uncertain": what the reference tells.

    Returns:
      A line a finding that either side has; "-" where there is nothing to count.
    """
    scores = score_labels(truth, found)
    head = " | ".join(f"{code} P | R | F1 | n" for code in codes)
    lines = [
        f"| finding | {head} |",
        "| --- |" + " --- | --- | --- | --- |" * len(codes),
    ]
    for finding, each in scores.items():
        if all(np.isnan(each[code].f1) for code in codes):
            continue
        cells = [
            f"{s.precision:.3f} | {s.recall:.3f} | {s.f1:.3f} | {s.support}"
            for s in (each[code] for code in codes)
        ]
        lines.append(f"| {finding} | {' | '.join(cells)} |")
    macro = [f" |  | {macro_f1(scores, code):.3f} | " for code in codes]
    lines.append(f"| macro F1 | {' | '.join(macro)} |")
    return "\n".join(" ".join(line.split()) for line in lines).replace("nan", "-")


def rate(work: Callable[[], int], seconds: float) -> float:
    """Items a CPU second; `work` returns how many it did."""
    work()
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds or not count:
        count += work()
    return count / max(time.process_time() - start, 1e-9)


def sentences_of(texts: Texts) -> list[str]:
    if texts.sentences:
        return [row.text for row in texts.rows]
    return [s for row in texts.rows for s in process_report(row.text).sentences]


def print_speed(texts: Texts, rules: str, seconds: float) -> None:
    sentences = sentences_of(texts)
    extractor = Extractor(rules)

    def work() -> int:
        extractor.label_sentences(sentences)
        return len(sentences)

    if sentences:
        speed = rate(work, seconds)
        print(f"\n{rules}: {speed:,.0f} sentences a second a core ({len(sentences)})")


def compare_reference(path: Path, rule_sets: list[str], seconds: float) -> None:
    """Prints the scores against a CSV with labels."""
    texts = read_csv(path, reference=True)
    truth = np.stack([row.labels for row in texts.rows if row.labels is not None])
    for rules in rule_sets:
        found = label_texts(texts, rules)
        kind = "sentences" if texts.sentences else "reports"
        print(f"\n## {rules} against {path.name}, {len(truth)} {kind}")
        print(
            f"cells that agree: {(truth == found).sum()} of {truth.size}; rows that "
            f"agree in all 14: {(truth == found).all(axis=1).sum()}\n"
        )
        print(format_table(truth, found, list(CODES)))
        print_speed(texts, rules, seconds)


def read_phrases(folder: Path) -> dict[str, list[str]]:
    """Finding -> phrases, of a folder with a file a finding (as pleural_effusion)."""
    named = {name.lower().replace(" ", "_"): name for name in FINDINGS}
    phrases = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in named:
            raise UserError(
                f"{path}: expected a finding's name ({', '.join(sorted(named))}), found "
                f"{path.stem}; rename or remove the file"
            )
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        if named[path.stem] != FINDINGS[NO_FINDING]:
            phrases[named[path.stem]] = [line for line in lines if line]
    if not phrases:
        raise UserError(f"{folder}: expected a .txt file a finding, found none")
    return phrases


def share(
    extractor: Extractor, finding: str, phrases: list[str], template: str, code: int
) -> str:
    """How many of the phrases get the code in the template, as "3/4"; "" for none."""
    texts = [template.format(phrase) for phrase in phrases]
    found = extractor.label_sentences(texts)[:, FINDINGS.index(finding)]
    return f"{int(np.sum(found == code))}/{len(phrases)}" if phrases else ""


def compare_phrases(folder: Path, rule_sets: list[str]) -> None:
    """Prints how many of the phrases are found, in each of three sentences."""
    mention = read_phrases(folder / "mention")
    unmention = read_phrases(folder / "unmention")
    for rules in rule_sets:
        extractor = Extractor(rules)

        print(f"\n## {rules}: phrases found\n")
        print("| finding | stated | denied | doubted | unmention, left out |")
        print("| --- | --- | --- | --- | --- |")
        for finding, phrases in mention.items():
            cells = [
                share(extractor, finding, phrases, template, code)
                for template, code in TEMPLATES.items()
            ]
            others = unmention.get(finding, [])
            left = share(extractor, finding, others, "There is {}.", NOT_GIVEN)
            print(f"| {finding} | {' | '.join(cells)} | {left} |")


def read_openi(path: Path) -> str:
    """The findings and impression of an Open-i report, .txt or the published .xml."""
    if path.suffix == ".txt":
        return path.read_text("utf-8", errors="replace")
    parts = ElementTree.parse(path).getroot().iter("AbstractText")
    wanted = ("FINDINGS", "IMPRESSION")
    return "\n\n".join(
        f"{part.get('Label')}: {part.text}"
        for part in parts
        if part.get("Label") in wanted and part.text
    )


def compare_openi(
    reference: Path, reports: Path, rule_sets: list[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Prints the scores against the hand labels of Open-i reports.

    Returns:
      The reference, int8 [N, 14] with 1 and NOT_GIVEN, and each rule set's labels,
      1 where positive and NOT_GIVEN elsewhere and for findings without counterpart.

    Raises:
      UserError: no report of the reference is there.
    """
    files = {
        ("" if path.stem.startswith("CXR") else "CXR") + path.stem: path
        for path in sorted(reports.rglob("*"))
        if path.suffix in (".txt", ".xml")
    }
    with reference.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["filename"] in files]
    if not rows:
        raise UserError(
            f"{reports}: expected reports named CXR1.txt or 1.xml as in {reference.name}, "
            f"found {len(files)} .txt and .xml files and none of those ids; give the "
            "folder with the reports to --openi"
        )
    truth = np.full((len(rows), len(FINDINGS)), NOT_GIVEN, np.int8)
    for index, row in enumerate(rows):
        for theirs, ours in OPENI.items():
            if row[theirs] == "1":
                truth[index, FINDINGS.index(ours)] = POSITIVE
    known = np.isin(FINDINGS, list(OPENI.values()))
    labels = {}
    for rules in rule_sets:
        found = np.stack(
            [
                process_report(read_openi(files[row["filename"]]), rules).labels
                for row in tqdm(
                    rows, desc=f"Open-i, {rules}", unit="report", leave=False
                )
            ]
        )
        found = np.where((found == POSITIVE) & known, POSITIVE, NOT_GIVEN)
        labels[rules] = found
        print(f"\n## {rules} against {reference.name}, {len(rows)} reports\n")
        print(format_table(truth, found, ["positive"]))
    return truth, labels


def compare_rule_sets(path: Path) -> None:
    """Prints the own rules' scores against the CheXpert labeler's on texts."""
    once = {row.text: row for row in read_texts(path).rows if row.text.strip()}
    texts = Texts(list(once.values()), sentences=False)  # films may share a text
    theirs, ours = label_texts(texts, CHEXPERT), label_texts(texts, OWN)
    name = f"{path.parent.name}/{path.name}"
    print(f"\n## {OWN} against the rules {CHEXPERT}, {name}: {len(theirs)} texts\n")
    print(format_table(theirs, ours, list(CODES)))


def print_report_speed(path: Path, rules: str, seconds: float) -> None:
    """Sections, splitting and labels of whole reports."""
    reports = [row.text for row in read_folder(path).rows]
    sentences = sum(len(process_report(text, rules).sentences) for text in reports)

    def work() -> int:
        for text in reports:
            process_report(text, rules)
        return len(reports)

    speed = rate(work, seconds)
    print(
        f"\n{rules}, whole reports: {speed:,.0f} a second a core, "
        f"{speed * sentences / len(reports):,.0f} sentences ({len(reports)} reports)"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, action="append", default=[])
    parser.add_argument("--folder", type=Path, help="folder of references, see above")
    parser.add_argument("--openi", type=Path, help="folder of Open-i reports")
    parser.add_argument("--texts", type=Path, action="append", default=[])
    parser.add_argument("--reports", type=Path, help="folder of .txt reports")
    parser.add_argument("--rules", choices=sorted(RULE_SETS), help="default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    args = parser.parse_args(argv)
    if not (args.reference or args.folder or args.texts or args.reports):
        parser.error("expected --reference, --folder, --texts or --reports")
    rule_sets = [args.rules] if args.rules else sorted(RULE_SETS, reverse=True)
    references = list(args.reference)
    if args.folder is not None:
        labeled = args.folder / "chexpert_labeler" / "labeled_reports.csv"
        phrases = args.folder / "chexpert_labeler" / "phrases"
        openi = args.folder / "negbio" / "openi_gld_std14.csv"
        if not (labeled.is_file() or phrases.is_dir() or openi.is_file()):
            raise UserError(
                f"{args.folder}: expected chexpert_labeler/labeled_reports.csv, "
                "chexpert_labeler/phrases or negbio/openi_gld_std14.csv, found none"
            )
        references += [labeled] if labeled.is_file() else []
        if phrases.is_dir():
            compare_phrases(phrases, rule_sets)
        if openi.is_file() and args.openi is not None:
            compare_openi(openi, args.openi, rule_sets)
        elif openi.is_file():
            print(f"\n{openi.name}: left out, --openi names no folder of its reports")
    for path in references:
        compare_reference(path, rule_sets, args.seconds)
    for path in args.texts:
        compare_rule_sets(path)
    for rules in rule_sets if args.reports else ():
        print_report_speed(args.reports, rules, args.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
