"""Exit statuses of `medclip-jax`: what a loop that starts a run again goes by."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from medclip_jax import cli
from medclip_jax.errors import TryAgain, UserError
from medclip_jax.runtime.metrics import NonFiniteMetric


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("x"), 2),
        (NonFiniteMetric("x"), 2),
        (TryAgain("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_statuses(error, status, capsys):
    def main(_):
        raise error

    assert cli.run(main) == status
    told = capsys.readouterr().err
    assert ("this is a fault of medclip-jax" in told) == (type(error) is ValueError)
    assert ("Traceback" in told) == (type(error) is ValueError)


def test_memory_that_does_not_suffice(capsys):
    """The same command would meet it again."""

    def main(_):
        return int(jax.jit(lambda: jnp.ones(1 << 50, jnp.int8))().sum())

    assert cli.run(main) == 2
    told = capsys.readouterr().err
    assert "the memory of a device does not suffice (RESOURCE_EXHAUSTED" in told
    assert "--config.train.micro_batches=N" in told
    assert "Traceback" not in told


def test_a_reader_that_is_gone_is_no_success():
    """`medclip-jax train --show_config | head -0`"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "medclip_jax.cli", "train", "--show_config",
         "--config=medclip.py:demo"],
        stdout=write, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141, done.stderr
