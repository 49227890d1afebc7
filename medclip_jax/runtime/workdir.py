"""What a workdir remembers of its run, and whether a new command may go on with it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medclip_jax import storage
from medclip_jax.errors import UserError

CONFIG, DATA = "config.json", "data.json"
Differences = Callable[
    [Mapping[str, Any], Mapping[str, Any]], list[tuple[str, Any, Any]]
]


def write_json(path: Path, data: Any) -> None:
    """Writes a file at once: a reader sees the old one or the new one."""
    storage.write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
      UserError: it is not there, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there: {path.parent} is no workdir of `medclip-jax train`."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}.") from error


def check_config(
    workdir: Path, config: Mapping[str, Any], differences: Differences
) -> None:
    """Refuses to go on in a workdir that another config made.

    Args:
      workdir: may be new.
      config: the wanted config as JSON data.
      differences: of two configs, the keys that matter.

    Raises:
      UserError: listing the keys that differ.
    """
    if not (workdir / CONFIG).exists():
        return
    found = differences(read_json(workdir / CONFIG), config)
    if found:
        lines = "\n".join(f"  {key}: {was!r} -> {now!r}" for key, was, now in found)
        raise UserError(
            f"{workdir} holds a run of another config. What differs (there -> here):\n"
            f"{lines}\nUse its config to go on, or another --workdir. (train.steps may "
            "grow, and keys that only say how to run or watch may change.)"
        )


def check_data(workdir: Path, data: Mapping[str, Any]) -> None:
    """Refuses to go on with other data than the run began with.

    Args:
      workdir: may be new.
      data: {"fingerprint": str, "datasets": {name: fingerprint}}.

    Raises:
      UserError: naming the datasets that differ.
    """
    if not (workdir / DATA).exists():
        return
    old = read_json(workdir / DATA)
    if old["fingerprint"] == data["fingerprint"]:
        return
    before, after = old["datasets"], data["datasets"]
    lines = [
        f"  {name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ] or [f"  reader: {old['fingerprint']} -> {data['fingerprint']}"]
    raise UserError(
        f"{workdir} holds a run on other data. Fingerprints (there -> here):\n"
        + "\n".join(lines)
        + "\nUse the same shards to go on, or another --workdir."
    )
