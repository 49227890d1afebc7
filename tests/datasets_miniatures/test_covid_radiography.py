"""COVID-19 Radiography Database: the class is the folder."""

import pytest
from small_sets import classes, film, films, listed, prepare, write

from data_pipelines.annotations import read_tasks
from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError

FINDING = {
    "COVID": set(),
    "Lung_Opacity": {"Lung Opacity"},
    "Normal": {"No Finding"},
    "Viral Pneumonia": {"Pneumonia"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("covid_radiography")
    rows = write("covid_radiography", root / "raw", 60)
    return rows, prepare("covid_radiography", root / "raw", root), root


def test_the_miniature_comes_back_and_masks_are_no_films(made):
    rows, dataset, root = made
    folder = root / "covid_radiography"
    judged, records = classes(folder, "covid_radiography"), films(dataset)
    assert {row["file"] for row in rows["films"]} == set(records) == set(judged)
    for row in rows["films"]:
        record = records[row["file"]]
        assert judged[row["file"]]["positive"] == [row["class"]]
        told = {f for f, code in zip(FINDINGS, record["labels"]) if code == 1}
        assert told == FINDING[row["class"]] and set(record["labels"]) <= {1, -2}
        assert record["original_width"] == 64 and record["masks"] == []
    assert not listed(folder)
    found = {(r["split"], *judged[i]["positive"]) for i, r in records.items()}
    assert len(found) == 12


def test_covid_normal_holds_two_classes_only(made):
    _, dataset, root = made
    judged = classes(root / "covid_radiography", "covid_normal")
    assert read_tasks(root / "covid_radiography")["covid_normal"].labels == ("COVID",)
    for image_id in films(dataset):
        name = image_id.split("/")[0]
        if name in ("COVID", "Normal"):
            assert judged[image_id]["positive"] == ["COVID"] * (name == "COVID")
        else:
            assert image_id not in judged
    assert len(judged) == 30


def test_the_split_does_not_depend_on_the_folder_that_is_named(made, tmp_path):
    _, dataset, root = made
    inner = root / "raw" / "COVID-19_Radiography_Dataset"
    again = prepare("covid_radiography", inner, tmp_path)
    splits = {i: record["split"] for i, record in films(dataset).items()}
    assert {i: record["split"] for i, record in films(again).items()} == splits
    tests = sum(split == "test" for split in splits.values())
    assert tests == 12  # a fifth of each class
    normal = sorted(i for i in splits if i.startswith("Normal/"))
    first = [splits[image_id] for image_id in normal[:3]]
    assert first != ["test"] * 3  # by a hash, and not the first of the folder


def test_the_old_layout_has_no_images_folder_and_other_names(tmp_path):
    raw = tmp_path / "raw"
    for number in range(4):
        film(raw / "COVID-19" / f"COVID-19 ({number}).png", number)
        film(raw / "NORMAL" / f"NORMAL ({number}).png", number + 10, "RGBA")
    (raw / "NORMAL" / "._NORMAL (1).png").write_bytes(b"\0\5\x16\7")
    dataset = prepare("covid_radiography", raw, tmp_path)
    folder = tmp_path / "covid_radiography"
    judged = classes(folder, "covid_radiography")
    assert len(films(dataset)) == 8 and not listed(folder)
    assert judged["COVID-19/COVID-19 (1).png"]["positive"] == ["COVID"]
    assert judged["NORMAL/NORMAL (2).png"]["positive"] == ["Normal"]
    assert read_tasks(folder)["covid_radiography"].labels == ("COVID", "Normal")


def test_what_does_not_fit_is_named(tmp_path):
    raw = tmp_path / "raw"
    film(raw / "COVID" / "images" / "COVID-1.png")
    with pytest.raises(UserError, match="expected the folders COVID.*found COVID;"):
        prepare("covid_radiography", raw, tmp_path)
    (raw / "Normal" / "images").mkdir(parents=True)
    film(raw / "Normal" / "masks" / "Normal-1.png")
    with pytest.raises(UserError, match="expected PNG films in .*Normal/images"):
        prepare("covid_radiography", raw, tmp_path)
    cut = film(raw / "Normal" / "images" / "Normal-1.png", 1)
    film(raw / "Normal" / "images" / "Normal-2.png", 2)
    cut.write_bytes(cut.read_bytes()[:400])
    more = ("--max-rejected-percent", "90")
    dataset = prepare("covid_radiography", raw, tmp_path, *more)
    (row,) = listed(tmp_path / "covid_radiography")
    assert (row["id"], row["reason"]) == ("Normal/Normal-1.png", "unreadable file")
    assert len(films(dataset)) == 2
    film(raw / "COVID-19" / "COVID-19 (1).png", 3)
    with pytest.raises(UserError, match="one folder of the class COVID, found COVID "):
        prepare("covid_radiography", raw, tmp_path / "b")
