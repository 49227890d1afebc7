"""SIIM-ACR: relative run lengths down the columns, two markers, three layouts."""

import gzip

import numpy as np
import pytest
from PIL import Image
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines.annotations import decode_mask, mask_of_runs, read_tasks
from data_pipelines.datasets.siim import runs_of
from data_pipelines.findings import FINDINGS
from data_pipelines.hospital.benchmarks.siim import relative_runs
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.plan import split_of_patient
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
GRAY = np.tile(np.linspace(20, 220, 80, dtype=np.uint8)[:, None], (1, 70))
PNEUMOTHORAX = FINDINGS.index("Pneumothorax")


def hand_made(root, table, name="train-rle.csv", **tags):
    """Writes a table as it is given, and a film of 70 x 80 for each id in it."""
    root.mkdir(parents=True)
    (root / name).write_text(table)
    for image in {line.split(",")[0] for line in table.splitlines()[1:] if line}:
        path = root / "dicom-images-train" / "1" / image / f"{image}.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(dicom(GRAY, image, **tags))
    return root


def area_of(record):
    (mask,) = record["masks"]
    return int(decode_mask(mask).sum())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("siim")
    rows = write("siim", root / "raw", 20)
    return rows["films"], prepare("siim", root / "raw", root), root / "siim"


def test_run_lengths_are_relative_and_go_down_the_columns():
    # By hand, a film of 3 rows and 4 columns; pixels are counted down the columns:
    #   0 3 6 9
    #   1 4 7 10
    #   2 5 8 11
    # "1 2 3 1": one pixel off, 1 and 2 on, three off (3, 4, 5), 6 on.
    mask = mask_of_runs(runs_of("1 2 3 1", 3, 4), 3, 4)
    assert mask.astype(int).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    # "0 1 2 4 1 4": 0 on, 1 and 2 off, 3 to 6 on, 7 off, 8 to 11 on: to the last.
    mask = mask_of_runs(runs_of("0 1 2 4 1 4", 3, 4), 3, 4)
    assert mask.astype(int).tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]]


def test_run_lengths_agree_with_the_challenges_own_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(2, 9, 2)
        drawn = rng.random((height, width)) < rng.random()
        drawn[0, 0] = rng.random() < 0.5
        drawn[-1, -1] |= not drawn.any()
        cell = relative_runs(drawn)
        flat, at = np.zeros(height * width, bool), 0
        words = [int(word) for word in cell.split()]
        for offset, length in zip(words[::2], words[1::2], strict=True):
            at += offset
            flat[at : at + length] = True
            at += length
        assert (flat.reshape(width, height).T == drawn).all()
        found = mask_of_runs(runs_of(cell, int(height), int(width)), height, width)
        assert (found == drawn).all()


def test_the_miniature_comes_back_with_its_masks_and_headers(made):
    rows, dataset, folder = made
    judged, records = classes(folder, "siim_pneumothorax"), films(dataset)
    assert len(rows) == len(records) == len(judged) == 40
    for row in rows:
        record = records[row["ImageId"]]
        assert judged[row["ImageId"]]["positive"] == ["Pneumothorax"] * row["present"]
        assert record["labels"][PNEUMOTHORAX] == row["present"]
        assert len(record["masks"]) == row["present"]
        if row["present"]:  # the upper and the lower part together
            assert area_of(record) == row["area"] > 0
            size = record["original_height"], record["original_width"]
            assert decode_mask(record["masks"][0]).shape == size
        assert record["view"] == row["view"] and record["sex"] == row["PatientSex"]
        assert record["age"] == float(row["PatientAge"])
    assert sum(row["present"] for row in rows) == 20
    assert max(len(row["cells"]) for row in rows) == 2
    assert not listed(folder)
    assert read_tasks(folder)["siim_pneumothorax"].labels == ("Pneumothorax",)


def test_both_classes_are_in_each_split(made):
    rows, dataset, _ = made
    records = films(dataset)
    found = {(records[row["ImageId"]]["split"], row["present"]) for row in rows}
    assert len(found) == 6
    assert all(r["split"] == split_of_patient(i) for i, r in records.items())


@pytest.mark.parametrize(
    "name, header, none",
    [
        ("train-rle.csv", "ImageId, EncodedPixels", " -1"),
        ("train-rle.csv", "ImageId, EncodedPixels", "-1"),
        ("stage_2_train.csv", "ImageId,EncodedPixels", "-1"),
        ("siim-pneumothorax-train-rle.csv", "ImageId, EncodedPixels", "-1"),
    ],
)
def test_the_marker_with_and_without_a_blank(tmp_path, name, header, none):
    table = f"{header}\na,{none}\nb, 10 5 2 3\nb,0 2\nc,{none}\n"
    raw = hand_made(tmp_path / "raw", table, name)
    records = films(prepare("siim", raw, tmp_path))
    codes = {i: int(record["labels"][PNEUMOTHORAX]) for i, record in records.items()}
    assert codes == {"a": 0, "b": 1, "c": 0}
    assert area_of(records["b"]) == 10  # 5 + 3 + 2: all masks of the film


def test_stage_2_is_read_where_both_tables_are_there(tmp_path, capsys):
    table = "ImageId,EncodedPixels\na,-1\nb,0 2\nc,-1\n"
    raw = hand_made(tmp_path / "raw", table, "stage_2_train.csv")
    (raw / "train-rle.csv").write_text("ImageId, EncodedPixels\na, 0 2\n")
    (raw / "stage_2_images").mkdir()
    (raw / "stage_2_images" / "hidden.dcm").write_bytes(dicom(GRAY, "hidden"))
    records = films(prepare("siim", raw, tmp_path))
    codes = {i: int(record["labels"][PNEUMOTHORAX]) for i, record in records.items()}
    assert codes == {"a": 0, "b": 1, "c": 0}
    assert "1 films are not in stage_2_train.csv" in capsys.readouterr().out


def test_films_of_one_patient_share_a_split(tmp_path):
    table = "ImageId, EncodedPixels\n" + "".join(f"i{n}, -1\n" for n in range(8))
    raw = hand_made(tmp_path / "raw", table, PatientID="one", ViewPosition="LL")
    records = films(prepare("siim", raw, tmp_path))
    assert {(r["patient_id"], r["split"]) for r in records.values()} == {
        ("one", split_of_patient("one"))
    }
    assert {r["view"] for r in records.values()} == {"UNKNOWN"}


def test_bad_rows_are_rejected_by_line(tmp_path):
    rows = {
        "odd": "1 2 3",
        "words": "1 x",
        "minus": "-5 2",
        "empty": "",
        "long": "5000 601",
        "gone": "-1",
        "cut": "0 4",
        "good": "5000 600",
    }
    table = "ImageId, EncodedPixels\n"
    table += "".join(f"{name},{cell}\n" for name, cell in rows.items())
    raw = hand_made(tmp_path / "raw", f"{table}both,-1\n\nboth,1 2\n")
    (raw / "dicom-images-train" / "1" / "gone" / "gone.dcm").unlink()
    cut = raw / "dicom-images-train" / "1" / "cut" / "cut.dcm"
    cut.write_bytes(cut.read_bytes()[:2000])
    records = films(prepare("siim", raw, tmp_path, *LOOSE))
    assert list(records) == ["good"] and area_of(records["good"]) == 600
    found = {row["id"]: row for row in listed(tmp_path / "siim")}
    assert {name: row["reason"] for name, row in found.items()} == {
        **dict.fromkeys(
            ("odd", "words", "minus", "empty", "long", "both"), "bad value"
        ),
        "gone": "missing file",
        "cut": "unreadable file",
    }
    for name, line in {"odd": 2, "words": 3, "minus": 4, "empty": 5, "long": 6}.items():
        assert found[name]["detail"].startswith(
            f"train-rle.csv, line {line}, EncodedPixels: expected"
        )
    assert "lines 10, 12: expected masks or -1, found both" in found["both"]["detail"]
    assert "5600 pixels, found 5601" in found["long"]["detail"]


def re_release(root, rows):
    """Writes the PNG re-release; rows are (file name, id, has_pneumo)."""
    for name in ("train", "test"):
        chosen = [row for row in rows if f"_{name}_" in row[0]]
        lines = ["new_filename,ImageId,has_pneumo", *(",".join(row) for row in chosen)]
        root.mkdir(exist_ok=True)
        (root / f"stage_1_{name}_images.csv").write_text("\n".join(lines) + "\n")
    for number, (name, _, _) in enumerate(rows):
        film(root / "png_images" / name, number)
        mask = np.zeros((80, 72), np.uint8)
        mask[3:9, 5:7] = 255 * int("_1_" in name)
        (root / "png_masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "png_masks" / name)
    return root


def test_the_png_re_release(tmp_path):
    rows = [
        ("0_test_1_.png", "a", "1"),
        ("1_train_0_.png", "b", "0"),
        ("2_train_1_.png", "c", "0"),  # the digit and the table differ
        ("3_train_1_.png", "d", "1"),
        ("4_train_1_.png", "e", "1"),
        ("5_train_1_.png", "f", "1"),
    ]
    raw = re_release(tmp_path / "raw", rows)
    (raw / "png_masks" / "3_train_1_.png").unlink()
    Image.new("L", (72, 81), 255).save(raw / "png_masks" / "4_train_1_.png")
    Image.new("L", (72, 80), 0).save(raw / "png_masks" / "5_train_1_.png")
    records = films(prepare("siim", raw, tmp_path, *LOOSE))
    judged = classes(tmp_path / "siim", "siim_pneumothorax")
    assert {i: row["positive"] for i, row in judged.items()} == {
        "a": ["Pneumothorax"],
        "b": [],
    }
    mask = decode_mask(records["a"]["masks"][0])
    assert mask[3:9, 5:7].all() and mask.sum() == 12
    assert len(records["b"]["masks"]) == 0
    found = {row["id"]: row["detail"] for row in listed(tmp_path / "siim")}
    assert set(found) == set("cdef")
    assert "train_images.csv, line 3: expected an ImageId" in found["c"]
    assert "png_masks/3_train_1_.png: expected a picture" in found["d"]
    assert "expected the film's size (80, 72), found (81, 72)" in found["e"]
    assert "found an empty one" in found["f"]


def test_missing_tables_and_columns_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", "ImageId,Pixels\na,-1\n")
    with pytest.raises(UserError, match="train-rle.*missing EncodedPixels; found"):
        prepare("siim", raw, tmp_path)
    latin = b"ImageId, EncodedPixels\nJos\xe9, -1\n"
    (raw / "train-rle.csv").unlink()
    (raw / "train-rle.csv.gz").write_bytes(gzip.compress(latin))
    with pytest.raises(UserError, match=r"train-rle\.csv\.gz.*UTF-8"):
        prepare("siim", raw, tmp_path)
    (raw / "train-rle.csv.gz").unlink()
    with pytest.raises(UserError, match="stage_2_train.csv, train-rle.csv or"):
        prepare("siim", raw, tmp_path)
