"""Export: checkpoint -> PyTorch and Hugging Face files, with proof of parity.

What is written: the two encoders in the layouts of `transformers` (ResNet: of
torchvision), the projections, the tokenizer, a model in PyTorch that uses them, the
official MedCLIP state dict where the model fits it, and a model card. `--verify`
loads the written files in PyTorch and holds its embeddings against those of JAX.
"""

import argparse
import dataclasses
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medclip_jax import cli, config_flags, export_release, storage
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation import report
from medclip_jax.export_parity import EXAMPLES, verify
from medclip_jax.inputs import catalog
from medclip_jax.methods.dual_encoder import DualEncoder
from medclip_jax.models.heads import ImageHead, TextHead
from medclip_jax.runtime import cluster
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.metrics import METRICS, last_values
from medclip_jax.weights import files, huggingface, medclip, model_card, pretrained

MARKER = "medclip_jax.json"
FORMAT_VERSION = 1
PROGRAM = ("dtype", "remat", "scan_layers", "attention")
"""Fields of an encoder that change how it is computed, not what."""
TORCH_MODEL = Path(__file__).parent / "weights" / "torch_model.py"

HELP = """examples:
  medclip-jax export --workdir runs/demo/train --out runs/demo/export --verify
  medclip-jax export --workdir runs/swin --out swin --step 20000 --data shards \\
      --results runs/swin/report --verify --tolerance 1e-5
  medclip-jax export --workdir gs://bucket/runs/swin --out gs://bucket/swin --public

DIR/README.md says what was written and how to load it; DIR/torch_model.py needs only
torch and transformers."""


def main(argv: list[str] | None = None) -> int:
    # --- Options and run ----------------------------------------------------------
    args = parser().parse_args(argv)
    cluster.refuse("export", os.environ)
    # Orbax warns of what `open_run` asks for on purpose.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if args.verify:
        _require_torch()
    storage.check(args.out)
    _require_replaceable(args.out)
    run = run_lib.open_run(args.workdir, args.step)
    rows = report.read_rows(args.results, run.step) if args.results else []
    two_towers(run)
    if args.data:
        storage.check(args.data)
    datasets = catalog.open_datasets(args.data) if args.data else []
    data, notices = export_release.provenance(run, datasets)
    release = export_release.decide(args.public, notices)

    # --- Files --------------------------------------------------------------------
    variables = jax.device_get(run.variables)
    with tempfile.TemporaryDirectory() as temporary:
        # What the libraries write and PyTorch reads are local files.
        is_remote = storage.is_remote(args.out)
        out = Path(temporary) / "export" if is_remote else args.out
        remarks = write(run, variables, out, notices)

        # --- Proof ----------------------------------------------------------------
        lines: list[str] = []
        passed = True
        if args.verify:
            lines, passed = verify(run, variables, out, datasets, args.tolerance)
            print("\n".join(lines))

        # --- Card -----------------------------------------------------------------
        card = model_card.model_card(
            workdir_lib.read_json(out / MARKER),
            config_flags.to_json(run.config),
            data,
            notices,
            release,
            last_values(run.workdir / METRICS),
            rows,
            lines,
            remarks,
        )
        (out / "README.md").write_text(card, encoding="utf-8")
        if is_remote:
            storage.remove(args.out)
            # The marker first: an upload that was cut short may then be replaced.
            storage.upload(out, args.out, first=MARKER)
    print(f"step {run.step} of {args.workdir} written to {args.out}")
    for remark in remarks:
        print(f"note: {remark}")
    print(f"model card: {args.out / 'README.md'}")
    return 0 if passed else 1


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    out = argparse.ArgumentParser(
        "medclip-jax export",
        description="Writes a checkpoint as PyTorch and Hugging Face files.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = storage.argument  # local or gs://
    out.add_argument("--workdir", required=True, type=path, help="of medclip-jax train")
    out.add_argument("--out", required=True, type=path, help="folder to write")
    out.add_argument(
        "--step", default="best", help="best (default), latest, or a step's number"
    )
    out.add_argument(
        "--data",
        type=path,
        help="prepared shards: notices for the model card, films and sentences for "
        "--verify (default: random ones)",
    )
    out.add_argument(
        "--results", type=path, help="results.json of medclip-jax evaluate, or its DIR"
    )
    out.add_argument(
        "--public",
        nargs="?",
        const=export_release.ASK,
        choices=(export_release.ASK, export_release.CONFIRMED),
        help="the files are for anyone: asks on the terminal whether the terms of the "
        "data allow it, unless all data are simulated; `--public confirmed` where there "
        "is no terminal",
    )
    out.add_argument(
        "--verify",
        action="store_true",
        help=f"reload in PyTorch and compare embeddings of {EXAMPLES} films and texts; "
        "exit 1 when they differ",
    )
    out.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest absolute difference that --verify lets pass (default 1e-4)",
    )
    return out


def write(
    run: run_lib.Run,
    variables: Mapping[str, Any],
    out: Path,
    notices: Mapping[str, str],
) -> list[str]:
    """Writes all files but the model card; replaces an earlier export.

    Args:
      run: of a two-tower method.
      variables: its variables, on the host.
      out: folder.
      notices: by data set, what who uses the weights is bound to.

    Returns:
      One line for each thing that does not fit a layout, or that who uses one must
      do otherwise than its code does.
    """
    draft = out.with_name(out.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write_encoder(run, variables, "image", draft / "image_encoder")
    _write_encoder(run, variables, "text", draft / "text_encoder")
    with storage.local(run.workdir / run_lib.TOKENIZER) as tokenizer:
        shutil.copytree(tokenizer, draft / "tokenizer")
    files.write_safetensors(heads(variables), draft / "projection.safetensors")
    shutil.copy(TORCH_MODEL, draft / "torch_model.py")
    remarks = _write_official(run, variables, draft / "medclip_official")
    remarks += small_grids(run)
    about = {**settings(run, variables), "notices": dict(notices)}
    workdir_lib.write_json(draft / MARKER, about)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)
    return remarks


def two_towers(run: run_lib.Run) -> DualEncoder:
    """The run's method.

    Raises:
      UserError: it has no image and text encoder.
    """
    if not isinstance(run.method, DualEncoder):
        raise UserError(
            f"{run.workdir} holds a run of method {run.config.method!r}; only methods "
            "with an image and a text encoder are exported"
        )
    heads = run.method.image_head, run.method.text_head
    if not (isinstance(heads[0], ImageHead) and isinstance(heads[1], TextHead)):
        raise UserError(
            f"{run.workdir} holds a run of method {run.config.method!r}; only methods "
            "whose heads take one vector of a film and of a text are exported"
        )
    return run.method


def fields_of(encoder: Any) -> dict[str, Any]:
    """All config fields of an encoder."""
    return {
        field.name: getattr(encoder, field.name)
        for field in dataclasses.fields(encoder)
        if field.name not in ("parent", "name", *PROGRAM)
    }


def _write_encoder(
    run: run_lib.Run, variables: Mapping[str, Any], tower: str, folder: Path
) -> None:
    name = run.config.model[tower].name
    fields = fields_of(getattr(two_towers(run), f"{tower}_encoder"))
    collections = {"params": variables["params"][tower]["encoder"]}
    for collection, value in variables.items():
        if collection != "params" and tower in value:
            collections[collection] = value[tower]
    folder.mkdir()
    state = pretrained.converter(name).to_torch(collections)
    files.write_safetensors(state, folder / files.SAFETENSORS)
    if name == "resnet":
        config = {"model_type": "torchvision_resnet", **fields}
    else:
        size = run.config.data.image_size if tower == "image" else None
        config = huggingface.to_config(name, fields, size)
    workdir_lib.write_json(folder / "config.json", config)


def heads(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The projections in PyTorch's layout: Linear weights are [out, in]."""
    state = {}
    for tower in ("image", "text"):
        leaves = jax.tree_util.tree_leaves_with_path(
            variables["params"][tower]["projection"]
        )
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            leaf = np.asarray(leaf, np.float32)
            key = f"{tower}_projection.{name}".replace("kernel", "weight")
            state[key] = np.ascontiguousarray(leaf.T)
    return state


def settings(run: run_lib.Run, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of the files must know beside the weights."""
    config, method, params = run.config, two_towers(run), variables["params"]
    image, text = fields_of(method.image_encoder), fields_of(method.text_encoder)
    return {
        "format_version": FORMAT_VERSION,
        "method": config.method,
        "step": run.step,
        "image": {"name": config.model.image.name, **image},
        "text": {"name": config.model.text.name, **text},
        "embed_dim": config.model.embed_dim,
        "image_size": config.data.image_size,
        "text_length": config.data.text_length,
        "mean": config.data.mean,
        "std": config.data.std,
        "text_pool": method.text_head.pool,
        "pool_padding": method.text_head.padding,
        "prompt_pooling": method.prompt_pooling,
        "scale": float(method.scale(dict(variables))),
        "bias": float(params.get("logit_bias", 0.0)),
        "data_fingerprint": run.fingerprint,
    }


def _write_official(
    run: run_lib.Run, variables: Mapping[str, Any], folder: Path
) -> list[str]:
    """The official MedCLIP state dict, if every parameter has a place in it."""
    image, method = run.config.model.image.name, two_towers(run)
    try:
        state, report = medclip.to_torch(variables, image)
    except UserError as error:
        return [f"medclip_official: {error}"]
    if not report.fits:
        return [f"medclip_official has no place for {key}" for key in report.unexpected]
    folder.mkdir()
    files.write_safetensors(state, folder / files.SAFETENSORS)
    remarks = []
    if importlib.util.find_spec("torch"):
        files.write_torch(state, folder / files.PICKLE)
    else:
        remarks.append(
            f"medclip_official/{files.PICKLE}: not written, PyTorch is not installed; "
            f"{files.SAFETENSORS} holds the same tensors"
        )
    pooled = method.text_head.pool == "layers_1_2_last" and method.text_head.padding
    if not pooled:
        remarks.append(
            "medclip_official: the official code pools texts by the mean of layers 1, "
            f"2 and last over padding too; this model pools by {method.text_head.pool}"
            f"{'' if method.text_head.padding else ' without padding'}, as torch_model.py"
            " does"
        )
    return remarks


def small_grids(run: run_lib.Run) -> list[str]:
    """Stages of a Swin whose grid is smaller than its window: `transformers` 5 cannot
    run those, while here (and in transformers 4.24) such a grid is one window."""
    if run.config.model.image.name != "swin":
        return []
    encoder, lines = two_towers(run).image_encoder, []
    side = -(-run.config.data.image_size // encoder.patch)
    for stage in range(len(encoder.depths)):
        if side < encoder.window:
            lines.append(
                f"image_encoder: stage {stage} has a grid of {side} x {side}, smaller "
                f"than the window of {encoder.window}; transformers' SwinModel does "
                "not run it"
            )
        side = -(-side // 2)
    return lines


def _require_torch() -> None:
    if not importlib.util.find_spec("torch"):
        raise UserError(
            "--verify needs PyTorch: pip install torch (for the CPU alone: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu)"
        )


def _require_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(
            f"--out {out} is not empty and is no earlier export (it has no {MARKER}); "
            "name another folder"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
