"""Fixtures that several rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Shards of a small simulated hospital: 135 films of 64 px, all splits filled."""
    from data_pipelines import prepare
    from data_pipelines.hospital import simulate

    root = tmp_path_factory.mktemp("tiny_data")
    raw, shards = root / "raw", root / "shards"
    options = ["--patients", "40", "--chexpert-patients", "0", "--size", "64"]
    options += ["--validate-fraction", "0.4", "--test-fraction", "0.1"]
    assert (
        simulate.main(["--out", str(raw), "--jobs", "1", "--seed", "0", *options]) == 0
    )
    mimic = ["--dataset", "mimic_cxr", "--raw", str(raw / "mimic-cxr")]
    assert prepare.main([*mimic, "--out", str(shards), "--jobs", "1"]) == 0
    return shards
