"""The command `medclip-jax VERB`."""

import importlib
import signal
import sys
import traceback
from collections.abc import Callable

from medclip_jax import __version__
from medclip_jax.errors import UserError
from medclip_jax.runtime import host_memory

VERBS: dict[str, tuple[str, str]] = {
    "simulate": (
        "data_pipelines.hospital.simulate",
        "write a simulated hospital in the layouts of MIMIC-CXR-JPG and CheXpert",
    ),
    "prepare": (
        "data_pipelines.prepare",
        "turn raw films and reports into ArrayRecord shards and a study table",
    ),
    "label": (
        "data_pipelines.reports.label",
        "extract the 14 findings from report text, or measure the extraction",
    ),
    "plan": (
        "medclip_jax.plan",
        "say whether a run fits a TPU pod or GPU cluster, and how fast it can be",
    ),
    "train": ("medclip_jax.train", "pretrain a model on prepared shards"),
    "evaluate": (
        "medclip_jax.evaluate",
        "run evaluation protocols on a checkpoint and write a report",
    ),
    "compare": (
        "medclip_jax.compare",
        "test whether two evaluated checkpoints differ",
    ),
    "import": (
        "medclip_jax.import_weights",
        "make a workdir from official weights, to evaluate or export",
    ),
    "export": (
        "medclip_jax.export",
        "write a checkpoint as PyTorch and Hugging Face files, and verify it",
    ),
}


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, (_, text) in VERBS.items())
    return (
        f"medclip-jax {__version__}: radiology image-text pretraining in JAX\n\n"
        "usage: medclip-jax VERB [options]\n\n"
        f"{verbs}\n\n"
        "`medclip-jax VERB --help` explains a verb and shows examples.\n"
        "The usual way: simulate (or your own data) -> prepare -> train -> evaluate "
        "-> export."
    )


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Calls a verb's `main` and turns what it raises into an exit status.

    Returns:
      0 on success, and where a run was told to stop and saved; 2 for what the same
      command would meet again (one message on stderr); else what may be worth another
      try: 1 for a `TryAgain` and for a fault of ours (with its trace), 130 when
      interrupted, 141 where what reads our output is gone.
    """
    try:
        return main(argv)
    except UserError as error:
        print(f"medclip-jax: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("medclip-jax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # what a shell makes of the signal
    except Exception as error:  # noqa: BLE001, the border of the program
        if str(error).startswith("RESOURCE_EXHAUSTED"):  # XLA's, of a device's memory
            print(
                "medclip-jax: error: the memory of a device does not suffice "
                f"({str(error).splitlines()[0][:200]}). Take smaller batches; `train` "
                "takes --config.train.micro_batches=N, --config.model.remat=true and "
                "--config.mesh.fsdp=N too, and `medclip-jax plan` says what fits.",
                file=sys.stderr,
            )
            return UserError.status
        traceback.print_exc()
        print(
            "medclip-jax: this is a fault of medclip-jax, not yours; please report "
            "the lines above (they hold no report text, but perhaps ids: take those out).",
            file=sys.stderr,
        )
        return 1


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if argv[0] not in VERBS:
        print(
            f"medclip-jax: error: unknown verb {argv[0]!r}; the verbs are "
            f"{', '.join(VERBS)}",
            file=sys.stderr,
        )
        return 2
    if argv[0] == "train":
        host_memory.keep_freed()
    module = importlib.import_module(VERBS[argv[0]][0])
    return run(module.main, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
