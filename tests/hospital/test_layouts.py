"""The written layouts, table by table, against the truth kept beside them."""

import csv
import gzip
import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_pipelines.annotations import mask_of_runs, run_lengths
from data_pipelines.findings import EVAL_FIVE, FINDINGS, NOT_GIVEN
from data_pipelines.hospital import layouts, simulate, truth
from data_pipelines.hospital.reports_text import aggregate
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.writer import Settings, split_of

PATIENTS, OTHERS, SIZE = 24, 12, 96


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("hospital") / "raw"
    arguments = f"--patients {PATIENTS} --chexpert-patients {OTHERS} --seed 5"
    arguments += f" --size {SIZE} --jobs 1 --validate-fraction 0.2"
    assert simulate.main(["--out", str(out), *arguments.split()]) == 0
    return out


def read(path: Path) -> list[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mimic(root: Path, name: str) -> list[dict[str, str]]:
    return read(root / f"mimic-cxr/mimic-cxr-2.0.0-{name}.csv.gz")


@pytest.fixture(scope="module")
def studies(root):
    lines = (root / "truth/studies.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_columns_are_those_of_the_real_tables(root):
    assert tuple(mimic(root, "metadata")[0]) == layouts.METADATA_COLUMNS
    assert len(layouts.METADATA_COLUMNS) == 12
    assert list(mimic(root, "split")[0]) == [
        "dicom_id",
        "study_id",
        "subject_id",
        "split",
    ]
    for name in ("chexpert", "negbio"):
        columns = list(mimic(root, name)[0])
        assert columns[:2] == ["subject_id", "study_id"]
        assert columns[2:] == sorted(FINDINGS)
    header = (root / "chexpert/CheXpert-v1.0-small/train.csv").read_text().split("\n")
    assert header[0] == (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,"
        "Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
        "Support Devices"
    )


def test_every_row_has_its_file_and_every_file_its_row(root):
    named = set()
    for row in mimic(root, "metadata"):
        subject, study = row["subject_id"], row["study_id"]
        folder = root / f"mimic-cxr/files/p{subject[:2]}/p{subject}"
        image = folder / f"s{study}" / f"{row['dicom_id']}.jpg"
        height, width, space, _ = simplejpeg.decode_jpeg_header(image.read_bytes())
        assert (height, width) == (int(row["Rows"]), int(row["Columns"]))
        assert space.lower() == "gray" and min(height, width) == SIZE
        named |= {image, folder / f"s{study}.txt"}
    files = {path for path in (root / "mimic-cxr/files").rglob("*") if path.is_file()}
    assert named == files
    assert len({row["dicom_id"] for row in mimic(root, "metadata")}) * 2 > len(files)
    base = root / "chexpert"
    rows = read(base / "CheXpert-v1.0-small/train.csv")
    rows += read(base / "CheXpert-v1.0-small/valid.csv")
    assert {base / row["Path"] for row in rows} == set(base.rglob("*.jpg"))


def test_order_of_ids_is_not_the_order_of_time(root, studies):
    rows = mimic(root, "chexpert")
    keys = [(row["subject_id"], row["study_id"]) for row in rows]
    assert keys == sorted(keys)
    assert {s["study_id"] for s in studies if s["dataset"] == "mimic_cxr"} == {
        row["study_id"] for row in rows
    }


def test_truth_stands_in_the_order_of_patients_and_time(studies):
    keys = [(s["dataset"] == "chexpert", s["number"], s["index"]) for s in studies]
    assert keys == sorted(keys)
    assert len({key[:2] for key in keys}) == PATIENTS + OTHERS


def test_study_time_loses_its_leading_zeros(root, studies):
    times = {s["study_id"]: s["time"] for s in studies if s["dataset"] == "mimic_cxr"}
    short = 0
    for row in mimic(root, "metadata"):
        whole, _, part = row["StudyTime"].partition(".")
        assert whole == str(int(whole)) and 1 <= len(part) <= 3
        short += len(whole) < 6
        text = row["StudyDate"] + whole.zfill(6)
        when = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        assert int(when.timestamp()) == times[row["study_id"]]
        assert 2100 < when.year < 2210
    assert short > 0


def test_views(root, studies):
    views = {
        image: s["views"][i] for s in studies for i, image in enumerate(s["images"])
    }
    for row in mimic(root, "metadata"):
        raw = row["ViewPosition"]
        assert ("LATERAL" if raw == "LL" else raw) == views[row["dicom_id"]]
        codes = {"AP": "antero-posterior", "PA": "postero-anterior"}
        assert row["ViewCodeSequence_CodeMeaning"].endswith(codes.get(raw, "lateral"))
    rows = read(root / "chexpert/CheXpert-v1.0-small/train.csv")
    assert {(r["Frontal/Lateral"], r["AP/PA"]) for r in rows} <= {
        ("Frontal", "AP"),
        ("Frontal", "PA"),
        ("Lateral", ""),
    }
    assert all(("lateral" in r["Path"]) == (r["AP/PA"] == "") for r in rows)


def test_labels_agree_with_the_sentences(root, studies):
    told = defaultdict(list)
    for row in read(root / "truth/sentences.csv"):
        codes = tuple(int(row[name] or NOT_GIVEN) for name in FINDINGS)
        told[row["study_id"]].append(codes)
    rows = {row["study_id"]: row for row in mimic(root, "chexpert")}
    assert rows.keys() == told.keys()
    for study, sentences in told.items():
        codes = [float(rows[study][name] or NOT_GIVEN) for name in FINDINGS]
        assert tuple(codes) == aggregate(sentences)
    assert {row[name] for row in rows.values() for name in FINDINGS} == {
        "",
        "0.0",
        "1.0",
        "-1.0",
    }
    for study in studies:
        if study["dataset"] == "mimic_cxr":
            for name in EVAL_FIVE:
                assert (study["told"][name] == 1) == (
                    bool(study["truth"][name]) and name not in study["hedged"]
                )


def test_negbio_differs_in_uncertain_cells_alone(root):
    first = {row["study_id"]: row for row in mimic(root, "chexpert")}
    for row in mimic(root, "negbio"):
        for name in FINDINGS:
            before = first[row["study_id"]][name]
            assert row[name] == before or before == "-1.0"


def test_chexpert_labels(root, studies):
    by_image = {image: s for s in studies for image in s["images"]}
    for split in ("train", "valid"):
        rows = read(root / f"chexpert/CheXpert-v1.0-small/{split}.csv")
        assert rows
        for row in rows:
            study = by_image[row["Path"].removeprefix("CheXpert-v1.0-small/")]
            codes = study["told"] if split == "train" else study["truth"]
            got = {name: float(row[name] or NOT_GIVEN) for name in FINDINGS}
            assert got == codes
            assert row["Sex"][0] == study["body"]["sex"]


def test_splits_are_patient_disjoint(root):
    splits = defaultdict(set)
    for row in mimic(root, "split"):
        splits[row["subject_id"]].add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "validate", "test"}
    folders = {
        split: {path.name for path in (root / layouts.CHEXPERT / split).iterdir()}
        for split in ("train", "valid")
    }
    assert not folders["train"] & folders["valid"]
    assert len(folders["train"] | folders["valid"]) == OTHERS


def test_split_fractions_hold_for_any_number_of_patients():
    settings = Settings(0, 0, 3, 256, 0.8, 0.5, 0.25, 0.05, 95)
    names = [split_of(settings, "mimic_cxr", number) for number in range(2000)]
    for total in (100, 500, 2000):
        assert abs(names[:total].count("test") - 0.25 * total) <= 3
        assert abs(names[:total].count("validate") - 0.05 * total) <= 3


# --- Truth -----------------------------------------------------------------------


def test_masks_boxes_and_phrases(root, studies):
    by_image = {image: s for s in studies for image in s["images"]}
    reports = defaultdict(str)
    for row in read(root / "truth/sentences.csv"):
        reports[row["study_id"]] += row["sentence"] + "\n"
    masks = {}
    for line in (root / "truth/masks.jsonl").read_text().splitlines():
        mask = json.loads(line)
        masks[mask["image"], mask["finding"]] = mask_of_runs(
            mask["counts"], *mask["size"]
        )
    boxes = read(root / "truth/boxes.csv")
    assert {(b["image"], int(b["finding"])) for b in boxes} == set(masks)
    phrases = 0
    for box in boxes:
        study = by_image[box["image"]]
        finding = study["findings"][int(box["finding"])]
        assert (finding["name"], finding["kind"]) == (box["name"], box["kind"])
        mask_HxW = masks[box["image"], int(box["finding"])]
        height, width = mask_HxW.shape
        assert (int(box["image_width"]), int(box["image_height"])) == (width, height)
        x, y, w, h = (int(box[key]) for key in "xywh")
        inside = mask_HxW[y : y + h, x : x + w]
        assert inside.shape == (h, w)
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any(), "a box is tight"
        if box["dataset"] == "chexpert":
            assert box["phrase"] == ""
        elif box["phrase"]:
            assert box["phrase"] in reports[box["study_id"]]
            phrases += 1
    assert phrases > 10


def test_mask_codes_are_cocos():
    mask_HxW = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert run_lengths(mask_HxW) == [2, 3, 1]
    assert run_lengths(~mask_HxW) == [0, 2, 3, 1]
    assert run_lengths(np.zeros((2, 2), bool)) == [4]
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask_HxW = rng.random((7, 5)) < 0.4
        counts = run_lengths(mask_HxW)
        np.testing.assert_array_equal(mask_of_runs(counts, 7, 5), mask_HxW)


def test_bilateral_findings_have_a_box_a_side():
    mask_HxW = np.zeros((10, 20), bool)
    mask_HxW[6:9, 1:5] = mask_HxW[5:9, 14:18] = True
    both = Finding("Pleural Effusion", "bilateral", "none", 0.5, "free", 1)
    assert truth.boxes_of(mask_HxW, both, "PA") == [(1, 6, 4, 3), (14, 5, 4, 4)]
    assert truth.boxes_of(mask_HxW, both, "LATERAL") == [(1, 5, 17, 4)]
    one = Finding("Pleural Effusion", "left", "none", 0.5, "free", 1)
    assert truth.boxes_of(mask_HxW, one, "PA") == [(1, 5, 17, 4)]
    assert truth.boxes_of(np.zeros((4, 4), bool), one, "PA") == []


def test_progression(root, studies):
    order = {(s["dataset"], s["patient_id"], s["study_id"]): s for s in studies}
    rows = read(root / "truth/progression.csv")
    assert {row["progression"] for row in rows} == {
        "new",
        "stable",
        "improving",
        "worsening",
        "resolved",
    }
    for row in rows:
        key = row["dataset"], row["patient_id"]
        now, prior = order[*key, row["study_id"]], order[*key, row["prior_study_id"]]
        assert now["index"] == prior["index"] + 1 and now["time"] > prior["time"]
        before, after = float(row["severity_before"]), float(row["severity_now"])
        turn = {
            (False, True): "new",
            (True, False): "resolved",
        }.get((before > 0, after > 0))
        if turn is None:
            turn = ["stable", "worsening", "improving"][int(np.sign(after - before))]
        assert row["progression"] == turn


def test_the_folder_says_that_it_is_simulated(root):
    assert "simulated" in (root / "README.md").read_text()
    assert "seed 5" in (root / "README.md").read_text()
    assert not (root / ".parts").exists()
