"""The networks that an evaluation holds side by side.

"trained" is the checkpoint; "untrained" the same network before its first step;
"imagenet" that one with published ImageNet weights in its image tower; "supervised" a
classifier of another run, whose image features are retrieved and probed beside.
"""

import functools
import hashlib
import json
from pathlib import Path

import jax

from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Abilities
from medclip_jax.inputs import augment
from medclip_jax.methods.interface import ClassifiesFilms
from medclip_jax.runtime.workdir import read_json
from medclip_jax.weights import pretrained


def make(
    run: run_lib.Run,
    batch_size: int,
    cache: Path | None,
    imagenet: Path | None = None,
    supervised: run_lib.Run | None = None,
) -> dict[str, Network]:
    """The networks by name, "trained" first.

    Args:
      run: the checkpoint in question.
      batch_size: films or texts at a time.
      cache: folder that keeps features; None keeps none.
      imagenet: weights of the image tower, see `weights.pretrained.load_encoder`.
      supervised: a run whose method classifies films.

    Raises:
      UserError: weights that do not fit the image tower.
    """
    embedder = embedder_of(run, batch_size)
    reads_text = hasattr(run.method, "embed_texts")
    untrained = run_lib.untrained(run)
    networks = {
        "trained": Network("trained", embedder, run.variables, reads_text, cache),
        "untrained": Network("untrained", embedder, untrained, reads_text, cache),
    }
    if imagenet is not None:
        image = {**run.config.model.image.to_dict(), "pretrained": str(imagenet)}
        variables, _ = pretrained.load_into(untrained, run.method, {"image": image})
        shardings = jax.tree.map(lambda leaf: leaf.sharding, untrained)
        placed = jax.device_put(variables, shardings)
        networks["imagenet"] = Network("imagenet", embedder, placed, False, cache)
    if supervised is not None:
        networks["supervised"] = Network(
            "supervised",
            embedder_of(supervised, batch_size),
            supervised.variables,
            False,
            cache,
        )
    return networks


def embedder_of(run: run_lib.Run, batch_size: int) -> Embedder:
    """Inference of a run's method on its own films and texts."""
    config = run.config
    normalize = functools.partial(
        augment.normalize, mean=config.data.mean, std=config.data.std
    )
    reads = {
        "model": config.model.to_dict(),
        "method": config.method,
        "film": [config.data.image_size, config.data.mean, config.data.std],
    }
    signature = json.dumps(reads, sort_keys=True, default=str)
    return Embedder(
        run.method,
        normalize,
        run.tokenizer,
        config.data.text_length,
        batch_size,
        progress=True,
        signature=hashlib.sha256(signature.encode()).hexdigest(),
    )


def abilities(run: run_lib.Run) -> Abilities:
    """What the method of a run can do."""
    size = run.config.data.image_size
    film = {"current_BxHxWx3": jax.ShapeDtypeStruct((1, size, size, 3), "float32")}
    reads_films, local = hasattr(run.method, "embed_images"), False
    if reads_films:
        images = jax.eval_shape(run.method.embed_images, run.variables, film)
        local = images.local_BxPxD is not None
    return Abilities(
        reads_text=hasattr(run.method, "embed_texts"),
        reads_films=reads_films,
        pooling=getattr(run.method, "prompt_pooling", "mean"),
        not_given=run.config.data.not_given,
        zscore=getattr(run.method, "prompt_zscore", False),
        local=local,
    )


def open_supervised(workdir: Path) -> run_lib.Run:
    """Opens a supervised run.

    Raises:
      UserError: there is none, or its method classifies nothing.
    """
    run = run_lib.open_run(workdir)
    if not isinstance(run.method, ClassifiesFilms):
        raise UserError(
            f"--ceiling {workdir} holds a run of method {run.config.method!r}; "
            "expected one that classifies films, such as supervised"
        )
    return run


def trained_on(run: run_lib.Run) -> dict[str, str]:
    """Name and fingerprint of the data sets that a run was trained on."""
    return read_json(run.workdir / "data.json").get("datasets", {})
