"""The real packs, where MEDCLIP_DATA_PACKS names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from built_datasets import check_all_joins, images, prepare

from data_pipelines.findings import FINDINGS

PACKS = Path(os.environ.get("MEDCLIP_DATA_PACKS", ""))


@pytest.mark.slow
@pytest.mark.data_packs
@pytest.mark.skipif(
    not (PACKS / "covid_cxr").is_dir(), reason="MEDCLIP_DATA_PACKS is not set"
)
@pytest.mark.parametrize(
    ("pack", "label_map", "films", "reports"),
    [
        ("covid_cxr", "covid_cxr", 530, 237),
        ("nih_cxr14_sample", "nih_cxr14", 600, 0),
        ("roco_cxr_captions", "none", 0, 696),
    ],
)
def test_real_packs(tmp_path, pack, label_map, films, reports):
    more = ("--label-map", label_map)
    dataset = prepare(PACKS / pack, tmp_path, *more, name=pack, jobs=2)
    check_all_joins(dataset)
    assert len(dataset.images) == films
    assert reports - len(dataset.reports) <= 0.01 * reports
    found = list(images(dataset).values())
    if pack == "nih_cxr14_sample":
        assert {r["label_source"] for r in found} == {"label_map"}
        labels = np.stack([r["labels"] for r in found])
        assert (labels[:, FINDINGS.index("Pneumonia")] == 1).sum() == 300
        assert (labels[:, FINDINGS.index("No Finding")] == 1).sum() == 300
        assert (labels[:, FINDINGS.index("Pneumonia")] == 0).sum() == 300
    if pack == "covid_cxr":
        assert {r["view"] for r in found} == {"AP", "PA", "LATERAL"}
        assert all(r["time"] >= -1 and r["license"] for r in found)
