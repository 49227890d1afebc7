"""COVIDx: lists without header whose lines have three to five words."""

import pytest
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines.annotations import read_tasks
from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")


def hand_made(root, test=(), train=(), version="9A", **more):
    """Writes lists, and the films that they name by the last word with a dot."""
    root.mkdir(parents=True, exist_ok=True)
    for split, lines in {"test": test, "train": train, **more}.items():
        (root / split).mkdir(exist_ok=True)
        name = f"{split}_COVIDx{version}.txt" if version else f"{split}.txt"
        (root / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        for number, line in enumerate(lines):
            words = [word for word in line.split() if "." in word and "/" not in word]
            if words:
                film(root / split / words[-1], number)
    return root


TEST = ("t1 t1.png normal", "t2 t2.png pneumonia", "t3 t3.jpg COVID-19 ricord")
TRAIN = ("a a.png normal rsna", "b b.png pneumonia cohen", "c c.jpeg COVID-19 bimcv")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("covidx")
    rows = write("covidx", root / "raw", 60)
    return rows, prepare("covidx", root / "raw", root), root / "covidx"


def test_the_miniature_comes_back_with_its_classes_patients_and_splits(made):
    rows, dataset, folder = made
    judged, records = classes(folder, "covidx"), films(dataset)
    lines = [(split, row["line"]) for split, found in rows.items() for row in found]
    assert len(lines) == len(records) == len(judged)
    by_stem = {image_id.casefold(): image_id for image_id in records}
    spaced = 0
    for split, line in lines:
        head, name, _ = next(
            line.partition(f" {n}")
            for n in ("normal", "pneumonia", "COVID-19")
            if f" {n}" in line
        )
        patient, file = head.rsplit(" ", 1)
        image_id = by_stem[f"{split}/{file}".casefold()]
        record = records[image_id]
        assert judged[image_id]["positive"] == [name.strip()]
        assert record["patient_id"] == patient
        assert (record["split"] == "test") == (split == "test")
        wanted = {"normal": "No Finding", "pneumonia": "Pneumonia"}.get(name.strip())
        told = {f for f, code in zip(FINDINGS, record["labels"]) if code == 1}
        assert told == ({wanted} if wanted else set())
        assert "rnsa" not in record["credit"]
        spaced += " " in patient
    assert spaced and not listed(folder)
    assert read_tasks(folder)["covidx"].labels == ("normal", "pneumonia", "COVID-19")


def test_each_class_is_in_each_split_and_each_patient_in_one(made):
    _, dataset, folder = made
    judged, records = classes(folder, "covidx"), films(dataset)
    found = {(r["split"], *judged[i]["positive"]) for i, r in records.items()}
    assert len(found) == 9
    splits = {(r["patient_id"], r["split"]) for r in records.values()}
    assert len(splits) == len({patient for patient, _ in splits}) == 60
    assert len(records) > 60  # some patients have several films


def test_lines_of_three_to_five_words_and_odd_spellings(tmp_path):
    train = [
        "COVID 214 COVID214.png COVID-19 sirm",
        "COVID 7 COVID 7.png COVID-19 sirm",  # V6: the file has a space too
        "n1 N1.JPG normal rnsa",
        "normal normal.jpeg PNEUMONIA",  # a patient called like a class
        "q q.png normal elsewhere",
        "",
    ]
    raw = hand_made(tmp_path / "raw", TEST, train)
    film(raw / "train" / "COVID 7.png", 9)
    (raw / "train" / "7.png").unlink()
    (raw / "train" / "N1.JPG").rename(raw / "train" / "n1.jpg")
    records = films(prepare("covidx", raw, tmp_path))
    of = {i: r["patient_id"] for i, r in records.items() if i.startswith("train")}
    assert of == {
        "train/COVID214.png": "COVID 214",
        "train/COVID 7.png": "COVID 7",
        "train/n1.jpg": "n1",
        "train/normal.jpeg": "normal",
        "train/q.png": "q",
    }
    assert records["train/n1.jpg"]["credit"] == "COVIDx: rsna"
    assert records["train/normal.jpeg"]["credit"] == "COVIDx"
    judged = classes(tmp_path / "covidx", "covidx")
    assert judged["train/normal.jpeg"]["positive"] == ["pneumonia"]
    (warned,) = (
        row
        for row in listed(tmp_path / "covidx", "warnings")
        if row["reason"] == "unknown source"
    )
    assert "train_COVIDx9A.txt, line 5" in warned["detail"]


def test_binary_versions_are_another_task_and_a_val_list_is_used(tmp_path):
    lists = {
        "test": ["t t.png positive ricord", "u u.png negative rsna"],
        "train": [f"a{n} a{n}.png negative rsna" for n in range(30)],
        "val": ["v v.png positive bimcv"],
    }
    raw = hand_made(tmp_path / "raw", version="", **lists)
    (raw / "train_COVIDxSev.txt").write_text("a0 a0.png level1\n")
    dataset = prepare("covidx", raw, tmp_path)
    folder = tmp_path / "covidx"
    judged = classes(folder, "covidx_binary")
    positive = {i for i, row in judged.items() if row["positive"] == ["COVID-19"]}
    assert positive == {"test/t.png", "val/v.png"} and len(judged) == 33
    assert list(read_tasks(folder)) == ["covidx_binary"]
    records = films(dataset)
    assert [i for i in records if records[i]["split"] == "validate"] == ["val/v.png"]
    assert set(records["train/a7.png"]["labels"]) == {-2}


def test_a_patient_of_two_lists_stays_in_test_and_is_listed(tmp_path):
    train = [*TRAIN, "t1 again.png COVID-19 cohen"]
    raw = hand_made(tmp_path / "raw", TEST, train)
    dataset = prepare("covidx", raw, tmp_path, *LOOSE)
    assert len(films(dataset)) == 6 and "test/t1.png" in films(dataset)
    (row,) = listed(tmp_path / "covidx")
    assert row["reason"] == "patient in two splits" and row["id"] == "train/again.png"
    assert "train_COVIDx9A.txt, line 4" in row["detail"]


def test_validation_is_carved_by_patient(tmp_path):
    train = [f"p{n // 3} f{n}.png normal rsna" for n in range(90)]
    dataset = prepare("covidx", hand_made(tmp_path / "raw", TEST, train), tmp_path)
    splits: dict[str, set] = {}
    for record in films(dataset).values():
        splits.setdefault(record["patient_id"], set()).add(record["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert 1 <= sum(found == {"validate"} for found in splits.values()) <= 8


def test_bad_lines_are_listed_by_number_and_others_kept(tmp_path):
    train = [
        *TRAIN,
        "d d.png influenza rsna",
        "e COVID-19 rsna",
        "f ../../f.png normal rsna",
        "g gone.png normal rsna",
        "h cut.png normal rsna",
    ]
    raw = hand_made(tmp_path / "raw", TEST, train)
    (raw / "train" / "gone.png").unlink()
    cut = raw / "train" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:300])
    dataset = prepare("covidx", raw, tmp_path, *LOOSE)
    assert len(films(dataset)) == 6
    found = {(row["reason"], row["id"]) for row in listed(tmp_path / "covidx")}
    assert found == {
        ("bad value", "d"),
        ("bad value", "e"),
        ("path outside the raw folder", "../../f.png"),
        ("missing file", "train/gone.png"),
        ("unreadable file", "train/cut.png"),
    }
    details = " ".join(row["detail"] for row in listed(tmp_path / "covidx"))
    assert all(f"line {number}:" in details for number in (4, 5, 6))
    assert len(classes(tmp_path / "covidx", "covidx")) == 6


def test_lists_that_do_not_fit_together_are_named(tmp_path):
    raw = hand_made(tmp_path / "raw", TEST, TRAIN)
    hand_made(raw, TEST, TRAIN[:1], version="8A")
    with pytest.raises(UserError, match=r"train_COVIDx8A.*train_COVIDx9A.*8A\|9A"):
        prepare("covidx", raw, tmp_path)
    dataset = prepare("covidx", raw, tmp_path, "--covidx-version", "8A")
    assert len(films(dataset)) == 4
    with pytest.raises(UserError, match="expected one of 8A, 9A, found '4'"):
        prepare("covidx", raw, tmp_path / "b", "--covidx-version", "4")
    (raw / "labels").mkdir()
    (raw / "labels" / "test_COVIDx9A.txt").write_text("\n")
    with pytest.raises(
        UserError, match=r"test_COVIDx9A\.txt and test_COVIDx9A|labels/"
    ):
        prepare("covidx", raw, tmp_path / "c", "--covidx-version", "9A")
    mixed = hand_made(tmp_path / "mixed", TEST, ["a a.png negative rsna"])
    with pytest.raises(UserError, match=r"normal \(test.*line 1\).*negative \(train"):
        prepare("covidx", mixed, tmp_path / "d")
    with pytest.raises(UserError, match=r"train_COVIDx9A\.txt"):
        prepare("covidx", tmp_path, tmp_path / "e")
    latin = hand_made(tmp_path / "latin", TEST, TRAIN)
    with (latin / "train_COVIDx9A.txt").open("ab") as file:
        file.write(b"Jos\xe9 x.png normal rsna\n")
    with pytest.raises(UserError, match=r"train_COVIDx9A\.txt, byte .*UTF-8"):
        prepare("covidx", latin, tmp_path / "f")
    (latin / "train").rename(latin / "images")
    with pytest.raises(UserError, match="expected the folder"):
        prepare("covidx", latin, tmp_path / "g")
