"""MIMIC-CXR-JPG and CheXpert in every published layout."""

import csv
import shutil

import numpy as np
import pytest
import raw_folders as raw

from data_pipelines.findings import FINDINGS
from data_pipelines.prepare import main
from data_pipelines.records import open_dataset
from data_pipelines.tables import dicom_time, read_rows
from medclip_jax.errors import UserError


def prepare(dataset, root, out, *more):
    arguments = ["--dataset", dataset, "--raw", str(root), "--out", str(out)]
    assert main([*arguments, "--jobs", "1", *more]) == 0
    return open_dataset(out / dataset)


def listed(out, dataset, name="rejected"):
    with open(out / dataset / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def images(dataset):
    return {r["image_id"]: r for r in (dataset.images[i] for i in range_of(dataset))}


def range_of(dataset):
    return range(len(dataset.images))


MIMIC_LAYOUTS = [
    ("files/", "files/{folder}.txt", True),
    ("", "{folder}.txt", False),
    ("files/", "mimic-cxr-reports/files/{folder}.txt", True),
    ("", "mimic-cxr-reports/{folder}.txt", False),
    ("files/", "files/{folder}/{study}.txt", False),
]


@pytest.mark.parametrize(("files", "reports", "packed"), MIMIC_LAYOUTS)
def test_mimic_layouts_give_the_same_records(tmp_path, files, reports, packed):
    raw.mimic(tmp_path / "raw", files=files, reports=reports, packed=packed)
    dataset = prepare("mimic_cxr", tmp_path / "raw", tmp_path)
    assert (len(dataset.images), len(dataset.reports)) == (12, 6)
    assert set(dataset.table["split"].to_pylist()) == {"train", "validate", "test"}
    record = dataset.images[0]
    assert (record["original_height"], record["original_width"]) == (3056, 2544)
    assert record["label_source"] == "columns"
    named = dict(zip(FINDINGS, record["labels"].tolist()))
    assert named["Edema"] == 1 and named["Pneumonia"] == -1
    assert named["Fracture"] == 0 and named["Atelectasis"] == -2
    report = dataset.reports[0]
    assert {"findings", "impression"} <= set(report["section_names"])
    effusion = FINDINGS.index("Pleural Effusion")
    assert report["labels"][effusion] == 1 and report["labels"].shape == (14,)
    assert report["sentence_labels"].shape == (len(report["sentences"]), 14)


def test_mimic_times_order_the_studies_and_lost_zeros_are_put_back(tmp_path):
    raw.mimic(tmp_path / "raw")
    table = prepare("mimic_cxr", tmp_path / "raw", tmp_path).table.to_pylist()
    for earlier, later in zip(table[::2], table[1::2]):
        assert earlier["patient_id"] == later["patient_id"]
        assert earlier["study_id"] > later["study_id"]  # ids run against time
        assert later["time"] - earlier["time"] == 86400
        assert earlier["time"] % 86400 == 8 * 3600 + 5 * 60 + 56
        assert [earlier["study_index"], later["study_index"]] == [0, 1]
        assert earlier["image_views"] == ["PA", "LATERAL"]


def test_dicom_times_with_lost_zeros():
    midnight = dicom_time("21800506", "0")
    for cell, seconds in (("80556.875", 29156), ("123.0", 83), ("7", 7), ("", 0)):
        assert dicom_time("21800506", cell) - midnight == seconds, cell
    assert dicom_time("21800507.0", "0") - midnight == 86400
    assert dicom_time("", "80556") == dicom_time("2180", "0") == -1


def test_mimic_study_without_a_label_row_takes_its_reports_labels(tmp_path):
    root = tmp_path / "raw"
    rows = raw.mimic(root, packed=False)
    path = root / "mimic-cxr-2.0.0-chexpert.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:1] + lines[2:]) + "\n")
    dataset = prepare("mimic_cxr", root, tmp_path)
    study = f"s{rows[0]['study_id']}"
    for record in images(dataset).values():
        wanted = "report" if record["study_id"] == study else "columns"
        assert record["label_source"] == wanted
        at = dataset.table["study_id"].to_pylist().index(record["study_id"])
        row = dataset.table["report_row"][at].as_py()
        same = record["labels"] == dataset.reports[row]["labels"]
        assert same.all() == (wanted == "report")


def test_mimic_label_rows_that_differ_are_listed_and_not_used(tmp_path):
    root = tmp_path / "raw"
    rows = raw.mimic(root, packed=False)
    study = f"s{rows[0]['study_id']}"
    path = root / "mimic-cxr-2.0.0-chexpert.csv"
    table = read_rows(path)
    twice = next(row for row in table if f"s{row['study_id']}" == study)
    other = {**twice, "Edema": "0" if twice["Edema"] else "1"}
    raw.write_csv(path, [*table, table[1], other])
    dataset = prepare("mimic_cxr", root, tmp_path, "--max-rejected-percent", "50")
    sources = {r["study_id"]: r["label_source"] for r in images(dataset).values()}
    assert sources.pop(study) == "report" and set(sources.values()) == {"columns"}
    with pytest.raises(UserError, match="--labels negbio: expected"):
        prepare("mimic_cxr", root, tmp_path / "other", "--labels", "negbio")


def test_mimic_test_set_labels_name_airspace_opacity(tmp_path):
    root = tmp_path / "raw"
    rows = raw.mimic(root)
    names = [n.replace("Lung Opacity", "Airspace Opacity") for n in raw.ALPHABETICAL]
    by_hand = {"study_id": rows[0]["study_id"]}
    by_hand |= raw.labels_row({"Airspace Opacity": 1}, names)
    raw.write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", [by_hand])
    dataset = prepare("mimic_cxr", root, tmp_path)
    labels = images(dataset)[rows[0]["dicom_id"]]["labels"]
    wanted = np.full(14, -2)
    wanted[FINDINGS.index("Lung Opacity")] = 1
    assert labels.tolist() == wanted.tolist()


def test_mimic_views_and_missing_reports(tmp_path):
    root = tmp_path / "raw"
    rows = raw.mimic(root, packed=False)
    rows[0]["ViewPosition"] = ""
    rows[1]["ViewPosition"] = "XTABLE LATERAL"
    rows[2]["ViewPosition"] = "UPSIDE DOWN"
    rows[3]["ViewPosition"] = "LL"
    raw.write_csv(root / "mimic-cxr-2.0.0-metadata.csv", rows)
    folder = f"files/p10/p{rows[8]['subject_id']}/s{rows[8]['study_id']}"
    (root / f"{folder}.txt").unlink()
    blank = f"files/p10/p{rows[4]['subject_id']}/s{rows[4]['study_id']}"
    (root / f"{blank}.txt").write_text(" ___ \n")
    (root / f"{folder}/{rows[8]['dicom_id']}.jpg").write_bytes(b"\xff\xd8 broken")
    (root / f"{folder}/{rows[9]['dicom_id']}.jpg").unlink()
    out = tmp_path / "out"
    dataset = prepare("mimic_cxr", root, out, "--max-rejected-percent", "60")
    found = images(dataset)
    assert found[rows[0]["dicom_id"]]["view"] == "UNKNOWN"
    assert found[rows[1]["dicom_id"]]["view"] == "OTHER"
    assert found[rows[3]["dicom_id"]]["view"] == "LATERAL"
    assert len(found) == 9
    reasons = {(r["id"], r["reason"]) for r in listed(out, "mimic_cxr")}
    assert reasons == {
        (rows[2]["dicom_id"], "unknown view"),
        (rows[8]["dicom_id"], "unreadable file"),
        (rows[9]["dicom_id"], "missing file"),
        (f"s{rows[8]['study_id']}", "missing file"),
        (f"s{rows[4]['study_id']}", "report without text"),
    }
    warned = listed(out, "mimic_cxr", "warnings")
    assert [w["id"] for w in warned if w["reason"] == "view not given"] == [
        rows[0]["dicom_id"]
    ]


def test_mimic_without_reports_and_with_reports_elsewhere(tmp_path, capsys):
    root = tmp_path / "raw"
    raw.mimic(root, reports="../elsewhere/files/{folder}.txt")
    dataset = prepare("mimic_cxr", root, tmp_path / "a")
    assert len(dataset.reports) == 0
    assert "no report was found" in capsys.readouterr().out
    more = ("--reports", str(tmp_path / "elsewhere"))
    assert len(prepare("mimic_cxr", root, tmp_path / "b", *more).reports) == 6


def test_mimic_errors_say_what_is_expected(tmp_path):
    with pytest.raises(UserError, match="mimic-cxr-2.0.0-metadata"):
        prepare("mimic_cxr", tmp_path, tmp_path / "out")
    raw.mimic(tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw/files")
    with pytest.raises(UserError, match="none is below"):
        prepare("mimic_cxr", tmp_path / "raw", tmp_path / "out")


def small(root):
    return lambda path: root / path


def aimi(root):
    """Batch folders; the train batch has no train/ above its patients."""

    def place(path):
        if path.startswith("train/"):
            batch = root / "CheXpert-v1.0 batch 2 (train 1)"
            return batch / path.removeprefix("train/")
        return root / "CheXpert-v1.0 batch 1 (validate & csv)" / path

    return place


CHEXPERT_LAYOUTS = [
    ("CheXpert-v1.0-small/", small, "."),
    ("CheXpert-v1.0/", small, "."),
    ("CheXpert-v1.0-small/", lambda r: small(r / "CheXpert-v1.0-small"), "sub"),
    ("CheXpert-v1.0/", aimi, "batch"),
]


@pytest.mark.parametrize(("prefix", "layout", "tables"), CHEXPERT_LAYOUTS)
def test_chexpert_layouts_give_the_same_records(tmp_path, prefix, layout, tables):
    root = tmp_path / "raw"
    home = {
        ".": root,
        "sub": root / "CheXpert-v1.0-small",
        "batch": root / "CheXpert-v1.0 batch 1 (validate & csv)",
    }[tables]
    train = raw.chexpert_rows("train", range(3), prefix)
    train[5]["AP/PA"] = "RL"
    train[5]["Frontal/Lateral"] = "Frontal"
    valid = raw.chexpert_rows("valid", range(10, 12), prefix)
    raw.write_csv(home / "train.csv", train)
    raw.write_csv(home / "valid.csv", valid)
    raw.write_films(train + valid, layout(root))
    dataset = prepare("chexpert", root, tmp_path)
    found = images(dataset)
    assert len(found) == 10 and len(dataset.reports) == 0
    first = found["train/patient00000/study1/view1_frontal.jpg"]
    assert (first["view"], first["sex"], first["age"]) == ("AP", "F", -1.0)
    assert first["study_id"] == "patient00000/study1"
    assert first["split"] == "train" and first["label_source"] == "columns"
    named = dict(zip(FINDINGS, first["labels"].tolist()))
    assert (named["Cardiomegaly"], named["Edema"], named["Fracture"]) == (1, 0, -2)
    later = found["valid/patient00011/study1/view2_lateral.jpg"]
    assert (later["view"], later["age"], later["split"]) == ("LATERAL", 11, "validate")
    assert found["train/patient00002/study1/view2_lateral.jpg"]["view"] == "LATERAL"


def test_chexpert_test_table_by_study(tmp_path):
    root = tmp_path / "raw"
    train = raw.chexpert_rows("train", range(2), "CheXpert-v1.0/")
    films = raw.chexpert_rows("test", range(70, 71), "CheXpert-v1.0/")
    raw.write_csv(root / "train.csv", train)
    labels = raw.labels_row({"Edema": 1}, list(FINDINGS))
    study = {"Study": "CheXpert-v1.0/test/patient00070/study1"}
    raw.write_csv(root / "test.csv", [study | labels])
    raw.write_films(train + films, small(root))
    found = images(prepare("chexpert", root, tmp_path))
    views = {i: r["view"] for i, r in found.items() if r["split"] == "test"}
    assert views == {
        "test/patient00070/study1/view1_frontal.jpg": "UNKNOWN",
        "test/patient00070/study1/view2_lateral.jpg": "LATERAL",
    }


def swapped(rows):
    """Tables of single readers have Lung Lesion and Lung Opacity the other way round."""
    names = list(rows[0])
    one, other = names.index("Lung Lesion"), names.index("Lung Opacity")
    names[one], names[other] = names[other], names[one]
    return [{name: row[name] for name in names} for row in rows]


def test_chexpert_official_test_labels_in_any_order_of_columns(tmp_path, capsys):
    root = tmp_path / "raw"
    train = raw.chexpert_rows("train", range(2), "CheXpert-v1.0/")
    films = raw.chexpert_rows("test", range(70, 72), "CheXpert-v1.0/")
    raw.write_csv(root / "train.csv", train)
    given = dict.fromkeys(FINDINGS, 0.0) | {"Lung Opacity": 1.0}
    by_study = [
        {"Study": f"CheXpert-v1.0/test/patient000{n}/study1"} | given for n in (70, 71)
    ]
    raw.write_csv(root / "groundtruth.csv", by_study)
    raw.write_films(train, small(root))
    assert len(images(prepare("chexpert", root, tmp_path / "a"))) == 4
    assert "groundtruth.csv: no films of the test set" in capsys.readouterr().out
    raw.write_films(films, small(root))
    made = [images(prepare("chexpert", root, tmp_path / "b"))]
    raw.write_csv(root / "groundtruth.csv", swapped(by_study))
    made.append(images(prepare("chexpert", root, tmp_path / "c")))
    for found in made:
        test = [r for r in found.values() if r["split"] == "test"]
        assert len(test) == 4
        for record in test:
            named = dict(zip(FINDINGS, record["labels"].tolist()))
            assert named == {name: int(code) for name, code in given.items()}


def test_chexpert_test_labels_by_film(tmp_path):
    """Lists of frontal test films with 14 labels: a column Path, no view."""
    root = tmp_path / "raw"
    train = raw.chexpert_rows("train", range(2), "CheXpert-v1.0/")
    films = raw.chexpert_rows("test", range(70, 72), "CheXpert-v1.0/")
    raw.write_csv(root / "train.csv", train)
    raw.write_films(train + films, small(root))
    names = [n.replace("Lung Opacity", "Airspace Opacity") for n in FINDINGS]
    labels = raw.labels_row({"Airspace Opacity": 1}, names)
    chosen = [{"Path": row["Path"][14:]} | labels for row in films[::2]]
    raw.write_csv(root / "filter_test_labels.csv", chosen)
    found = images(prepare("chexpert", root, tmp_path))
    test = {i: r["labels"] for i, r in found.items() if r["split"] == "test"}
    assert [name.rsplit("/", 1)[1] for name in test] == ["view1_frontal.jpg"] * 2
    opacity = FINDINGS.index("Lung Opacity")
    assert all(labels[opacity] == 1 for labels in test.values())


def test_chexpert_bad_rows_are_listed(tmp_path):
    root = tmp_path / "raw"
    train = raw.chexpert_rows("train", range(4), "CheXpert-v1.0/")
    raw.write_films(train, small(root))
    train[0]["Path"] = "CheXpert-v1.0/train/../../etc/passwd"
    train[1]["Edema"] = "yes"
    train[2]["AP/PA"] = "XX"
    train[4]["Path"] = "CheXpert-v1.0/train/patient00777/study1/view1_frontal.jpg"
    raw.write_csv(root / "train.csv", train)
    out = tmp_path / "out"
    prepare("chexpert", root, out, "--max-rejected-percent", "60")
    reasons = sorted(r["reason"] for r in listed(out, "chexpert"))
    assert reasons == ["bad value", "bad value", "missing file", "unknown view"]


@pytest.mark.slow
def test_the_simulated_hospital_goes_through_both_adapters(tmp_path):
    from data_pipelines.hospital.simulate import main as simulate

    arguments = [
        "--patients",
        "6",
        "--chexpert-patients",
        "4",
        "--size",
        "96",
        "--jobs",
        "1",
    ]
    assert simulate(["--out", str(tmp_path / "raw"), *arguments]) == 0
    mimic = prepare("mimic_cxr", tmp_path / "raw/mimic-cxr", tmp_path)
    other = prepare("chexpert", tmp_path / "raw/chexpert", tmp_path)
    for dataset in (mimic, other):
        assert "no patient is real" in dataset.notice
        assert dataset.images[0]["license"] == "simulated"
        path = tmp_path / dataset.name / "rejected.csv"
        assert path.read_text().splitlines() == ["id,path,reason,detail"]
        assert dataset.table["split"].to_pylist().count("train") > 0
    assert len(mimic.reports) == mimic.table.num_rows
    patients = {d.name: set(d.table["patient_id"].to_pylist()) for d in (mimic, other)}
    assert not patients["mimic_cxr"] & patients["chexpert"]
