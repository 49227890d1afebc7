"""The command line of `medclip-jax train`, checked before anything is loaded."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from medclip_jax import config_flags, storage
from medclip_jax.errors import UserError
from medclip_jax.runtime import cluster, hosts
from medclip_jax.runtime.checkpoint import quiet_failures

DESCRIPTION = """\
Pretrain a model on prepared shards, or go on with a run in the same workdir.

The workdir gets config.json, data.json, metrics.jsonl (one line a logged step),
tensorboard/, tokenizer/ and checkpoints/. Stop it with Ctrl-C or SIGTERM: it saves
and exits 0. Start the same command again to go on, also after a crash."""

EXAMPLES = """\
examples:
  small model, minutes on two CPU cores:
    medclip-jax train --config medclip.py:demo --workdir runs/demo --data shards
  MedCLIP with Swin-Tiny, other batch size and length:
    medclip-jax train --config configs/medclip.py:swin --workdir runs/swin \\
        --data shards --config.train.batch_size=256 --config.train.steps=20000
  parameters split over 4 devices, the batch over all:
    medclip-jax train --config clip.py:vit --workdir runs/clip --data shards \\
        --config.mesh.fsdp=4
  many hosts: the same command on each, on a TPU pod or started by SLURM:
    srun medclip-jax train --config clip.py:vit --workdir /mnt/runs/clip \\
        --data /mnt/shards
  everything on a bucket, copied to each host's own disk as far as it is needed:
    medclip-jax train --config clip.py:vit --workdir gs://bucket/runs/clip \\
        --data gs://bucket/shards --stage /mnt/disk/stage
  many hosts by their addresses; the second has --process_id 1, and so on:
    medclip-jax train --config clip.py:vit --workdir /mnt/runs/clip \\
        --data /mnt/shards --coordinator node1:9911 --num_processes 4 --process_id 0

Any key of the config can be set by --config.KEY=VALUE; --show_config lists them."""


def parser() -> argparse.ArgumentParser:
    """The options; `--config.KEY=VALUE` is left to `parse`."""
    parser = argparse.ArgumentParser(
        prog="medclip-jax train",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="a config file, or a shipped one from anywhere: "
        + ", ".join(config_flags.shipped()),
    )
    parser.add_argument(
        "--workdir", type=storage.argument, help="where the run lives; may be gs://"
    )
    parser.add_argument(
        "--data", type=storage.argument, help="what `medclip-jax prepare` wrote"
    )
    parser.add_argument(
        "--stage",
        type=storage.local_argument,
        metavar="DIR",
        help="copy what this host will read to its own disk first; needed where --data "
        "is gs://",
    )
    parser.add_argument("--seed", type=int, help="short for --config.seed")
    parser.add_argument(
        "--show_config", action="store_true", help="print the config and leave"
    )
    hosts = parser.add_argument_group(
        "many hosts",
        "Cloud TPU, SLURM and Open MPI are detected. Elsewhere give these three, or "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the "
        "environment. All hosts share the workdir.",
    )
    hosts.add_argument("--coordinator", help="HOST:PORT of process 0; a free port")
    hosts.add_argument("--num_processes", type=int, help="how many there are")
    hosts.add_argument("--process_id", type=int, help="which one this is, from 0 on")
    hosts.add_argument(
        "--one_process",
        action="store_true",
        help="this process alone, whatever the environment says",
    )
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, ConfigDict]:
    """Options, and the config with its overrides.

    Raises:
      UserError: an option or key that there is not.
    """
    args, rest = parser().parse_known_args(argv)
    overrides = []
    remaining = iter(rest)
    for option in remaining:
        if not option.startswith("--config."):
            raise UserError(f"unknown option {option!r}; see medclip-jax train --help.")
        if "=" not in option:
            option = f"{option}={next(remaining, '')}"
        overrides.append(option.removeprefix("--config."))
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    return args, config_flags.load_config(args.config, overrides)


def join(args: argparse.Namespace, config: ConfigDict) -> str:
    """Joins the other processes of the run, where there are any.

    Returns:
      What was joined, to be added to a line of the log; empty for a run of one.

    Raises:
      UserError: as `cluster.find` and `hosts.join`.
    """
    if args.one_process:
        return ""
    found = cluster.find(
        os.environ, args.coordinator, args.num_processes, args.process_id
    )
    if found is None:
        return ""
    hosts.join(found, config.hosts.join_seconds, config.hosts.heartbeat_seconds)
    return (
        f"; joined by {found.source}. A host that dies or stands still ends all of "
        f"them within about {config.hosts.heartbeat_seconds:g} seconds; the same "
        "command then goes on."
    )


def set_up_logging() -> None:
    """Plain lines on stderr, without Orbax's tens of lines a save."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet_failures()


def check(args: argparse.Namespace, config: ConfigDict) -> None:
    """Finds what is wrong with paths and counts.

    Raises:
      UserError: a path that is not given, not there or not to be reached, or a
        count below 1.
    """
    for option in ("workdir", "data"):
        path = getattr(args, option)
        if path is None:
            raise UserError(f"--{option} is required; see medclip-jax train --help.")
        storage.check(path)
    if storage.is_remote(args.data) and args.stage is None:
        raise UserError(
            f"--data {args.data}: a request for each film would keep the devices "
            "waiting. Add --stage DIR, a folder on this host's own disk, or mount the "
            "bucket (for instance with gcsfuse) and name the mount."
        )
    if args.stage is not None:
        storage.make_folder(args.stage)
    if not args.data.exists():
        raise UserError(
            f"--data {args.data} is not there. Make shards with `medclip-jax prepare`."
        )
    for group, key in (
        ("train", "steps"),
        ("train", "log_every_steps"),
        ("checkpoint", "every_steps"),
    ):
        if config[group][key] < 1:
            raise UserError(f"{group}.{key}={config[group][key]}: expected at least 1.")
    for key in ("join_seconds", "heartbeat_seconds", "meet_seconds"):
        if config.hosts[key] < 1:
            raise UserError(f"hosts.{key}={config.hosts[key]}: expected at least 1.")
    storage.make_folder(args.workdir)
