"""Shenzhen and Montgomery: the label is the last digit of a film's name."""

import pytest
from PIL import Image
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines.annotations import decode_mask, read_tasks
from data_pipelines.datasets.tuberculosis import sex_and_age
from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
ROOTS = {"shenzhen": "ChinaSet_AllFiles", "montgomery": "MontgomerySet"}


@pytest.fixture(scope="module", params=sorted(ROOTS))
def made(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    rows = write(request.param, root / "raw", 60)["films"]
    return request.param, rows, prepare(request.param, root / "raw", root), root


def test_the_miniatures_come_back_with_label_sex_and_age(made):
    name, rows, dataset, root = made
    judged, records = classes(root / name, "tb"), films(dataset)
    assert set(records) == set(judged) == {row["film"] for row in rows}
    for row in rows:
        record = records[row["film"]]
        assert judged[row["film"]]["positive"] == ["Tuberculosis"] * row["sick"]
        told = {f for f, code in zip(FINDINGS, record["labels"]) if code != -2}
        assert told == (set() if row["sick"] else {"No Finding"})
        assert (record["sex"], record["age"]) == (row["sex"], row["age"])
        assert record["view"] == "PA" and record["patient_id"] == row["film"]
        assert record["bit_depth"] == (8 if name == "shenzhen" else 16)
    assert not listed(root / name)
    assert not [
        r for r in listed(root / name, "warnings") if "bright" not in r["reason"]
    ]
    task = read_tasks(root / name)["tb"]
    assert (task.kind, task.labels, task.unit) == ("binary", ("Tuberculosis",), "image")


def test_each_class_is_cut_in_the_same_proportion_by_a_hash(made):
    name, _, dataset, root = made
    splits = {i: record["split"] for i, record in films(dataset).items()}
    for digit in "01":
        ids = sorted(i for i in splits if i[-1] == digit)
        found = [splits[i] for i in ids]
        assert [found.count(s) for s in ("test", "validate", "train")] == [6, 3, 21]
        assert found[:6] != ["test"] * 6
    again = films(prepare(name, root / "raw" / ROOTS[name], root / "again"))
    assert {i: record["split"] for i, record in again.items()} == splits


def test_masks_are_both_lungs_in_the_films_own_pixels(made):
    name, rows, dataset, _ = made
    for image_id, record in films(dataset).items():
        (row,) = (row for row in rows if row["film"] == image_id)
        if name == "shenzhen":
            assert record["masks"] == []
            continue
        mask_HxW = decode_mask(record["masks"][0])
        size = (record["original_height"], record["original_width"])
        assert mask_HxW.shape == size and len(record["masks"]) == 1
        assert mask_HxW.sum() == row["lungs"]
        left, right = mask_HxW[:, : size[1] // 2], mask_HxW[:, size[1] // 2 :]
        assert left.sum() > 0.1 * left.size and right.sum() > 0.1 * right.size


@pytest.mark.parametrize(
    ("text", "sex", "age"),
    [
        ("male 45yrs\nnormal", "M", 45),
        ("Female , 33yrs \n bilateral PTB", "F", 33),
        ("female,8 months\nnormal", "F", 8 / 12),
        ("femal 20 years", "F", 20),
        ("Male  5yr", "M", 5),
        ("Patient's Sex: F\nPatient's Age: 027Y\nnormal chest", "F", 27),
        ("Patient's Sex: M \nPatient's Age: 001Y", "M", 1),
        ("Patient's Sex: O\nPatient's Age: 999Y", "", -1),
        ("female\nTB of 2 lobes", "F", -1),
        ("", "", -1),
    ],
)
def test_sex_and_age_in_many_spellings(text, sex, age):
    assert sex_and_age(text) == (sex, pytest.approx(age))


def test_what_does_not_fit_is_listed_and_others_kept(tmp_path):
    raw = tmp_path / "MontgomerySet"
    stems = [f"MCUCXR_000{n}_{n % 2}" for n in range(1, 8)]
    for number, stem in enumerate(stems):
        film(raw / "CXR_png" / f"{stem}.png", number)
        (raw / "ClinicalReadings").mkdir(exist_ok=True)
        reading = raw / "ClinicalReadings" / f"{stem}.txt"
        reading.write_bytes(b"Patient's Sex: F\nPatient's Age: 027Y\ncaf\xe9\n")
        for side in ("left", "right"):
            mask = Image.new("1", (72, 80), 1)
            (raw / "ManualMask" / f"{side}Mask").mkdir(parents=True, exist_ok=True)
            mask.save(raw / "ManualMask" / f"{side}Mask" / f"{stem}.png")
    film(raw / "CXR_png" / "MCUCXR_0009_2.png")
    film(raw / "CXR_png" / "MCUCXR_0010.png")
    film(raw / "CXR_png" / "CHNCXR_0001_1.png")  # of a copy that holds both sets
    (raw / "ClinicalReadings" / f"{stems[0]}.txt").unlink()
    (raw / "ClinicalReadings" / f"{stems[1]}.txt").write_text("no words\n")
    (raw / "ManualMask" / "rightMask" / f"{stems[2]}.png").unlink()
    Image.new("1", (36, 40), 1).save(raw / "ManualMask/leftMask" / f"{stems[3]}.png")
    cut = raw / "CXR_png" / f"{stems[4]}.png"
    cut.write_bytes(cut.read_bytes()[:400])
    dataset = prepare("montgomery", tmp_path, tmp_path, *LOOSE)
    records = films(dataset)
    assert set(records) == set(stems) - {stems[4]}
    rejected = {(row["reason"], row["id"]) for row in listed(tmp_path / "montgomery")}
    assert rejected == {
        ("bad value", "MCUCXR_0009_2"),
        ("bad value", "MCUCXR_0010"),
        ("unreadable file", stems[4]),
    }
    warned = {
        (row["reason"], row["id"], row["path"])
        for row in listed(tmp_path / "montgomery", "warnings")
    }
    assert warned >= {
        ("no clinical reading", stems[0], f"ClinicalReadings/{stems[0]}.txt"),
        ("reading not understood", stems[1], f"ClinicalReadings/{stems[1]}.txt"),
        ("no lung mask", stems[2], f"ManualMask/rightMask/{stems[2]}.png"),
        ("no lung mask", stems[3], f"ManualMask/leftMask/{stems[3]}.png"),
    }
    assert {i for i, r in records.items() if not r["masks"]} == {stems[2], stems[3]}
    assert records[stems[5]]["age"] == 27 and records[stems[0]]["sex"] == ""


def test_counts_and_missing_folders_are_told(tmp_path, capsys):
    with pytest.raises(UserError, match=r"CXR_png/CHNCXR_0001_0\.png.*no such film"):
        prepare("shenzhen", tmp_path, tmp_path / "a")
    for number in range(3):
        film(tmp_path / "CXR_png" / f"CHNCXR_000{number}_0.png", number)
    prepare("shenzhen", tmp_path, tmp_path / "b")
    told = capsys.readouterr().out
    assert "3 normal films and 0 with tuberculosis, published were 326 and 336" in told
    assert "no folder ClinicalReadings" in told
