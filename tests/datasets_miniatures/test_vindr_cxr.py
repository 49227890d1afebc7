"""VinDr-CXR: readers who differ, two layouts, odd headers, DICOM of many kinds."""

import csv

import numpy as np
import pytest
import simplejpeg
from small_sets import classes, films, listed, prepare, write

from data_pipelines import annotations
from data_pipelines.annotations import read_tasks
from data_pipelines.datasets.vindr_cxr import KAGGLE_LABELS, LABELS, agreed
from data_pipelines.findings import FINDINGS
from data_pipelines.hospital.benchmarks.vindr_cxr import DRAWN, KINDS
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.plan import carve_validate, split_of_patient
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "95")
GRAY = np.tile(np.linspace(0, 255, 80, dtype=np.uint8)[:, None], (1, 70))
BOX = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"
KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
FEW = ("--readers", "any")


def votes(*positive):
    return ["1" if name in positive else "0" for name in LABELS]


def hand_made(root, train=(), test=(), boxes=(), header="image_id,rad_id"):
    """PhysioNet's layout: rows are (image, reader, labels); films of 70 x 80."""
    home = root / "annotations"
    home.mkdir(parents=True)
    for split, first, rows in (
        ("train", header, [(i, r, *votes(*found)) for i, r, found in train]),
        ("test", "image_id", [(i, *votes(*found)) for i, found in test]),
    ):
        with (home / f"image_labels_{split}.csv").open("w", newline="") as file:
            file.write(f"{first},{','.join(LABELS)}\n")
            csv.writer(file).writerows(rows)
        for image in {row[0] for row in rows}:
            put(root / split / f"{image}.dicom", image)
    (home / "annotations_train.csv").write_text("\n".join([BOX, *boxes]) + "\n")
    (home / "annotations_test.csv").write_text(
        BOX.replace("rad_id,", "") + "\na,ILD,1,2,3,4\n"
    )
    if not test:
        for name in ("image_labels_test.csv", "annotations_test.csv"):
            (home / name).unlink()
    return root


def put(path, name, **tags):
    if "/" not in name:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(GRAY, name, **tags))


def readers(image, *labels):
    return [(image, f"R{n}", found) for n, found in enumerate(labels, 1)]


def codes(record):
    found = dict(zip(FINDINGS, record["labels"].tolist(), strict=True))
    return {name: code for name, code in found.items() if code != -2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("vindr")
    rows = write("vindr_cxr", root / "raw", 60)
    return rows["films"], prepare("vindr_cxr", root / "raw", root), root


def test_the_miniature_comes_back(made):
    rows, dataset, root = made
    judged, records = classes(root / "vindr_cxr", "vindr_labels"), films(dataset)
    assert len(rows) == len(judged) == len(records) == 60
    differ = 0
    for row in rows:
        record, reads = records[row["image"]], [read["labels"] for read in row["reads"]]
        wanted = {
            n for n in LABELS if sum(n in read for read in reads) > len(reads) / 2
        }
        assert set(judged[row["image"]]["positive"]) == wanted
        differ += len({tuple(read) for read in reads}) > 1
        assert record["split"] == row["split"] and record["view"] == "PA"
        assert (record["age"], record["sex"]) == (row["age"], row["sex"])
        assert record["bit_depth"] == row["bits"]
        assert record["inverted"] == row["inverted"]
        corners = [
            [x, y, right - x, bottom - y]
            for read in row["reads"]
            for name, x, y, right, bottom in read["boxes"]
            if name in wanted
        ]
        stored = sorted(record["boxes"].tolist())
        assert len(stored) == len(corners)
        assert np.allclose(stored, sorted(corners), atol=1e-4)
    assert differ > 10 and not listed(root / "vindr_cxr")
    assert read_tasks(root / "vindr_cxr")["vindr_labels"].labels == LABELS
    boxes = annotations.read(root / "vindr_cxr", "boxes").to_pylist()
    drawn = [
        (row["image"], name, read["reader"])
        for row in rows
        for read in row["reads"]
        for name, *_ in read["boxes"]
    ]
    found = [(box["image_id"], box["label"], box["reader"]) for box in boxes]
    assert sorted(found) == sorted(drawn)  # of all readers, agreed on or not


def test_each_label_is_in_each_split(made):
    _, dataset, root = made
    records = films(dataset)
    found = {
        (records[image]["split"], label)
        for image, row in classes(root / "vindr_cxr", "vindr_labels").items()
        for label in row["positive"]
    }
    assert len(found) == 3 * (len(DRAWN) + 1)


def test_any_reader_makes_more_labels_than_the_majority(made, tmp_path):
    rows, _, root = made
    prepare("vindr_cxr", root / "raw", tmp_path, *FEW)
    judged = classes(tmp_path / "vindr_cxr", "vindr_labels")
    more = 0
    for row in rows:
        wanted = {name for read in row["reads"] for name in read["labels"]}
        wanted = wanted - {"No finding"} or wanted
        assert set(judged[row["image"]]["positive"]) == wanted
        more += len(wanted)
    majority = classes(root / "vindr_cxr", "vindr_labels").values()
    assert more > sum(len(row["positive"]) for row in majority)


@pytest.mark.parametrize("bits, inverted, compression", KINDS)
def test_films_of_every_kind_look_the_same(tmp_path, bits, inverted, compression):
    raw = hand_made(tmp_path / "raw", readers("a", ["ILD"], ["ILD"], ["ILD"]))
    data = dicom(GRAY, "a", bits=bits, inverted=inverted, compression=compression)
    (raw / "train" / "a.dicom").write_bytes(data)
    record = films(prepare("vindr_cxr", raw, tmp_path))["a"]
    gray = simplejpeg.decode_jpeg(record["film"], "GRAY")[..., 0].astype(int)
    assert record["inverted"] == inverted and record["bit_depth"] == bits
    ramp = np.linspace(0, 255, len(gray))
    assert np.abs(gray - ramp[:, None]).max() < 8  # dark above, bright below


def test_how_readers_are_put_together():
    votes = [{"ILD", "Edema"}, {"ILD"}, {"No finding"}]
    assert agreed(votes, "majority") == ["ILD"]
    assert agreed(votes, "any") == ["Edema", "ILD"]
    assert agreed([{"No finding"}] * 2 + [{"ILD"}], "majority") == ["No finding"]
    assert agreed([{"No finding"}] * 2 + [{"ILD"}], "any") == ["ILD"]
    assert agreed([{"No finding"}] * 3, "any") == ["No finding"]
    assert agreed([{"ILD"}, {"Edema"}], "majority") == []  # one of two is not most
    assert agreed([{"ILD"}], "majority") == ["ILD"]


def test_findings_boxes_and_headers(tmp_path):
    lesion, effusion = "Nodule/Mass", "Pleural effusion"
    train = [
        *readers("a", [lesion, effusion], [lesion], [lesion, "Lung tumor"]),
        *readers("b", ["No finding"], ["No finding"], ["Pneumonia"]),
        *readers("c", ["ILD"], ["Edema"], ["COPD"]),
    ]
    boxes = [
        f"a,R1,{lesion},10.5,20,30,40.25",
        f"a,R2,{lesion},11,21,31,41",
        f"a,R1,{effusion},1,2,3,4",
        f"a,R3,{lesion},60,20,99,40",
        "a,R3,Lung lesion,1,2,3,4",
        f"z,R1,{lesion},1,2,3,4",
        "b,R1,No finding,,,,",
    ]
    raw = hand_made(
        tmp_path / "raw", train, [("t", ["Rib fracture"])], boxes, "image_id,rad_ID"
    )
    table = raw / "annotations" / "image_labels_test.csv"
    table.write_text(table.read_text().replace("Other diseases", "Other disease"))
    put(raw / "train" / "b.dicom", "b", PatientAge="063Y", PatientSex="F")
    put(raw / "train" / "c.dicom", "c", PatientAge="000Y", PatientSex="O")
    records = films(prepare("vindr_cxr", raw, tmp_path))
    judged = classes(tmp_path / "vindr_cxr", "vindr_labels")
    assert {image: row["positive"] for image, row in judged.items()} == {
        "a": [lesion],
        "b": ["No finding"],
        "c": [],
        "t": ["Rib fracture"],
    }
    assert records["a"]["boxes"].tolist() == [[10.5, 20, 19.5, 20.25], [11, 21, 20, 20]]
    lesions = [FINDINGS.index("Lung Lesion")] * 2
    assert records["a"]["box_findings"].tolist() == lesions
    assert codes(records["a"])["Lung Lesion"] == 1
    assert codes(records["a"])["Pleural Effusion"] == codes(records["a"])["Edema"] == 0
    assert codes(records["b"])["No Finding"] == 1 and codes(records["c"]) == {}
    assert codes(records["t"])["Fracture"] == 1
    assert (records["b"]["age"], records["b"]["sex"]) == (63, "F")
    assert (records["c"]["age"], records["c"]["sex"]) == (-1, "")
    assert records["t"]["split"] == "test"
    assert records["a"]["split"] == carve_validate("a")
    stored = annotations.read(tmp_path / "vindr_cxr", "boxes").to_pylist()
    found = {(box["image_id"], box["label"], box["reader"]) for box in stored}
    assert found == {("a", lesion, "R1"), ("a", lesion, "R2"), ("a", effusion, "R1")}
    odd = listed(tmp_path / "vindr_cxr", "warnings")
    details = [row["detail"] for row in odd if row["reason"] == "box left out"]
    for line, text in {
        5: "within 70 x 80",
        6: "'Lung lesion'",
        7: "not in image",
    }.items():
        assert any(f"train.csv, line {line}: " in d and text in d for d in details)
    assert any("annotations_test.csv, line 2: its film" in d for d in details)


def test_kaggles_layout(tmp_path, capsys):
    rows = [
        "a,Cardiomegaly,3,R10,10,20,30,40",
        "a,Cardiomegaly,3,R10,11,20,30,40",  # two boxes are one vote
        "a,ILD,5,R8,1,2,3,4",
        "a,ILD,5,R9,1,2,3,4.5",
        "b,No finding,14,R1,,,,",
        "b,No finding,14,R2,,,,",
        "b,No finding,14,R3,,,,",
        "c,Pneumonia,3,R1,1,2,3,4",
    ]
    raw = tmp_path / "raw"
    for image in "abc":
        put(raw / "train" / f"{image}.dicom", image)
    put(raw / "test" / "hidden.dicom", "hidden")
    (raw / "train.csv").write_text("\n".join([KAGGLE, *rows]) + "\n")
    records = films(prepare("vindr_cxr", raw, tmp_path, *LOOSE))
    judged = classes(tmp_path / "vindr_cxr", "vindr_kaggle")
    assert {i: row["positive"] for i, row in judged.items()} == {
        "a": ["ILD"],
        "b": ["No finding"],
    }
    assert read_tasks(tmp_path / "vindr_cxr")["vindr_kaggle"].labels == KAGGLE_LABELS
    # What Kaggle's labels do not ask for is not denied, unless there is no finding.
    assert not {"Edema", "Fracture", "Pneumonia"} & set(codes(records["a"]))
    assert codes(records["a"])["Cardiomegaly"] == 0
    assert codes(records["b"])["Pneumonia"] == codes(records["b"])["Fracture"] == 0
    assert records["a"]["boxes"].tolist() == [[1, 2, 2, 2], [1, 2, 2, 2.5]]
    assert records["a"]["box_findings"].tolist() == [-1, -1]
    assert len(annotations.read(tmp_path / "vindr_cxr", "boxes")) == 4
    assert records["a"]["split"] == split_of_patient("a")
    assert "test: no labels are public on Kaggle" in capsys.readouterr().out
    (row,) = listed(tmp_path / "vindr_cxr")
    assert row["id"] == "c" and "train.csv, line 9, class_name" in row["detail"]


def test_bad_rows_are_rejected_by_line(tmp_path):
    train = [row for image in "abcdef" for row in readers(image, ["ILD"], ["ILD"])]
    train += [("b", "R1", ["ILD"]), ("../../x", "R1", ["ILD"]), ("", "R1", ["ILD"])]
    boxes = ["../../x,R1,ILD,60,2,99,4"]
    raw = hand_made(tmp_path / "raw", train, [("f", ["ILD"]), ("t", ["ILD"])], boxes)
    table = raw / "annotations" / "image_labels_train.csv"
    lines = table.read_text().splitlines()
    lines[5] = lines[5].replace("0", "yes", 1)  # the first reader of c
    table.write_text("\n".join(lines) + "\n")
    (raw / "train" / "d.dicom").unlink()
    cut = raw / "train" / "e.dicom"
    cut.write_bytes(cut.read_bytes()[:3000])
    (tmp_path / "x.dicom").write_bytes(dicom(GRAY, "x"))
    assert set(films(prepare("vindr_cxr", raw, tmp_path, *LOOSE))) == {"a", "t"}
    found = {row["id"]: row for row in listed(tmp_path / "vindr_cxr")}
    assert {image: row["reason"] for image, row in found.items()} == {
        **dict.fromkeys(("b", "c", "f", ""), "bad value"),
        "d": "missing file",
        "e": "unreadable file",
        "../../x": "path outside the raw folder",
    }
    odd = {row["id"] for row in listed(tmp_path / "vindr_cxr", "warnings")}
    assert "../../x" not in odd  # its header was not read
    assert "train.csv, line 14: reader 'R1' a second time" in found["b"]["detail"]
    assert (
        "line 6, Aortic enlargement: expected 0 or 1, found 'yes'"
        in (found["c"]["detail"])
    )
    assert "image_labels_test.csv, line 2: image_labels_train" in found["f"]["detail"]


def test_missing_tables_and_columns_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", readers("a", ["ILD"]))
    table = raw / "annotations" / "image_labels_train.csv"
    table.write_text(table.read_text().replace("COPD", "COP"))
    with pytest.raises(UserError, match="image_labels_train.*missing copd; found"):
        prepare("vindr_cxr", raw, tmp_path)
    table.write_bytes(b"image_id,rad_id\nJos\xe9,R1\n")
    with pytest.raises(UserError, match="image_labels_train.*UTF-8"):
        prepare("vindr_cxr", raw, tmp_path)
    table.unlink()
    with pytest.raises(UserError, match="PhysioNet.*or train.csv"):
        prepare("vindr_cxr", raw, tmp_path)
