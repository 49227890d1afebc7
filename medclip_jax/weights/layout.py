"""How a PyTorch state dict and a tree of variables name the same numbers.

Each architecture gives one rule, from the path of a leaf to the key and the kind of
its tensor; both directions follow from it. Trees and dicts are compared name by name,
and whatever does not fit is reported, never skipped.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medclip_jax.errors import UserError

Variables = dict[str, Any]
StateDict = dict[str, np.ndarray]
Path = tuple[str, ...]


class Place(NamedTuple):
    """Attributes:
    key: name in the state dict.
    kind: one of KINDS, how the tensor lies there.
    """

    key: str
    kind: str = "same"


Rule = Callable[[Path], Place]

# kind -> (from torch to flax, from flax to torch)
KINDS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda x: x, lambda x: x),
    # [out, in] <-> [in, out]
    "linear": (np.transpose, np.transpose),
    # [out, in, height, width] <-> [height, width, in, out]
    "conv": (
        lambda x: np.transpose(x, (2, 3, 1, 0)),
        lambda x: np.transpose(x, (3, 2, 0, 1)),
    ),
    # [out, in, 1, 1] <-> [in, out]
    "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    # [out, in, 1] <-> [in, out]
    "pointwise_1d": (lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]),
    # [1, rows, columns] <-> [rows, columns]
    "batched": (lambda x: x[0], lambda x: x[None]),
    # [rows, 1, columns] <-> [rows, columns]
    "rows": (lambda x: x[:, 0], lambda x: x[:, None]),
    # [1, channels, 1, 1] <-> [channels]
    "channels": (lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What did not go over one to one, by key of the state dict.

    Attributes:
      missing: needed, not found.
      unexpected: found, not known.
      mismatched: (key, shape found, shape needed), in PyTorch's order of axes.
      ignored: found and left out on purpose (tables that are computed, other heads).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every number needed was found and every one found was known."""
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """One line a key that does not fit."""
        return [
            *(f"missing: {key}" for key in self.missing),
            *(f"unexpected: {key}" for key in self.unexpected),
            *(
                f"mismatched: {key} has shape {list(found)}, needed {list(needed)}"
                for key, found, needed in self.mismatched
            ),
        ]

    def require(self, what: str) -> None:
        """Refuses weights that do not fit.

        Args:
          what: names the weights in the message.

        Raises:
          UserError: naming every key that does not fit.
        """
        if not self.fits:
            lines = "\n  ".join(self.lines())
            raise UserError(
                f"{what} does not fit the configured model. Change the model's fields "
                f"to those of the weights, or take other weights:\n  {lines}"
            )


def flatten(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, Any]:
    """Leaves of nested mappings by path."""
    leaves: dict[Path, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, (*path, name)))
        else:
            leaves[(*path, name)] = value
    return leaves


def unflatten(leaves: Mapping[Path, Any]) -> Variables:
    """Nested dicts from leaves by path."""
    tree: Variables = {}
    for path, value in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def from_torch(
    state: Mapping[str, np.ndarray],
    target: Mapping[str, Any],
    rule: Rule,
    ignore: Iterable[str] = (),
) -> tuple[Variables, Report]:
    """Fills a tree of variables from a state dict.

    Args:
      state: arrays by key, spelled as the rule spells them.
      target: variables of the shapes needed, unboxed; arrays or ShapeDtypeStructs.
        Leaves that are missing or mismatched keep the target's value.
      rule: of the architecture.
      ignore: regular expressions, matched at the start of keys that are left out.

    Returns:
      A tree like the target, float32 where it was filled, and the report.
    """
    patterns = [re.compile(pattern) for pattern in ignore]
    leaves, used, missing, mismatched = {}, set(), [], []
    for path, leaf in flatten(target).items():
        place = rule(path)
        leaves[path] = leaf
        used.add(place.key)
        if place.key not in state:
            missing.append(place.key)
            continue
        array = np.asarray(state[place.key])
        needed = _torch_shape(leaf.shape, place.kind)
        if array.shape != needed:
            mismatched.append((place.key, array.shape, needed))
            continue
        converted = KINDS[place.kind][0](array)
        leaves[path] = np.ascontiguousarray(converted, np.float32).reshape(leaf.shape)
    rest = [key for key in state if key not in used]
    ignored = {key for key in rest if any(p.match(key) for p in patterns)}
    return unflatten(leaves), Report(
        missing=tuple(missing),
        unexpected=tuple(key for key in rest if key not in ignored),
        mismatched=tuple(mismatched),
        ignored=tuple(key for key in rest if key in ignored),
    )


def to_torch(variables: Mapping[str, Any], rule: Rule) -> StateDict:
    """A state dict from variables.

    Args:
      variables: unboxed arrays.
      rule: of the architecture.

    Returns:
      Contiguous float32 arrays by key, in the order of the tree.
    """
    state: StateDict = {}
    for path, leaf in flatten(variables).items():
        place = rule(path)
        if place.key in state:
            raise AssertionError(f"two leaves are named {place.key}")
        array = np.asarray(leaf, np.float32)
        # `reshape` because ascontiguousarray makes a scalar one-dimensional.
        out = KINDS[place.kind][1](array)
        state[place.key] = np.ascontiguousarray(out).reshape(out.shape)
    return state


def _torch_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    return KINDS[kind][1](np.broadcast_to(np.float32(0), shape)).shape


def respell(
    state: Mapping[str, np.ndarray], renames: Iterable[tuple[str, str]]
) -> StateDict:
    """The state dict with keys rewritten by regular expressions, in order.

    Raises:
      UserError: two keys would become the same.
    """
    rules = [(re.compile(pattern), new) for pattern, new in renames]
    out: StateDict = {}
    for key, value in state.items():
        name = key
        for pattern, new in rules:
            name = pattern.sub(new, name)
        if name in out:
            raise UserError(
                f"the weights hold {name} twice, under two spellings; one is {key}"
            )
        out[name] = value
    return out


# LayerNorm parameters of checkpoints that were once TensorFlow's.
OLD_NORM_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))


# Matrices of query, key and value in one tensor: timm's, and MultiheadAttention's.
_FUSED = re.compile(r"\.(qkv\.|in_proj_)(weight|bias)$")
_PARTS = ("query", "key", "value")


def parted(state: Mapping[str, np.ndarray]) -> StateDict:
    """The state dict with each fused tensor KEY as KEY/query, KEY/key and KEY/value."""
    out: StateDict = {}
    for key, value in state.items():
        if _FUSED.search(key):
            parts = np.split(np.asarray(value), len(_PARTS))
            out |= {f"{key}/{of}": part for of, part in zip(_PARTS, parts, strict=True)}
        else:
            out[key] = value
    return out


def rejoined(state: Mapping[str, np.ndarray]) -> StateDict:
    """The inverse of `parted`."""
    out: StateDict = {}
    for name, value in state.items():
        key, _, part = name.partition("/")
        if not part:
            out[key] = value
        elif key not in out:
            out[key] = np.concatenate([state[f"{key}/{of}"] for of in _PARTS])
    return out


def strip_prefix(
    state: Mapping[str, np.ndarray], prefixes: Iterable[str], anchor: str
) -> StateDict:
    """Takes the encoder out of a model that holds it under a prefix.

    Args:
      state: arrays by key.
      prefixes: prefixes to try, in order.
      anchor: a key that the encoder has for sure.

    Returns:
      The state dict with the prefix taken off the keys that have it; unchanged when
      the anchor stands under none.
    """
    for prefix in prefixes:
        if prefix + anchor in state:
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def unknown_leaf(architecture: str, path: Path) -> AssertionError:
    """What a rule raises for a leaf that it has no place for."""
    return AssertionError(f"{architecture} has no place for {'/'.join(path)}")
