"""What a new run starts from: another run, published weights, or its seed alone."""

import logging
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medclip_jax import run as run_lib
from medclip_jax import storage
from medclip_jax.errors import UserError
from medclip_jax.methods.interface import Method, Variables
from medclip_jax.runtime.state import replace_leaves
from medclip_jax.runtime.workdir import DATA, read_json
from medclip_jax.weights import pretrained

log = logging.getLogger(__name__)


STARTED_FROM = "started_from"
_PUBLISHED = (
    "Published weights that training started from: their terms, and those of the data "
    "that they were made from, apply."
)


def origin(config: ConfigDict) -> dict[str, dict[str, str]]:
    """The data that the initial weights come from, for the new run's data.json.

    Args:
      config: of the new run.

    Returns:
      Name to {"fingerprint", "notice"}; the notice is "" where none is known. The data
      of the run that `init_from` names, those which that one started from, and
      published weights.
    """
    found = {}
    if config.get("init_from", ""):
        data = read_json(storage.path(config.init_from) / DATA)
        for name, fingerprint in data["datasets"].items():
            notice = data.get("notices", {}).get(name, "")
            found[f"{name} (init_from)"] = _origin(fingerprint, notice)
        return found | data.get(STARTED_FROM, {})
    for tower in ("image", "text"):
        if source := config.model.get(tower, {}).get("pretrained", ""):
            found[f"{source} (pretrained)"] = _origin("-", _PUBLISHED)
    return found


def _origin(fingerprint: str, notice: str) -> dict[str, str]:
    return {"fingerprint": fingerprint, "notice": notice}


def load(
    config: ConfigDict, method: Method, variables: Variables
) -> tuple[Variables, list[str]]:
    """Replaces random initial values by those that the config names.

    `init_from`, the workdir of another run, comes before `model.image.pretrained`
    and `model.text.pretrained`.

    Args:
      config: of the new run.
      method: built from it.
      variables: on the devices, as initialised.

    Returns:
      The variables where they were, and lines for the log.

    Raises:
      UserError: weights that do not fit; all keys are listed.
    """
    if config.get("init_from", ""):
        return _from_run(config.init_from, variables)
    loaded, lines = pretrained.load_into(variables, method, config.model.to_dict())
    return jax.tree.map(_place, variables, loaded), lines


def _place(old: jax.Array, new: Any) -> jax.Array:
    """The new value where the old one lies; what was not replaced stays."""
    if isinstance(new, jax.Array):
        return new
    value = np.asarray(new, old.dtype)
    return jax.make_array_from_callback(value.shape, old.sharding, lambda i: value[i])


def _from_run(workdir: str, variables: Variables) -> tuple[Variables, list[str]]:
    """All leaves of another run's best checkpoint that have a namesake here."""
    other = run_lib.open_run(workdir)
    values = jax.tree.map(np.asarray, other.variables)
    replaced, unfit = replace_leaves(variables, values)
    taken = len(jax.tree.leaves(values)) - len(unfit)
    if not taken:
        raise UserError(
            f"init_from={workdir}: nothing of that run fits this model:\n  "
            + "\n  ".join(unfit)
        )
    lines = [f"starting from {workdir}, step {other.step}: {taken} arrays taken"]
    lines += [f"not taken: {line}" for line in unfit]
    return replaced, lines
