"""The folder of a simulation: what it holds, whether it may go on or grow."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from data_pipelines.hospital.benchmarks import LAYOUTS
from data_pipelines.hospital.writer import Settings
from medclip_jax.errors import UserError

VERSION = 1
"""Of what a simulation's bytes look like; a new one never continues an older."""

RECORD = "simulation.json"
PARTS = ".parts"


def open_folder(root: Path, settings: Settings) -> str:
    """Makes or checks the folder.

    Args:
      root: the folder.
      settings: what it should hold.

    Returns:
      "complete" where it already holds exactly that; "grows" where all but the sets
      of `benchmarks/` is complete; else "unfinished".

    Raises:
      UserError: it holds something else.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"--out: expected a folder, found the file {root}.")
    record = root / RECORD
    if not record.exists():
        if root.exists() and any(root.iterdir()):
            raise UserError(
                f"--out: expected a new or empty folder, or an unfinished simulation, "
                f"found {root} with other files; give another folder."
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: cannot make {root}: {error.strerror}.") from error
        write_record(root, settings, complete=False)
        return "unfinished"
    try:
        found = json.loads(record.read_text("utf-8"))
        past = {"version": found["version"], **found["settings"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{record}: expected the record of a simulation, found something else; "
            "give another folder."
        ) from error
    now = {"version": VERSION, **asdict(settings)}
    changed = [
        f"{name} {past.get(name)} there, {now.get(name)} asked for"
        for name in sorted(past.keys() | now.keys())
        if past.get(name) != now.get(name)
    ]
    grown = past.pop("benchmarks", 0) < settings.benchmarks
    now.pop("benchmarks")
    if found.get("complete") and grown and past == now:
        shutil.rmtree(root / PARTS, ignore_errors=True)
        write_record(root, settings, complete=False, grows=True)
        return "grows"
    if changed:
        raise UserError(
            f"{root} holds a different simulation ({'; '.join(changed)}); give another "
            "folder, or remove this one."
        )
    if found.get("complete"):
        return "complete"
    return "grows" if found.get("grows") else "unfinished"


def write_record(
    root: Path, settings: Settings, complete: bool, grows: bool = False
) -> None:
    record = {"version": VERSION, "complete": complete, "settings": asdict(settings)}
    if grows:
        record["grows"] = True
    write_whole(root / RECORD, json.dumps(record, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half written."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)


def check_space(root: Path, settings: Settings) -> None:
    """Refuses a simulation that the disk cannot hold."""
    films = 4.3 * (settings.patients + settings.chexpert_patients)
    films += 1.5 * len(LAYOUTS) * settings.benchmarks
    needed = films * (0.45 * 1.2 * settings.size**2 + 8192)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"--out: expected about {needed / 1e9:.1f} GB of free space for {films:.0f} "
            f"films, found {free / 1e9:.1f} GB; take fewer patients or a smaller size."
        )
