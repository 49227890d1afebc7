"""Each method with a state or a view of its own, trained for a few steps by the program."""

import shutil

import jax
import numpy as np
import pytest

from medclip_jax import evaluate_networks, train
from medclip_jax import run as run_lib
from medclip_jax.runtime.metrics import read_lines

SMALL = [
    "--config.model.image.width=4",
    "--config.data.image_size=32",
    "--config.data.crop_from=36",
    "--config.data.min_patients=2",
    "--config.data.vocab_size=200",
    "--config.train.steps=4",
    "--config.train.batch_size=8",
    "--config.train.log_every_steps=1",
    "--config.train.eval_every_steps=0",
    "--config.checkpoint.every_steps=2",
    "--config.checkpoint.best_metric=loss",
]
TINY_TEXT = ["--config.model.text.layers=1", "--config.data.text_length=16"]
METHODS = {
    "biovil.py:demo_local": TINY_TEXT,
    "biovil_t.py:demo": [*TINY_TEXT, "--config.model.image.dim=8"],
    "cxr_bert.py:demo": TINY_TEXT,
    "cxr_bert.py:demo_matching": TINY_TEXT,
    "gloria.py:demo": ["--config.model.text.layers=1", "--config.gloria.text_layers=2"],
    "mgca.py:demo": [*TINY_TEXT, "--config.mgca.hidden=16"],
    "simclr.py:demo": [],
    "moco.py:demo": ["--config.moco.queue=16"],
}


@pytest.fixture(autouse=True)
def _undo_compile_cache():
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_goes_on_from_a_checkpoint_with_the_same_bits(name, tiny_data, tmp_path):
    """All that a step reads of the last is in the checkpoint: queues, key encoders."""
    workdir = tmp_path / "work"
    argv = [f"--config={name}", *SMALL, *METHODS[name]]
    argv += [f"--data={tiny_data}", f"--workdir={workdir}"]
    assert train.main(argv) == 0
    whole = run_lib.open_run(workdir, "latest")
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert train.main(argv) == 0
    again = run_lib.open_run(workdir, "latest")
    assert whole.step == again.step == 4
    assert whole.variables.keys() == again.variables.keys()
    for one, other in zip(
        jax.tree.leaves(whole.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    lines = read_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 3, 4]
    assert lines[2]["loss"] == lines[4]["loss"] != lines[0]["loss"]
    found = evaluate_networks.abilities(whole)
    method = name.split(".")[0]
    assert found.reads_text == (method not in ("simclr", "moco"))
    assert found.reads_films == (method != "cxr_bert")
    assert found.local == (method in ("biovil", "biovil_t", "gloria", "mgca"))
    assert found.zscore == (method == "gloria")
    assert found.pooling == ("max" if method == "gloria" else "mean")
