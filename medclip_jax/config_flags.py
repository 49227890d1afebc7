"""`--config FILE[:VARIANT]` and `--config.key=value`: loading, typing, comparing."""

import ast
import difflib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import configs
from medclip_jax.errors import UserError

# Keys that a restart in the same workdir may change: they alter how the run is done
# or watched, not what it computes. `train.steps` may grow.
FREE_KEYS = (
    "checkpoint.",
    "data.cache_bytes",
    "data.max_bad_rate",
    "data.prefetch",
    "data.workers",
    "hosts.",
    "mesh.",
    "model.attention",  # as this and the next two: another program, same function
    "model.remat",
    "model.scan_layers",
    "model.text.vocab_size",  # follows from the tokenizer
    "train.eval_every_steps",
    "train.eval_examples",
    "train.log_every_steps",
    "train.micro_batches",  # the gradient is the same
    "train.watchdog_seconds",
)


def shipped() -> list[str]:
    """Names of the configs that come with the package."""
    folder = Path(configs.__path__[0])
    names = sorted(path.stem for path in folder.glob("*.py"))
    return [name for name in names if name not in ("__init__", "common")]


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config and applies overrides.

    Args:
      name: path of a file, or name of a shipped config (`medclip`, `medclip.py`,
        `configs/medclip.py`), with an optional `:variant`.
      overrides: `key.sub=value` each.

    Returns:
      The locked config.

    Raises:
      UserError: no such file, variant or key, or a value of another type.
    """
    path, _, variant = name.partition(":")
    module = _module(path)
    try:
        config = module.get_config(variant or None)
    except ValueError as error:
        raise UserError(f"--config {name}: {error}") from error
    config.lock()
    for override in overrides:
        set_override(config, override)
    return config


def _module(path: str) -> ModuleType:
    file = Path(path)
    if file.suffix == ".py" and file.is_file():
        return _module_from_file(file)
    if file.stem in shipped() and file.parent.name in ("", "configs"):
        return importlib.import_module(f"configs.{file.stem}")
    close = difflib.get_close_matches(file.stem, shipped(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"--config {path}: no such file, and no shipped config of that name.{hint} "
        f"The shipped ones are {', '.join(shipped())}."
    )


def _module_from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config {file}: the file defines no get_config(arg).")
    return module


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, by name."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, (Mapping, ConfigDict)):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def set_override(config: ConfigDict, override: str) -> None:
    """Sets `key.sub=value`, read as the type of the default.

    Raises:
      UserError: no such key (with the closest one), or a value that does not fit.
    """
    key, equals, text = override.partition("=")
    known = dict(flatten(config))
    if key not in known:
        below = [name for name in known if name.startswith(f"{key}.")]
        if below:
            raise UserError(
                f"--config.{key} is a group; set one of its keys: "
                + ", ".join(f"--config.{name}" for name in below)
            )
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        same_leaf = [
            name for name in known if name.split(".")[-1] == key.split(".")[-1]
        ]
        hint = (same_leaf or close or [None])[0]
        raise UserError(
            f"--config.{key}: there is no such key in this config."
            + (f" Did you mean --config.{hint}?" if hint else "")
        )
    if not equals:
        raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE.")
    *parents, leaf = key.split(".")
    group = config
    for parent in parents:
        group = group[parent]
    value = parse_value(key, text, known[key])
    with group.ignore_type():
        group[leaf] = value


def parse_value(key: str, text: str, default: Any) -> Any:
    """Reads a value as the type of its default.

    Args:
      key: its dotted name, for the message.
      text: as written by the user.
      default: bool, int, float, str, tuple, or None (any Python literal).

    Raises:
      UserError: the text does not read as that type.
    """
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text.replace("_", ""))
        if isinstance(default, float):
            return float(text)
        if isinstance(default, str):
            return text
        if isinstance(default, (tuple, list)):
            return _tuple(text)
        return ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError) as error:
        kind = type(default).__name__
        raise UserError(
            f"--config.{key}={text}: expected {kind} (the default is {default!r})."
        ) from error


def _tuple(text: str) -> tuple[Any, ...]:
    """`a,b`, `(1, 2)` or `` as a tuple; bare words are strings."""
    if not text.strip("() "):
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(part.strip() for part in text.strip("()").split(","))
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON data; tuples become lists."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def from_json(data: Mapping[str, Any]) -> ConfigDict:
    """The config of `to_json`; lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: restore(item) for key, item in value.items()}
        if isinstance(value, list):
            return tuple(restore(item) for item in value)
        return value

    return ConfigDict(restore(data)).lock()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Keys that keep a run of `old` from going on as `new`.

    Args:
      old: `to_json` of the run's config.
      new: `to_json` of the wanted one.

    Returns:
      (key, old value, new value) of each; an absent value is the string "(absent)".
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    found = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key, "(absent)"), after.get(key, "(absent)")
        if was == now or key.startswith(FREE_KEYS):
            continue
        if key == "train.steps" and isinstance(was, int) and now > was:
            continue
        found.append((key, was, now))
    return found
