"""MS-CXR-T: changes between two films, and sentences that tell a change."""

import collections
import csv

import pytest
from mimic_annotations import PATIENTS, annotate, prepare, rows

from data_pipelines.datasets.ms_cxr_t import FINDINGS_OF, IMAGES, SENTENCES
from data_pipelines.hospital.grammar import evaluation_prompts, normalize
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

EMPTY = {f"{finding}_progression": "" for finding in FINDINGS_OF}
PAIR = {
    "dicom_id": "p10/p10000032/s50000002/aa-bb",
    "previous_dicom_id": "p10/p10000032/s50000001/cc-dd",
    "subject_id": "10000032",
    **EMPTY,
    "edema_progression": "worsening",
}
TWO = {"sentence_1": "worse edema", "sentence_2": "better edema"}


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path.parent


@pytest.fixture(scope="module")
def raw(hospital, tmp_path_factory):
    return annotate("ms_cxr_t", tmp_path_factory.mktemp("ms_cxr_t") / "raw", hospital)


def test_the_miniature_tells_the_true_course(raw, hospital, tmp_path):
    found = rows(prepare("ms_cxr_t", raw, tmp_path), "progression")
    metadata = read_rows(hospital / "mimic-cxr" / "mimic-cxr-2.0.0-metadata.csv.gz")
    film = {row["dicom_id"]: row for row in metadata}
    truth = {}
    for row in read_rows(hospital / "truth" / "progression.csv"):
        truth[row["study_id"], row["prior_study_id"], row["name"]] = row["progression"]
    for row in found:
        now, before = film[row["image_id"]], film[row["previous_image_id"]]
        assert {now["ViewPosition"], before["ViewPosition"]} <= {"AP", "PA"}
        assert (
            row["patient_id"] == f"p{now['subject_id']}" == f"p{before['subject_id']}"
        )
        key = (now["study_id"], before["study_id"], row["finding"])
        assert truth[key] == row["label"]
        assert row["quality"] in ("one_expert", "multiple_experts", "disagreement")
    assert len(found) > PATIENTS and len({row["finding"] for row in found}) == 5
    assert {row["label"] for row in found} == {"improving", "stable", "worsening"}


def test_the_sentence_pairs_are_of_both_subsets_and_no_prompts(raw, tmp_path):
    found = rows(prepare("ms_cxr_t", raw, tmp_path), "sentence_pairs")
    counts = collections.Counter((row["subset"], row["label"]) for row in found)
    assert len(counts) == 4 and min(counts.values()) >= PATIENTS // 2
    assert len({row["pair_id"] for row in found}) == len(found) == 48
    for row in found:
        first, second = normalize(row["sentence1"]), normalize(row["sentence2"])
        assert first != second and not {first, second} & evaluation_prompts()
        words = [set(row[f"sentence{n}"].lower().strip(".").split()) for n in (1, 2)]
        if row["subset"] == "Swaps":  # all but the words for the change is the same
            assert len(words[0] ^ words[1]) <= 6


def test_odd_spellings_are_taken(tmp_path):
    pair = {"": "0", **PAIR, "pneumonia_progression": "Stable", "extra": "x"}
    pair |= {
        "pneumonia_label_quality": "perhaps",
        "dicom_id": PAIR["dicom_id"] + ".jpg",
    }
    raw = write(tmp_path / "raw" / "1.0.0" / IMAGES, [pair, pair])
    two = {"": "7", **TWO, "category": "Paraphrase"}
    write(raw / SENTENCES, [two])
    out = prepare("ms_cxr_t", tmp_path / "raw", tmp_path)
    found = {row["finding"]: row for row in rows(out, "progression")}
    assert found.keys() == {"Edema", "Pneumonia"}
    stable = found["Pneumonia"]
    assert (stable["image_id"], stable["previous_image_id"]) == ("aa-bb", "cc-dd")
    assert (stable["label"], stable["patient_id"]) == ("stable", "p10000032")
    warned = read_rows(out / "warnings.csv")
    assert {row["reason"] for row in warned} == {"unknown label quality"}
    (two,) = rows(out, "sentence_pairs")
    assert (two["label"], two["subset"], two["split"]) == ("paraphrase", "", "test")


def test_bad_cells_are_rejected_by_line_and_others_kept(tmp_path):
    table = [
        {**PAIR, "edema_progression": "new", "pneumonia_progression": "improving"},
        {**PAIR, "previous_dicom_id": PAIR["dicom_id"]},
        {**PAIR, "dicom_id": ""},
        {**PAIR, "subject_id": "32"},
        {**PAIR, "dicom_id": "ee", "edema_progression": "stable"},
        {**PAIR, "dicom_id": "ee", "edema_progression": "improving"},
    ]
    raw = write(tmp_path / "raw" / IMAGES, table)
    pairs = [{**TWO, "category": "entailment"}, {**TWO, "category": "contradiction"}]
    pairs.append({**TWO, "sentence_2": " ", "category": "paraphrase"})
    write(raw / SENTENCES, pairs)
    out = prepare("ms_cxr_t", raw, tmp_path, "--max-rejected-percent", "90")
    (kept,) = rows(out, "progression")
    assert (kept["finding"], kept["label"]) == ("Pneumonia", "improving")
    assert len(rows(out, "sentence_pairs")) == 1
    details = {(r["path"], r["detail"][:6]) for r in read_rows(out / "rejected.csv")}
    assert details == {
        *((IMAGES, f"line {number}") for number in range(2, 6)),
        (IMAGES, "Edema:"),
        (SENTENCES, "line 2"),
        (SENTENCES, "line 4"),
    }
    assert "better edema" not in (out / "rejected.csv").read_text()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="found neither"):
        prepare("ms_cxr_t", tmp_path, tmp_path / "out")
    less = {n: cell for n, cell in PAIR.items() if n != "pneumonia_progression"}
    raw = write(tmp_path / "raw" / IMAGES, [less])
    with pytest.raises(UserError, match="missing pneumonia_progression"):
        prepare("ms_cxr_t", raw, tmp_path / "out")
    (raw / IMAGES).unlink()
    write(raw / SENTENCES, [TWO])
    with pytest.raises(UserError, match="missing category"):
        prepare("ms_cxr_t", raw, tmp_path / "out")
