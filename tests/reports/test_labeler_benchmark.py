"""The benchmark of knowledge extraction reads its references and counts right."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.findings import FINDINGS, NOT_GIVEN
from medclip_jax.errors import UserError

PATH = Path(__file__).parents[2] / "benchmarks" / "labeler.py"
REPORT = """<eCitation><MedlineCitation><Article><Abstract>
<AbstractText Label="INDICATION">Pneumothorax?</AbstractText>
<AbstractText Label="FINDINGS">There is a nodule in the left lung.</AbstractText>
<AbstractText Label="IMPRESSION">{}</AbstractText>
</Abstract></Article></MedlineCitation></eCitation>"""
NAMES = (
    "Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,"
    "Pneumothorax,Consolidation,Edema,Emphysema,Fibrosis,Pleural_Thickening,Hernia,normal"
)


@pytest.fixture(scope="module")
def labeler():
    spec = importlib.util.spec_from_file_location("labeler_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """References of every kind, small."""
    mention = tmp_path / "chexpert_labeler" / "phrases" / "mention"
    unmention = tmp_path / "chexpert_labeler" / "phrases" / "unmention"
    mention.mkdir(parents=True)
    unmention.mkdir()
    (mention / "pleural_effusion.txt").write_text("pleural effusion\nquokka\n\n")
    (mention / "no_finding.txt").write_text("degenera\n")
    (unmention / "pleural_effusion.txt").write_text("pericardial effusion")
    (tmp_path / "negbio").mkdir()
    rows = ["CXR1" + ",0,0,1,1,0,1" + ",0" * 9, "CXR2" + ",0" * 14 + ",1", "CXR9,"]
    text = "\n".join([f"filename,{NAMES}", *rows]) + "\n"
    (tmp_path / "negbio" / "openi_gld_std14.csv").write_text(text)
    labels = ["1" if name == "Edema" else "" for name in FINDINGS]
    lines = [",".join(["Reports", *FINDINGS]), ",".join(["No edema.", *labels])]
    (tmp_path / "chexpert_labeler" / "labeled_reports.csv").write_text("\n".join(lines))
    return tmp_path


def test_phrases_are_counted_in_each_template(labeler, folder, capsys):
    labeler.main(["--folder", str(folder), "--rules", "medclip_jax", "--seconds", "0"])
    out = capsys.readouterr().out
    assert "| Pleural Effusion | 1/2 | 1/2 | 1/2 | 1/1 |" in out
    assert "No Finding |" not in out.split("labeled_reports.csv")[0]
    assert "openi_gld_std14.csv: left out" in out
    # The reference says edema, and the rules say none: no hit on either side.
    assert "cells that agree: 12 of 14" in out
    assert "| Edema | - | 0.000 | 0.000 | 1 | 0.000 | - | 0.000 | 0 |" in out
    assert "sentences a second a core (1)" in out


def test_openi_labels_are_mapped_and_only_their_findings_count(labeler, folder):
    reports = folder / "reports"
    reports.mkdir()
    told = "Left pleural effusion. Rib fracture. Possible pneumonia."
    (reports / "1.xml").write_text(REPORT.format(told))
    (reports / "CXR2.txt").write_text("FINDINGS: The lungs are clear.")
    reference = folder / "negbio" / "openi_gld_std14.csv"
    truth, labels = labeler.compare_openi(reference, reports, ["medclip_jax"])
    expected = np.full((2, 14), NOT_GIVEN)
    expected[0, [FINDINGS.index("Pleural Effusion"), FINDINGS.index("Lung Lesion")]] = 1
    expected[1, FINDINGS.index("No Finding")] = 1
    np.testing.assert_array_equal(truth, expected)
    # The fracture has no column there, the doubt is no 1, and the indication asks.
    np.testing.assert_array_equal(labels["medclip_jax"], expected)


def test_texts_that_films_share_count_once(labeler, tmp_path, capsys):
    path = tmp_path / "notes.csv"
    path.write_text("id,report\n1,No edema.\n2,No edema.\n3,\n4,Rib fracture.\n")
    labeler.main(["--texts", str(path)])
    out = capsys.readouterr().out
    assert "notes.csv: 2 texts" in out
    assert "| Fracture | 1.000 | 1.000 | 1.000 | 1 |" in out
    assert "| Edema | - | - | - | 0 | 1.000 | 1.000 | 1.000 | 1 |" in out


def test_what_is_missing_is_told(labeler, folder):
    with pytest.raises(UserError, match="expected chexpert_labeler.* found none"):
        labeler.main(["--folder", str(folder / "negbio")])
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="named CXR1.txt or 1.xml .* to --openi"):
        labeler.main(["--folder", str(folder), "--openi", str(folder / "empty")])
    mention = folder / "chexpert_labeler" / "phrases" / "mention"
    (mention / "lungs.txt").write_text("x")
    with pytest.raises(UserError, match="expected a finding's name .* found lungs"):
        labeler.main(["--folder", str(folder)])
