"""Plans of the shipped recipes at full depth, compiled for TPUs that need not be there.

    python -m benchmarks.plan towers
    python -m benchmarks.plan scaling
    python -m benchmarks.plan scaling --config clip.py:vit --chips 8 512

`towers`: each pair of encoders on four chips v5p, its layers one by one and as a loop.
`scaling`: the same pairs a chip on more and more chips; the efficiency is pairs a second
and chip over those of the first row, by the roofline and, harder, by the compiler's own
estimate with the network after it instead of beside it. Needs the TPU compiler
(pip install '.[tpu]'). A row takes minutes; rows are printed as they come.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TOWERS = {
    "Swin-T + BERT": "medclip.py:swin",
    "ResNet-50 + BERT": "medclip.py:resnet",
    "ViT-S/16 + BERT": "clip.py:vit",
}
SHAPES = {8: "2x2x2", 32: "2x4x4", 128: "4x4x8", 512: "8x8x8", 2048: "8x16x16"}
GIB = 1 << 30


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = out.add_argument
    add("what", choices=("towers", "scaling"))
    add("--config", default="medclip.py:swin", help="of scaling (%(default)s)")
    add("--chips", type=int, nargs="+", choices=SHAPES, default=list(SHAPES))
    add("--pairs", type=int, default=64, help="a chip (default %(default)s)")
    return out


def plan(config: str, topology: str, batch: int, *more: str) -> dict:
    """The figures of `medclip-jax plan`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "medclip_jax.plan", f"--config={config}"]
        command += [f"--topology={topology}", f"--batch={batch}", f"--json={path}"]
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False
        )
        if not path.exists():
            raise SystemExit(done.stderr)
        return json.loads(path.read_text())


def towers(pairs: int) -> None:
    print("| towers | layers | peak GiB | compiler's ms a step | compile s |")
    print("| --- | --- | --- | --- | --- |")
    for name, config in TOWERS.items():
        for form, flag in (("one by one", "false"), ("as a loop", "true")):
            scan = f"--config.model.scan_layers={flag}"
            found = plan(config, "v5p:2x2x1", 4 * pairs, scan)
            print(
                f"| {name} | {form} | {found['peak_bytes'] / GIB:.2f} "
                f"| {1e3 * found['compiler_seconds']:.1f} "
                f"| {found['compile_seconds']:.0f} |",
                flush=True,
            )


def scaling(config: str, chips: list[int], pairs: int) -> None:
    print(
        "| chips v5p | pairs | peak GiB | compute ms | memory ms | network ms "
        "| compiler ms | efficiency, roofline | efficiency, one after another "
        "| compile s |"
    )
    print("|" + " --- |" * 10)
    first: list[float] = []
    for count in chips:
        found = plan(config, f"v5p:{SHAPES[count]}", pairs * count)
        network = found["network_seconds"]
        times = [
            found["step_seconds_at_least"],
            found["compiler_seconds"] + network,
        ]
        first = first or times
        best, worst = (a / b for a, b in zip(first, times, strict=True))
        print(
            f"| {count:,} | {pairs * count:,} | {found['peak_bytes'] / GIB:.2f} "
            f"| {1e3 * found['compute_seconds']:.2f} "
            f"| {1e3 * found['memory_seconds']:.2f} | {1e3 * network:.2f} "
            f"| {1e3 * found['compiler_seconds']:.2f} | {best:.3f} | {worst:.3f} "
            f"| {found['compile_seconds']:.0f} |",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.what == "towers":
        towers(args.pairs)
    else:
        scaling(args.config, args.chips, args.pairs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
