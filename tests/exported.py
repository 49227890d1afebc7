"""Small runs of every method with random weights, and what `export` makes of them."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medclip_jax import config_flags, export
from medclip_jax import run as run_lib
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.methods import registry
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.state import TrainState

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, ".", "no", "small", "effusion", "heart", "size", "is", "normal"]
IMAGE = {
    "resnet": {"name": "resnet", "stage_sizes": (1, 1), "width": 8, "block": "basic"},
    "swin": {
        "name": "swin",
        "embed_dim": 8,
        "depths": (2, 1),
        "heads": (2, 2),
        "window": 4,
    },
    "vit": {
        "name": "vit",
        "patch": 8,
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "mlp": 24,
        "pooling": "mean",
    },
    "hybrid": {
        "name": "hybrid",
        "stage_sizes": (1, 1),
        "width": 8,
        "block": "basic",
        "dim": 8,
        "blocks": 2,
        "heads": 2,
    },
}


def make_config(method="medclip", image="resnet", variant="demo", **switches):
    """Of a shipped config, with small towers; `switches` are the method's own."""
    config = config_flags.load_config(f"configs/{method}.py:{variant}")
    with config.unlocked():
        config.model.image = ConfigDict({**IMAGE[image], "pretrained": ""})
        config.model.text.update({"dim": 16, "heads": 2, "mlp": 24, "layers": 3})
        config.model.text.vocab_size = len(VOCABULARY)
        config.model.embed_dim = 12
        config.model.dtype = "bfloat16"
        config.data.image_size = 32
        config.data.text_length = 12
        if method == "gloria":
            config.model.embed_dim = 16  # as the text tower
            config.gloria.stage = 1
        if method == "mgca":
            config.mgca.update({"hidden": 20, "prototypes": 6, "stage": 1})
        if switches:
            config[method].update(switches)
    return config


def make_run(folder, config):
    """A workdir with one real checkpoint of random weights, norms included."""
    method = registry.build(config)
    boxed = jax.eval_shape(run_lib.initializer(config, method), jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        value = 0.3 * rng.standard_normal(shape.shape)
        name = jax.tree_util.keystr(path[-1:])
        if "scale" in name or "var" in name:
            value = 1 + 0.3 * np.abs(value)
        if "to_patch" in jax.tree_util.keystr(path):
            value *= 0.01  # what changed since the film before is to be seen beside it
        return jnp.asarray(value, shape.dtype)

    variables = jax.tree_util.tree_map_with_path(leaf, nn.meta.unbox(boxed))
    with Checkpoints(folder / run_lib.CHECKPOINTS, "loss") as checkpoints:
        state = TrainState(jnp.int32(7), variables, {"count": jnp.int32(7)})
        checkpoints.save(7, state, {"pending": None}, {"loss": 1.0})
        checkpoints.wait()
    Tokenizer.from_vocabulary(VOCABULARY).save(folder / run_lib.TOKENIZER)
    workdir_lib.write_json(folder / workdir_lib.CONFIG, config_flags.to_json(config))
    data = {
        "fingerprint": "f00d",
        "datasets": {"hospital": "beef"},
        "notices": {"hospital": "Simulated films and reports: no patient is real."},
    }
    workdir_lib.write_json(folder / workdir_lib.DATA, data)
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 1.25}\n')
    return variables


def run_export(workdir, *more):
    out = workdir.parent / "export"
    argv = ["--workdir", str(workdir), "--out", str(out), "--step", "latest", *more]
    return export.main(argv), out


def compared(printed):
    """What `--verify` held against each other; wholes differ by 1e-5 at most."""
    found = re.findall(
        "largest difference of (.+), JAX against PyTorch: (.+) over", printed
    )
    differences = {name: float(difference) for name, difference in found}
    for name, difference in differences.items():
        assert difference < 1e-5 or "embeddings" not in name, name
    return differences.keys()
