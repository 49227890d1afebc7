"""Losses that are not rounds: 8 devices against one, value and gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.losses import split_cases

ROOT = Path(__file__).parents[2]


def test_eight_devices_agree_with_one():
    done = subprocess.run(
        [sys.executable, "-m", "tests.losses.split_cases"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 8
    assert found.keys() == split_cases.CASES.keys()
    assert {case: of for case, of in found.items() if max(of) > 1e-5} == {}
