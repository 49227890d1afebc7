"""Who may import whom, and what a module may not do at import time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("medclip_jax", "data_pipelines", "configs")

# room -> rooms it may import; what is not listed may import anything.
ALLOWED = {
    "data_pipelines": {
        "data_pipelines",
        "medclip_jax.errors",
        "medclip_jax.storage",
        "medclip_jax.cli",
    },
    "medclip_jax.models": {"medclip_jax.models", "medclip_jax.errors"},
    "medclip_jax.losses": {"medclip_jax.losses", "medclip_jax.errors"},
    "medclip_jax.runtime": {
        "medclip_jax.runtime",
        "medclip_jax.errors",
        "medclip_jax.storage",
    },
    "medclip_jax.methods": {
        "medclip_jax.methods",
        "medclip_jax.models",
        "medclip_jax.losses",
        "medclip_jax.errors",
    },
    "medclip_jax.inputs": {
        "medclip_jax.inputs",
        "medclip_jax.errors",
        "medclip_jax.storage",
        "data_pipelines.records",
        "data_pipelines.annotations",
        "data_pipelines.findings",
    },
    "medclip_jax.evaluation": {
        "medclip_jax.evaluation",
        "medclip_jax.errors",
        "medclip_jax.storage",
        "medclip_jax.methods.interface",
        "data_pipelines.annotations",
        "data_pipelines.findings",
    },
    "medclip_jax.weights": {"medclip_jax.weights", "medclip_jax.errors"},
}


def modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, room):
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows(room):
    wrong = [
        f"{module} imports {name}"
        for module, path in modules()
        if within(module, room)
        for name in imports(path)
        if name.split(".")[0] in PACKAGES
        and not any(within(name, allowed) for allowed in ALLOWED[room])
    ]
    assert not wrong


def test_data_pipelines_run_without_jax():
    """Loading every module of data_pipelines loads no jax, and no TensorFlow."""
    names = [name for name, _ in modules() if name.startswith("data_pipelines")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print([m for m in ('jax', 'flax', 'tensorflow') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_command_line_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from medclip_jax.cli import main\n"
        "assert main(['--help']) == 0\n"
        "print([m for m in ('jax', 'numpy', 'apache_beam') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip().splitlines()[-1] == "[]"
