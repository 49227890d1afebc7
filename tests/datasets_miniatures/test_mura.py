"""MURA: lists without header, labels of studies, patients with several body parts."""

import numpy as np
import pytest
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines.annotations import read_tasks
from data_pipelines.hospital.benchmarks.bones import TYPES, render_limb
from data_pipelines.hospital.course import stream
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
A = "train/XR_HAND/patient00001/study1_positive"
B = "train/XR_WRIST/patient00001/study1_negative"
C = "valid/XR_ELBOW/patient00002/study1_negative"


def hand_made(raw, films_of=None, labels=None, root="MURA-v1.1"):
    """Writes the lists of 1.1, and the films that they name."""
    films_of = films_of or {"train": [f"{A}/image1.png", f"{B}/image1.png"]}
    films_of.setdefault("valid", [f"{C}/image1.png"])
    labels = labels or {"train": [f"{A}/,1", f"{B}/,0"]}
    labels.setdefault("valid", [f"{C}/,0"])
    (raw / root).mkdir(parents=True)
    for split, paths in films_of.items():
        lines = "".join(f"{root}/{path}\n" for path in paths)
        (raw / root / f"{split}_image_paths.csv").write_text(lines)
        lines = "".join(f"{root}/{line}\n" for line in labels[split])
        (raw / root / f"{split}_labeled_studies.csv").write_text(lines)
        for number, path in enumerate(paths):
            if ".." not in path:
                film(raw / root / path, number)
    return raw


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("mura")
    rows = write("mura", root / "raw", 60)
    return rows, prepare("mura", root / "raw", root), root


def test_the_miniature_comes_back_with_labels_of_studies(made):
    rows, dataset, root = made
    judged, records = classes(root / "mura", "mura_abnormal"), films(dataset)
    label_of = {
        row["path"]: row["label"]
        for split in ("train", "valid")
        for row in rows[f"{split}_studies"]
    }
    listed_films = [r["path"] for s in ("train", "valid") for r in rows[f"{s}_films"]]
    assert len(records) == len(listed_films) == len(judged)
    for path in listed_films:
        image_id = path.removeprefix("MURA-v1.1/")
        record = records[image_id]
        wanted = label_of[path.rsplit("/", 1)[0] + "/"]
        assert judged[image_id]["positive"] == ["Abnormal"] * wanted
        split, part, patient, _, _ = image_id.split("/")
        assert (record["split"] == "test") == (split == "valid")
        assert record["patient_id"] == patient and record["view"] == "OTHER"
        assert record["study_id"] == f"{patient}/{part}/study1"
        assert set(record["labels"]) == {-2}
    assert not listed(root / "mura")  # no ._image1.png was read
    task = read_tasks(root / "mura")["mura_abnormal"]
    assert (task.kind, task.labels, task.unit) == ("binary", ("Abnormal",), "study")


def test_both_labels_are_in_each_split_and_each_patient_in_one(made):
    _, dataset, root = made
    judged, records = classes(root / "mura", "mura_abnormal"), films(dataset)
    found = {(r["split"], bool(judged[i]["positive"])) for i, r in records.items()}
    assert len(found) == 6
    splits = {(r["patient_id"], r["split"]) for r in records.values()}
    assert len(splits) == 60
    studies = {r["study_id"] for r in records.values()}
    assert len(studies) > 60 and len(records) > len(studies)


@pytest.mark.parametrize("part", sorted(TYPES))
def test_what_is_wrong_with_a_limb_shows_and_nothing_else_changes(part):
    def limb(abnormal):
        streams = stream(1, part), stream(2, part)
        return render_limb(streams[0], part, abnormal, 96, 0.2, 0.0, streams[1])

    sound, broken = (limb(a).astype(int) for a in ("", "fracture"))
    changed = np.abs(sound - broken) > 25
    assert 0.0005 < changed.mean() < 0.12
    assert np.array_equal(limb("fracture"), broken)
    metal = limb("plate").astype(int) - sound > 25
    assert 0.0005 < metal.mean() < 0.12


def test_the_old_version_has_a_label_for_each_film(tmp_path):
    root = tmp_path / "raw" / "MURA-v1.0"
    rows = {"train": [(f"{A}/image1.png", 1), (f"{A}/image2.png", 1)]}
    rows["train"] += [(f"{B}/image1.png", 0)]
    rows["valid"] = [("valid/XR_HAND/patient00009/study1/image1.png", 1)]
    for split, found in rows.items():
        for number, (path, _) in enumerate(found):
            film(root / path, number)
        lines = "".join(f"MURA-v1.0/{path},{label}\n" for path, label in found)
        (root / f"{split}.csv").write_text(lines)
    dataset = prepare("mura", root, tmp_path)
    judged = classes(tmp_path / "mura", "mura_abnormal")
    assert {i: bool(row["positive"]) for i, row in judged.items()} == {
        path: bool(label) for found in rows.values() for path, label in found
    }
    assert len(films(dataset)) == 4
    (root / "train.csv").write_text(
        f"MURA-v1.0/{A}/image1.png,1\nMURA-v1.0/{A}/image2.png,0\n"
        "MURA-v1.0/train/XR_HAND/patient00003/study1/image1.png,0\n"
        "MURA-v1.0/train/XR_HAND/patient00003/study1/image2.png,1\n"
        "MURA-v1.0/train/XR_HAND/patient00004/study1/image1.png,2\nother.png,0\n"
    )
    prepare("mura", root, tmp_path / "b", *LOOSE)
    left_out = listed(tmp_path / "b" / "mura")
    assert sum(row["id"] == "other.png" for row in left_out) == 1
    details = [row["detail"] for row in left_out]
    assert sum("line 5: expected 1 (abnormal)" in detail for detail in details) == 1
    assert sum("found both" in detail for detail in details) == 2
    assert sum("as the folder's name has it" in detail for detail in details) == 2
    assert list(classes(tmp_path / "b" / "mura", "mura_abnormal")) == [
        rows["valid"][0][0]
    ]


def test_rows_that_cannot_be_are_listed_by_line_and_others_kept(tmp_path):
    lost = "train/XR_HAND/patient00005/study1_negative"
    many = [f"{A}/image1.png", f"{B}/image1.png", "../../etc/image1.png"]
    many += [f"{A}/../../image1.png", f"{A}/gone.png", f"{A}/cut.png", f"{A}/thin.png"]
    many += [f"{lost}/image1.png"]
    labels = [f"{A}/,1", f"{B}/,2", "train/XR_HAND/patient00006/study1_negative/,0"]
    raw = hand_made(tmp_path / "raw", {"train": many}, {"train": labels})
    (raw / "MURA-v1.1" / A / "gone.png").unlink()
    cut = raw / "MURA-v1.1" / A / "cut.png"
    cut.write_bytes(cut.read_bytes()[:400])
    film(raw / "MURA-v1.1" / A / "thin.png", 3, size=(40, 190))
    dataset = prepare("mura", raw, tmp_path, *LOOSE)
    assert set(films(dataset)) == {f"{A}/image1.png", f"{C}/image1.png"}
    found = {(row["reason"], row["id"]) for row in listed(tmp_path / "mura")}
    assert found == {
        ("bad value", B),
        ("bad value", f"{B}/image1.png"),
        ("bad value", f"{lost}/image1.png"),
        ("bad value", "MURA-v1.1/../../etc/image1.png"),
        ("path outside the raw folder", f"MURA-v1.1/{A}/../../image1.png"),
        ("missing file", f"{A}/gone.png"),
        ("unreadable file", f"{A}/cut.png"),
        ("bad pixels", f"{A}/thin.png"),
    }
    text = (tmp_path / "mura" / "rejected.csv").read_text()
    assert "train_labeled_studies.csv, line 2" in text
    assert all(f"train_image_paths.csv, line {n}" in text for n in (2, 3, 4, 8))
    (warned,) = listed(tmp_path / "mura", "warnings")
    assert warned["id"] == "train/XR_HAND/patient00006/study1_negative"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"expected train_labeled_studies\.csv"):
        prepare("mura", tmp_path, tmp_path / "a")
    raw = hand_made(tmp_path / "raw")
    path = raw / "MURA-v1.1" / "valid_labeled_studies.csv"
    path.write_text(f"MURA-v1.1/{C}/\n")
    with pytest.raises(UserError, match=r"valid_labeled.*line 1: expected 2 columns"):
        prepare("mura", raw, tmp_path / "b")
    path.write_bytes(f"MURA-v1.1/{C}/,0\n".encode() + b"caf\xe9,1\n")
    with pytest.raises(UserError, match=r"valid_labeled_studies\.csv .*UTF-8"):
        prepare("mura", raw, tmp_path / "c")
    (raw / "MURA-v1.1" / "valid_image_paths.csv").unlink()
    path.write_text(f"MURA-v1.1/{C}/,0\n")
    with pytest.raises(UserError, match=r"valid_image_paths\.csv"):
        prepare("mura", raw, tmp_path / "d")
