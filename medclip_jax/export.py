"""Export: checkpoint -> PyTorch and Hugging Face files, with proof of parity.

What is written: the encoders in the layouts of `transformers` (ResNet: of torchvision;
BioViL-T's encoder: of microsoft/hi-ml), the projections, the tokenizer, a model in
PyTorch that uses them, the state dict of the system's official code where the model fits
it, and a model card. `--verify` loads the written files in PyTorch and holds all that
the model gives against JAX.
"""

import argparse
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

from medclip_jax import (
    cli,
    config_flags,
    export_official,
    export_release,
    export_settings,
    storage,
)
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation import report
from medclip_jax.export_parity import EXAMPLES, verify
from medclip_jax.inputs import catalog
from medclip_jax.models.swin import Swin
from medclip_jax.runtime import cluster
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.metrics import METRICS, last_values
from medclip_jax.weights import (
    bert,
    biovil,
    files,
    huggingface,
    model_card,
    pretrained,
)

MARKER = "medclip_jax.json"
TORCH_MODEL = Path(__file__).parent / "weights" / "torch_model"
# Of encoders that transformers does not have.
MODEL_TYPES = {"resnet": "torchvision_resnet", "hybrid": "biovil_t_image_encoder"}

HELP = """examples:
  medclip-jax export --workdir runs/demo/train --out runs/demo/export --verify
  medclip-jax export --workdir runs/swin --out swin --step 20000 --data shards \\
      --results runs/swin/report --verify --tolerance 1e-5
  medclip-jax export --workdir gs://bucket/runs/swin --out gs://bucket/swin --public

Every method is exported. DIR/README.md says what was written and how to use it;
DIR/torch_model/ needs torch, transformers and Pillow alone. What it gives:
  CLIP, ConVIRT, MedCLIP, SigLIP  vectors of films and texts, and their scores
  GLoRIA, MGCA, BioViL, BioViL-L  regions of films besides, and (but for BioViL) words
  BioViL-T                        the same, of films with or without the film before
  CXR-BERT, BioViL, BioViL-L      words that may stand at [MASK]
  SimCLR, MoCo v2, supervised     features of films; projections, or logits of findings
The official state dicts lie in DIR/SYSTEM_official/ (MedCLIP, GLoRIA, MGCA, BioViL,
BioViL-T, CXR-BERT), where the model fits them; `medclip-jax import` reads them."""


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
    export_settings.kind_of(run)
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
        help=f"reload in PyTorch and compare what it gives of {EXAMPLES} films and "
        "texts: vectors, scores, and what else the method gives; exit 1 when they "
        "differ",
    )
    out.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference that --verify lets pass (default 1e-4): absolute, or "
        "of the longest vector's length where vectors are of any length",
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
      run: of a method that `export_settings.kind_of` knows.
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
    remarks = []
    for tower in export_settings.towers_of(run):
        remarks += _write_encoder(run, variables, tower, draft / f"{tower}_encoder")
        if tower == "text":
            with storage.local(run.workdir / run_lib.TOKENIZER) as tokenizer:
                shutil.copytree(tokenizer, draft / "tokenizer")
    heads = export_settings.heads(variables)
    files.write_safetensors(heads, draft / "projection.safetensors")
    shutil.copytree(
        TORCH_MODEL, draft / "torch_model", ignore=shutil.ignore_patterns("__pycache__")
    )
    official, lines = export_official.write(run, variables, draft)
    remarks += [*lines, *left_out(run, variables), *small_grids(run)]
    about = {
        **export_settings.settings(run, variables),
        "official": official,
        "notices": dict(notices),
    }
    workdir_lib.write_json(draft / MARKER, about)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)
    return remarks


def _write_encoder(
    run: run_lib.Run, variables: Mapping[str, Any], tower: str, folder: Path
) -> list[str]:
    name, params = run.config.model[tower].name, variables["params"]
    fields = export_settings.fields_of(getattr(run.method, f"{tower}_encoder"))
    folder.mkdir()
    if tower == "text" and biovil.names_words(params):
        state, architecture = biovil.masked_words(params), "BertForMaskedLM"
    else:
        collections = {"params": params[tower]["encoder"]}
        for collection, value in variables.items():
            if collection != "params" and tower in value:
                collections[collection] = value[tower]
        state, architecture = pretrained.converter(name).to_torch(collections), None
    remarks = []
    if fields.get("one_position"):
        # `BertModel` numbers its positions: alike rows give every token the first.
        state = bert.same_positions(state)
        fields["one_position"] = False
        remarks.append(
            "text_encoder: all rows of its table of positions are the first one "
            "(model.text.one_position), so that BertModel sees no order"
        )
    files.write_safetensors(state, folder / files.SAFETENSORS)
    if name in huggingface.KNOWN:
        size = export_settings.image_side(run) if tower == "image" else None
        config = huggingface.to_config(name, fields, size)
        if architecture:
            config["architectures"] = [architecture]
    else:
        config = {"model_type": MODEL_TYPES[name], **fields}
    workdir_lib.write_json(folder / "config.json", config)
    return remarks


def left_out(run: run_lib.Run, variables: Mapping[str, Any]) -> list[str]:
    """What of a method's state is of use in training alone."""
    if run.config.method == "moco":
        line = (
            "the key encoder and the queue are not written: image_encoder/ and "
            "projection.safetensors are the query encoder's"
        )
        return [line]
    params = variables["params"]
    if "masked_words" in params and not biovil.names_words(params):
        line = (
            "the head that names words needs a film here, as no published layout does; "
            "it is not written"
        )
        return [line]
    return []


def small_grids(run: run_lib.Run) -> list[str]:
    """Stages of a Swin whose grid is smaller than its window: `transformers` 5 cannot
    run those, while here (and in transformers 4.24) such a grid is one window."""
    encoder = getattr(run.method, "image_encoder", None)
    if not isinstance(encoder, Swin):
        return []
    lines, side = [], -(-export_settings.image_side(run) // encoder.patch)
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
