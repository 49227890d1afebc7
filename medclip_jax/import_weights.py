"""Import: an official state dict -> a workdir that evaluate and export open."""

import argparse
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from ml_collections import ConfigDict

from medclip_jax import cli, config_flags, storage
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.methods import registry
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.state import TrainState
from medclip_jax.weights import biovil, files, gloria, medclip, mgca

HELP = """examples:
  medclip-jax import --weights medclip-vit/pytorch_model.bin \\
      --tokenizer emilyalsentzer/Bio_ClinicalBERT --out runs/medclip-vit
  medclip-jax evaluate --workdir runs/medclip-vit --data shards --out report
  medclip-jax import --weights gloria/state_dict.pt \\
      --tokenizer emilyalsentzer/Bio_ClinicalBERT --out runs/gloria
  medclip-jax import --weights biovil_t_image_model_proj_size_128.pt pytorch_model.bin \\
      --tokenizer microsoft/BiomedVLP-BioViL-T --out runs/biovil_t

The weights of MedCLIP, GLoRIA, MGCA, CXR-BERT, BioViL and BioViL-T are known, told apart
by their keys. CXR-BERT is the text model's file alone. GLoRIA's and MGCA's checkpoints
pickle settings beside their weights, and nothing but tensors is read here. Where their
own environment is at hand, save these alone:
  python -c "import torch; torch.save(torch.load('chexpert_resnet50.ckpt')['state_dict'],
      'state_dict.pt')"

A folder that `medclip-jax export` wrote is imported from its SYSTEM_official/ (of BioViL
and BioViL-T from image_model and text_model in it, of CXR-BERT from text_model).
The official tokenizer lower-cases although its vocabulary is cased: so does this one
unless --keep_case is given. Other sizes than the published ones by --config.KEY=VALUE,
as in train."""

LAYOUTS = (medclip, gloria, mgca, biovil)


def main(argv: list[str] | None = None) -> int:
    args, rest = parser().parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    storage.check(args.out)
    if (args.out / workdir_lib.CONFIG).exists():
        raise UserError(f"--out {args.out} is a workdir already; name another folder")
    state = read_all(args.weights)
    named = " with ".join(map(str, args.weights))
    layout = layout_of(state, named)
    config = make_config(layout, state, rest, args.text_pool)
    tokenizer = Tokenizer.load(args.tokenizer, None if args.keep_case else True)
    config.model.text.tokenizer = str(args.tokenizer)
    run_lib.set_vocab_size(config, tokenizer)
    method = registry.build(config)
    target = meta.unbox(
        jax.eval_shape(run_lib.initializer(config, method), jax.random.key(0))
    )
    variables, report = layout.from_torch(state, target)
    report.require(named)
    source = fingerprint(args.weights)
    save(args.out, config, variables, tokenizer, source, layout.NOTICE)
    print(
        f"{config.model.image.name} and {config.model.text.name} in {args.out}; "
        f"{len(report.ignored)} computed tables left out"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the verb; `--config.KEY=VALUE` is left to `make_config`."""
    out = argparse.ArgumentParser(
        "medclip-jax import",
        description="Makes a workdir from an official state dict.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--weights",
        required=True,
        nargs="+",
        type=storage.local_argument,
        help="pytorch_model.bin or its folder; of BioViL and BioViL-T two, the image "
        "model's and the text model's",
    )
    out.add_argument("--tokenizer", required=True, help="folder or hub name")
    out.add_argument(
        "--out", required=True, type=storage.argument, help="the workdir to make"
    )
    out.add_argument(
        "--text_pool",
        choices=sorted(set(medclip.TEXT_POOL.values())),
        help="of MedCLIP; default: layers_1_2_last with Swin, pooler with ResNet, which "
        "is what each was trained with as far as is known",
    )
    out.add_argument(
        "--keep_case", action="store_true", help="the tokenizer's own casing"
    )
    return out


def read_all(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """The arrays of all files by key.

    Raises:
      UserError: a file cannot be read, or two hold the same key.
    """
    state: dict[str, np.ndarray] = {}
    for path in paths:
        more = files.read(path)
        if both := sorted(state.keys() & more.keys()):
            raise UserError(
                f"{path} holds {both[0]}, as another of --weights does: expected files of "
                "different parts of a model"
            )
        state |= more
    return state


def layout_of(state: Mapping[str, np.ndarray], path: str) -> Any:
    """The module of `LAYOUTS` that knows a state dict.

    Raises:
      UserError: none does.
    """
    for layout in LAYOUTS:
        if layout.recognises(state):
            return layout
    anchors = " or ".join(layout.ANCHOR for layout in LAYOUTS)
    raise UserError(
        f"{path}: expected an official state dict of MedCLIP, GLoRIA, MGCA, CXR-BERT, "
        f"BioViL or BioViL-T, with a key such as {anchors}; found {len(state)} keys, "
        f"the first of which are {sorted(state)[:3]}"
    )


def make_config(
    layout: Any,
    state: Mapping[str, np.ndarray],
    options: list[str],
    text_pool: str | None,
) -> ConfigDict:
    """The config of the published model.

    Args:
      layout: of `layout_of`.
      state: arrays by key.
      options: `--config.KEY=VALUE` each.
      text_pool: overrides what goes with MedCLIP's image encoder.

    Raises:
      UserError: an option or key that there is not.
    """
    for option in options:
        if not option.startswith("--config.") or "=" not in option:
            raise UserError(f"unknown option {option!r}; see medclip-jax import --help")
    if text_pool and layout is not medclip:
        raise UserError("--text_pool is of MedCLIP's weights; these are others")
    overrides = [
        "model.dtype=float32",
        *layout.options(state),
        *([f"medclip.text_pool={text_pool}"] if text_pool else []),
        *(option.removeprefix("--config.") for option in options),
    ]
    return config_flags.load_config(layout.recipe(state), overrides)


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256 of the weights that were read, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in filter(Path.is_file, inside):
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def save(
    workdir: Path,
    config: ConfigDict,
    variables: dict[str, Any],
    tokenizer: Tokenizer,
    source: str,
    notice: str,
) -> None:
    """Writes a workdir whose only checkpoint is step 0, without optimizer state."""
    storage.make_folder(workdir)
    storage.remove(workdir / run_lib.TOKENIZER)
    run_lib.save_tokenizer(tokenizer, workdir)
    data = {
        "fingerprint": source,
        "datasets": {"published weights": source},
        "notices": {"published weights": notice},
    }
    workdir_lib.write_json(workdir / workdir_lib.DATA, data)
    variables = jax.tree.map(jnp.asarray, variables)
    with Checkpoints(
        workdir / run_lib.CHECKPOINTS, config.checkpoint.best_metric
    ) as checkpoints:
        state = TrainState(jnp.int32(0), variables, {"none": jnp.int32(0)})
        checkpoints.save(0, state, {"pending": None}, {})
        checkpoints.wait()
    # Last: a folder without it is no workdir yet.
    workdir_lib.write_json(workdir / workdir_lib.CONFIG, config_flags.to_json(config))


if __name__ == "__main__":
    sys.exit(cli.run(main))
