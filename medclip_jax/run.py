"""A run in a workdir, opened for evaluation, export, or to start another from."""

import dataclasses
import logging
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medclip_jax import config_flags, storage
from medclip_jax.errors import UserError
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.methods import registry
from medclip_jax.methods.interface import Method, Spec, Variables
from medclip_jax.runtime import sharding as sharding_lib
from medclip_jax.runtime import state as state_lib
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.runtime.checkpoint import Checkpoints
from medclip_jax.runtime.mesh import make_mesh

log = logging.getLogger(__name__)

TOKENIZER, CHECKPOINTS = "tokenizer", "checkpoints"
# Folded into the seed's key for the initial parameters; steps fold in small numbers.
_INIT = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model and all that is needed to use it.

    Attributes:
      workdir: where it was trained.
      config: its config.
      method: built from it.
      variables: unboxed, on the devices.
      tokenizer: of its texts.
      step: updates done.
      fingerprint: of its training data.
      mesh: where the variables lie.
    """

    workdir: Path
    config: ConfigDict
    method: Method
    variables: Variables
    tokenizer: Tokenizer
    step: int
    fingerprint: str
    mesh: Mesh


def spec(config: ConfigDict) -> Spec:
    """What shapes the method's parameters."""
    return Spec(config.data.image_size, config.data.text_length)


def init_key(seed: int) -> jax.Array:
    """The key of the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), np.uint32(_INIT))


def open_run(
    workdir: Path | str, which: str | int = "best", mesh: Mesh | None = None
) -> Run:
    """Opens a checkpoint of a workdir.

    Args:
      workdir: what `medclip-jax train` wrote.
      which: "best" by the config's metric (the latest where none was measured, which
        is logged), "latest", or a step.
      mesh: where to put it; by default all devices, parameters whole on each.

    Returns:
      The run.

    Raises:
      UserError: no workdir, no checkpoint, or one that does not fit its config.
    """
    workdir = storage.path(workdir)
    storage.check(workdir)
    config = config_flags.from_json(workdir_lib.read_json(workdir / workdir_lib.CONFIG))
    data = workdir_lib.read_json(workdir / workdir_lib.DATA)
    if not (workdir / TOKENIZER).is_dir():
        raise UserError(
            f"{workdir} has no {TOKENIZER}/, without which its texts cannot be read; "
            "copy the workdir again, whole"
        )
    with config.unlocked():
        config.model.attention = "plain"  # what this machine may not have
    mesh = mesh if mesh is not None else make_mesh({"data": -1})
    method = registry.build(config)
    checkpoints = Checkpoints(
        workdir / CHECKPOINTS, config.checkpoint.best_metric, read_only=True
    )
    step = _choose_step(checkpoints, which, workdir)
    variables = checkpoints.restore_variables(step, abstract(config, method, mesh))
    checkpoints.close()
    return Run(
        workdir=workdir,
        config=config,
        method=method,
        variables=variables,
        tokenizer=load_tokenizer(workdir),
        step=step,
        fingerprint=data["fingerprint"],
        mesh=mesh,
    )


def save_tokenizer(tokenizer: Tokenizer, workdir: Path) -> None:
    """Writes the tokenizer of a workdir: by one rename, or file by file to a bucket."""
    if storage.is_remote(workdir):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            storage.upload(Path(folder), workdir / TOKENIZER)
        return
    partial = workdir / f"{TOKENIZER}.partial"
    storage.remove(partial)
    tokenizer.save(partial)
    partial.rename(workdir / TOKENIZER)


def load_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a workdir."""
    with storage.local(workdir / TOKENIZER) as folder:
        return Tokenizer.load(folder)


def untrained(run: Run) -> Variables:
    """The same model before its first update: from its config and seed alone."""
    return state_lib.create_variables(
        init_key(run.config.seed), initializer(run.config, run.method), run.mesh
    )


def initializer(config: ConfigDict, method: Method):
    """key -> boxed variables of the config's shapes."""
    return lambda key: method.init(key, spec(config))


def abstract(config: ConfigDict, method: Method, mesh: Mesh) -> Variables:
    """Shapes and shardings of the variables, without making them."""
    boxed = jax.eval_shape(initializer(config, method), jax.random.key(0))
    plan = sharding_lib.plan(boxed, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        meta.unbox(boxed),
        plan.shardings,
    )


def _choose_step(checkpoints: Checkpoints, which: str | int, workdir: Path) -> int:
    latest = checkpoints.latest_step()
    if latest is None:
        raise UserError(
            f"{workdir} holds no complete checkpoint yet. Train first: medclip-jax "
            f"train --config ... --workdir {workdir} --data DIR"
        )
    if which == "latest":
        return latest
    if which == "best":
        best = checkpoints.best_step()
        if best is None:
            log.warning(
                "no checkpoint of %s was measured by %s; taking the latest, step %d",
                workdir,
                checkpoints.best_metric,
                latest,
            )
        return latest if best is None else best
    try:
        return int(which)
    except ValueError as error:
        raise UserError(
            f"checkpoint {which!r}: expected best, latest or one of the steps "
            f"{checkpoints.steps()}."
        ) from error


def set_vocab_size(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Makes the text encoder's table fit the tokenizer, and tells it which id hides a word.

    A trained tokenizer decides the size. A named one comes with published weights,
    whose table may be longer than its vocabulary, never shorter.

    Raises:
      UserError: the config's table is too short for the named tokenizer, or words are
        to be hidden and it has no [MASK].
    """
    text = config.model.text
    if "mlm" in config:
        config.mlm.mask_id = tokenizer.mask_id
    if not text.tokenizer:
        text.vocab_size = tokenizer.vocab_size
    elif text.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.text.vocab_size={text.vocab_size} is shorter than the tokenizer "
            f"{text.tokenizer}, which has {tokenizer.vocab_size} entries. Set "
            f"--config.model.text.vocab_size={tokenizer.vocab_size}."
        )
