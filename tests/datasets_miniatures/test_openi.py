"""Open-i: XML reports and Kaggle's tables; views from two sources; MeSH headings."""

import csv

import pytest
from small_sets import classes, film, films, listed, prepare, reports, write

from data_pipelines.annotations import read_tasks
from data_pipelines.datasets.openi import left_over, report_text
from data_pipelines.datasets.openi_mesh import HEADINGS, LABELS, mesh_labels
from data_pipelines.hospital.benchmarks.openi import MESH, XML
from medclip_jax.errors import UserError

LOOSE = ("--max-rejected-percent", "90")
VIEW = {
    "PA": "PA",
    "AP": "AP",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "LATERAL": "LATERAL",
    "": "UNKNOWN",
}
TOLD = {"findings": "The lungs are clear.", "impression": "No acute disease."}


def xml(root, uid, images=(), terms=("normal",), **texts):
    """Writes one XML file, with films for the images."""
    sections = "".join(
        f'<AbstractText Label="{name.upper()}">{text}</AbstractText>'
        for name, text in (texts or TOLD).items()
    )
    found = "".join(f'<parentImage id="{image}"/>' for image in images)
    mesh = "".join(f"<major>{term}</major>" for term in terms)
    text = XML.format(uid=uid, sections=sections, mesh=mesh, images=found)
    path = root / "ecgen-radiology" / f"{uid}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    for number, image in enumerate(images):
        if "/" not in image:
            film(root / "NLMCXR_png" / f"{image}.png", number)
    return path


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("openi")
    rows = write("openi", root / "raw", 40)["reports"]
    return rows, prepare("openi", root / "raw", root), root


def test_the_miniature_comes_back_with_views_texts_and_headings(made):
    rows, dataset, root = made
    records, texts = films(dataset), reports(dataset)
    judged = classes(root / "openi", "openi_mesh")
    assert not listed(root / "openi")
    assert len(records) == sum(len(row["films"]) for row in rows)
    for row in rows:
        written = row["texts"]["findings"] + row["texts"]["impression"]
        assert (row["study"] in texts) == bool(written)
        for one in row["films"]:
            record = records[one["image"]]
            assert record["view"] == VIEW[one["position"]]
            assert (record["study_id"], record["split"]) == (row["study"], "test")
            assert record["patient_id"] == row["study"] and record["sex"] == row["sex"]
            assert record["label_source"] == ("report" if written else "none")
            indexed = row["terms"] != ["No Indexing"]
            assert (one["image"] in judged) == indexed
            if indexed:
                told = judged[one["image"]]
                sick = {n for n, present in row["truth"].items() if present}
                mapped = {*told["positive"], *told["uncertain"]}
                assert mapped - {"No Finding"} <= sick
                assert ("No Finding" in mapped) == (row["terms"] == ["normal"])
                for name in set(LABELS) & sick - {"No Finding", "Pleural Other"}:
                    assert name in mapped
    assert any(not row["films"] for row in rows)
    assert {record["view"] for record in records.values()} == set(VIEW.values())
    assert read_tasks(root / "openi")["openi_mesh"].unit == "study"


def test_what_was_de_identified_is_one_mark_and_no_word_else_is_lost(made):
    rows, dataset, _ = made
    hidden = 0
    for study, record in reports(dataset).items():
        (row,) = (row for row in rows if row["study"] == study)
        told = dict(zip(record["section_names"], record["section_texts"]))
        for name in ("comparison", "indication", "findings", "impression"):
            wanted = row["texts"][name].replace("XXXX", "___")
            assert told.get(name, "").split() == wanted.split()
            hidden += wanted.count("___")
        assert not any("XXXX" in sentence for sentence in record["sentences"])
        assert set(record["sentence_sections"]) <= {"findings", "impression"}
    assert hidden > 20


def test_headings_are_read_with_their_qualifiers():
    assert mesh_labels(["normal"]) == (["No Finding"], [])
    assert mesh_labels(["Cardiomegaly/borderline"]) == ([], ["Cardiomegaly"])
    both = ["cardiomegaly/mild ", "Cardiomegaly/borderline"]
    assert mesh_labels(both) == mesh_labels(both[::-1]) == (["Cardiomegaly"], [])
    assert mesh_labels(["Opacity/lung/base/left"]) == (["Lung Opacity"], [])
    assert mesh_labels(["Opacity/soft tissue", "Nodule/breast"]) == ([], [])
    assert mesh_labels(["Calcified Granuloma/lung/right"]) == ([], [])
    assert mesh_labels(["Fractures, Bone/ribs"]) == (["Fracture"], [])
    quality = "Technical Quality of Image Unsatisfactory "
    for none in (["No Indexing"], [quality], [""], []):
        assert mesh_labels(none) is None
    assert mesh_labels([quality, "Pneumonia"]) == (["Pneumonia"], [])
    assert all(term.split("/")[0].casefold() in (*HEADINGS, "mediastinum", "calcinosis")
               for term in MESH.values())  # fmt: skip


def test_views_that_are_left_over():
    assert left_over({"a": "", "b": "PA"}, ["UNKNOWN", "LATERAL"])["a"] == "LATERAL"
    assert (
        left_over({"a": "", "b": "LATERAL"}, ["UNKNOWN", "LATERAL"])["a"] == "UNKNOWN"
    )
    assert left_over({"a": "", "b": ""}, ["LATERAL"] * 2) == dict.fromkeys(
        "ab", "LATERAL"
    )
    for known, sides in (
        ({"a": "", "b": ""}, ["UNKNOWN", "LATERAL"]),  # which is which?
        ({"a": "", "b": ""}, ["LATERAL"]),  # another number of films
        ({"a": "", "b": "PA"}, ["LATERAL", "LATERAL"]),  # they disagree
        ({"a": ""}, []),
    ):
        assert left_over(known, sides) == known


def test_the_projections_tell_views_that_the_headers_do_not(tmp_path):
    raw = tmp_path / "raw"
    xml(raw, 1, ["CXR1_1_IM-0001-3001"])
    xml(raw, 2, ["CXR2_IM-0652-1001", "CXR2_IM-0652-2001"])
    names = [
        (1, "1_IM-0001-4001", "Lateral"),
        (2, "2_a", "Frontal"),
        (2, "2_b", "Lateral"),
    ]
    rows = [
        {"uid": uid, "filename": f"{name}.dcm.png", "projection": side}
        for uid, name, side in names
    ]
    write_csv(raw / "indiana_projections.csv", rows)
    records = films(prepare("openi", raw, tmp_path))
    assert {i: record["view"] for i, record in records.items()} == {
        "CXR1_1_IM-0001-3001": "LATERAL",
        "CXR2_IM-0652-1001": "UNKNOWN",
        "CXR2_IM-0652-2001": "UNKNOWN",
    }


def test_dicom_films_are_taken_where_there_is_no_png(made, tmp_path):
    _, dataset, root = made
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("ecgen-radiology", "NLMCXR_dcm"):
        (raw / name).symlink_to(root / "raw" / name)
    again = films(prepare("openi", raw, tmp_path))
    assert set(again) == set(films(dataset))
    assert {record["bit_depth"] for record in again.values()} == {12}
    assert {record["inverted"] for record in again.values()} == {True, False}


def test_kaggles_tables_give_the_same_reports(made, tmp_path):
    rows, dataset, root = made
    raw = tmp_path / "raw"
    tables = {"indiana_reports": [], "indiana_projections": []}
    for row in rows:
        uid = row["study"].removeprefix("CXR")
        tables["indiana_reports"].append(
            {
                "uid": uid,
                "MeSH": ";".join(row["terms"]),
                "Problems": "",
                "image": "Xray Chest PA and Lateral",
                **row["texts"],
            }
        )
        for number, one in enumerate(row["films"]):
            name = f"{uid}_IM-0001-{number}001.dcm.png"
            film(raw / "images" / "images_normalized" / name, number)
            side = "Lateral" if one["view"] == "LATERAL" else "Frontal"
            line = {"uid": uid, "filename": name, "projection": side}
            tables["indiana_projections"].append(line)
    for name, lines in tables.items():
        write_csv(raw / f"{name}.csv", lines)
    again = prepare("openi", raw, tmp_path)
    # A report's bytes do not depend on the layout, its films' names do.
    assert {i: r["sentences"] for i, r in reports(again).items()} == {
        i: r["sentences"] for i, r in reports(dataset).items()
    }
    records, judged = films(again), classes(tmp_path / "openi", "openi_mesh")
    assert {r["view"] for r in records.values()} == {"UNKNOWN", "LATERAL"}
    of_study = {
        dataset_films[i]["study_id"]: row["positive"]
        for dataset_films in (films(dataset),)
        for i, row in classes(root / "openi", "openi_mesh").items()
    }
    assert {
        records[i]["study_id"]: r["positive"] for i, r in judged.items()
    } == of_study


def test_texts_are_read_with_entities_and_odd_spaces():
    text = report_text(
        {
            "comparison": " XXXX,\n  XXXX ",
            "findings": "Nodule &gt;  2 cm.\n\nIMPRESSION: of a XXXX-ray",
            "impression": "",
        }
    )
    assert text == (
        "COMPARISON: ___, ___\n\nFINDINGS: Nodule > 2 cm. IMPRESSION: of a ___-ray\n"
    )
    assert report_text({"indication": "Cough", "findings": "XXXX"}) == ""
    assert report_text({"indication": "Cough", "findings": " 1. "}) == ""


def test_what_cannot_be_read_is_listed_and_others_kept(tmp_path):
    raw = tmp_path / "raw"
    xml(raw, 1, ["CXR1_a"], findings="5 &lt; 7 &amp;gt; 3 cm nodule.")
    xml(raw, 2, ["CXR2_a", "CXR2_b"])
    (raw / "NLMCXR_png" / "CXR2_b.png").unlink()
    xml(raw, 3, [], indication="Cough.")
    xml(raw, 4, ["CXR4_a"], indication="Cough.")
    xml(raw, 5).write_text("<eCitation><uId id='CXR5'/><broken></eCitation>")
    xml(raw, "oops", ["CXR6_a"])
    xml(raw, 7, ["../../CXR1_a"])
    cut = raw / "NLMCXR_png" / "CXR8_a.png"
    xml(raw, 8, ["CXR8_a"])
    cut.write_bytes(cut.read_bytes()[:400])
    latin = xml(raw, 9, ["CXR9_a"], findings="Caf")
    latin.write_bytes(latin.read_bytes().replace(b"Caf", b"Caf\xe9"))
    (raw / "ecgen-radiology" / "._1.xml").write_bytes(b"\0\5\x16\7")
    dataset = prepare("openi", raw, tmp_path, *LOOSE)
    assert set(films(dataset)) == {"CXR1_a", "CXR2_a", "CXR4_a"}
    texts = reports(dataset)
    assert set(texts) == {"CXR1", "CXR2", "CXR7", "CXR8"}
    assert texts["CXR1"]["sentences"] == ["5 < 7 > 3 cm nodule."]
    found = {(row["reason"], row["id"]) for row in listed(tmp_path / "openi")}
    assert found == {
        ("missing file", "CXR2_b"),
        ("neither image nor text", "CXR3"),
        ("unreadable file", "5"),
        ("bad value", "oops"),
        ("missing file", "../../CXR1_a"),
        ("unreadable file", "CXR8_a"),
        ("unreadable file", "9"),
    }
    (warned,) = (
        row
        for row in listed(tmp_path / "openi", "warnings")
        if row["reason"] == "report without text"
    )
    assert warned["id"] == "CXR4" and warned["path"].endswith("4.xml")
    assert "nodule" not in (tmp_path / "openi" / "rejected.csv").read_text()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"ecgen-radiology/\*\.xml or indiana_reports"):
        prepare("openi", tmp_path, tmp_path / "a")
    raw = tmp_path / "raw"
    raw.mkdir()
    report = {"uid": "1", "MeSH": "normal", "indication": "", "comparison": "", **TOLD}
    write_csv(raw / "indiana_reports.csv", [report])
    with pytest.raises(UserError, match=r"indiana_projections\.csv"):
        prepare("openi", raw, tmp_path / "b")
    line = {"uid": "1", "filename": "1_a.dcm.png", "projection": "Oblique"}
    write_csv(
        raw / "indiana_projections.csv", [line, {**line, "projection": "Frontal"}]
    )
    prepare("openi", raw, tmp_path / "c", *LOOSE)
    rows = listed(tmp_path / "c" / "openi")
    assert {row["reason"] for row in rows} == {"unknown view", "missing file"}
    assert all("indiana_projections.csv, line" in row["detail"] for row in rows)
    del report["MeSH"]
    write_csv(raw / "indiana_reports.csv", [report])
    with pytest.raises(UserError, match=r"indiana_reports\.csv.*missing MeSH"):
        prepare("openi", raw, tmp_path / "d")
