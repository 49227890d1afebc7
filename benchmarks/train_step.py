"""How fast the train step of a config runs on the devices there are.

    python benchmarks/train_step.py --config medclip.py:demo
    python benchmarks/train_step.py --config medclip.py:swin --config.train.batch_size=256

Random batches already on the devices, so that no input is waited for. Prints one JSON
object: seconds to make the state and to compile, seconds a step (median), pairs a
second, MFU (3 x forward FLOPs over the peak, which is named) and peak memory where the
device tells it.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np

from medclip_jax import __version__, cli, config_flags
from medclip_jax import run as run_lib
from medclip_jax.assemble import assemble
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import throughput


def random_batch(config, mesh) -> dict:
    """A batch of the reader's form with this process's rows."""
    rng = np.random.default_rng(0)
    parts, of = mesh_lib.batch_parts(mesh)
    n = config.train.batch_size // of * len(parts)
    size, length = config.data.image_size, config.data.text_length
    ids = rng.integers(5, config.model.text.vocab_size, (n, length)).astype(np.int32)
    labels = rng.integers(-2, 2, (n, 14)).astype(np.int8)
    return {
        "films": {
            "current_BxHxWx1": rng.integers(0, 255, (n, size, size, 1)).astype(np.uint8)
        },
        "texts": {"ids_BxT": ids, "mask_BxT": np.ones_like(ids), "word_ids_BxT": ids},
        "image_labels_Nx14": labels,
        "text_labels_Mx14": labels,
        "image_weight_N": np.ones(n, np.float32),
        "text_weight_M": np.ones(n, np.float32),
    }


def measure(config, steps: int) -> dict:
    """Makes state and step of a config, runs it, and gives the figures."""
    mesh = mesh_lib.make_mesh(config.mesh.to_dict())
    mesh_lib.check_batch_size(config.train.batch_size, mesh.shape)
    made = assemble(config, mesh)
    started = time.perf_counter()
    state = jax.block_until_ready(made.create(config))
    init_seconds = time.perf_counter() - started
    batch = mesh_lib.place_batch(random_batch(config, mesh), mesh)
    started = time.perf_counter()
    state, metrics = jax.block_until_ready(made.step(state, batch))
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(made.step(state, batch))
        seconds.append(time.perf_counter() - started)
    each = statistics.median(seconds)
    peak = throughput.peak(list(mesh.devices.flatten()))
    flops = (
        3 * made.method.forward_flops(run_lib.spec(config)) * config.train.batch_size
    )
    memory = mesh.devices.flatten()[0].memory_stats() or {}
    return {
        "mesh": mesh_lib.describe(mesh),
        "batch_size": config.train.batch_size,
        "image_size": config.data.image_size,
        "dtype": config.model.dtype,
        "parameters": sum(x.size for x in jax.tree.leaves(state.variables["params"])),
        "init_seconds": round(init_seconds, 2),
        "compile_seconds": round(compile_seconds, 2),
        "step_seconds": each,
        "pairs_per_second": config.train.batch_size / each,
        "mfu_percent": 100 * flops / each / peak.flops,
        "peak": peak.source,
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
        "loss": float(metrics["loss"]),
        "versions": {"medclip_jax": __version__, "jax": jax.__version__},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="as for medclip-jax train")
    parser.add_argument("--steps", type=int, default=10, help="to time (default 10)")
    args, rest = parser.parse_known_args(argv)
    overrides = [option.removeprefix("--config.") for option in rest]
    config = config_flags.load_config(args.config, overrides)
    print(json.dumps({"config": args.config, **measure(config, args.steps)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
