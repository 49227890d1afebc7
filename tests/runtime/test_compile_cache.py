"""What is kept of compiled programs, and that a run can do without."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from medclip_jax.runtime.compile_cache import CompileCache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def start(tmp_path):
    """Begins a run that keeps its programs under tmp_path."""
    before = {name: jax.config.values[name] for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: CompileCache(tmp_path)
    for name, value in before.items():
        jax.config.update(name, value)
    CompileCache._ours = ""


def compiled(folder, number):
    """The entry of a program that nobody else compiles."""
    before = set(folder.iterdir())
    jax.jit(lambda x: x * number + 1)(jnp.ones(3)).block_until_ready()
    new = set(folder.iterdir()) - before
    return next(file for file in new if file.name.endswith("-cache"))


def test_half_an_entry_is_removed_by_the_next_start(start, tmp_path):
    """jax only warns where its write fails, as on a disk that is full."""
    cache, folder = start(), tmp_path / "compiled"
    whole, half = compiled(folder, 1234.5), compiled(folder, 5432.1)
    half.write_bytes(half.read_bytes()[:-10])
    cache.note_whole()
    assert whole.name in json.loads((folder / "whole.json").read_text())
    start()
    assert whole.exists()
    assert not half.exists()


def test_a_run_goes_on_without_its_folder(start, tmp_path, caplog):
    cache = start()
    compiled(tmp_path / "compiled", 77.7)
    shutil.rmtree(tmp_path / "compiled")
    cache.note_whole()
    cache.note_whole()
    said = [record.message for record in caplog.records]
    assert len([line for line in said if "not kept for a restart" in line]) == 1


def test_what_xla_keeps_besides_is_not_kept(start):
    start()
    assert jax.config.values["jax_persistent_cache_enable_xla_caches"] == "none"
