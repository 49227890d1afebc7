"""RSNA stage 2: rows repeated once a box, GLoRIA's split, values in DICOM headers."""

import csv
import gzip

import numpy as np
import pytest
from small_sets import classes, films, listed, prepare, write

from data_pipelines.annotations import read_tasks
from data_pipelines.datasets.film_files import box_of, find_films
from data_pipelines.datasets.rsna import CODES, gloria_splits
from data_pipelines.findings import FINDINGS
from data_pipelines.hospital.dicom_files import dicom
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
OPACITY, NORMAL, OTHER = "Lung Opacity", "Normal", "No Lung Opacity / Not Normal"
LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
GRAY = np.tile(np.linspace(20, 220, 80, dtype=np.uint8)[:, None], (1, 70))


def hand_made(root, labels, class_rows=None, headers=()):
    """Writes tables as they are given, and a film of 70 x 80 for each id."""
    folder = root / "stage_2_train_images"
    folder.mkdir(parents=True)
    if class_rows is None:
        named = {"1": OPACITY, "0": NORMAL}
        class_rows = [(row[0], named.get(row[-1], NORMAL)) for row in labels]
    for name, header, rows in (
        (LABELS, "patientId,x,y,width,height,Target", labels),
        (CLASSES, "patientId,class", class_rows),
    ):
        with (root / name).open("w", newline="") as file:
            file.write(header + "\n")
            csv.writer(file).writerows(rows)
    tags = {"ViewPosition": "PA", "PatientAge": "50", **dict(headers)}
    for name in {row[0] for row in labels}:
        if name and "/" not in name:
            (folder / f"{name}.dcm").write_bytes(dicom(GRAY, name, **tags))
    return root


def negatives(names):
    return [(name, "", "", "", "", "0") for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna")
    rows = write("rsna", root / "raw", 20)
    return rows["patients"], prepare("rsna", root / "raw", root), root


def test_the_miniature_comes_back_with_its_classes_boxes_and_headers(made):
    rows, dataset, root = made
    target = classes(root / "rsna", "rsna_target")
    named, records = classes(root / "rsna", "rsna_class"), films(dataset)
    assert len(records) == len(target) == len(named) == len(rows) == 60
    for row in rows:
        record = records[row["patient"]]
        opaque = row["class"] == OPACITY
        assert named[row["patient"]]["positive"] == [row["class"]]
        assert target[row["patient"]]["positive"] == ["Pneumonia"] * opaque
        assert record["view"] == row["view"] and record["sex"] == row["sex"]
        assert record["age"] == (row["age"] if row["age"] <= 120 else -1)
        assert record["boxes"].tolist() == [list(map(float, b)) for b in row["boxes"]]
        assert bool(row["boxes"]) == opaque
        assert {FINDINGS[at] for at in record["box_findings"]} <= {OPACITY}
        codes = dict(zip(FINDINGS, record["labels"].tolist(), strict=True))
        assert {n: c for n, c in codes.items() if c != -2} == CODES[row["class"]]
    assert max(len(row["boxes"]) for row in rows) > 1  # patients with several rows
    odd = listed(root / "rsna", "warnings")
    ages = {row["id"] for row in odd if row["reason"] == "age not believable"}
    assert ages == {row["patient"] for row in rows if row["age"] > 120} != set()
    assert not listed(root / "rsna")
    tasks = read_tasks(root / "rsna")
    assert tasks["rsna_class"].labels == (NORMAL, OTHER, OPACITY)
    assert tasks["rsna_target"].labels == ("Pneumonia",)


def test_each_class_is_in_each_split(made):
    rows, dataset, _ = made
    records = films(dataset)
    found = {(records[row["patient"]]["split"], row["class"]) for row in rows}
    assert len(found) == 9


def test_films_in_jpeg_and_plain_are_the_rendered_ones(made):
    from data_pipelines.hospital import benchmarks

    syntaxes = set()
    for path in sorted((made[2] / "raw" / "stage_2_train_images").iterdir()):
        import pydicom

        syntaxes.add(pydicom.dcmread(path).file_meta.TransferSyntaxUID.name)
    assert syntaxes == {"JPEG Baseline (Process 1)", "Explicit VR Little Endian"}
    assert "rsna" in benchmarks.LAYOUTS


def test_the_split_is_glorias(made):
    # What scikit-learn's shuffle split draws, by numpy alone; GLoRIA names the halves of
    # what is held out test and validation, in this order.
    ids = [f"{number:05d}" for number in range(26_684)]
    order = np.random.RandomState(0).permutation(26_684)
    held_out = [ids[at] for at in order[:8006]]
    halves = np.random.RandomState(0).permutation(8006)
    validate = {held_out[at] for at in halves[:4003]}
    found = gloria_splits(ids[::-1])
    sizes = {split: list(found.values()).count(split) for split in set(found.values())}
    assert sizes == {"train": 18_678, "validate": 4003, "test": 4003}
    assert {i for i, split in found.items() if split == "validate"} == validate
    assert {i for i, s in found.items() if s == "train"} == {
        ids[at] for at in order[8006:]
    }


def test_a_rejected_patient_still_counts_in_the_draw(tmp_path):
    rows = negatives(f"p{n:02d}" for n in range(20))
    whole = gloria_splits([row[0] for row in rows])
    rows[3] = ("p03", "", "", "", "", "2")
    dataset = prepare("rsna", hand_made(tmp_path / "raw", rows), tmp_path, *LOOSE)
    found = {i: record["split"] for i, record in films(dataset).items()}
    assert found == {i: split for i, split in whole.items() if i != "p03"}


def test_boxes_that_are_none_are_left_out_and_the_film_is_kept(tmp_path):
    boxes = {
        "a": ("10.0", "20.0", "30.5", "40.0"),
        "b": ("50", "20", "30", "40"),  # over the right edge of 70 px
        "c": ("10", "20", "-5", "40"),
        "d": ("ten", "20", "5", "40"),
        "e": ("nan", "20", "5", "40"),
        "f": ("-0.5", "20", "71", "40"),  # rounding
    }
    labels = [(name, *cells, "1") for name, cells in boxes.items()]
    raw = hand_made(tmp_path / "raw", [*labels, ("a", "1", "2", "3", "4", "1")])
    records = films(prepare("rsna", raw, tmp_path))
    found = {name: record["boxes"].tolist() for name, record in records.items()}
    assert found == {
        "a": [[10, 20, 30.5, 40], [1, 2, 3, 4]],
        **{name: [] for name in "bcde"},
        "f": [[0, 20, 70, 40]],
    }
    assert all(r["labels"][FINDINGS.index(OPACITY)] == 1 for r in records.values())
    warned = {
        row["id"]: row["detail"]
        for row in listed(tmp_path / "rsna", "warnings")
        if row["reason"] == "box left out"
    }
    assert set(warned) == set("bcde")
    assert warned["b"].startswith(
        "stage_2_train_labels, line 3: expected a box within 70"
    )


def test_rows_that_contradict_are_rejected_by_line(tmp_path):
    labels = [
        *negatives("abcdefgh"),
        ("b", "1", "2", "3", "4", "1"),
        ("", "1", "2", "3", "4", "1"),
        ("../../x", "", "", "", "", "0"),
    ]
    class_rows = [(name, NORMAL) for name in ("a", "b", "f", "g", "h", "../../x")]
    class_rows += [("c", "normal"), ("d", OPACITY), ("h", OTHER)]  # e has none
    raw = hand_made(tmp_path / "raw", labels, class_rows)
    (raw / "stage_2_train_images" / "f.dcm").unlink()
    cut = raw / "stage_2_train_images" / "g.dcm"
    cut.write_bytes(cut.read_bytes()[:3000])
    (tmp_path / "x.dcm").write_bytes(dicom(GRAY, "x", PatientAge="155"))
    assert list(films(prepare("rsna", raw, tmp_path, *LOOSE))) == ["a"]
    details = {
        row["id"]: (row["reason"], row["detail"]) for row in listed(tmp_path / "rsna")
    }
    assert {name: reason for name, (reason, _) in details.items()} == {
        **dict.fromkeys(("", "b", "c", "d", "e", "h"), "bad value"),
        "f": "missing file",
        "g": "unreadable file",
        "../../x": "path outside the raw folder",
    }
    warned = {row["id"] for row in listed(tmp_path / "rsna", "warnings")}
    assert "../../x" not in warned  # not even its header was read
    assert "['0', '1']" in details["b"][1] and "lines 3, 10" in details["b"][1]
    assert "info, line 8, class: expected one of Normal" in details["c"][1]
    assert "Target 0 (stage_2_train_labels, line 5)" in details["d"][1]
    assert "expected a row of the patient" in details["e"][1]
    assert "labels, line 11, patientId" in details[""][1]


def test_headers_without_values_and_packed_tables(tmp_path):
    headers = {"ViewPosition": None, "PatientAge": "155", "PatientSex": "O"}
    raw = hand_made(tmp_path / "raw", negatives("abcd"), headers=headers.items())
    for name in (LABELS, CLASSES):
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    record = films(prepare("rsna", raw, tmp_path))["a"]
    assert (record["view"], record["sex"], record["age"]) == ("UNKNOWN", "", -1)
    reasons = {row["reason"] for row in listed(tmp_path / "rsna", "warnings")}
    assert {"view not given", "age not believable"} <= reasons


def test_missing_tables_columns_and_patients_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", negatives("abc"))
    with pytest.raises(UserError, match="4 patients or more, found 3"):
        prepare("rsna", raw, tmp_path)
    (raw / CLASSES).write_text("patientId,classes\na,Normal\n")
    with pytest.raises(UserError, match="detailed_class_info.*missing class; found"):
        prepare("rsna", raw, tmp_path)
    (raw / CLASSES).unlink()
    with pytest.raises(UserError, match="stage_2_detailed_class_info.csv in"):
        prepare("rsna", raw, tmp_path)
    (raw / CLASSES).write_bytes(b"patientId,class\nJos\xe9,Normal\n")
    with pytest.raises(UserError, match="detailed_class_info.*UTF-8"):
        prepare("rsna", raw, tmp_path)


def test_files_are_found_by_one_walk(tmp_path):
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    for path in ("b/x.dcm", "a/x.DCM", "a/._y.dcm", "z.dcm", "a/n.png"):
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).touch()
    (disk / "deep").mkdir(parents=True)
    (disk / "deep" / "w.dcm").touch()
    (raw / "films").symlink_to(disk)
    (raw / "a" / "films").symlink_to(disk)  # leads outside: not followed
    found = find_films(raw, ".dcm")
    assert found == {"x": "a/x.DCM", "z": "z.dcm", "w": "films/deep/w.dcm"}
    assert find_films(raw, ".dcm", "b") == {"x": "b/x.dcm"}
    assert find_films(raw, ".dcm", "films") == {"w": "films/deep/w.dcm"}
    assert find_films(raw, ".dcm", "none") == {}


def test_boxes_by_corners():
    assert box_of(["1", "2", "4.5", "8"], 10, 10, corners=True) == (1, 2, 3.5, 6)
    assert box_of(["1", "2", "99", "98"], 0, 0) == (1, 2, 99, 98)
    with pytest.raises(ValueError, match="area"):
        box_of(["4", "2", "4", "8"], 10, 10, corners=True)
