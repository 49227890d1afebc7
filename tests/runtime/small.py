"""Small real methods and seeded batches for the tests of the runtime."""

import importlib

import jax
import numpy as np
from ml_collections import ConfigDict

from medclip_jax.assemble import assemble
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import state as state_lib

IMAGE = {
    # One block: what the default tests can afford to compile.
    "tiny": {
        "name": "resnet",
        "stage_sizes": (1,),
        "width": 8,
        "block": "basic",
        "pretrained": "",
    },
    "resnet": {
        "name": "resnet",
        "stage_sizes": (1, 1, 1, 1),
        "width": 16,
        "pretrained": "",
    },
    "swin": {
        "name": "swin",
        "patch": 4,
        "embed_dim": 16,
        "depths": (2, 2),
        "heads": (2, 4),
        "window": 4,
        "drop_path": 0.1,
        "pretrained": "",
    },
}
VOCABULARY = 128


def config(
    image: str, batch_size: int = 32, steps: int = 10, method: str = "medclip"
) -> ConfigDict:
    """A method with small encoders; MedCLIP at the published rate and scale."""
    made = importlib.import_module(f"configs.{method}").get_config("demo")
    if method == "medclip":
        made.medclip.initial_scale = 1 / 0.07
    if method == "gloria":
        made.gloria.update({"stage": 1, "text_layers": 2})
    if method == "mgca":
        made.mgca.update({"stage": 1, "hidden": 32, "frozen_steps": 0})
    if method == "moco":
        made.moco.update({"queue": 2 * batch_size, "groups": 4})
    made.model.image = ConfigDict(IMAGE[image])
    made.model.text.update({"dim": 32, "heads": 2, "mlp": 64, "dropout": 0.1})
    made.model.text.vocab_size = VOCABULARY
    made.model.embed_dim = 32
    if image == "tiny":
        made.model.text.update({"layers": 1, "dropout": 0.0})
        if method == "medclip":
            made.medclip.text_pool = "cls"
    if image == "resnet":
        # A ReLU whose input is within rounding of 0 passes its gradient or blocks it
        # by the last bit. With seed 0 a unit of layer3_0 does so in the first step
        # (4e-4 of the largest gradient, with equal films); with this one none does.
        made.seed = 1
    size = 32 if image == "swin" else 64
    made.data.update({"image_size": size, "crop_from": size, "text_length": 16})
    made.train.update({"batch_size": batch_size, "steps": steps})
    made.optimizer.update({"learning_rate": 5e-5, "weight_decay": 1e-4})
    return made


def batch(config: ConfigDict, step: int) -> dict:
    """A batch of the reader's form: blobs whose brightness goes with their label."""
    rng = np.random.default_rng([7, step])
    n, size = config.train.batch_size, config.data.image_size
    length = config.data.text_length
    labels = rng.integers(0, 2, (n, 14)).astype(np.int8)
    films = rng.integers(0, 120, (n, size, size, 1))
    films[:, :8, :8] += 120 * labels[:, :1, None, None]
    ids = rng.integers(5, VOCABULARY, (n, length)).astype(np.int32)
    mask = (np.arange(length) < rng.integers(4, length, (n, 1))).astype(np.int32)
    within = (np.arange(length) > 0) & (np.arange(length) < mask.sum(1)[:, None] - 1)
    words = np.where(within, (np.arange(length) - 1) // 2, -1).astype(np.int32)
    given = {"current_BxHxWx1": films.astype(np.uint8)}
    if config.data.view == "two_crops":
        given["second_BxHxWx1"] = np.roll(given["current_BxHxWx1"], 3, axis=1)
    return {
        "films": given,
        "texts": {"ids_BxT": ids, "mask_BxT": mask, "word_ids_BxT": words},
        "image_labels_Nx14": labels,
        "text_labels_Mx14": rng.permutation(labels),
        "image_weight_N": np.ones(n, np.float32),
        "text_weight_M": np.ones(n, np.float32),
    }


class Trainer:
    """The parts that train.py puts together, without data and files.

    Args:
      config: the experiment.
      devices: how many of the devices to use.
    """

    def __init__(self, config: ConfigDict, devices: int):
        self.config = config
        self.mesh = mesh_lib.make_mesh(config.mesh.to_dict(), jax.devices()[:devices])
        self.made = assemble(config, self.mesh)
        self.target, self.shardings = self.made.target, self.made.shardings
        self.train_step = self.made.step
        self.initial = None

    def state(self) -> state_lib.TrainState:
        """A fresh state at step 0; compiled and made once."""
        if self.initial is None:
            self.initial = jax.tree.map(np.asarray, self.made.create(self.config))
        return jax.tree.map(
            lambda leaf, where: jax.make_array_from_callback(
                leaf.shape, where, lambda at: leaf[at]
            ),
            self.initial,
            self.shardings,
        )

    def place(self, step: int):
        return mesh_lib.place_batch(batch(self.config, step), self.mesh)

    def first_gradient(self) -> tuple[dict, float]:
        """Gradient and loss of step 0, as numpy arrays.

        Adam's first moment is (1 - b1) times the first gradient where nothing is
        clipped; taken from there, it is that of the very step that training runs.
        """
        assert self.config.optimizer.clip_norm == 0
        state, metrics = self.train_step(self.state(), self.place(0))
        found = jax.tree.leaves(
            state.opt_state, is_leaf=lambda node: hasattr(node, "mu")
        )
        (adam,) = [node for node in found if hasattr(node, "mu")]
        scale = 1 - self.config.optimizer.b1
        gradient = jax.tree.map(lambda leaf: np.asarray(leaf) / scale, adam.mu)
        return gradient, float(metrics["loss"])

    def run(self, state: state_lib.TrainState, steps: int):
        """The state after some steps, and the loss of each."""
        losses = []
        for _ in range(steps):
            state, metrics = self.train_step(state, self.place(int(state.step)))
            losses.append(float(metrics["loss"]))
        return state, losses
