"""The study tables of all datasets as integer arrays, one index space for each kind.

Views are computed on these arrays alone; records are read only when a batch needs
them.
"""

import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.records import Dataset, find_datasets, open_dataset
from medclip_jax.errors import UserError

NOT_GIVEN = -2
K = 14  # findings


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Images I, reports R, sentences S and studies Q of one split.

    Attributes:
      image_dataset_I, image_row_I: where the record is.
      image_study_I: index of its study.
      image_view_I: view names.
      image_id_I: ids, strings.
      image_labels_Ix14: int8 raw codes.
      report_dataset_R, report_row_R, report_study_R: as for the images.
      report_labels_Rx14: int8 raw codes.
      report_first_R, report_count_R: its sentences are [first, first + count).
      report_has_all_R: bool, it has each of the wanted sections.
      sentence_report_S, sentence_number_S: which sentence of which report.
      sentence_labels_Sx14: int8 raw codes.
      study_id_Q, study_patient_Q, study_dataset_Q, study_split_Q: ids and names,
        strings.
      study_index_Q: 0, 1, ... in the order of time within the patient.
      study_report_Q: index of the study's report, -1 none.
      study_share_Q: float in [0, 1), a hash of the patient: what `paired_fraction`
        is compared with.
      reports_without_sections: reports that had none of the wanted sections, all of
        whose sentences are used.
    """

    image_dataset_I: np.ndarray
    image_row_I: np.ndarray
    image_study_I: np.ndarray
    image_view_I: np.ndarray
    image_id_I: np.ndarray
    image_labels_Ix14: np.ndarray
    report_dataset_R: np.ndarray
    report_row_R: np.ndarray
    report_study_R: np.ndarray
    report_labels_Rx14: np.ndarray
    report_first_R: np.ndarray
    report_count_R: np.ndarray
    report_has_all_R: np.ndarray
    sentence_report_S: np.ndarray
    sentence_number_S: np.ndarray
    sentence_labels_Sx14: np.ndarray
    study_id_Q: np.ndarray
    study_patient_Q: np.ndarray
    study_dataset_Q: np.ndarray
    study_split_Q: np.ndarray
    study_index_Q: np.ndarray
    study_report_Q: np.ndarray
    study_share_Q: np.ndarray
    reports_without_sections: int


def training_datasets(
    data_dir: str | os.PathLike[str] | Sequence[Dataset], names: Sequence[str] = ()
) -> list[Dataset]:
    """The datasets to train on: those named, else all that are meant for pretraining.

    Raises:
      UserError: as `open_datasets`; or none is meant for pretraining.
    """
    opened = open_datasets(data_dir, names)
    chosen = opened if names else [d for d in opened if d.for_pretraining]
    if not chosen:
        found = ", ".join(dataset.name for dataset in opened)
        raise UserError(
            f"only sets for evaluation were found: {found}. To train on one all the "
            "same, name it: --config.data.datasets"
        )
    return chosen


def open_datasets(
    data_dir: str | os.PathLike[str] | Sequence[Dataset], names: Sequence[str] = ()
) -> list[Dataset]:
    """Opens the prepared datasets below a folder.

    Args:
      data_dir: what `medclip-jax prepare --out` was given, or one dataset, or
        datasets that are open already.
      names: the datasets wanted, in this order; empty is all, sorted by path.

    Returns:
      The opened datasets.

    Raises:
      UserError: none found, a name not found (the ones found are listed), or a
        dataset of another schema.
    """
    found: dict[str, Any]
    if isinstance(data_dir, str | os.PathLike):
        found = {Path(path).name: path for path in find_datasets(data_dir)}
        where = f"in {data_dir}"
    else:
        found = {dataset.name: dataset for dataset in data_dir}
        where = "among the open datasets"
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"config.data.datasets names {', '.join(missing)}, not found {where}; "
            f"found: {', '.join(found)}"
        )
    chosen = [found[name] for name in (names or found)]
    return [d if isinstance(d, Dataset) else open_dataset(d) for d in chosen]


def build(
    datasets: Sequence[Dataset],
    split: str,
    views: Sequence[str] = (),
    sections: Sequence[str] = (),
    fraction: float = 1.0,
) -> Catalog:
    """Makes the catalog of one split.

    Args:
      datasets: opened datasets; their order is the order of every index.
      split: "train", "validate" or "test"; "" is all three.
      views: image views to keep; empty is all.
      sections: sentences of these sections are kept; empty is all. A report that
        has none of them (a caption, a report without headings) keeps all.
      fraction: share of the patients, chosen by a hash of their ids; a smaller share
        is part of a larger one.

    Returns:
      The catalog. An image or report that is filtered out has no index.
    """
    parts, n_studies = [], 0
    for number, dataset in enumerate(datasets):
        table = _table(dataset, split, fraction)
        part = _one(dataset, table, number, views, sections, n_studies)
        n_studies += len(part["study_share_Q"])
        parts.append(part)
    merged = {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
        if name != "reports_without_sections"
    }
    counts = merged["report_count_R"]
    n_reports = len(counts)
    study_report = np.full(n_studies, -1, np.int64)
    study_report[merged["report_study_R"]] = np.arange(n_reports)
    return Catalog(
        **merged,
        report_first_R=np.cumsum(counts) - counts,
        sentence_report_S=np.repeat(np.arange(n_reports), counts),
        study_report_Q=study_report,
        reports_without_sections=sum(p["reports_without_sections"] for p in parts),
    )


def _table(dataset: Dataset, split: str, fraction: float) -> pa.Table:
    table = dataset.table
    if split:
        table = table.filter(pc.equal(table["split"], split))
    if fraction < 1:
        patients = table["patient_id"].to_pylist()
        # Another hash than that of `paired_fraction`: the two choices are independent.
        kept = [_share(f"share of {dataset.name}", p) < fraction for p in patients]
        table = table.filter(pa.array(kept, pa.bool_()))
    return table.combine_chunks()


def _one(
    dataset: Dataset,
    table: pa.Table,
    number: int,
    views: Sequence[str],
    sections: Sequence[str],
    first_study: int,
) -> dict:
    study = first_study + np.arange(table.num_rows)
    patients = table["patient_id"].to_pylist()
    part = _images(table, number, study, views)
    part |= _reports(dataset, table, number, study, sections)
    shares = [_share(dataset.name, patient) for patient in patients]
    return part | {
        "study_id_Q": np.array(table["study_id"].to_pylist(), object),
        "study_patient_Q": np.array(patients, object),
        "study_dataset_Q": np.full(len(study), dataset.name, object),
        "study_split_Q": np.array(table["split"].to_pylist(), object),
        "study_index_Q": table["study_index"].to_numpy().astype(np.int64),
        "study_share_Q": np.array(shares, np.float64),
    }


def _images(
    table: pa.Table, number: int, study: np.ndarray, views: Sequence[str]
) -> dict[str, np.ndarray]:
    rows, counts = _flat(table["image_rows"], np.int64)
    view = np.array(_flat_list(table["image_views"]), "U8")
    ids = np.array(_flat_list(table["image_ids"]), object)
    labels = _flat(table["image_labels"], np.int8)[0].reshape(-1, K)
    keep = np.isin(view, list(views)) if views else np.ones(len(rows), bool)
    return {
        "image_dataset_I": np.full(keep.sum(), number, np.int32),
        "image_row_I": rows[keep],
        "image_study_I": np.repeat(study, counts)[keep],
        "image_view_I": view[keep],
        "image_id_I": ids[keep],
        "image_labels_Ix14": labels[keep],
    }


def _reports(
    dataset: Dataset,
    table: pa.Table,
    number: int,
    study: np.ndarray,
    sections: Sequence[str],
) -> dict:
    all_rows = table["report_row"].to_numpy()
    has = all_rows >= 0
    rows = all_rows[has]
    counts = table["n_sentences"].to_numpy().astype(np.int64)[has]
    codes = _flat(table["sentence_labels"], np.int8)[0].reshape(-1, K)
    numbers = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    without, has_all = 0, np.ones(len(rows), bool)
    if sections and len(rows):
        keep, has_all, without = _in_sections(dataset, rows, counts, sections)
        owner = np.repeat(np.arange(len(rows)), counts)[keep]
        counts = np.bincount(owner, minlength=len(rows))
        codes, numbers = codes[keep], numbers[keep]
    return {
        "report_dataset_R": np.full(len(rows), number, np.int32),
        "report_row_R": rows,
        "report_study_R": study[has],
        "report_labels_Rx14": _flat(table["report_labels"], np.int8)[0].reshape(-1, K),
        "report_count_R": counts,
        "report_has_all_R": has_all,
        "sentence_number_S": numbers,
        "sentence_labels_Sx14": codes,
        "reports_without_sections": without,
    }


def _in_sections(
    dataset: Dataset, rows: np.ndarray, counts: np.ndarray, sections: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which sentences stand in the sections, which reports have all of these, how many
    have none: a pass over the split's reports."""
    wanted, parts, has_all, without = frozenset(sections), [], [], 0
    for row, count in zip(rows, counts):
        names = dataset.reports[row]["sentence_sections"] if count else []
        inside = np.array([name in wanted for name in names], bool)
        has_all.append(wanted <= set(names))
        if count and not inside.any():
            without += 1
            inside[:] = True
        parts.append(inside)
    return np.concatenate(parts), np.array(has_all, bool), without


def _share(dataset: str, patient: str) -> float:
    digest = zlib.crc32(f"{dataset}/{patient}".encode())
    return ((digest * 0x9E3779B1) & 0xFFFFFFFF) / 2**32


def _flat(column: pa.ChunkedArray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (all values, length of each row)."""
    counts = pc.list_value_length(column).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).to_numpy().astype(dtype)
    return values, counts


def _flat_list(column: pa.ChunkedArray) -> list[str]:
    return pc.list_flatten(column).to_pylist()
