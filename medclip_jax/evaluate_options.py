"""The options of `medclip-jax evaluate`."""

import argparse

from data_pipelines.findings import SPLITS
from medclip_jax import storage
from medclip_jax.errors import UserError
from medclip_jax.evaluation import five_class
from medclip_jax.evaluation.protocols import PROTOCOLS

EXAMPLES = """examples:
  medclip-jax evaluate --workdir runs/demo/train --data runs/demo/shards \\
      --out runs/demo/report
  medclip-jax evaluate --workdir runs/demo/train --data runs/demo/shards \\
      --protocols all --out runs/demo/report_all
  medclip-jax evaluate --workdir runs/swin --data shards --protocols retrieval \\
      --step 20000 --out runs/swin/report

DIR/report.html needs no network; DIR/results.json and DIR/results.md hold the figures.
"""


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    out = argparse.ArgumentParser(
        "medclip-jax evaluate",
        description="Runs evaluation protocols on a checkpoint, beside chance and "
        "beside the untrained network, and writes a report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = out.add_argument
    path = storage.argument  # local or gs://
    add("--workdir", required=True, type=path, help="of `medclip-jax train`")
    add("--data", required=True, type=path, metavar="DIR", help="prepared data sets")
    add("--out", required=True, type=path, metavar="DIR", help="folder for the report")
    add(
        "--protocols",
        default="zero_shot,retrieval",
        help="all, or comma-separated beginnings of protocol names (default "
        f"zero_shot,retrieval; there are {', '.join(PROTOCOLS)})",
    )
    add("--step", default="best", help="best, latest or a step (default best)")
    add("--split", default="test", choices=SPLITS, help="(default test)")
    add("--per-class", type=int, default=200, metavar="N",
        help="most films, and sentences, of each of the five classes "
        "(default 200)")  # fmt: skip
    add("--minimum", type=int, default=10, metavar="N",
        help="fewer films of a class than this are no five-class set "
        "(default 10)")  # fmt: skip
    add("--rule", default="loose", choices=five_class.RULES,
        help="loose: exactly one of the five positive, other findings free; "
        "chexpert_5x200: the other eight absent too (default loose)")  # fmt: skip
    add("--uncertain", default="disqualify", choices=five_class.UNCERTAIN_AS,
        help="an uncertain label where one must be absent: disqualify (GLoRIA) or "
        "zero (MedCLIP) (default disqualify)")  # fmt: skip
    add("--views", default="frontal", choices=("frontal", "all"),
        help="frontal leaves out lateral and other views (default frontal)")  # fmt: skip
    add("--by-view", action="store_true",
        help="the 14 findings within each view as well; for data whose findings go "
        "with the view")  # fmt: skip
    add("--prompts-per-class", type=int, default=10, metavar="N", help="(default 10)")
    add("--draws", type=int, default=5, metavar="N",
        help="prompt draws to average over (default 5)")  # fmt: skip
    add("--max-films", type=int, default=2000, metavar="N",
        help="most films for the 14 findings and for exact retrieval "
        "(default 2000)")  # fmt: skip
    add("--ceiling", type=path, metavar="WORKDIR",
        help="run of method supervised, measured on the same films")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N",
        help="subsets of the labels that a linear probe is fitted on (default 5)")  # fmt: skip
    add("--tune-steps", type=int, default=100, metavar="N",
        help="most steps of a fine-tuning, of which there are six a data set and "
        "network (default 100, for a CPU; papers train for thousands); 0: no "
        "fine-tuning, of films, masks or sentence pairs")  # fmt: skip
    add("--tune-draws", type=int, default=1, metavar="N",
        help="subsets of the labels that are fine-tuned on (default 1; ConVIRT 5)")  # fmt: skip
    add("--queries", type=storage.local_argument, metavar="DIR",
        help="ConVIRT's lists of films and sentences for retrieval: the folder with "
        "image-retrieval/ and text-retrieval/")  # fmt: skip
    add("--imagenet", type=storage.local_argument, metavar="FILE",
        help="ImageNet weights of the image tower (torchvision .pth or .safetensors, or "
        "a Hugging Face folder), as a further baseline")  # fmt: skip
    add("--features", default="", metavar="DIR",
        help="where features are kept for the next evaluation (default "
        "WORKDIR/features; none: nowhere)")  # fmt: skip
    add("--batch-size", type=int, default=64, metavar="N", help="(default 64)")
    add("--seed", type=int, default=0, help="of every draw (default 0)")
    add("--show-text", action="store_true",
        help="show query text in the report also when it is not simulated; report "
        "text is protected health information")  # fmt: skip
    add("--allow-prompt-overlap", action="store_true",
        help="go on when training sentences equal evaluation prompts")  # fmt: skip
    return out


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a number out of range, or a file in the report's place."""
    names = ("per_class", "minimum", "prompts_per_class", "draws", "max_films",
             "batch_size", "seeds", "tune_steps", "tune_draws")  # fmt: skip
    for name in names:
        flag, least = name.replace("_", "-"), 0 if name == "tune_steps" else 1
        if getattr(args, name) < least:
            raise UserError(
                f"--{flag} must be at least {least}, found {getattr(args, name)}"
            )
    for name in ("queries", "imagenet"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            raise UserError(f"--{name}: expected {path} to exist, found nothing there")
    for path in (args.workdir, args.data, args.out):
        storage.check(path)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; expected a folder to write to")
