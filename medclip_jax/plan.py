"""`medclip-jax plan`: does a run fit a pod, how fast can it be, where do bytes go?

For TPUs the very train step of `train` is compiled, for chips that need not be there.
For GPUs, whose compiler needs one, the figures are counted.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from medclip_jax import cli, config_flags
from medclip_jax.errors import UserError
from medclip_jax.planning import report, search
from medclip_jax.planning.estimate import make_plan
from medclip_jax.runtime import topology as topology_lib

DESCRIPTION = """\
Plan a run before a pod is booked: whether it fits, how long a step takes at least,
and what is sent between chips.

For TPUs the very train step is compiled by the TPU compiler, without a TPU (it needs
`pip install 'jax[tpu]'`): peak memory and collectives are the program's own. For GPUs the
figures are counted from the model. Time is a lower bound: what compute, memory or
network would take at their published peaks, each alone; of a TPU program the compiler's
own estimate stands beside it. Exit status 1 says that it does not fit."""

EXAMPLES = """\
examples:
  MedCLIP with Swin-Tiny on 512 chips v5p, 32,768 pairs a step (minutes):
    medclip-jax plan --config medclip.py:swin --topology v5p:8x8x8 --batch 32768
  two slices of v6e, parameters split over 4 chips, and a JSON file:
    medclip-jax plan --config clip.py:vit --topology v6e:8x8 --slices 2 \\
        --batch 8192 --config.mesh.fsdp=4 --json plan.json
  the largest batch and the best mesh (some quick compilations):
    medclip-jax plan --config clip.py:vit --topology v5e:4x4 --search
  four nodes of eight H100:
    medclip-jax plan --config clip.py:vit --topology h100:8 --slices 4 --batch 8192

Topologies: GENERATION:SHAPE, of one slice or node; generations: {chips}.
Any key of the config can be set by --config.KEY=VALUE."""


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="medclip-jax plan",
        description=DESCRIPTION,
        epilog=EXAMPLES.format(chips=", ".join(topology_lib.CHIPS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = out.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="as for train: " + ", ".join(config_flags.shipped()),
    )
    add("--topology", required=True, help="GENERATION:SHAPE, such as v5p:8x8x8")
    add("--slices", type=int, default=1, help="slices or nodes of it (default 1)")
    add("--batch", type=int, help="pairs a step (default: the config's)")
    add(
        "--search",
        action="store_true",
        help="find the largest batch that fits, and the mesh on which it is fastest",
    )
    add(
        "--quick",
        action="store_true",
        help="compile with the least effort, as --search does: several times sooner, "
        "memory and traffic come out somewhat higher, and the compiler's own estimate "
        "of the time is left out",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return out


def parse(
    argv: list[str] | None,
) -> tuple[argparse.Namespace, ConfigDict, topology_lib.Topology]:
    """Options, the config with its overrides, the topology.

    Raises:
      UserError: an option, key, config or topology that there is not.
    """
    args, rest = parser().parse_known_args(argv)
    if unknown := [option for option in rest if not option.startswith("--config.")]:
        raise UserError(f"unknown option {unknown[0]!r}; see medclip-jax plan --help.")
    overrides = [option.removeprefix("--config.") for option in rest]
    if bad := [option for option in overrides if "=" not in option]:
        raise UserError(f"--config.{bad[0]}: expected --config.KEY=VALUE.")
    if args.batch is not None:
        overrides.append(f"train.batch_size={args.batch}")
    topology = topology_lib.parse(args.topology, args.slices)
    return args, config_flags.load_config(args.config, overrides), topology


def main(argv: list[str] | None = None) -> int:
    args, config, topology = parse(argv)
    # Only the host computes here; the chips are described, not used.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if args.quick or args.search:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    if args.search:
        found = search.search(config, topology, _say)
        print(report.describe_search(found, args.config, topology))
        figures = report.search_as_json(found, args.config, topology)
        fits = bool(found)
    else:
        made = make_plan(config, topology, _say)
        print(report.describe(made, args.config, topology))
        figures = report.as_json(made, args.config, topology)
        fits = made.fits
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if fits else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
