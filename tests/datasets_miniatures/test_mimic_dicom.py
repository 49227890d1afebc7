"""MIMIC-CXR's DICOM release: no table of views and dates, they are in the headers."""

import shutil

import numpy as np
import pytest
import simplejpeg
from mimic_annotations import PATIENTS, annotate

from data_pipelines.findings import FINDINGS
from data_pipelines.prepare import main
from data_pipelines.records import open_dataset
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError


def prepare(raw, out, *more):
    arguments = ["--dataset", "mimic_cxr", "--raw", str(raw), "--out", str(out)]
    assert main([*arguments, "--jobs", "1", *more]) == 0
    return open_dataset(out / "mimic_cxr")


def films(dataset):
    found = (dataset.images[row] for row in range(len(dataset.images)))
    return {record["image_id"]: record for record in found}


@pytest.fixture(scope="module")
def raw(hospital, tmp_path_factory):
    pytest.importorskip("pydicom")
    folder = tmp_path_factory.mktemp("mimic_dicom") / "raw"
    return annotate("mimic_dicom", folder, hospital)


@pytest.fixture(scope="module")
def jpgs(hospital, tmp_path_factory):
    return prepare(hospital / "mimic-cxr", tmp_path_factory.mktemp("jpg"))


def test_headers_tell_what_the_table_of_the_jpgs_tells(raw, jpgs, tmp_path, capsys):
    dataset = prepare(raw, tmp_path)
    said = capsys.readouterr().out
    assert "from the DICOM headers" in said and "no mimic-cxr-2.0.0-chexpert" in said
    found, wanted = films(dataset), films(jpgs)
    assert len({r["patient_id"] for r in found.values()}) == PATIENTS
    assert {r["view"] for r in found.values()} == {"AP", "PA", "LATERAL"}
    assert {r["split"] for r in found.values()} == {"test"}
    names = ["patient_id", "study_id", "view", "time", "original_height"]
    names += ["original_width", "height", "width"]
    for image, record in found.items():
        other = wanted[image]
        assert [record[n] for n in names] == [other[n] for n in names]
        assert (record["bit_depth"], other["bit_depth"]) == (12, 8)
        mine, theirs = (
            simplejpeg.decode_jpeg(r["film"], "GRAY")[..., 0].astype(float)
            for r in (record, other)
        )
        assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.99
    assert {r["inverted"] for r in found.values()} == {True, False}
    assert len(dataset.reports) == len({r["study_id"] for r in found.values()})
    # No label table: labels are of the reports.
    assert {r["label_source"] for r in found.values()} == {"report"}


def test_tables_of_the_jpgs_beside_it_are_used(raw, hospital, jpgs, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(raw, both)
    for name in ("metadata", "split", "chexpert"):
        file = f"mimic-cxr-2.0.0-{name}.csv.gz"
        shutil.copy(hospital / "mimic-cxr" / file, both)
    # The table has more films than the folder: those are missing files.
    dataset = prepare(both, tmp_path, "--max-rejected-percent", "95")
    wanted = films(jpgs)
    found = films(dataset)
    assert found and {r["label_source"] for r in found.values()} == {"columns"}
    for image, record in found.items():
        assert record["split"] == wanted[image]["split"] == "test"
        np.testing.assert_array_equal(record["labels"], wanted[image]["labels"])
        assert record["bit_depth"] == 12


def test_films_without_a_header_and_without_a_file_are_rejected(raw, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(raw, some)
    records = read_rows(some / "cxr-record-list.csv.gz")
    (some / records[0]["path"]).write_bytes(b"no DICOM at all" * 99)
    (some / records[1]["path"]).unlink()
    dataset = prepare(some, tmp_path, "--max-rejected-percent", "50")
    assert len(dataset.images) == len(records) - 2
    listed = read_rows(tmp_path / "mimic_cxr" / "rejected.csv")
    assert {row["id"]: row["reason"] for row in listed} == {
        records[0]["dicom_id"]: "unreadable file",
        records[1]["dicom_id"]: "missing file",
    }


def test_packed_reports_are_named_and_jpgs_need_the_table(
    raw, hospital, tmp_path, capsys
):
    some = tmp_path / "some"
    shutil.copytree(raw, some, ignore=shutil.ignore_patterns("s*.txt"))
    (some / "mimic-cxr-reports.zip").write_bytes(b"PK")
    assert not len(prepare(some, tmp_path).reports)
    assert "films only; unpack mimic-cxr-reports.zip" in capsys.readouterr().out
    jpgs = tmp_path / "jpgs"
    jpgs.mkdir()
    (jpgs / "files").symlink_to(hospital / "mimic-cxr" / "files")
    shutil.copy(raw / "cxr-record-list.csv.gz", jpgs)
    with pytest.raises(UserError, match=r"metadata\.csv.*tell neither view nor date"):
        prepare(jpgs, tmp_path / "out")


def test_the_54_exceptions_are_labelled_by_their_own_section(raw, tmp_path):
    """s50913680 is labelled by its recommendations alone, as the official parser has it."""
    some = tmp_path / "some"
    shutil.copytree(raw, some)
    (some / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    first, second = read_rows(some / "cxr-study-list.csv.gz")[:2]
    report = "\n IMPRESSION: Pneumothorax.\n\n RECOMMENDATION(S): Pleural effusion.\n"
    old, new = f"s{first['study_id']}", "s50913680"
    for table in ("record", "study"):
        path = some / f"cxr-{table}-list.csv.gz"
        rows = read_rows(path)
        lines = [",".join(rows[0])]
        lines += [",".join(row.values()).replace(old[1:], new[1:]) for row in rows]
        path.unlink()
        path.with_suffix("").write_text("\n".join(lines) + "\n")
    home = (some / first["path"]).parent
    (home / old).rename(home / new)
    (home / f"{old}.txt").unlink()
    (home / f"{new}.txt").write_text(report)
    (some / second["path"]).write_text(report)
    dataset = prepare(some, tmp_path)
    stored = [dataset.reports[row] for row in range(len(dataset.reports))]
    labels = {r["study_id"]: dict(zip(FINDINGS, r["labels"].tolist())) for r in stored}
    told = [labels[s] for s in (new, f"s{second['study_id']}")]
    assert [t["Pleural Effusion"] for t in told] == [1, -2]
    assert [t["Pneumothorax"] for t in told] == [-2, 1]
