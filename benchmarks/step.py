"""Our train step beside PyTorch's, on one device: the ratio, and where the time goes.

    python -m benchmarks.step
    python -m benchmarks.step --config medclip.py:swin --config.train.batch_size=16
    python -m benchmarks.step --layers 0 --rounds 9 --json step.json
    python -m benchmarks.step --config medclip.py:swin --layers 0 \\
        --config.model.dtype=bfloat16 --config.train.batch_size=256       # on a GPU

Each side is a process of its own, and they take turns: ours, eager, compiled, ours, ...
so that what else the machine does falls on all. The peer (benchmarks/torch_step.py) has
the towers of `transformers` with our initial weights, attention by its default (sdpa),
the same heads, loss, drop rates, gradient clipping and AdamW (fused), and, in bfloat16,
autocast. Both normalise uint8 films that are on the device already; augmentation is off
on both. Our step is the one that `medclip-jax train` runs.

Ratios are pairs a second of ours over theirs: above 1 ours is faster. Beside each is
the ratio of the CPU seconds that their threads took, which says more where other programs
run and nothing on a GPU. The parts are
compiled and timed by themselves, so they need not sum to the step: a tower is its forward
and backward pass, heads and loss likewise, the optimizer clips and updates. On a CPU,
memory is the process's highest resident size; on a GPU, the allocator's highest use.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("step", "image tower", "text tower", "heads and loss", "optimizer")
PEERS = ("eager", "compiled")
STILL = {
    "flip": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "rotate_degrees": 0.0,
    "translate": 0.0,
    "scale_min": 1.0,
    "scale_max": 1.0,
}


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = out.add_argument
    add(
        "--config",
        default="clip.py:vit",
        help="as for medclip-jax train, with --config.KEY=VALUE: CLIP or MedCLIP with a "
        "ViT or a Swin (default clip.py:vit; float32 and batches of 8 unless set)",
    )
    add(
        "--layers",
        type=int,
        default=2,
        help="of each tower, a Swin's in each stage (default 2); 0: the config's depth",
    )
    add("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    add("--rounds", type=int, default=5, help="turns of each side (default 5)")
    add("--steps", type=int, default=3, help="steps a turn (default 3)")
    add("--json", type=Path, help="also write everything that was measured here")
    add("--side", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return out


def load(args: argparse.Namespace, rest: list[str]) -> Any:
    """The config at the depth asked for, with nothing drawn for the films.

    Raises:
      UserError: a method or a tower that the peer does not have.
    """
    from medclip_jax import config_flags
    from medclip_jax.errors import UserError

    defaults = ["model.dtype=float32", "train.batch_size=8"]
    overrides = defaults + [option.removeprefix("--config.") for option in rest]
    config = config_flags.load_config(args.config, overrides)
    image, text = config.model.image, config.model.text
    if config.method not in ("clip", "medclip") or image.name not in ("vit", "swin"):
        raise UserError(
            f"--config {args.config}: the peer has CLIP and MedCLIP with a ViT or a "
            f"Swin; found {config.method} with {image.name}"
        )
    with config.unlocked():
        # What the optimizer computes does not depend on its rate; the peer's is constant.
        config.optimizer.update({"schedule": "constant", "warmup_fraction": 0.0})
        config.data.augment.update(STILL)
        if args.layers:
            text.layers = args.layers
            if image.name == "vit":
                image.depth = args.layers
            else:
                image.depths = (args.layers,) * len(image.heads)
    return config


def random_batch(config: Any) -> dict:
    """A batch of the reader's form; texts of a quarter to all of the tokens."""
    import numpy as np

    rng = np.random.default_rng(0)
    n = config.train.batch_size
    size, length = config.data.image_size, config.data.text_length
    mask = np.arange(length) < rng.integers(length // 4, length + 1, (n, 1))
    ids = rng.integers(5, config.model.text.vocab_size, (n, length)) * mask
    ids, labels = ids.astype(np.int32), rng.integers(-2, 2, (n, 14)).astype(np.int8)
    films = rng.integers(0, 256, (n, size, size, 1)).astype(np.uint8)
    return {
        "films": {"current_BxHxWx1": films},
        "texts": {
            "ids_BxT": ids,
            "mask_BxT": mask.astype(np.int32),
            "word_ids_BxT": ids,
        },
        "image_labels_Nx14": labels,
        "text_labels_Mx14": rng.permutation(labels),
        "image_weight_N": np.ones(n, np.float32),
        "text_weight_M": np.ones(n, np.float32),
    }


def serve(parts: dict[str, Callable[[int], None]], facts: Callable[[], dict]) -> None:
    """Runs parts as the other side of the pipe asks: a line "STEPS PART" is answered by
    the seconds it took and those that its threads computed, "end" by the facts of the run. The first steps compile."""
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps(facts()), flush=True)
            return
        steps, part = line.strip().split(" ", 1)
        started, computed = time.perf_counter(), time.process_time()
        parts[part](int(steps))
        spent = time.perf_counter() - started, time.process_time() - computed
        print(json.dumps(spent), flush=True)


def resident_bytes() -> int:
    """The highest resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Side:
    """The process of one side.

    Args:
      name: "ours", or one of PEERS.
      argv: of this program.
      folder: where ours leaves weights, batch and settings for the peers.
    """

    def __init__(self, name: str, argv: list[str], folder: Path):
        module = "benchmarks.step" if name == "ours" else "benchmarks.step_torch"
        command = [
            sys.executable,
            "-m",
            module,
            "--side",
            name,
            "--folder",
            str(folder),
        ]
        self.name = name
        self.process = subprocess.Popen(
            command + (argv if name == "ours" else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Side by side on one device: none may take its memory as a whole.
            env={
                **os.environ,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
            },
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended; its message is above")
        return line.strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()


def measure(argv: list[str], args: argparse.Namespace) -> dict:
    """Seconds of each turn by part and side, medians of ratios, facts of each side."""
    seconds: dict[str, dict[str, list[float]]] = {}
    computed: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(name, argv, Path(folder)) for name in ("ours", *args.peers)]
        try:
            for part in PARTS:
                seconds[part] = {side.name: [] for side in sides}
                computed[part] = {side.name: [] for side in sides}
                for side in sides:
                    side.ask(f"2 {part}")  # compiles
                for _ in range(args.rounds):
                    for side in sides:
                        spent, cpu = json.loads(side.ask(f"{args.steps} {part}"))
                        seconds[part][side.name].append(spent / args.steps)
                        computed[part][side.name].append(cpu / args.steps)
            facts = {side.name: json.loads(side.ask("end")) for side in sides}
        finally:
            for side in sides:
                side.process.kill()
                side.process.wait()
    return {
        "seconds": seconds,
        "cpu_seconds": computed,
        "facts": facts,
        "ratios": ratios(seconds),
        "cpu_ratios": ratios(computed),
    }


def ratios(seconds: dict) -> dict[str, dict[str, float]]:
    """Median over the turns of the peer's seconds over ours, by part and peer."""
    return {
        part: {
            name: statistics.median(
                theirs / ours for theirs, ours in zip(of[name], of["ours"], strict=True)
            )
            for name in of
            if name != "ours"
        }
        for part, of in seconds.items()
    }


def report(result: dict) -> str:
    """What was measured, to be read."""
    facts, seconds = result["facts"], result["seconds"]
    names = list(facts)
    ours = facts["ours"]
    title = (
        f"{ours['config']}: batch {ours['batch_size']}, films {ours['image_size']} px, "
        f"texts of {ours['text_length']} tokens, {ours['dtype']}, "
        f"{ours['parameters'] / 1e6:.1f} M parameters, on {ours['device']}"
    )
    lines = [
        title,
        "; ".join(f"{name}: {facts[name]['versions']}" for name in names),
        "",
        "| ms | " + " | ".join(names) + " | "
        + " | ".join(f"ratio to {name} | of CPU time" for name in names[1:]) + " |",
        "| --- |" + " --- |" * (3 * len(names) - 2),
    ]  # fmt: skip
    for part, of in seconds.items():
        middle = [f"{1000 * statistics.median(of[name]):.1f}" for name in names]
        ratio = [
            f"{result[kind][part][name]:.2f}"
            for name in names[1:]
            for kind in ("ratios", "cpu_ratios")
        ]
        lines.append(f"| {part} | " + " | ".join(middle + ratio) + " |")
    lines.append("")
    for name in names:
        step = statistics.median(seconds["step"][name])
        parts = {p: statistics.median(seconds[p][name]) for p in PARTS[1:]}
        largest = sorted(parts, key=lambda part: -parts[part])[:3]
        lines.append(
            f"{name}: {ours['batch_size'] / step:.1f} pairs/s, MFU "
            f"{100 * ours['flops'] / step / ours['peak_flops']:.1f} %, "
            f"{facts[name]['memory_bytes'] / 2**20:,.0f} MiB, first losses "
            f"{facts[name]['losses'][0]:.5f} and {facts[name]['losses'][1]:.5f}; largest: "
            + ", ".join(
                f"{p} {100 * parts[p] / sum(parts.values()):.0f} %" for p in largest
            )
        )
    return "\n".join([*lines, f"MFU is a share of {ours['peak']}"])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    if args.side:
        from medclip_jax.runtime import host_memory

        host_memory.keep_freed()  # as the command does
        from benchmarks.step_jax import Ours

        ours = Ours(args.config, load(args, rest), args.folder)
        serve(ours.parts, ours.facts)
        return 0
    load(args, rest)
    result = measure(argv, args)
    print(report(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    from medclip_jax import cli

    raise SystemExit(cli.run(main))
