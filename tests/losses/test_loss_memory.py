"""Memory of the losses on TPU topologies, as the TPU compiler tells it without a TPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install '.[tpu]'",
)
@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "semantic", "semantic_dot"])
@pytest.mark.parametrize(
    ("topology", "pairs", "most"), [("v5e:2x4", 32768, 96), ("v5p:8x8x8", 1048576, 64)]
)
def test_rounds_fit_a_chip(loss, topology, pairs, most):
    """MiB a chip, of which 32 and 16 are arguments and results."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss", "--topology", topology]
        + ["--row", f"{loss},rounds,{pairs}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["peak_mib"] <= most


def test_a_processs_memory_does_not_grow_with_the_square():
    """Four times the pairs take about four times what the embeddings take."""
    peaks = []
    for pairs in (1024, 4096):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loss", "--row"]
            + [f"semantic,rounds,{pairs}", "--repeats", "0", "--dim", "64"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1])["resident_mib"])
    # The matrices of 4,096 pairs take 64 MiB each, and there are several.
    assert peaks[1] - peaks[0] < 60
