"""What a checkpoint must be to be restored: its names, shapes, types and checksums.

Orbax casts types silently, reports one mismatch at a time, and leaves structs where a
partial restore found nothing.
"""

import json
import logging
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from medclip_jax.errors import UserError
from medclip_jax.runtime.sharding import leaf_name

log = logging.getLogger(__name__)


def leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of a tree of arrays, structs or Orbax metadata."""
    tree = getattr(tree, "tree", tree)
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape") and hasattr(node, "dtype")
    )[0]
    return {
        leaf_name(path): (tuple(leaf.shape), str(jax.numpy.dtype(leaf.dtype)))
        for path, leaf in flat
    }


def variables(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the method's variables, by their names among these."""
    prefix = "variables/"
    return {
        name.removeprefix(prefix): entry
        for name, entry in by_name.items()
        if name.startswith(prefix)
    }


def seal(meta: dict[str, Any], sums: dict[str, int]) -> dict[str, Any]:
    """What is stored as `meta`: with the checksums, and one of itself."""
    return {"meta": meta, "checksums": sums, "crc32": _crc32(meta, sums)}


def unseal(
    sealed: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """What `seal` was given.

    Raises:
      UserError: it is of a version that did not seal.
      KeyError, ValueError: it is damaged.
    """
    if not sealed.keys() & {"meta", "checksums", "crc32"}:
        raise UserError(
            f"{where} was written by an older version of this program, which took no "
            "checksums of its arrays; go on with that version, or start in another "
            "workdir"
        )
    meta, sums = sealed["meta"], sealed["checksums"]
    if sealed["crc32"] != _crc32(meta, sums):
        raise ValueError("its meta data differ from their checksum")
    return meta, sums


def _crc32(*facts: Any) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def check_same(saved: dict, wanted: dict, where: str) -> None:
    """Orbax casts dtypes silently and reports one mismatch at a time; we compare."""
    differences = [
        f"{name}: in the checkpoint only" for name in saved if name not in wanted
    ]
    differences += [f"{name}: missing in it" for name in wanted if name not in saved]
    for name in saved.keys() & wanted.keys():
        if saved[name] != wanted[name]:
            differences.append(f"{name}: found {saved[name]}, expected {wanted[name]}")
    if differences:
        raise UserError(
            f"{where} does not fit this config's model and optimizer "
            f"({len(differences)} differences). Use the config that made it "
            "(WORKDIR/config.json), or another workdir:\n  "
            + "\n  ".join(sorted(differences))
        )


def check_real(tree: Any) -> None:
    """Partial restores leave structs where they found nothing, without an error."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if absent := [leaf_name(p) for p, x in flat if not isinstance(x, jax.Array)]:
        raise RuntimeError(f"Orbax did not restore {absent}.")


def report(step: int, tree: Any, seconds: float) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    log.info("restored step %d: %.1f MB in %.1f s", step, size / 1e6, seconds)
