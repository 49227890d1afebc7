"""What evaluation sets share with training is found, and only that."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import annotations
from data_pipelines.hospital import benchmarks
from data_pipelines.hospital.grammar import normalize
from data_pipelines.hospital.writer import Settings
from data_pipelines.prepare import main
from data_pipelines.records import open_dataset
from medclip_jax.evaluation.leaks import (
    Judged,
    Trained,
    find_leaks,
    of_evaluation,
    of_training,
)

RNG = np.random.default_rng(0)
HASHES = [RNG.bytes(32) for _ in range(4)]
NEARLY = bytes([HASHES[0][0] ^ 0b101, *HASHES[0][1:]])  # two bits differ


def found(leaks):
    return {(leak.kind, leak.evaluation, leak.training): leak for leak in leaks}


def test_patients_count_within_one_population_only():
    mimic = Trained("mimic", "mimic_cxr", {"p1", "p2"})
    other = Trained("chexpert", "chexpert", {"p1"})
    same = Judged("held", "mimic_cxr", ["p2", "p3", "p2"])
    (leak,) = find_leaks([mimic, other], [same])
    assert dataclasses.astuple(leak) == ("patient", "held", "mimic", 1, 2, ("p2",))


def test_a_film_is_found_under_another_name_in_any_set():
    trained = Trained("nih", "nih", {"a"}, {"one": HASHES[0], "two": HASHES[1]})
    judged = Judged("rsna", "rsna", {"b"}, {"x": HASHES[2], "y": NEARLY})
    (leak,) = find_leaks([trained], [judged])
    assert dataclasses.astuple(leak) == ("film", "rsna", "nih", 1, 2, ("y = one",))
    far = dataclasses.replace(judged, hashes={"x": HASHES[2], "z": HASHES[3]})
    assert find_leaks([trained], [far]) == []


def test_annotations_of_a_patient_in_training():
    rows = {"phrases": [("1", "p1"), ("2", "p9"), ("3", "p1")]}
    judged = Judged("ms_cxr", "mimic_cxr", {"p1", "p9"}, annotated=rows)
    leaks = found(find_leaks([Trained("m", "mimic_cxr", {"p1"})], [judged]))
    leak = leaks["phrases", "ms_cxr", "m"]
    assert (leak.count, leak.total, leak.examples) == (2, 3, ("1", "3"))
    assert leaks["patient", "ms_cxr", "m"].examples == ("p1",)
    assert find_leaks([Trained("c", "chexpert", {"p1"})], [judged]) == []


def test_sentences_equal_but_for_case_and_marks_and_no_text_is_told():
    said = ["Small LEFT effusion.", "The heart is normal.", " . "]
    trained = Trained("m", "mimic_cxr", (), sentences=iter(said))
    texts = [("7", "small left effusion ."), ("7", "right effusion"), ("8", "heart")]
    texts += [("9", "..."), ("6", "the heart is normal")]
    sets = [Judged(name, "radnli", (), texts=texts) for name in ("dev", "test")]
    leaks = find_leaks([trained], sets)  # the sentences are gone through once
    assert [(leak.kind, leak.evaluation) for leak in leaks] == [
        ("sentence", "dev"),
        ("sentence", "test"),
    ]
    assert all(leak.examples == ("6", "7") and leak.total == 4 for leak in leaks)
    assert "effusion" not in repr((trained, sets, leaks))


# --- On prepared data ---------------------------------------------------------------


def prepare(dataset, raw, out, *more):
    arguments = ["--dataset", dataset, "--raw", str(raw), "--out", str(out)]
    assert main([*arguments, "--jobs", "1", *more]) == 0
    return open_dataset(out / dataset)


@pytest.fixture(scope="module")
def annotated(tiny_data, tmp_path_factory):
    """MS-CXR and MS-CXR-T of the small hospital, raw."""
    raw = tiny_data.parent / "raw"
    stored = json.loads((raw / "simulation.json").read_text())["settings"]
    settings = Settings(**stored | {"benchmarks": 8})
    folder = tmp_path_factory.mktemp("annotated")
    for name in ("ms_cxr", "ms_cxr_t"):
        (folder / name).mkdir()
        benchmarks.module(name).write_tables(folder / name, settings, raw)
    return folder


def test_a_planted_copy_is_found_among_prepared_films(tiny_data, tmp_path):
    mimic = open_dataset(tiny_data / "mimic_cxr")
    films = [mimic.images[row] for row in range(len(mimic.images))]
    of_split = {
        split: [f for f in films if f["split"] == split] for split in ("train", "test")
    }
    planted = {"copy": of_split["train"][5], "other": of_split["test"][0]}
    (tmp_path / "raw").mkdir()
    lines = ["image,patient_id,split"]
    for name, record in planted.items():
        image = Image.open(io.BytesIO(record["film"])).resize((299, 299))
        image.save(tmp_path / "raw" / f"{name}.jpg", quality=75)
        lines.append(f"{name}.jpg,{record['patient_id']},test")
    (tmp_path / "raw" / "metadata.csv").write_text("\n".join(lines) + "\n")
    copies = prepare("csv", tmp_path / "raw", tmp_path, "--max-rejected-percent", "50")
    (leak,) = find_leaks([of_training(mimic)], [of_evaluation(copies)])
    original = planted["copy"]["image_id"]
    wanted = ("film", "csv", "mimic_cxr", 1, 2, (f"copy.jpg = {original}",))
    assert dataclasses.astuple(leak) == wanted
    # Between its own splits the hospital has no copy and no patient twice.
    assert find_leaks([of_training(mimic)], [of_evaluation(mimic)]) == []


def test_phrases_of_training_patients_are_found_and_hold_out_mends_it(
    tiny_data, annotated, tmp_path
):
    mimic = open_dataset(tiny_data / "mimic_cxr")
    sets = [
        prepare(name, annotated / name, tmp_path) for name in ("ms_cxr", "ms_cxr_t")
    ]
    table = mimic.table.to_pylist()
    train = {row["patient_id"] for row in table if row["split"] == "train"}
    leaks = found(find_leaks([of_training(mimic)], [of_evaluation(s) for s in sets]))
    assert {kind for kind, *_ in leaks} >= {"patient", "phrases", "progression"}
    for dataset, name in zip(sets, ("phrases", "progression")):
        rows = annotations.read(dataset.path, name).to_pylist()
        leak = leaks[name, dataset.name, "mimic_cxr"]
        assert leak.count == sum(row["patient_id"] in train for row in rows)
        assert 0 < leak.count <= leak.total == len(rows)
    # Of the phrases on films of the test split none is of a training patient.
    judged = {i for row in table if row["split"] == "test" for i in row["image_ids"]}
    leaks = find_leaks(
        [of_training(mimic)], [of_evaluation(s, films=judged) for s in sets]
    )
    assert {leak.kind for leak in leaks} <= {"sentence"}
    assert of_evaluation(sets[0], films=judged).annotated["phrases"]
    held = [part for s in sets for part in ("--hold-out", str(annotated / s.name))]
    raw = tiny_data.parent / "raw" / "mimic-cxr"
    again = prepare("mimic_cxr", raw, tmp_path, *held)
    leaks = find_leaks([of_training(again)], [of_evaluation(s) for s in sets])
    assert {leak.kind for leak in leaks} <= {"sentence"}


def test_sentence_pairs_that_reports_of_training_hold(tiny_data, tmp_path):
    mimic = open_dataset(tiny_data / "mimic_cxr")
    spoken = {"train": [], "validate": [], "test": []}
    for row in range(len(mimic.reports)):
        report = mimic.reports[row]
        spoken[report["split"]] += report["sentences"]
    known = {normalize(text) for text in spoken["train"]}
    strange = next(t for t in spoken["test"] if normalize(t) not in known)
    planted = spoken["train"][40].upper().replace(".", " .")
    keys = ("pair_id", "sentence1", "sentence2", "gold_label")
    pairs = [
        dict(zip(keys, ("1", strange, planted, "neutral"))),
        dict(zip(keys, ("2", strange, "No such sentence", "neutral"))),
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "radnli_test_v1.jsonl").write_text(lines)
    dev = lines.replace('"pair_id": "', '"pair_id": "dev')  # not judged
    (tmp_path / "radnli_dev_v1.jsonl").write_text(dev)
    radnli = prepare("radnli", tmp_path, tmp_path / "out")
    (leak,) = find_leaks([of_training(mimic)], [of_evaluation(radnli)])
    wanted = ("sentence", "radnli", "mimic_cxr", 1, 2, ("1",))
    assert dataclasses.astuple(leak) == wanted
