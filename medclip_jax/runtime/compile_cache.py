"""Compiled programs of a run, kept so that a restart need not compile again.

jax writes an entry in one go to its final name, so a process that is killed meanwhile
leaves half of one, which jax then refuses with a warning and never replaces (jax
0.10.2, `put` in jax/_src/lru_cache.py). And what it reads it does not check: it would
run what a turned bit made of a program. So a list is kept here of the entries that are
whole, each with its checksum; a start removes all others before jax looks. A run needs
none of this: where the folder cannot be used, it goes on without.
"""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from medclip_jax import storage
from medclip_jax.errors import UserError

log = logging.getLogger(__name__)

FOLDER, WHOLE = "compiled", "whole.json"


class CompileCache:
    """The compiled programs under a workdir, or where the user says.

    Where JAX_COMPILATION_CACHE_DIR names a folder it is the user's, perhaps of several
    runs, and only jax touches it. JAX_ENABLE_COMPILATION_CACHE=false switches the cache
    off. On a bucket, where an object is whole or absent, there is no list.

    Args:
      workdir: of the run; may be remote.
      is_main: whether this process removes and lists entries.
    """

    _ours = ""  # what this class told jax last, in this process

    def __init__(self, workdir: Path, is_main: bool = True):
        self._known: dict[str, int] | None = None
        self._folder = workdir / FOLDER
        named = jax.config.values["jax_compilation_cache_dir"]
        if (named and named != self._ours) or not jax.config.values[
            "jax_enable_compilation_cache"
        ]:
            return
        if not storage.is_remote(workdir):
            if is_main:
                storage.make_folder(self._folder)
                self._known = {}
                self._or_go_on(self._remove_unknown)
            # jax leaves out what compiles in less than a second; a start has tens of
            # those, and a local disk holds them for nothing.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # XLA's own caches, on a GPU, would lie in the same folder, unlisted; and what
        # writes them knows no bucket.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        compilation_cache.reset_cache()  # of an earlier run in this process
        CompileCache._ours = str(self._folder)
        jax.config.update("jax_compilation_cache_dir", self._ours)

    def note_whole(self) -> None:
        """Lists what is there; call it when nothing is being compiled."""
        if self._known is not None:
            self._or_go_on(self._list_new)

    def _or_go_on(self, function: Callable[[dict[str, int]], None]) -> None:
        try:
            function(self._known or {})
        except (OSError, UserError) as error:
            log.warning("compiled programs are not kept for a restart: %s", error)
            self._known = None

    def _list_new(self, known: dict[str, int]) -> None:
        new = [file for file in self._entries() if file.name not in known]
        if new:
            contents = {file.name: file.read_bytes() for file in new}
            known |= {
                name: zlib.crc32(content) if _is_whole(content) else -1
                for name, content in contents.items()
            }
            self._known = known
            storage.write_text(self._folder / WHOLE, json.dumps(known))

    def _remove_unknown(self, known: dict[str, int]) -> None:
        """Removes what is not whole; the rest becomes known."""
        try:
            listed = dict(json.loads((self._folder / WHOLE).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            listed = {}
        for file in self._entries():
            if listed.get(file.name) == zlib.crc32(file.read_bytes()):
                known[file.name] = listed[file.name]
            else:
                log.info("compiled again, for its file is not whole: %s", file.name)
                file.unlink(missing_ok=True)
        self._known = known

    def _entries(self) -> list[Path]:
        return [file for file in self._folder.iterdir() if file.name.endswith("-cache")]


def _is_whole(content: bytes) -> bool:
    """Whether an entry ends as it should: a disk that was full when jax wrote it leaves
    half of one, and jax only warns. It packs by zstandard where that is, else by zlib."""
    if not content.startswith(b"\x28\xb5\x2f\xfd"):
        packed = zlib.decompressobj()
        try:
            packed.decompress(content)
        except zlib.error:
            return False
        return packed.eof
    import zstandard  # jax had it when it wrote this

    try:
        zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError:
        return False
    return True
