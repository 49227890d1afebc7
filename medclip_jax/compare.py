"""`medclip-jax compare A B`: do two checkpoints differ, figure by figure?"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from medclip_jax import cli, storage
from medclip_jax.errors import UserError
from medclip_jax.evaluation import paired, samples
from medclip_jax.evaluation.paired import Difference

EXAMPLES = """examples:
  medclip-jax evaluate --workdir runs/a --data shards --out runs/a/report
  medclip-jax evaluate --workdir runs/b --data shards --out runs/b/report
  medclip-jax compare runs/a/report runs/b/report --out runs/a_against_b

Both must have been measured on the same data with the same options. The difference is
B less A, its interval from resampling patients, the same ones for both.
"""
HEADS = (
    "protocol",
    "data",
    "metric",
    "A",
    "B",
    "B - A",
    "95 % interval",
    "p",
    "p Holm",
)


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    out = argparse.ArgumentParser(
        "medclip-jax compare",
        description="Paired difference tests between two evaluated checkpoints.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = out.add_argument
    add(
        "first",
        type=storage.argument,
        metavar="A",
        help="report folder of `medclip-jax evaluate`",
    )
    add("second", type=storage.argument, metavar="B", help="another one")
    add(
        "--out",
        type=storage.argument,
        metavar="DIR",
        help="write compare.json and compare.md",
    )
    add("--details", action="store_true", help="print figures with a suffix too")
    add("--resamples", type=int, default=paired.RESAMPLES, metavar="N",
        help=f"of patients (default {paired.RESAMPLES})")  # fmt: skip
    add("--seed", type=int, default=0, help="of the resamples (default 0)")
    return out


def main(argv: list[str] | None = None) -> int:
    """Runs the verb."""
    args = parser().parse_args(argv)
    if args.resamples < 100:
        raise UserError(f"--resamples: expected 100 or more, found {args.resamples}")
    for folder in (args.first, args.second, *([args.out] if args.out else [])):
        storage.check(folder)
    found, left_out = paired.all_differences(
        samples.read(args.first), samples.read(args.second), args.resamples, args.seed
    )
    if not found:
        why = "\n".join(f"  {name}: {why}" for name, why in left_out.items())
        raise UserError(f"the two reports have no figure to compare:\n{why}")
    text = markdown(found, left_out, args.details)
    print(f"A: {args.first}\nB: {args.second}\n\n{text}")
    if args.out:
        write(args, found, left_out)
        print(f"\nwritten: {args.out / 'compare.json'}, {args.out / 'compare.md'}")
    return 0


def write(
    args: argparse.Namespace, found: Sequence[Difference], left_out: Mapping[str, str]
) -> None:
    """Writes compare.json and compare.md."""
    storage.make_folder(args.out)
    rows = []
    for one in found:
        protocol, dataset, metric = one.key
        named = {"protocol": protocol, "dataset": dataset, "metric": metric}
        rows.append({**named, **{k: v for k, v in asdict(one).items() if k != "key"}})
    made = {
        "first": str(args.first),
        "second": str(args.second),
        "resamples": args.resamples,
        "seed": args.seed,
        "differences": rows,
        "left_out": dict(left_out),
    }
    storage.write_text(args.out / "compare.json", json.dumps(made, indent=1) + "\n")
    text = f"A: {args.first}\n\nB: {args.second}\n\n{markdown(found, left_out, True)}\n"
    storage.write_text(args.out / "compare.md", text)


def markdown(
    found: Sequence[Difference], left_out: Mapping[str, str], details: bool
) -> str:
    """The differences as a table that is also readable as plain text."""
    shown = [one for one in found if details or "/" not in one.key[0]]
    table = [HEADS, *(cells(one) for one in shown)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADS))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    hidden = len(found) - len(shown)
    if hidden:
        lines.append(f"\n{hidden} further figures: --details")
    significant = sum(one.p_holm < 0.05 for one in shown)
    lines.append(
        f"\n{significant} of {len(shown)} differ at p < 0.05 after Holm's correction."
    )
    if left_out:
        lines.append("\nNot compared:")
        lines += [f"- {name}: {why}" for name, why in left_out.items()]
    return "\n".join(lines)


def cells(one: Difference) -> tuple[str, ...]:
    """One row of the table."""
    return (
        *one.key,
        f"{one.first:.3f}",
        f"{one.second:.3f}",
        f"{one.value:+.3f}",
        f"{one.low:+.3f} to {one.high:+.3f}",
        f"{one.p:.3f}",
        f"{one.p_holm:.3f}",
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
