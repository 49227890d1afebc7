"""NIH ChestX-ray14: commas within brackets, official lists, boxes with other names."""

import pytest
from PIL import Image
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines import annotations
from data_pipelines.annotations import read_tasks
from data_pipelines.datasets.nih_cxr14 import LABELS
from data_pipelines.findings import FINDINGS
from data_pipelines.hospital.benchmarks.nih_cxr14 import BOX_HEADER, DRAWN, HEADER
from data_pipelines.plan import carve_validate
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
END = "2682,2749,0.143,0.143"
GOOGLE = HEADER.rstrip(",\n") + (
    ",Fracture,Pneumothorax,Airspace opacity,Nodule or mass,Set Id\n"
)


def entry(image, labels="No Finding", patient=None, age="57", sex="M", view="PA"):
    patient = str(int(image[:8])) if patient is None else patient
    return f"{image},{labels},0,{patient},{age},{sex},{view},{END}"


def hand_made(root, entries, test=(), boxes="", name="Data_Entry_2017_v2020.csv"):
    """Writes tables, and a film of 72 x 80 for each entry; `test` are those of test."""
    root.mkdir(parents=True)
    comma = "," if name == "Data_Entry_2017.csv" else ""
    lines = [HEADER.rstrip(",\n"), *entries]
    (root / name).write_text("".join(f"{line}{comma}\n" for line in lines))
    names = [line.split(",")[0] for line in entries]
    train = [image for image in names if image not in test]
    (root / "train_val_list.txt").write_text("\r\n".join(train))
    (root / "test_list.txt").write_text("\r\n".join(test) + "\r\n")
    if boxes:
        (root / "BBox_List_2017.csv").write_text(BOX_HEADER + boxes)
    for number, image in enumerate(names):
        if "/" not in image:
            film(root / "images" / image, number)
    return root


def boxes_of(folder):
    return annotations.read(folder, "boxes").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("nih")
    rows = write("nih_cxr14", root / "raw", 60)
    return rows["films"], prepare("nih_cxr14", root / "raw", root), root / "nih_cxr14"


def test_the_miniature_comes_back(made):
    rows, dataset, folder = made
    judged, records = classes(folder, "nih_cxr14"), films(dataset)
    assert len(records) == len(judged) == len(rows) > 60
    for row in rows:
        record = records[row["image"]]
        wanted = [label for label in row["labels"] if label != "No Finding"]
        assert judged[row["image"]]["positive"] == wanted
        assert record["split"] == row["split"]
        assert record["patient_id"] == f"{row['patient']:08d}"
        assert record["study_index"] == row["follow_up"]
        assert record["age"] == (row["age"] if row["age"] <= 120 else -1)
        assert (record["sex"], record["view"]) == (row["sex"], row["view"])
        assert record["labels"][FINDINGS.index("No Finding")] == int(not wanted)
        # In pixels of the PNG: not of the size before that the table tells.
        assert record["original_width"] < 200
        stored = sorted(record["boxes"].tolist())
        assert stored == sorted([float(v) for v in box] for _, box in row["boxes"])
    assert not listed(folder)
    reasons = [row["reason"] for row in listed(folder, "warnings")]
    assert reasons.count("age not believable") == sum(row["age"] > 120 for row in rows)
    assert read_tasks(folder)["nih_cxr14"].labels == LABELS
    found = {(row["image_id"], row["label"], *row["box"]) for row in boxes_of(folder)}
    truth = {
        (row["image"], label, *map(float, box))
        for row in rows
        for label, box in row["boxes"]
    }
    assert found == truth and {label for _, label, *_ in found} > {"Infiltration"}


def test_each_drawn_label_is_in_each_split(made):
    rows, _, _ = made
    found = {(row["split"], label) for row in rows for label in row["labels"]}
    assert len(found) == 3 * (len(DRAWN) + 1)


def test_labels_boxes_and_their_findings(tmp_path):
    entries = [
        entry("00000001_000.png", "Infiltration|Pleural_Thickening|Hernia"),
        entry("00000002_000.png", age="058Y", sex="F", view="AP"),
        entry("00000003_000.png", "Nodule", age="414"),
    ]
    boxes = "00000001_000.png,Infiltrate,10.5,20.25,30.0,40.0\n"
    boxes += "00000001_000.png,Mass,1,2,3,4\n"
    boxes += "00000003_000.png,Nodule,60,20,30,40\n"  # over the edge of 72 px
    boxes += "00000003_000.png,Lesion,6,20,30,40\n"
    boxes += "00000003_000.png,Nodule,6,20,30,\n"
    raw = hand_made(tmp_path / "raw", entries, boxes=boxes)
    records = films(prepare("nih_cxr14", raw, tmp_path))
    judged = classes(tmp_path / "nih_cxr14", "nih_cxr14")
    first, second, third = (records[f"0000000{n}_000.png"] for n in (1, 2, 3))
    assert judged["00000001_000.png"]["positive"] == [
        "Hernia",
        "Infiltration",
        "Pleural_Thickening",
    ]
    codes = dict(zip(FINDINGS, first["labels"].tolist(), strict=True))
    assert codes["Lung Opacity"] == codes["Pleural Other"] == 1
    assert codes["No Finding"] == codes["Edema"] == 0 and codes["Fracture"] == -2
    assert first["boxes"].tolist() == [[10.5, 20.25, 30, 40], [1, 2, 3, 4]]
    opacity, lesion = FINDINGS.index("Lung Opacity"), FINDINGS.index("Lung Lesion")
    assert first["box_findings"].tolist() == [opacity, lesion]
    named = [row["label"] for row in boxes_of(tmp_path / "nih_cxr14")]
    assert named == ["Infiltration", "Mass"]
    assert (second["age"], second["sex"], second["view"]) == (58, "F", "AP")
    assert judged["00000002_000.png"]["positive"] == []
    assert third["age"] == -1 and len(third["boxes"]) == 0
    odd = listed(tmp_path / "nih_cxr14", "warnings")
    details = [row["detail"] for row in odd if row["reason"] == "box left out"]
    assert len(details) == 3
    for line, text in {4: "box within 72 x 80", 5: "one of the 14", 6: "four"}.items():
        assert any(f"2017.csv, line {line}: " in d and text in d for d in details)


def test_the_newer_table_is_read_and_folders_may_be_numbered(tmp_path):
    name = "00000001_000.png"
    raw = hand_made(tmp_path / "raw", [entry(name, "Mass")], name="Data_Entry_2017.csv")
    home = raw / "images_002" / "images"
    home.parent.mkdir()
    (raw / "images").rename(home)
    (raw / "BBox_List_2017.csv").write_text(BOX_HEADER)
    Image.open(home / name).convert("RGBA").save(home / name)
    record = films(prepare("nih_cxr14", raw, tmp_path / "a"))[name]
    assert classes(tmp_path / "a" / "nih_cxr14", "nih_cxr14")[name]["positive"] == [
        "Mass"
    ]
    assert record["bit_depth"] == 8 and record["split"] == carve_validate("00000001")
    hand_made(tmp_path / "newer", [entry(name, "Edema")])
    table = "Data_Entry_2017_v2020.csv"
    (raw / table).write_text((tmp_path / "newer" / table).read_text())
    prepare("nih_cxr14", raw, tmp_path / "b")
    judged = classes(tmp_path / "b" / "nih_cxr14", "nih_cxr14")
    assert judged[name]["positive"] == ["Edema"]


def test_bad_rows_are_rejected_by_line(tmp_path):
    names = [f"0000000{n}_000.png" for n in range(10)]
    entries = [
        entry(names[0]),
        entry(names[1], "Effusion|Swelling"),
        entry(names[2], ""),
        entry(names[3], "No Finding|Mass"),
        entry(names[4], patient="7"),
        entry(names[5]),
        entry(names[6]),
        entry(names[7]),
        entry(names[8]),
        entry("../../00000009_000.png", patient="9"),
    ]
    raw = hand_made(tmp_path / "raw", entries, test=[names[5]])
    lines = (raw / "train_val_list.txt").read_text().split()
    lines = [line for line in lines if line != names[6]] + [names[5]]
    (raw / "train_val_list.txt").write_text("\n".join(lines))
    (raw / "images" / names[7]).unlink()
    cut = raw / "images" / names[8]
    cut.write_bytes(cut.read_bytes()[:900])
    assert list(films(prepare("nih_cxr14", raw, tmp_path, *LOOSE))) == [names[0]]
    found = {row["id"]: row for row in listed(tmp_path / "nih_cxr14")}
    reasons = {name[:8]: row["reason"] for name, row in found.items()}
    assert reasons == {
        **{f"0000000{n}": "bad value" for n in (1, 2, 3, 4, 6)},
        "00000005": "patient in two splits",
        "00000007": "missing file",
        "00000008": "unreadable file",
        "../../00": "bad value",
    }
    detail = found[names[1]]["detail"]
    assert detail.startswith("Data_Entry_2017_v2020.csv, line 3, Finding Labels: ")
    assert "'Swelling'" in detail and "'No Finding'" in found[names[3]]["detail"]
    assert (
        "Patient ID: expected 4 as in the name, found '7'" in found[names[4]]["detail"]
    )
    assert "line 8: in neither of train_val_list" in found[names[6]]["detail"]


def test_googles_labels_are_a_task_of_their_own(tmp_path):
    names = [f"0000000{n}_000.png" for n in range(4)]
    raw = hand_made(tmp_path / "raw", [entry(name) for name in names])
    rows = [
        f"{entry(names[0])},NO,YES,NO,YES,test",
        f"{entry(names[1])},NO,NO,NO,NO,validation",
        f"{entry(names[2])},NO,NO,maybe,NO,test",
        f"{entry('00000009_000.png')},NO,NO,NO,NO,test",
    ]
    (raw / "test_labels_NIH.csv").write_text(GOOGLE + "\n".join(rows) + "\n")
    dataset = prepare("nih_cxr14", raw, tmp_path)
    judged = classes(tmp_path / "nih_cxr14", "nih_google")
    assert {name: row["positive"] for name, row in judged.items()} == {
        names[0]: ["Pneumothorax", "Nodule or mass"],
        names[1]: [],
    }
    assert len(films(dataset)) == 4
    odd = listed(tmp_path / "nih_cxr14", "warnings")
    details = [row["detail"] for row in odd if row["reason"] == "labels left out"]
    assert [detail.split(":")[0] for detail in details] == [
        "test_labels_NIH.csv, line 4",
        "test_labels_NIH.csv, line 5",
    ]


def test_missing_tables_lists_and_columns_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", [entry("00000001_000.png")])
    (raw / "BBox_List_2017.csv").write_text("Image Index,Finding Label\na,Mass\n")
    with pytest.raises(UserError, match=r"BBox_List.*missing Bbox \[x, y, w, h\]"):
        prepare("nih_cxr14", raw, tmp_path)
    (raw / "BBox_List_2017.csv").unlink()
    (raw / "test_list.txt").write_bytes(b"\xe9.png\n")
    with pytest.raises(UserError, match="test_list.txt .UnicodeDecodeError"):
        prepare("nih_cxr14", raw, tmp_path)
    (raw / "test_list.txt").unlink()
    with pytest.raises(UserError, match="test_list.txt .FileNotFoundError"):
        prepare("nih_cxr14", raw, tmp_path)
    table = raw / "Data_Entry_2017_v2020.csv"
    table.write_text("Image Index,Finding Labels\na,Mass\n")
    (raw / "test_list.txt").touch()
    with pytest.raises(UserError, match="v2020.*missing Follow-up #, Patient ID"):
        prepare("nih_cxr14", raw, tmp_path)
    table.unlink()
    with pytest.raises(UserError, match="Data_Entry_2017_v2020.csv or"):
        prepare("nih_cxr14", raw, tmp_path)
