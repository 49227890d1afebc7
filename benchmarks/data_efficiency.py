"""Zero-shot accuracy against the share of the pretraining data.

    python benchmarks/data_efficiency.py --data runs/demo/shards --out runs/efficiency

One run a share and seed, each of the same number of steps, on shares that lie within
one another (`config.data.fraction`, whole patients); every run is evaluated on the
same films of unseen patients. Runs that are there already are not made again. Written
to OUT: curve.md, curve.json and curve.png.

The question is that of Wang et al. (MedCLIP, EMNLP 2022), figure 4.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

from medclip_jax.evaluation.plots import CHANCE, STYLE, TRAINED, figure_of, png

FIGURE = ("zero_shot_five", "accuracy")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = out.add_argument
    add("--data", required=True, type=Path, help="prepared data sets")
    add("--out", required=True, type=Path, help="folder for runs and the curve")
    add("--config", default="medclip:demo", help="(default medclip:demo)")
    add("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, default=800, help="of every run (default 800)")
    return out


def verb(*words: object) -> None:
    """Runs `medclip-jax`; its output goes where ours goes."""
    command = [sys.executable, "-m", "medclip_jax.cli", *map(str, words)]
    subprocess.run(command, check=True)


def measure(args: argparse.Namespace, share: float, seed: int) -> dict:
    """The figure of one run, which is made if need be."""
    run = args.out / f"share-{share:g}-seed-{seed}"
    results = run / "report" / "results.json"
    if not results.is_file():
        start = time.perf_counter()
        verb("train", "--config", args.config, "--workdir", run, "--data", args.data,
             f"--config.data.fraction={share}", f"--config.seed={seed}",
             f"--config.train.steps={args.steps}")  # fmt: skip
        verb("evaluate", "--workdir", run, "--data", args.data, "--step", "latest",
             "--protocols", FIGURE[0], "--features", "none",
             "--out", run / "report")  # fmt: skip
        print(f"share {share:g}, seed {seed}: {time.perf_counter() - start:.0f} s")
    found = [
        row
        for row in json.loads(results.read_text())["rows"]
        if (row["protocol"], row["metric"]) == FIGURE
    ]
    return {"share": share, "seed": seed, **found[0]}


def draw(rows: list[dict]) -> bytes:
    """The figure over the share, each run a dot, with the mean over seeds."""
    shares = sorted({row["share"] for row in rows})
    means = [np.mean([r["value"] for r in rows if r["share"] == s]) for s in shares]
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 4.4)
        axes.axhline(rows[0]["chance"], ls="--", color=CHANCE, lw=1.4, label="chance")
        axes.plot(shares, means, "-", color=TRAINED, lw=1.8)
        axes.errorbar(
            [row["share"] for row in rows],
            [row["value"] for row in rows],
            yerr=np.array(
                [
                    [row["value"] - row["low"], row["high"] - row["value"]]
                    for row in rows
                ]
            ).T,
            fmt="o",
            color=TRAINED,
            capsize=3,
            label="a run, 95 % interval over patients",
        )
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axes.minorticks_off()
        axes.set(
            xlabel="share of the pretraining patients",
            ylabel="zero-shot accuracy, five findings",
            ylim=(0, 1),
        )
        axes.legend(loc="lower right")
        return png(figure)


def main() -> None:
    args = parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for share in args.shares:
        for seed in args.seeds:
            rows.append(measure(args, share, seed))
    lines = ["| share | seed | accuracy | 95 % interval | untrained | films |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['share']:.0%} | {r['seed']} | {r['value']:.3f} | "
        f"{r['low']:.3f} to {r['high']:.3f} | {r['untrained']:.3f} | {r['n']} |"
        for r in rows
    ]
    print("\n".join(lines))
    (args.out / "curve.md").write_text("\n".join(lines) + "\n")
    (args.out / "curve.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.out / "curve.png").write_bytes(draw(rows))
    print(f"written: {args.out}/curve.md, curve.json, curve.png")


if __name__ == "__main__":
    main()
