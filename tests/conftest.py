"""Fixtures that several rooms share, and how the tests compile."""

import importlib.metadata
import os
from pathlib import Path

import pytest

# Nearly all of the time of a small test is LLVM's. Without its optimisation a small
# program compiles several times faster; products and convolutions run in libraries
# and do not slow down. Set before any test module imports jax.
FLAGS = ["--xla_backend_optimization_level=0"]
# Later ones no longer have it, and end the process at a flag that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])


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


@pytest.fixture(scope="session")
def bucket():
    """`gs://...` of a bucket that this process and its children can reach."""
    from tests import gcs

    with gcs.emulator() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"gs://{gcs.BUCKET}"
