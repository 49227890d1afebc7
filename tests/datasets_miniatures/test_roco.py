"""ROCO: captions in lists with tabs (first release) and in CSV files (second)."""

import pytest
from small_sets import film, films, listed, prepare, reports, write

from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")


def words(text):
    return " ".join(text.split())


def captions(dataset):
    """Study to its text, with the section that it is in."""
    return {
        study: (record["section_names"][-1], words(record["section_texts"][-1]))
        for study, record in reports(dataset).items()
    }


def first(root, lines, licences=(), split="train"):
    """Writes the lists of one split, and empty ones of the others."""
    for name in ("train", "validation", "test"):
        home = root / "data" / name / "radiology"
        home.mkdir(parents=True, exist_ok=True)
        if name == split or not (home / "captions.txt").exists():
            text = "".join(f"{line}\n" for line in lines) if name == split else ""
            (home / "captions.txt").write_text(text, "utf-8")
            header = "ROCO_ID,PMC_ID,CC\nROCO_99999,PMC9_z.jpg,CC BY\n"
            more = "".join(f"{line}\n" for line in licences) if name == split else ""
            (home / "licences.txt").write_text(header + more)
    return root / "data" / split / "radiology" / "images"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("roco")
    rows = write("roco", root / "raw", 60)
    return rows, prepare("roco", root / "raw", root), root


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    root = tmp_path_factory.mktemp("roco_v2")
    rows = write("roco_v2", root / "raw", 60)
    return rows, prepare("roco", root / "raw", root), root


def test_the_first_release_comes_back_with_captions_and_licences(made):
    rows, dataset, root = made
    records, texts = films(dataset), captions(dataset)
    wanted = {
        row["figure"]: (split.split("/")[0], row)
        for split, found in rows.items()
        if split.endswith("/radiology")
        for row in found
    }
    assert set(records) == set(texts) == set(wanted) and len(wanted) > 60
    for image_id, (split, row) in wanted.items():
        record = records[image_id]
        assert texts[image_id][1] == words(row["text"])
        assert record["split"] == {"validation": "validate"}.get(split, split)
        assert record["license"] == row["licence"].rsplit(",", 1)[1]
        assert record["patient_id"].split("/")[0] == row["article"]
        assert record["view"] == "OTHER" and set(record["labels"]) == {-2}
    assert {record["split"] for record in records.values()} == {
        "train",
        "validate",
        "test",
    }
    assert not listed(root / "roco")
    headed = [text for name, text in texts.values() if name == "findings"]
    assert headed and all(text.startswith("PA CHEST RADIOGRAPH:") for text in headed)


def test_an_article_of_two_splits_is_two_patients_and_a_note(made, tmp_path, capsys):
    rows, dataset, root = made
    articles: dict[str, set] = {}
    for split, found in rows.items():
        if split.endswith("/radiology"):
            for row in found:
                articles.setdefault(row["article"], set()).add(split)
    shared = {article for article, splits in articles.items() if len(splits) > 1}
    assert shared
    for record in films(dataset).values():
        article, _, split = record["patient_id"].partition("/")
        assert split == (record["split"] if article in shared else "")
    prepare("roco", root / "raw", tmp_path)
    told = f"{len(shared)} of {len(articles)} articles are in more than one split"
    assert told in capsys.readouterr().out


def test_other_figures_are_asked_for(made, tmp_path):
    rows, dataset, root = made
    everything = prepare("roco", root / "raw" / "data", tmp_path, "--roco-all")
    more = set(films(everything)) - set(films(dataset))
    found = [r["figure"] for s, rs in rows.items() if "/non" in s for r in rs]
    assert more == set(found) and found


def test_the_second_release_comes_back(second):
    rows, dataset, root = second
    records, texts = films(dataset), captions(dataset)
    wanted = {r["ID"]: (split, r) for split, found in rows.items() for r in found}
    assert set(records) == set(texts) == set(wanted)
    broken = 0
    for image_id, (split, row) in wanted.items():
        record = records[image_id]
        assert texts[image_id][1] == words(row["Caption"])
        assert record["split"] == {"valid": "validate"}.get(split, split)
        assert record["license"] == row["by"]
        assert record["patient_id"].split("/")[0] == row["PMCID"]
        broken += "\n" in row["Caption"]
    assert broken and any('"' in row["Caption"] for _, row in wanted.values())
    assert not listed(root / "roco")


def test_lines_with_quotes_tabs_and_images_of_other_names(tmp_path):
    lines = [
        'ROCO_00001\t "Unbalanced quotes, and commas, of a film.',
        "ROCO_00002\t MRI: a mass.\tA second part.",
        "ROCO_00003\t 1.",
        "ROCO_00004\t A line\u2028separator and a next line\x85mark.",
    ]
    licences = ["ROCO_00001,PMC7_x-g001.jpg,CC BY-NC", "ROCO_00002,PMC7_x-g002.jpg,CC0"]
    images = first(tmp_path / "raw", lines, licences)
    for number, name in enumerate(("PMC7_x-g001", "ROCO_00002", "ROCO_00003")):
        film(images / f"{name}.jpg", number)
    film(images / "ROCO_00004.jpg", 4)
    dataset = prepare("roco", tmp_path / "raw", tmp_path)
    records, texts = films(dataset), captions(dataset)
    assert set(records) == {f"ROCO_0000{n}" for n in range(1, 5)}
    assert texts == {
        "ROCO_00001": ("full report", '"Unbalanced quotes, and commas, of a film.'),
        "ROCO_00002": ("findings", "MRI: a mass. A second part."),
        "ROCO_00004": ("full report", "A line separator and a next line mark."),
    }
    assert {records[i]["license"] for i in records} == {"CC BY-NC", "CC0", ""}
    assert {records[f"ROCO_0000{n}"]["patient_id"] for n in (1, 2)} == {"PMC7"}
    (warned,) = (
        row
        for row in listed(tmp_path / "roco", "warnings")
        if row["reason"] == "figure without caption"
    )
    assert warned["id"] == "ROCO_00003" and "line 3" in warned["detail"]


def test_figures_that_are_gone_are_rejected_and_their_captions_kept(tmp_path):
    lines = [f"ROCO_0000{n}\t A film." for n in range(1, 6)]
    lines += ["ROCO_6\\..\\x\t no id", "nothing"]
    images = first(tmp_path / "raw", lines)
    for n in (1, 2, 3):
        film(images / f"ROCO_0000{n}.jpg", n)
    cut = images / "ROCO_00003.jpg"
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(UserError, match="--max-rejected-percent"):
        prepare("roco", tmp_path / "raw", tmp_path / "a")
    dataset = prepare("roco", tmp_path / "raw", tmp_path / "b", *LOOSE)
    assert set(films(dataset)) == {"ROCO_00001", "ROCO_00002"}
    assert set(reports(dataset)) == {f"ROCO_0000{n}" for n in range(1, 6)}
    found = {(r["reason"], r["id"]) for r in listed(tmp_path / "b" / "roco")}
    assert found == {
        ("missing file", "ROCO_00004"),
        ("missing file", "ROCO_00005"),
        ("unreadable file", "ROCO_00003"),
        ("bad value", "ROCO_6\\..\\x"),
        ("bad value", "nothing"),
    }
    text = (tmp_path / "b" / "roco" / "rejected.csv").read_text()
    assert all(f"captions.txt, line {n}" in text for n in (4, 5, 6, 7))


def test_without_any_image_there_are_texts(tmp_path, capsys):
    first(tmp_path / "raw", ["ROCO_00001\t A film.", "ROCO_00002\t Another."])
    dataset = prepare("roco", tmp_path / "raw", tmp_path)
    assert not films(dataset) and len(reports(dataset)) == 2
    told = capsys.readouterr().out
    assert "no image in data/train/radiology/images: captions only" in told


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(UserError, match=r"captions\.csv \(ROCOv2\).*found neither"):
        prepare("roco", tmp_path, tmp_path / "a")
    first(tmp_path, ["ROCO_00001\t A film."])
    path = tmp_path / "data" / "train" / "radiology" / "licences.txt"
    path.write_text("ROCO_ID,CC\nROCO_00001,CC BY\n")
    with pytest.raises(UserError, match=r"licences\.txt.*missing PMC_ID"):
        prepare("roco", tmp_path, tmp_path / "b")
    path.with_name("captions.txt").write_bytes(b"ROCO_00001\t caf\xe9\n")
    path.unlink()
    with pytest.raises(UserError, match=r"captions\.txt .*UTF-8"):
        prepare("roco", tmp_path, tmp_path / "c")
    (tmp_path / "train_captions.csv").write_text("ID,caption\na,b\n")
    with pytest.raises(UserError, match="found both"):
        prepare("roco", tmp_path, tmp_path / "d")
    (tmp_path / "raw").mkdir()
    (tmp_path / "train_captions.csv").rename(tmp_path / "raw" / "train_captions.csv")
    with pytest.raises(UserError, match=r"train_captions\.csv.*missing Caption"):
        prepare("roco", tmp_path / "raw", tmp_path / "e")
