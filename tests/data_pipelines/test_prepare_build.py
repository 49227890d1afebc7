"""A build as a whole: csv folders, joins, interruption, refusals, reading."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import raw_folders as raw
from built_datasets import check_all_joins, images, prepare
from PIL import Image

from data_pipelines import records
from data_pipelines.findings import FINDINGS
from data_pipelines.plan import split_of_patient
from data_pipelines.prepare import main as prepare_main
from data_pipelines.records import find_datasets, open_dataset
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError


def listed(out, name="rejected"):
    with open(Path(out) / "films" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_shuffled_input_and_several_workers_give_the_same_dataset(built, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(Path(built.path).parent / "raw", root)
    with open(root / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(3).shuffle(rows)
    raw.write_csv(root / "metadata.csv", rows)
    other = prepare(root, tmp_path, jobs=3)
    check_all_joins(other)
    assert other.fingerprint == built.fingerprint
    assert other.table.equals(built.table)
    assert other.images[7]["image_id"] == built.images[7]["image_id"]


def test_another_pixel_label_or_schema_changes_the_fingerprint(tmp_path, monkeypatch):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 3)
    first = prepare(root, tmp_path / "a").fingerprint
    assert prepare(root, tmp_path / "b").fingerprint == first
    (root / rows[0]["image"]).write_bytes(raw.jpeg(raw.film(99)))
    second = prepare(root, tmp_path / "c").fingerprint
    rows[2]["Edema"] = "1"
    raw.write_csv(root / "metadata.csv", [{"Edema": ""} | row for row in rows])
    third = prepare(root, tmp_path / "d").fingerprint
    monkeypatch.setattr(records, "SCHEMA_VERSION", 2)
    fourth = prepare(root, tmp_path / "e").fingerprint
    assert len({first, second, third, fourth}) == 4


def test_labels_by_columns_then_map_then_report(tmp_path):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 3)
    for row, edema, findings in zip(
        rows, ("", "-1", "", "", "", "0"), ("A|Mass", "A", "B/x", "C", "", "A")
    ):
        row |= {"Edema": edema, "findings": findings}
    raw.write_csv(root / "metadata.csv", rows)
    label_map = [
        ("a", "Pneumonia", 1),
        ("mass", "Lung Lesion", -1),
        ("B", "Fracture", 1),
        ("B/x/y", "Fracture", 0),
        ("*", "Cardiomegaly", 0),
    ]
    keys = ("value", "finding", "code")
    lines = [dict(zip(keys, line)) for line in label_map]
    raw.write_csv(root / "label_map.csv", lines)
    out = tmp_path / "out"
    found = images(prepare(root, out))

    def given(name):
        record = found[f"images/{name}.jpg"]
        labels = zip(FINDINGS, record["labels"].tolist())
        return record["label_source"], {n: c for n, c in labels if c != -2}

    mapped = {"Pneumonia": 1, "Lung Lesion": -1, "Cardiomegaly": 0}
    assert given("p0_0") == ("label_map", mapped)
    assert given("p0_1") == ("columns", {"Edema": -1})
    assert given("p1_0") == ("label_map", {"Fracture": 1, "Cardiomegaly": 0})
    assert given("p1_1")[0] == "report"  # the map does not know C
    assert given("p2_0") == ("none", {})
    assert given("p2_1") == ("columns", {"Edema": 0})
    warned = [w["id"] for w in listed(out, "warnings")]
    assert warned == ["images/p1_1.jpg"]


def test_every_kind_of_bad_row_is_listed_with_its_reason(tmp_path):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 12)
    rows[0]["image"] = "../outside.jpg"
    (tmp_path / "outside.jpg").write_bytes(raw.jpeg(raw.film(0)))
    rows[1]["image"] = "images/none.jpg"
    (root / rows[2]["image"]).write_bytes(raw.jpeg(raw.film(0))[:300])
    rows[4]["view"] = "sideways"
    rows[6]["image"] = ""
    rows[7] |= {"image": "", "report": " .. "}
    rows[8]["split"] = "train2"
    Image.new("L", (64, 64), 9).save(root / "images/flat.png")
    rows[10]["image"] = "images/flat.png"
    os.symlink(tmp_path / "outside.jpg", root / "images/link.jpg")
    rows[12]["image"] = "images/link.jpg"
    rows[14]["split"] = "test" if rows[14]["split"] != "test" else "val"
    rows.append(rows[18] | {"sex": "F"})
    raw.write_csv(root / "metadata.csv", [{"sex": ""} | row for row in rows])
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--max-rejected-percent 1") as error:
        prepare(root, out)
    message = str(error.value)
    assert "rejected.csv" in message and "x unknown view" in message
    reasons = {(r["id"], r["reason"]) for r in listed(out)}
    assert not find_datasets_or_none(out)
    dataset = prepare(root, out, "--max-rejected-percent", "60")
    assert {(r["id"], r["reason"]) for r in listed(out)} >= reasons
    assert {(r["id"], r["reason"]) for r in listed(out)} == {
        ("../outside.jpg", "path outside the raw folder"),
        ("images/link.jpg", "path outside the raw folder"),
        ("images/none.jpg", "missing file"),
        ("images/p1_0.jpg", "unreadable file"),
        ("images/p2_0.jpg", "unknown view"),
        ("P3_s0", "neither image nor text"),
        ("P3_s1", "report without text"),
        ("images/p4_0.jpg", "bad value"),
        ("images/flat.png", "bad pixels"),
        ("images/p7_0.jpg", "patient in two splits"),
        ("images/p7_1.jpg", "patient in two splits"),
        ("P7_s1", "patient in two splits"),
        ("images/p9_0.jpg", "duplicate id"),
    }
    check_all_joins(dataset)


def find_datasets_or_none(out):
    try:
        return find_datasets(out)
    except UserError:
        return []


def test_images_alone_and_texts_alone(tmp_path):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 3)
    films = [{k: v for k, v in row.items() if k != "report"} for row in rows]
    raw.write_csv(root / "metadata.csv", films)
    dataset = prepare(root, tmp_path / "a")
    assert (len(dataset.images), len(dataset.reports)) == (6, 0)
    texts = [row | {"image": "", "report": "No effusion."} for row in rows]
    raw.write_csv(root / "metadata.csv", texts)
    dataset = prepare(root, tmp_path / "b")
    assert (len(dataset.images), len(dataset.reports)) == (0, 6)
    assert dataset.table["image_rows"].to_pylist() == [[]] * 6


def test_orders_of_studies_offsets_ids_and_splits(tmp_path):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 4)
    for row, offset in zip(rows, ("3", "-2", "5", "", "0", "7", "", "")):
        row["offset_days"] = offset
        row["study_index"] = ""
        row["study_id"] = row["study_id"][-2:]  # counts anew for each patient
        del row["split"]
    rows[2]["study_index"], rows[3]["study_index"] = "1", "0"
    raw.write_csv(root / "metadata.csv", rows)
    table = prepare(root, tmp_path).table.to_pylist()
    order = [(row["study_id"], row["time"] / 86400) for row in table[:6]]
    assert order[:2] == [("P0/s1", 0), ("P0/s0", 5)]  # shifted: no negative time
    assert [study for study, _ in order[2:4]] == ["P1/s1", "P1/s0"]  # as given
    assert order[4:] == [("P2/s0", 0), ("P2/s1", 7)]
    assert {r["split"] for r in table} <= {"train", "validate", "test"}
    for row in table:
        assert row["split"] == split_of_patient(row["patient_id"])


def command(root, out, *more):
    line = [sys.executable, "-m", "medclip_jax.cli", "prepare", "--dataset", "csv"]
    line += ["--raw", root, "--out", out, "--name", "films", *more]
    return [str(part) for part in line]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_build_goes_on_and_gives_the_same(tmp_path, jobs):
    root, out = tmp_path / "raw", tmp_path / "out"
    rows = raw.csv_folder(root, 90)
    for row in rows:  # large enough to take some time
        pixels = raw.film(len(row["image"]), 700, 600)
        (root / row["image"]).write_bytes(raw.jpeg(pixels))
    parts = out / ".films.incomplete" / "parts"
    process = subprocess.Popen(
        command(root, out, "--jobs", jobs), stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 60
    while not list(parts.glob("images-*.json")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in parts.glob("*.json")}
    assert kept and not (out / "films").exists()
    assert not find_datasets_or_none(out)
    # Half a shard and a half-written note must not be taken for finished ones.
    first = next(iter(sorted(kept)))
    shard = Path(str(first).removesuffix(".json"))
    shard.write_bytes(shard.read_bytes()[:-100])
    done = subprocess.run(
        command(root, out), check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "going on with the unfinished work" in done.stdout
    dataset = open_dataset(out / "films")
    check_all_joins(dataset)
    assert not (out / ".films.incomplete").exists()
    assert prepare(root, tmp_path / "other", jobs=2).fingerprint == dataset.fingerprint


def test_finished_build_says_so_and_other_arguments_are_refused(tmp_path, capsys):
    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 3)
    first = prepare(root, tmp_path)
    stamp = (tmp_path / "films/fingerprint.json").stat().st_mtime_ns
    prepare(root, tmp_path)
    assert "is finished already" in capsys.readouterr().out
    assert (tmp_path / "films/fingerprint.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="size was 512, now 48.*--overwrite"):
        prepare(root, tmp_path, "--size", 48)
    second = prepare(root, tmp_path, "--size", 48, "--overwrite")
    assert second.images[0]["width"] == 48
    assert second.fingerprint != first.fingerprint
    rows[0]["image"] = "images/none.jpg"
    raw.write_csv(root / "metadata.csv", rows)
    with pytest.raises(UserError, match="rejected"):
        prepare(root, tmp_path, "--size", 48, "--overwrite")
    assert open_dataset(tmp_path / "films").fingerprint == second.fingerprint
    assert (tmp_path / "films.rejected.csv").exists()


def test_user_errors_come_as_exit_status_2_with_one_message(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    done = subprocess.run(
        command(root, tmp_path), check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "metadata.csv" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "films").mkdir()
    (tmp_path / "films/my_thesis.txt").write_text("precious")
    for more in ((), ("--overwrite",)):
        with pytest.raises(UserError, match="no prepared dataset"):
            prepare(root, tmp_path, *more)
    for more, words in (
        (("--size", "5"), "--size"),
        (("--jobs", "0"), "--jobs"),
        (("--max-rejected-percent", "101"), "--max-rejected-percent"),
        (("--name", "../x"), "--name"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(root, tmp_path / "new", *more)


def refusal(root, out, capsys, *more):
    arguments = ["--dataset", "csv", "--raw", root, "--out", out, "--name", "films"]
    with pytest.raises(UserError) as error:
        prepare_main([str(a) for a in (*arguments, "--jobs", 1, *more)])
    capsys.readouterr()
    return str(error.value)


def test_a_mended_file_is_taken_when_started_again(tmp_path, capsys):
    root = tmp_path / "raw"
    film = root / raw.csv_folder(root, 4)[1]["image"]
    whole = film.read_bytes()
    film.write_bytes(whole[:200])
    assert "1 of " in refusal(root, tmp_path, capsys)
    film.write_bytes(whole)
    assert len(prepare(root, tmp_path).images) == 8


def test_nothing_left_is_an_error_whatever_may_be_rejected(tmp_path, capsys):
    root = tmp_path / "raw"
    for row in raw.csv_folder(root, 2):
        (root / row["image"]).write_bytes(b"no film")
    raw.write_csv(root / "metadata.csv", [{"image": row} for row in ("0.png", "1.png")])
    found = refusal(root, tmp_path, capsys, "--max-rejected-percent", 100)
    assert "and nothing is left" in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,p,FINDINGS: No effusion, but a pneumothorax.", "line 2: more cells"),
        ('a.jpg,p,"FINDINGS: open', "cannot read"),
    ],
)
def test_a_table_with_loose_quotes_is_refused(tmp_path, capsys, line, message):
    root = tmp_path / "raw"
    root.mkdir()
    (root / "metadata.csv").write_text(f"image,patient_id,report\n{line}\nb.jpg,q,\n")
    assert message in refusal(root, tmp_path, capsys)


def test_a_column_without_a_name_is_an_index_and_no_loose_cell(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(",image,report\n0,a.jpg,clear\n1,b.jpg,,\n2,,\n")
    rows = read_rows(path)
    assert rows == [
        {"image": "a.jpg", "report": "clear"},
        {"image": "b.jpg", "report": ""},
    ]


def test_rows_of_a_study_share_its_patient(tmp_path):
    root = tmp_path / "raw"
    film = raw.csv_folder(root, 1)[0]["image"]
    text = "FINDINGS: There is a pleural effusion."
    rows = [
        {"image": film, "patient_id": "p1", "study_id": "s1", "report": ""},
        {"image": "", "patient_id": "", "study_id": "s1", "report": text},
        {"image": "", "patient_id": "", "study_id": "", "report": ""},  # a spare line
    ]
    raw.write_csv(root / "metadata.csv", rows)
    data = prepare(root, tmp_path)
    (study,) = data.table.to_pylist()
    assert (study["patient_id"], study["study_id"]) == ("p1", "s1")
    assert study["image_rows"] == [0] and study["report_row"] == 0


def test_a_damaged_shard_is_named(tmp_path):
    root = tmp_path / "raw"
    raw.csv_folder(root, 4)
    built = Path(prepare(root, tmp_path).path)
    shard = next((built / "images").rglob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(UserError, match="is damaged.*--overwrite"):
        open_dataset(built)


def test_two_builds_at_once_are_refused(tmp_path):
    from data_pipelines import staging

    work = staging.work_folder(tmp_path, "films")
    raw.csv_folder(tmp_path / "raw", 3)
    with staging.locked(work), pytest.raises(UserError, match="another"):
        prepare(tmp_path / "raw", tmp_path)


def test_report_text_is_in_no_message_and_no_list(tmp_path, capfd, monkeypatch):
    from data_pipelines.reports import extract

    root = tmp_path / "raw"
    rows = raw.csv_folder(root, 3, report="Mrs Quixotic has an effusion.")
    rows[0]["report"] = "INDICATION: Mrs Quixotic coughs."  # nothing to read
    raw.write_csv(root / "metadata.csv", rows)

    def fails(text, **_):
        raise ValueError(f"cannot read {text}")

    monkeypatch.setattr(extract, "process_report", fails)
    with pytest.raises(RuntimeError) as error:
        prepare(root, tmp_path)
    assert "Quixotic" not in str(error.value)
    monkeypatch.undo()
    prepare(root, tmp_path, "--max-rejected-percent", "50")
    assert "no sentence found" in (tmp_path / "films/rejected.csv").read_text()
    captured = capfd.readouterr()
    assert "Quixotic" not in captured.out + captured.err
    for path in (tmp_path / "films").glob("*.*"):
        assert b"Quixotic" not in path.read_bytes(), path


def test_a_linked_folder_of_the_raw_folder_is_followed(tmp_path):
    root = tmp_path / "raw"
    raw.csv_folder(root, 3)
    (root / "images").rename(tmp_path / "other_disk")
    (root / "images").symlink_to(tmp_path / "other_disk")
    assert len(prepare(root, tmp_path).images) == 6
