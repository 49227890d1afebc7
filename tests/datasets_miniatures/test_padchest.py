"""PadChest: labels as the text of lists, 16-bit films, rows that say nothing."""

import csv

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from small_sets import classes, films, listed, prepare, reports, write

from data_pipelines.annotations import read_tasks
from data_pipelines.datasets.padchest import read_labels
from data_pipelines.findings import FINDINGS
from data_pipelines.hospital.benchmarks.padchest import DRAWN, HEADER
from data_pipelines.label_map import find_label_map, read_label_map
from data_pipelines.plan import split_of_patient
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "95")
NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
RAMP = np.tile(np.linspace(0, 4095, 80).astype(np.uint16)[:, None], (1, 72))


def row(image, labels="['normal']", **more):
    return {
        "ImageID": image,
        "ImageDir": "0",
        "StudyDate_DICOM": "20140915",
        "StudyID": f"s{image}",
        "PatientID": f"p{image}",
        "PatientBirth": "1930.0",
        "PatientSex_DICOM": "F",
        "Projection": "PA",
        "MethodLabel": "Physician",
        "Labels": labels,
        **more,
    }


def hand_made(root, rows):
    """Writes the table, and a 12-bit film of 72 x 80 for each row in its archive."""
    root.mkdir(parents=True)
    with (root / NAME).open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER.split(","), restval="None")
        writer.writeheader()
        writer.writerows(rows)
    for cells in rows:
        path = root / cells["ImageDir"] / cells["ImageID"]
        path.parent.mkdir(exist_ok=True)
        if ".." not in cells["ImageID"]:
            Image.fromarray(RAMP).save(path)
    return root


def codes(record):
    found = dict(zip(FINDINGS, record["labels"].tolist(), strict=True))
    return {name: code for name, code in found.items() if code != -2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("padchest")
    rows = write("padchest", root / "raw", 60)
    return rows["films"], prepare("padchest", root / "raw", root), root / "padchest"


def test_the_miniature_comes_back(made):
    rows, dataset, folder = made
    records = films(dataset)
    judged = {
        "Physician": classes(folder, "padchest"),
        "RNN_model": classes(folder, "padchest_rnn"),
    }
    views = {"L": "LATERAL", "AP_horizontal": "AP", "COSTAL": "OTHER"}
    silent = 0
    for cells in rows:
        if cells["Labels"] == "['exclude']":
            assert cells["ImageID"] not in records
            continue
        record = records.pop(cells["ImageID"])
        assert record["split"] == cells["split"] and record["age"] == cells["age"]
        assert record["patient_id"] == cells["PatientID"]
        assert record["sex"] == cells["PatientSex_DICOM"] and record["bit_depth"] == 16
        projection = cells["Projection"]
        assert record["view"] == views.get(projection, projection)
        if cells["Labels"] in ("nan", "['']"):
            assert codes(record) == {} and record["label_source"] == "none"
            assert cells["ImageID"] not in judged[cells["MethodLabel"]]
            silent += 1
        else:
            found = judged[cells["MethodLabel"]].pop(cells["ImageID"])
            assert found["positive"] == cells["names"]
            assert bool(found["not_judged"]) == ("unchanged" in cells["Labels"])
    assert not records and silent and not any(judged.values())
    assert not listed(folder) and len(reports(dataset)) == 0
    labels = read_tasks(folder)["padchest"].labels
    assert labels == tuple(sorted({name.lower() for name in DRAWN} | {"normal"}))
    assert read_tasks(folder)["padchest_rnn"].labels == labels


def test_each_label_of_physicians_is_in_each_split(made):
    rows, _, folder = made
    split_of = {cells["ImageID"]: cells["split"] for cells in rows}
    found = {
        (split_of[image], label)
        for image, row in classes(folder, "padchest").items()
        for label in row["positive"]
    }
    assert len(found) == 3 * (len(DRAWN) + 1)


def test_films_of_16_bits_keep_their_range(tmp_path):
    raw = hand_made(tmp_path / "raw", [row("a.png")])
    record = films(prepare("padchest", raw, tmp_path))["a.png"]
    gray = simplejpeg.decode_jpeg(record["film"], "GRAY")[..., 0]
    # A decoder that clips to 8 bits would leave 255 in all but the first rows.
    middle = gray[len(gray) // 2].mean()
    assert gray[0].max() < 5 and 120 < middle < 136 and gray[-1].min() > 250


def test_what_the_lists_say(tmp_path):
    cells = {
        "a.png": "['COPD signs', ' pneumonia', 'pneumonia', '']",
        "b.png": "['unchanged', 'cardiomegaly']",
        "c.png": "['unchanged']",
        "d.png": "['normal', 'nodule']",
        "e.png": "nan",
        "f.png": "['', 'suboptimal study']",
        "g.png": "['normal', 'suboptimal study']",
        "h.png": "",
        "i.png": "['exclude', 'nodule']",
        "j.png": "['loc seen nowhere']",
    }
    raw = hand_made(tmp_path / "raw", [row(name, cell) for name, cell in cells.items()])
    records = films(prepare("padchest", raw, tmp_path))
    judged = classes(tmp_path / "padchest", "padchest")
    assert {name: found["positive"] for name, found in judged.items()} == {
        "a.png": ["copd signs", "pneumonia"],
        "b.png": ["cardiomegaly"],
        "d.png": ["nodule"],
        "g.png": ["normal"],
        "j.png": ["loc seen nowhere"],
    }
    assert judged["a.png"]["not_judged"] == []
    rest = ["copd signs", "loc seen nowhere", "nodule", "normal", "pneumonia"]
    assert judged["b.png"]["not_judged"] == rest
    assert set(records) == set(cells) - {"i.png"}
    assert codes(records["a.png"])["Pneumonia"] == 1
    assert (
        codes(records["a.png"])["Edema"] == codes(records["a.png"])["No Finding"] == 0
    )
    assert codes(records["b.png"]) == {"Cardiomegaly": 1}
    assert codes(records["d.png"])["Lung Lesion"] == 1
    assert codes(records["d.png"])["No Finding"] == 0
    assert codes(records["g.png"]) == {"No Finding": 1, "Lung Opacity": 0}
    assert all(
        codes(records[name]) == {} for name in ("c.png", "e.png", "f.png", "h.png")
    )
    (warned,) = (
        found
        for found in listed(tmp_path / "padchest", "warnings")
        if found["reason"] == "not in the label map"
    )
    assert warned["id"] == "loc seen nowhere" and codes(records["j.png"]) == {}


def test_the_two_methods_are_two_tasks_and_views_are_mapped(tmp_path):
    rows = [
        row("a.png", Projection="AP_horizontal"),
        row("b.png", MethodLabel="RNN_model", Projection="COSTAL"),
        row("c.png", Projection="UNK", PatientBirth="nan", PatientSex_DICOM="O"),
        row("d.png", Projection="EXCLUDE"),
    ]
    raw = hand_made(tmp_path / "raw", rows)
    (raw / "0").rename(raw / "flat")  # folders do not matter
    records = films(prepare("padchest", raw, tmp_path))
    views = {name: record["view"] for name, record in records.items()}
    assert views == {"a.png": "AP", "b.png": "OTHER", "c.png": "UNKNOWN"}
    assert set(classes(tmp_path / "padchest", "padchest")) == {"a.png", "c.png"}
    assert set(classes(tmp_path / "padchest", "padchest_rnn")) == {"b.png"}
    assert (records["c.png"]["age"], records["c.png"]["sex"]) == (-1, "")
    assert records["a.png"]["age"] == 84 and records["a.png"]["time"] > 0
    assert records["a.png"]["split"] == split_of_patient("pa.png")


def test_bad_rows_are_rejected_by_line(tmp_path):
    rows = [
        row("good.png"),
        row("text.png", "normal"),
        row("code.png", "__import__('os').getcwd()"),
        row("method.png", MethodLabel="Nobody"),
        row("view.png", Projection="XX"),
        row("patient.png", PatientID="nan"),
        row("gone.png"),
        row("cut.png"),
        row("../../out.png"),
        row("twice.png", StudyID="shared"),
        row("again.png", StudyID="shared"),
    ]
    raw = hand_made(tmp_path / "raw", rows)
    (raw / "0" / "gone.png").unlink()
    cut = raw / "0" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:150])
    Image.fromarray(RAMP).save(tmp_path / "out.png")
    assert list(films(prepare("padchest", raw, tmp_path, *LOOSE))) == ["good.png"]
    found = {line["id"]: line for line in listed(tmp_path / "padchest")}
    assert {name: line["reason"] for name, line in found.items()} == {
        **dict.fromkeys(("text.png", "code.png", "method.png"), "bad value"),
        **dict.fromkeys(("patient.png", "twice.png", "again.png"), "bad value"),
        "view.png": "unknown view",
        "gone.png": "missing file",
        "cut.png": "unreadable file",
        "../../out.png": "missing file",
    }
    for name, text in {
        "text.png": "line 3, Labels: expected the text of a list, found 'normal'",
        "method.png": "line 5, MethodLabel: expected Physician or RNN_model",
        "view.png": "line 6, Projection: expected one of PA",
        "gone.png": "line 8: no file of this name below --raw; its archive is 0.zip",
    }.items():
        assert f"{NAME}, {text}" in found[name]["detail"]


def test_lists_of_anything_but_texts_are_refused():
    assert read_labels("[' NSG tube', 'normal']") == {"nsg tube", "normal"}
    for cell in ("['a', 1]", "{'a': 1}", "['a'", "[" * 200, "(" * 5000):
        with pytest.raises(ValueError, match="Labels"):
            read_labels(cell)


def test_the_label_map_has_every_label_once():
    path = find_label_map("padchest", None)
    values = [line["value"] for line in read_rows(path) if line["value"] != "*"]
    labels = read_label_map(path)
    assert len(set(values)) == 190 and set(values) == set(labels.codes)
    assert not {"unchanged", "suboptimal study", "exclude", ""} & set(values)
    found, _ = labels.labels("hydropneumothorax|costophrenic angle blunting")
    told = {name: code for name, code in zip(FINDINGS, found, strict=True)}
    assert told["Pneumothorax"] == told["Pleural Effusion"] == 1
    assert told["Pleural Other"] == -1 and told["Fracture"] == 0


def test_missing_tables_and_columns_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", [row("a.png")])
    (raw / NAME).write_text("ImageID,Labels\na.png,nan\n")
    with pytest.raises(UserError, match="PADCHEST.*missing ImageDir, StudyDate_DICOM"):
        prepare("padchest", raw, tmp_path)
    (raw / NAME).write_bytes(b"ImageID,Labels\nJos\xe9.png,nan\n")
    with pytest.raises(UserError, match="PADCHEST.*UTF-8"):
        prepare("padchest", raw, tmp_path)
    (raw / NAME).unlink()
    with pytest.raises(UserError, match="PADCHEST.*found none"):
        prepare("padchest", raw, tmp_path)
