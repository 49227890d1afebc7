"""MS-CXR: phrases and their boxes, from the CSV and from the COCO file."""

import csv
import json

import pytest
from mimic_annotations import annotate, prepare, rows

from data_pipelines.datasets.ms_cxr import CATEGORIES, COLUMNS
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

NAME = "MS_CXR_Local_Alignment_v1.1.0"
ROW = {
    "dicom_id": "0a-1b",
    "category_name": "Pneumonia",
    "label_text": "left opacity, new",
    "path": "files/p10/p10000032/s50000001/0a-1b.jpg",
    **dict(zip("xywh", (1, 2, 30, 40))),
    "image_width": 100,
    "image_height": 90,
}


def write(folder, table, name="MS_CXR_Local_Alignment_v1.0.0"):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return folder


def rejected(folder):
    return {r["detail"].split(":")[0]: r for r in read_rows(folder / "rejected.csv")}


@pytest.fixture(scope="module")
def raw(hospital, tmp_path_factory):
    return annotate("ms_cxr", tmp_path_factory.mktemp("ms_cxr") / "raw", hospital)


def test_the_miniature_tells_the_truth_of_the_films(raw, hospital, tmp_path):
    found = rows(prepare("ms_cxr", raw, tmp_path), "phrases")
    truth = {}
    for row in read_rows(hospital / "truth" / "boxes.csv"):
        key = (row["image"], row["name"], row["phrase"])
        truth.setdefault(key, []).append(row)
    several = 0
    for phrase in found:
        wanted = truth[phrase["image_id"], phrase["category"], phrase["text"]]
        boxes = sorted([float(row[name]) for name in "xywh"] for row in wanted)
        assert sorted(phrase["boxes"]) == boxes
        assert phrase["patient_id"] == f"p{wanted[0]['patient_id']}"
        size = (phrase["image_width"], phrase["image_height"])
        assert size == tuple(int(wanted[0][f"image_{n}"]) for n in ("width", "height"))
        assert wanted[0]["view"] != "LATERAL"
        several += len(boxes) > 1
    assert several and len(found) == 24
    assert len({phrase["phrase_id"] for phrase in found}) == len(found)
    assert {phrase["category"] for phrase in found} <= set(CATEGORIES)
    assert {phrase["split"] for phrase in found} == {"train", "validate", "test"}
    films = read_rows(hospital / "mimic-cxr" / "mimic-cxr-2.0.0-split.csv.gz")
    split_of = {row["dicom_id"]: row["split"] for row in films}
    assert {split_of[p["image_id"]] for p in found} == {"train", "test"}


def test_csv_and_json_give_the_same_phrases(raw, tmp_path):
    only = tmp_path / "json"
    only.mkdir()
    (only / f"{NAME}.json").write_bytes((raw / f"{NAME}.json").read_bytes())
    first = prepare("ms_cxr", raw, tmp_path / "a")
    second = prepare("ms_cxr", only, tmp_path / "b")
    assert rows(first, "phrases") == rows(second, "phrases")
    coco = json.loads((raw / f"{NAME}.json").read_text())
    coco["annotations"][3]["bbox"][0] = -2.0
    (only / f"{NAME}.json").write_text(json.dumps(coco))
    third = prepare("ms_cxr", only, tmp_path / "c", "--max-rejected-percent", "20")
    assert set(rejected(third)) == {"annotation 4"}


def test_the_older_release_has_no_split_and_the_newest_is_read(raw, tmp_path):
    table = read_rows(raw / f"{NAME}.csv")
    older = write(tmp_path / "raw", [{n: row[n] for n in COLUMNS} for row in table])
    found = rows(prepare("ms_cxr", older, tmp_path / "a"), "phrases")
    newer = rows(prepare("ms_cxr", raw, tmp_path / "b"), "phrases")
    assert {phrase["split"] for phrase in found} == {""}
    assert [{**phrase, "split": ""} for phrase in newer] == found
    write(tmp_path / "raw", [{**table[0], "split": "val"}], NAME)
    write(tmp_path / "raw", table[:9])  # the version counts, not the time
    (phrase,) = rows(prepare("ms_cxr", older, tmp_path / "c"), "phrases")
    assert phrase["split"] == "validate"


def test_rows_that_cannot_be_are_rejected_by_line_and_others_kept(tmp_path):
    bad = [
        {"x": 71},  # 71 + 30 > 100
        {"y": -1},
        {"w": 0},
        {"h": "tall"},
        {"category_name": "Hernia"},
        {"label_text": "  "},
        {"path": "../../etc/passwd"},
        {"path": "files/p10/p10000032/s50000001/ffff.jpg", "x": 3},
        {"image_width": 101, "x": 5},
        {},  # the same again
    ]
    table = [ROW, *({**ROW, **change} for change in bad)]
    table.append({**ROW, "x": 70, "category_name": "pneumonia"})
    table.append({**ROW, "label_text": "another", "path": ROW["path"][6:]})
    raw = write(tmp_path / "raw", table)
    out = prepare("ms_cxr", raw, tmp_path, "--max-rejected-percent", "90")
    found = {phrase["text"]: phrase for phrase in rows(out, "phrases")}
    assert found["left opacity, new"]["boxes"] == [[1, 2, 30, 40], [70, 2, 30, 40]]
    assert found["another"]["patient_id"] == "p10000032"
    listed = rejected(out)
    assert set(listed) == {f"line {number}" for number in range(3, 13)}
    assert {row["path"] for row in listed.values()} == {f"{NAME[:-5]}1.0.0.csv"}
    assert "100 x 90" in listed["line 3"]["detail"]
    assert "left opacity" not in (out / "rejected.csv").read_text()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="MS_CXR_Local_Alignment"):
        prepare("ms_cxr", tmp_path, tmp_path / "out")
    less = {name: cell for name, cell in ROW.items() if name != "image_width"}
    with pytest.raises(UserError, match="missing image_width"):
        prepare("ms_cxr", write(tmp_path / "raw", [less]), tmp_path / "out")
    path = tmp_path / "raw" / "MS_CXR_Local_Alignment_v1.0.0.csv"
    path.write_bytes(",".join(COLUMNS).encode() + b"\n\xe9" + b"," * 9 + b"\n")
    with pytest.raises(UserError, match=r"v1\.0\.0\.csv.*UTF-8"):
        prepare("ms_cxr", tmp_path / "raw", tmp_path / "out")
    path.unlink()
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(UserError, match="COCO"):
        prepare("ms_cxr", tmp_path / "raw", tmp_path / "out")
