"""Reading a prepared dataset: joins, threads, other readers, refusals."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built_datasets import check_all_joins, images

from data_pipelines.findings import FINDINGS
from data_pipelines.records import find_datasets, open_dataset
from medclip_jax.errors import UserError


def test_images_and_texts_are_joined_and_may_be_absent(built):
    check_all_joins(built)
    assert (len(built.images), len(built.reports)) == (80, 40)
    for row in built.table.to_pylist():
        has_text = row["study_id"].endswith("_s1")
        assert (row["report_row"] >= 0) == has_text
        assert len(row["report_labels"]) == (14 if has_text else 0)
        assert len(row["sentence_labels"]) == 14 * row["n_sentences"]
        assert len(row["image_labels"]) == 14 * len(row["image_rows"])
    patients = built.table["patient_id"].to_pylist()
    assert patients == sorted(patients)


def test_films_without_own_labels_have_those_of_the_report(built):
    effusion = FINDINGS.index("Pleural Effusion")
    for record in images(built).values():
        wanted = "report" if record["study_id"].endswith("_s1") else "none"
        assert record["label_source"] == wanted
        assert record["labels"][effusion] == (1 if wanted == "report" else -2)


def test_small_gray_jpegs_are_stored_byte_for_byte(built):
    name = "images/p3_1.jpg"
    wanted = (Path(built.path).parent / "raw" / name).read_bytes()
    assert images(built)[name]["film"] == wanted


def test_records_are_read_by_threads_pickled_and_by_tfds(built):
    ids = [built.images[i]["image_id"] for i in range(80)]
    again = pickle.loads(pickle.dumps(built.images))
    with ThreadPoolExecutor(8) as pool:
        rows = list(range(80)) * 5
        found = list(pool.map(lambda i: again[i]["image_id"], rows))
    assert found == ids * 5
    with pytest.raises(IndexError):
        built.images[80]
    import tensorflow_datasets as tfds

    for kind, stored in (("images", built.images), ("reports", built.reports)):
        builder = tfds.builder_from_directory(Path(built.path) / kind)
        source = builder.as_data_source("train+validate+test")
        assert len(source) == len(stored)
        for row in (0, len(stored) - 1):
            raw_record, record = source[row], stored[row]
            assert set(raw_record) == set(record)
            for field, value in record.items():
                theirs = raw_record[field]
                if isinstance(value, str):
                    theirs = theirs.decode()
                elif isinstance(value, list):
                    theirs = [t.decode() for t in theirs]
                np.testing.assert_array_equal(theirs, value, err_msg=field)


def test_reading_imports_neither_jax_nor_beam_nor_tensorflow(built):
    code = (
        "import sys; from data_pipelines.records import open_dataset; "
        "assert 'tensorflow_datasets' not in sys.modules; "
        f"d = open_dataset({built.path!r}); d.images[0]; d.reports[0]; "
        "bad = {'jax', 'apache_beam', 'tensorflow', 'torch'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_refuses_what_does_not_belong_together(built, tmp_path):
    def copy(name):
        path = tmp_path / name
        shutil.copytree(built.path, path)
        return path

    path = copy("schema")
    about = json.loads((path / "fingerprint.json").read_text())
    (path / "fingerprint.json").write_text(json.dumps(about | {"schema_version": 0}))
    with pytest.raises(UserError, match="schema 0"):
        open_dataset(path)
    path = copy("table")
    rows = built.table.to_pylist()
    shifted = [r["image_rows"] for r in rows[1:] + rows[:1]]
    table = built.table.set_column(
        built.table.schema.get_field_index("image_rows"),
        "image_rows",
        pa.array(shifted, pa.list_(pa.int64())),
    )
    pq.write_table(table, path / "studies.parquet")
    with pytest.raises(UserError, match="studies.parquet expects"):
        open_dataset(path)
    path = copy("reports")
    shutil.rmtree(path / "reports")
    with pytest.raises(UserError, match="names 40 reports, the shards hold 0"):
        open_dataset(path)
    with pytest.raises(UserError, match="fingerprint.json"):
        open_dataset(tmp_path)
    assert find_datasets(tmp_path) == [
        str(tmp_path / n) for n in sorted(["reports", "schema", "table"])
    ]
