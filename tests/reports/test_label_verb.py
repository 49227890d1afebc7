import csv
import gzip

import numpy as np
import pytest

from data_pipelines.findings import FINDINGS
from data_pipelines.reports import label
from data_pipelines.reports.measure import macro_f1, score_code, score_labels
from medclip_jax import cli
from medclip_jax.errors import UserError

SECRET = "Zebediah"


def write_csv(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return path


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz"])
@pytest.mark.parametrize(
    "rows",
    [
        [["Small effusion, no edema."], ["Clear lungs."]],
        [["Reports"], ["Small effusion, no edema."], ["Clear lungs."]],
        [["x", "report"], ["a", "Small effusion, no edema."], ["b", "Clear lungs."]],
    ],
)
def test_csv_of_reports(tmp_path, name, rows):
    out = tmp_path / "deep" / "out.csv"
    assert label.main([str(write_csv(tmp_path / name, rows)), "--out", str(out)]) == 0
    found = read_csv(out)
    assert list(found[0]) == ["study", *FINDINGS]
    assert [row["study"] for row in found] == ["0", "1"]
    assert found[0]["Pleural Effusion"] == "1"
    assert found[0]["Edema"] == "0"
    assert found[0]["Fracture"] == ""
    assert found[1]["No Finding"] == "1"


def test_folder_by_sentence(tmp_path):
    folder = tmp_path / "p10" / "p100"
    folder.mkdir(parents=True)
    (folder / "s2.txt").write_text("\n FINDINGS: Edema. No effusion.\n")
    (folder / "s1.txt").write_text("\n HISTORY: Edema?\n IMPRESSION: Clear lungs.\n")
    out = tmp_path / "out.csv"
    label.main([str(tmp_path), "--out", str(out), "--sentences", "--with-text"])
    rows = read_csv(out)
    assert [(r["study"], r["section"], r["index"]) for r in rows] == [
        ("s1", "impression", "0"),
        ("s2", "findings", "0"),
        ("s2", "findings", "1"),
    ]
    assert [r["Reports"] for r in rows] == ["Clear lungs.", "Edema.", "No effusion."]
    assert [r["Edema"] for r in rows] == ["", "1", ""]


def test_text_is_written_on_request_alone(tmp_path):
    source = write_csv(tmp_path / "in.csv", [["report"], [f"{SECRET}: edema."]])
    out = tmp_path / "out.csv"
    label.main([str(source), "--out", str(out)])
    assert SECRET not in out.read_text()
    label.main([str(source), "--out", str(out), "--with-text"])
    assert read_csv(out)[0]["Reports"] == f"{SECRET}: edema."


def reference(tmp_path, effusion):
    header = ["study", "section", "sentence", *reversed(FINDINGS)]
    codes = {"No Finding": "", "Pleural Effusion": effusion}
    row = ["s1", "findings", f"Small effusion, {SECRET}."]
    row += [codes.get(name, "-2") for name in reversed(FINDINGS)]
    return write_csv(tmp_path / "ref.csv", [header, row])


def test_reference_prints_figures_and_no_text(tmp_path, capsys):
    path = reference(tmp_path, "0.0")
    errors = tmp_path / "errors.csv"
    label.main(["--reference", str(path), "--errors", str(errors)])
    printed = capsys.readouterr().out
    assert "cells that agree: 13 of 14" in printed
    assert "sentences a second a core" in printed
    assert SECRET not in printed + errors.read_text()
    assert read_csv(errors) == [
        {
            "row": "0",
            "id": "s1",
            "section": "findings",
            "finding": "Pleural Effusion",
            "reference": "0",
            "extracted": "1",
        }
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: ["--reference", str(d / "none.csv")], "found none"),
        (lambda d: [str(d / "none"), "--out", str(d / "o")], "found nothing"),
        (lambda d: [str(d), "--out", str(d / "o")], "expected .txt files"),
        (lambda d: [], "expected an input"),
        (lambda d: [str(d)], "expected --out"),
        (lambda d: ["--reference", str(reference(d, SECRET))], "row 2: expected 1, 0"),
        (
            lambda d: [
                str(write_csv(d / "a.csv", [["p", "q"], ["1", SECRET]])),
                "--out",
                str(d / "o"),
            ],
            "--text-column",
        ),
        (
            lambda d: [
                str(write_csv(d / "a.csv", [["p", "report"], [SECRET]])),
                "--out",
                str(d / "o"),
            ],
            "expected 2 fields, found 1",
        ),
        (
            lambda d: ["--reference", str(write_csv(d / "a.csv", [["report"], ["x"]]))],
            "a column for each of the 14",
        ),
    ],
)
def test_user_errors_say_what_to_mend_and_hide_text(tmp_path, make, message, capsys):
    with pytest.raises(UserError) as error:
        label.main(make(tmp_path))
    assert message in str(error.value)
    assert SECRET not in str(error.value)
    assert cli.main(["label", *make(tmp_path)]) == 2
    assert capsys.readouterr().err.count("medclip-jax: error:") == 1


def test_scores():
    truth = np.array([1, 1, 0, -1, -2], np.int8)
    found = np.array([1, 0, 1, -1, -2], np.int8)
    score = score_code(truth, found, 1)
    assert (score.precision, score.recall, score.f1, score.support) == (
        0.5,
        0.5,
        0.5,
        2,
    )
    scores = score_labels(
        np.tile(truth[:, None], (1, 14)), np.tile(found[:, None], (1, 14))
    )
    assert macro_f1(scores, "uncertain") == 1.0
    assert macro_f1(scores, "positive") == 0.5
    assert np.isnan(score_code(truth, found, 7).f1)
