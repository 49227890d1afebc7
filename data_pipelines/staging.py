"""The folder of unfinished work, and how a finished dataset takes its place.

`OUT/.NAME.incomplete` holds all work; `OUT/NAME` appears by one rename. Whatever
kills a build, the next one either finds the finished dataset or goes on.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import records
from medclip_jax.errors import UserError

ABOUT = "fingerprint.json"


def work_folder(out: Path, name: str) -> Path:
    return out / f".{name}.incomplete"


def finished(target: Path, arguments: dict[str, Any]) -> dict | None:
    """The description of a finished dataset made with the same arguments, if any.

    Raises:
      UserError: there is a dataset of other arguments or another schema, or a folder
        that is no dataset.
    """
    if not target.exists():
        return None
    try:
        about = json.loads((target / ABOUT).read_text())
    except (OSError, ValueError):
        if target.is_dir() and {p.name for p in target.iterdir()} <= {
            "rejected.csv",
            "warnings.csv",
        }:
            return None  # left by a build with too many rejected records
        raise UserError(
            f"{target} exists and is no prepared dataset; choose another --name or "
            "--out, or remove it"
        ) from None
    differences = []
    if about.get("schema_version") != records.SCHEMA_VERSION:
        differences.append(
            f"schema {about.get('schema_version')}, now {records.SCHEMA_VERSION}"
        )
    was = about.get("arguments", {})
    for key, value in arguments.items():
        if was.get(key) != value:
            differences.append(f"{key} was {was.get(key)!r}, now {value!r}")
    if differences:
        raise UserError(
            f"{target} was prepared otherwise: {'; '.join(differences)}. Give "
            "--overwrite to prepare it anew, or --name for a second one"
        )
    return about


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Makes the work folder and holds it against a second build.

    Raises:
      UserError: another build is at work there, or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot write to {work.parent} ({error.strerror}); choose another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another `medclip-jax prepare` is writing {work}; wait for it"
            ) from None
        yield


def begin(work: Path, arguments: dict[str, Any], fresh: bool) -> bool:
    """Clears the work folder unless it holds work for the same arguments.

    Returns:
      Whether there is earlier work to go on with.
    """
    path = work / "arguments.json"
    wanted = {**arguments, "schema_version": records.SCHEMA_VERSION}
    try:
        same = json.loads(path.read_text()) == json.loads(json.dumps(wanted))
    except (OSError, ValueError):
        same = False
    if same and not fresh:
        _forget_rejections(work / "parts")
        return (work / "parts").is_dir()
    for child in work.iterdir():
        if child.name == "lock":
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    path.write_text(json.dumps(wanted))
    return False


def _forget_rejections(parts: Path) -> None:
    """Has parts that rejected something made again: the raw files may be mended."""
    for done in parts.glob("*.json"):
        try:
            if json.loads(done.read_text())["rejected"]:
                done.unlink()
        except (ValueError, KeyError):
            done.unlink()


def publish(final: Path, target: Path, work: Path) -> None:
    """Puts the finished folder in its place and removes the work folder."""
    old = work / "replaced"
    if target.exists():
        target.rename(old)
    try:
        final.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    # Not fatal: everything of value has left the work folder.
    shutil.rmtree(work, ignore_errors=True)


def sync(path: Path) -> None:
    """Forces a file to the disk, so that a power cut cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
