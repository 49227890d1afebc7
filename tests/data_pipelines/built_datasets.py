"""Preparing csv folders in tests, and looking at what came out."""

import itertools
from pathlib import Path

import numpy as np

from data_pipelines import records
from data_pipelines.prepare import main
from data_pipelines.records import open_dataset


def prepare(root, out, *more, jobs=1, name="films"):
    arguments = ["--dataset", "csv", "--raw", root, "--out", out, "--name", name]
    arguments += ["--jobs", jobs, *more]
    assert main([str(a) for a in arguments]) == 0
    return open_dataset(Path(out) / name)


def images(dataset):
    found = (dataset.images[i] for i in range(len(dataset.images)))
    return {record["image_id"]: record for record in found}


def check_all_joins(dataset):
    records.check_joins(dataset, np.arange(dataset.table.num_rows))
    rows = list(itertools.chain(*dataset.table["image_rows"].to_pylist()))
    assert sorted(rows) == list(range(len(dataset.images)))
    reports = [r for r in dataset.table["report_row"].to_pylist() if r >= 0]
    assert sorted(reports) == list(range(len(dataset.reports)))
