"""Side tables, masks as strings, and hashes that find copies of a film."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines import annotations
from data_pipelines.annotations import SAME, Task, find_copies
from data_pipelines.hospital.course import draw_patient
from data_pipelines.hospital.render import render
from data_pipelines.images.hashing import film_hash
from medclip_jax.errors import UserError
from tests.data_pipelines.raw_folders import jpeg

TASKS = {
    "covidx": Task("multiclass", ("normal", "pneumonia", "COVID-19")),
    "nih14": Task("multilabel", ("Hernia", "Mass")),
}
CLASSES = [
    {"task": "covidx", "image_id": "b", "positive": ["normal"]},
    {"task": "covidx", "image_id": "a", "positive": ["COVID-19"]},
    {"task": "nih14", "image_id": "a", "positive": [], "uncertain": ["Mass"]},
]
PAIR = {
    "pair_id": "1",
    "sentence1": "no effusion",
    "sentence2": "effusion",
    "label": "contradiction",
    "subset": "",
    "split": "test",
}


def test_tables_come_back_as_written(tmp_path):
    made = annotations.write(
        tmp_path, {"classes": CLASSES, "sentence_pairs": [PAIR]}, TASKS
    )
    rows = annotations.read(tmp_path, "classes").to_pylist()
    assert {(r["task"], r["image_id"]) for r in rows} == {
        (r["task"], r["image_id"]) for r in CLASSES
    }
    uncertain = next(r for r in rows if r["task"] == "nih14")
    assert uncertain["uncertain"] == ["Mass"] and uncertain["not_judged"] == []
    assert annotations.read(tmp_path, "sentence_pairs").to_pylist() == [PAIR]
    assert annotations.read(tmp_path, "phrases").num_rows == 0
    assert annotations.read_tasks(tmp_path) == TASKS
    again = annotations.write(
        tmp_path / "again",
        {"classes": CLASSES[::-1], "sentence_pairs": [PAIR]},
        TASKS,
    )
    assert again == made
    other = [{**CLASSES[0], "positive": ["pneumonia"]}, *CLASSES[1:]]
    assert (
        annotations.write(
            tmp_path / "other", {"classes": other, "sentence_pairs": [PAIR]}, TASKS
        )
        != made
    )


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    assert annotations.write(tmp_path, {"classes": []}, {}) == ""
    assert not list(tmp_path.iterdir())
    assert annotations.read_tasks(tmp_path) == {}


@pytest.mark.parametrize("positive", [["flu"], [], ["normal", "pneumonia"]])
def test_a_label_that_the_task_does_not_have_is_refused(tmp_path, positive):
    row = {"task": "covidx", "image_id": "a", "positive": positive}
    with pytest.raises(ValueError, match="covidx"):
        annotations.write(tmp_path, {"classes": [row]}, TASKS)


def test_a_damaged_table_names_its_file(tmp_path):
    annotations.write(tmp_path, {"classes": CLASSES}, TASKS)
    path = tmp_path / "annotations" / "classes.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="classes.parquet is damaged"):
        annotations.read(tmp_path, "classes")


def test_a_mask_as_a_string():
    mask_HxW = np.zeros((3, 2), bool)
    mask_HxW[1:, 0] = mask_HxW[0, 1] = True  # down the columns: 0 1 1 1 0 0
    assert annotations.encode_mask(mask_HxW) == "3x2:1 3 2"
    for mask in (mask_HxW, ~mask_HxW, np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        np.testing.assert_array_equal(
            annotations.decode_mask(annotations.encode_mask(mask)), mask
        )


def test_the_union_of_boxes_stays_inside_the_film():
    mask_HxW = annotations.box_mask([(1, 1, 2, 1), (-3, 2, 5, 9)], 4, 4)
    wanted = np.zeros((4, 4), bool)
    wanted[1, 1:3] = True
    wanted[2:, :2] = True
    np.testing.assert_array_equal(mask_HxW, wanted)
    above_HxW = annotations.box_mask([(3, -2, 1, 3)], 4, 4)
    assert np.argwhere(above_HxW).tolist() == [[0, 3]]


def test_a_copy_is_found_through_scaling_compression_and_a_window():
    patients = [draw_patient(3, number) for number in range(16)]
    films = [
        render(p.body, p.studies[0].findings, view, 128, seed=number).pixels_HxW
        for number, p in enumerate(patients)
        for view in ("PA", "LATERAL")
    ]
    copies = []
    for pixels in films:
        low, high = np.percentile(pixels, (5, 95))
        small = np.asarray(Image.fromarray(pixels).resize((99, 99)), float)
        copies.append(np.clip((small - low) / (high - low), 0, 1) * 255)
    hashes = [film_hash(jpeg(pixels)) for pixels in films]
    again = [film_hash(jpeg(c.astype(np.uint8), quality=60)) for c in copies]
    assert find_copies(again, hashes) == [(i, i) for i in range(len(films))]
    mirrored = film_hash(jpeg(np.ascontiguousarray(films[0][:, ::-1])))
    assert find_copies([mirrored], hashes) == []
    assert find_copies([], hashes) == find_copies(hashes, []) == []


def test_the_bits_in_which_copies_may_differ_are_counted_exactly(monkeypatch):
    monkeypatch.setattr(annotations, "_PAIRS_AT_ONCE", 7)  # two rows of three at once
    rng = np.random.default_rng(0)
    films = [rng.bytes(32) for _ in range(3)]
    bits = np.unpackbits(np.frombuffer(films[1], np.uint8))
    for where in (range(SAME), range(128, 128 + SAME), range(0, 256, 256 // SAME)):
        near, far = bits.copy(), bits.copy()
        near[list(where)[:SAME]] ^= 1
        far[[*list(where)[:SAME], 255]] ^= 1
        pair = [np.packbits(near).tobytes(), np.packbits(far).tobytes()]
        assert find_copies(pair, films) == [(0, 1)]
    assert find_copies(films * 2, films) == [(i, i % 3) for i in range(6)]
