"""Patients of evaluation sets never train: --hold-out."""

import gzip
import json

import pytest
import raw_folders as raw

from data_pipelines.prepare import main
from data_pipelines.records import open_dataset
from medclip_jax.errors import UserError

FIRST, SECOND = 10000032, 10000033


def prepare(dataset, root, out, *files):
    held = [part for file in files for part in ("--hold-out", str(file))]
    arguments = ["--dataset", dataset, "--raw", str(root), "--out", str(out)]
    assert main([*arguments, "--jobs", "1", *held]) == 0
    table = open_dataset(out / dataset).table.to_pylist()
    return {row["patient_id"]: row["split"] for row in table}


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """Six patients, the last two of validate and test; reports too."""
    root = tmp_path_factory.mktemp("mimic") / "raw"
    raw.mimic(root, patients=6)
    return root


PATH = "p10/p{}/s50000000/0a-1b"
FILES = {
    "MS_CXR_Local_Alignment_v1.1.0.csv": (
        'dicom_id,label_text,path\n0a-1b,"new, left",files/{path}.jpg\n'
    ),
    "MS_CXR_Local_Alignment_v1.1.0.json": (
        '{{"images": [{{"path": "files\\/{escaped}.jpg"}}]}}'
    ),
    "MS_CXR_T_temporal_image_classification_v1.0.0.csv": (
        "dicom_id,previous_dicom_id,edema_progression\n{path},{path},stable\n"
    ),
    "mimic-5x200.csv": ",subject_id,report\n0,{subject},none\n1,,none\n",
    "mimic-5x200-floats.csv": "index,subject_id\n0,{subject}.0\n",
    "mimic-5x200-meta.csv": ",imgpath\n0,./local_data/files/{path}.jpg\n",
    "test.json": '{{"{path}.txt": {{"labeler_1": {{}}}}}}',
}


@pytest.mark.parametrize("name", FILES)
def test_every_evaluation_set_names_its_patients(mimic, tmp_path, name, capsys):
    path = PATH.format(FIRST)
    escaped = path.replace("/", "\\/")
    text = FILES[name].format(path=path, escaped=escaped, subject=FIRST)
    if name.endswith(".json"):
        json.loads(text)
    (tmp_path / name).write_text(text)
    splits = prepare("mimic_cxr", mimic, tmp_path, tmp_path / name)
    assert splits.pop(f"p{FIRST}") == "test"
    assert list(splits.values()) == ["train"] * 3 + ["validate", "test"]
    said = capsys.readouterr().out
    assert f"{name}: 1 patients, 1 of them here; 1 moved to test with 4 films" in said


def test_folders_packed_files_and_strangers(mimic, tmp_path, capsys):
    lists = tmp_path / "lists" / "below"
    lists.mkdir(parents=True)
    (lists / "strangers.csv").write_text("dicom_id\nnone\n")
    with gzip.open(lists / "b.csv.gz", "wt") as file:
        file.write(f"subject_id\n{FIRST}\n19999999\n{FIRST + 5}\n")
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"path": PATH.format(SECOND)}) + "\n")
    splits = prepare("mimic_cxr", mimic, tmp_path, lists.parent, more)
    assert [s for _, s in sorted(splits.items())] == [
        *("test", "test", "train", "train"),
        *("validate", "test"),
    ]
    said = capsys.readouterr().out
    assert "3 patients, 2 of them here; 1 moved to test with 4 films" in said
    # The same files again: nothing to do. Other contents: another dataset.
    prepare("mimic_cxr", mimic, tmp_path, lists.parent, more)
    assert "finished already" in capsys.readouterr().out
    more.write_text(json.dumps({"path": PATH.format(SECOND + 1)}) + "\n")
    with pytest.raises(UserError, match="hold_out was"):
        prepare("mimic_cxr", mimic, tmp_path, lists.parent, more)


def test_what_cannot_be_held_out_is_refused(mimic, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("Path\nCheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg\n")
    with pytest.raises(UserError, match=r"list\.csv: expected patients of mimic_cxr"):
        prepare("mimic_cxr", mimic, tmp_path, path)
    with pytest.raises(UserError, match="expected a file, or a folder"):
        prepare("mimic_cxr", mimic, tmp_path, tmp_path / "nothing")
    with pytest.raises(UserError, match="every patient of the train split"):
        prepare("mimic_cxr", mimic, tmp_path, mimic / "mimic-cxr-2.0.0-metadata.csv.gz")
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(b"subject_id\n" * 99)[:20])
    with pytest.raises(UserError, match=r"cannot read .*half\.csv\.gz"):
        prepare("mimic_cxr", mimic, tmp_path, tmp_path / "half.csv.gz")
    raw.csv_folder(tmp_path / "csv", 3)
    with pytest.raises(UserError, match="expected --dataset mimic_cxr or chexpert"):
        prepare("csv", tmp_path / "csv", tmp_path / "out", path)


def test_lists_of_chexpert_films(tmp_path):
    """ConVIRT's candidates and queries, and MedCLIP's ids, are of train.csv."""
    root = tmp_path / "raw"
    train = raw.chexpert_rows("train", range(5), "CheXpert-v1.0-small/")
    raw.write_csv(root / "train.csv", train)
    raw.write_films(train, lambda path: root / path)
    lists = tmp_path / "image-retrieval"
    raw.write_csv(lists / "candidate.csv", train[2:3])
    query = {"Variable": "Edema", "Path": train[4]["Path"]}
    raw.write_csv(lists / "query.csv", [query])
    (tmp_path / "meta.csv").write_text(",subject_id\n0,patient00003-study1\n")
    splits = prepare("chexpert", root, tmp_path, lists, tmp_path / "meta.csv")
    assert [split for _, split in sorted(splits.items())] == [
        *("train", "test", "test", "test", "train")
    ]
