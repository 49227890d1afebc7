"""A run with a small, untrained tower, and its tuner."""

import importlib
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import planted_tasks as toy

from medclip_jax import fine_tune
from medclip_jax import run as run_lib
from medclip_jax.methods import registry
from medclip_jax.runtime import state as state_lib
from medclip_jax.runtime.mesh import make_mesh

RESNET = {
    "name": "resnet",
    "stage_sizes": (1, 1),
    "width": 4,
    "block": "basic",
    "pretrained": "",
}


@pytest.fixture(scope="session")
def run():
    """A method with an untrained tower, as a run opened from a workdir."""
    config = importlib.import_module("configs.clip").get_config("demo")
    config.data.image_size, config.data.text_length = toy.SIDE, 8
    config.model.image = ConfigDict(RESNET)
    config.model.text.update(vocab_size=50, dim=16, mlp=16, layers=1)
    method, mesh = registry.build(config), make_mesh({"data": -1})
    variables = state_lib.create_variables(
        run_lib.init_key(0), run_lib.initializer(config, method), mesh
    )
    return run_lib.Run(Path("toy"), config, method, variables, None, 0, "", mesh)


@pytest.fixture(scope="session")
def tuner(run):
    return fine_tune.Tuner(run, batch_size=16, say=lambda text: None)
