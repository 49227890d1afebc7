"""`medclip-jax plan`: topologies, counted plans, what is said of them."""

import importlib.util
import json
import math
import re

import jax
import numpy as np
import pytest

from medclip_jax import config_flags, plan, train_options
from medclip_jax.assemble import assemble
from medclip_jax.errors import UserError
from medclip_jax.inputs import catalog
from medclip_jax.inputs.reader import TrainInput, make_tokenizer
from medclip_jax.planning import counted as counted_lib
from medclip_jax.planning import estimate, search
from medclip_jax.runtime import topology
from medclip_jax.runtime.hlo import SLICES, Collective

QUIET = lambda line: None
DEMO = "--config=clip.py:demo"


@pytest.fixture(autouse=True)
def _keep_the_platform(monkeypatch):
    """A plan is made on the host alone; other tests want what there is."""
    jax.devices()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    before = jax.config.jax_platforms
    yield
    jax.config.update("jax_platforms", before)
    jax.config.update("jax_exec_time_optimization_effort", 0.0)


def config_of(name, *overrides):
    return config_flags.load_config(name, overrides)


def counted(name="clip.py:demo", shape="h100:8", slices=1, *overrides):
    where = topology.parse(shape, slices)
    return estimate.make_plan(config_of(name, *overrides), where, QUIET)


# --- topologies -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5x:2x2", 1, "generation of v4, v5e"),
        ("v5e", 1, "GENERATION:SHAPE"),
        ("v5e:2x2x2", 1, "2 dimensions; expected a shape such as v5e:4x4"),
        ("v5p:4x4", 1, "3 dimensions"),
        ("h100:2x4", 1, "GPUs of one node"),
        ("v5e:0x4", 1, "expected a shape"),
        ("v5e:2x2", 0, "--slices: expected 1 or more"),
    ],
)
def test_topologies_that_are_none(name, slices, message):
    with pytest.raises(UserError, match=message):
        topology.parse(name, slices)


def test_chips_of_a_topology():
    made = topology.parse("v5p:2x4x8", 3)
    assert (made.chips, made.is_tpu) == (192, True)
    assert made.chip.flops == 459e12
    assert topology.parse("7x:2x2x1").chip.flops == 2307e12  # of two devices


# --- counted plans ----------------------------------------------------------------


def test_parameters_and_optimizer_are_those_of_the_state():
    whole = counted()
    assembled = assemble(
        config_of("clip.py:demo"), topology.parse("h100:8").mesh({"data": -1})
    )
    variables = assembled.target.variables
    count = {
        name: sum(of.size for of in jax.tree.leaves(tree))
        for name, tree in variables.items()
    }
    assert whole.parameters == 4 * sum(count.values())  # batch statistics, too
    assert whole.optimizer == pytest.approx(8 * count["params"], rel=1e-3)
    split = counted("clip.py:demo", "h100:8", 1, "mesh.fsdp=8")
    # Norms and biases stay whole, matrices do not.
    assert split.parameters < whole.parameters / 6


def test_flops_are_counted_by_hand():
    config = config_of("clip.py:demo", "train.batch_size=64")
    made = assemble(config, topology.parse("h100:1").mesh({"data": -1}))
    encoders, loss = counted_lib.flops_of(made, config)
    dim, mlp, layers, length = 128, 256, 2, config.data.text_length
    whole = length * (4 * dim**2 + 2 * dim * mlp + 2 * length * dim)
    # Of the last layer only the first token's is read: its keys and values are all.
    last = 2 * length * dim**2 + 2 * dim**2 + 2 * dim * mlp + 2 * length * dim
    text = (layers - 1) * whole + last
    image = made.method.image_encoder.forward_flops(config.data.image_size)
    assert encoders >= 3 * 64 * (2 * text + image)
    assert encoders <= 1.01 * 3 * 64 * (2 * text + image)  # poolers, projections
    assert loss == 6 * 4 * 2 * 64 * 64 * config.model.embed_dim


def test_kept_activations_grow_with_the_batch_and_shrink_with_parts():
    one = counted("clip.py:demo", "h100:8", 1, "train.batch_size=256")
    two = counted("clip.py:demo", "h100:8", 1, "train.batch_size=512")
    parts = counted(
        "clip.py:demo", "h100:8", 1, "train.batch_size=512", "train.micro_batches=2"
    )
    state = one.parameters * 2 + one.optimizer
    assert two.peak - state == pytest.approx(2 * (one.peak - state), rel=0.02)
    assert parts.peak == one.peak
    remat = counted(
        "clip.py:demo", "h100:8", 1, "train.batch_size=512", "model.remat=true"
    )
    assert remat.peak < two.peak


def test_gradients_cross_slices_once_they_are_summed_inside():
    plan_of = counted("clip.py:demo", "h100:8", 4, "train.batch_size=512")
    by_axes = {of.axes: of for of in plan_of.collectives if of.kind == "all-reduce"}
    inside, between = by_axes["data"], by_axes[SLICES]
    assert (inside.devices, between.devices) == (8, 4)
    assert between.bytes == inside.bytes // 8
    network = plan_of.topology.chip.network_rate
    assert estimate.seconds(between, plan_of.topology) == between.sent / network


def test_a_permutation_takes_one_link_of_a_torus():
    where = topology.parse("v5p:2x2x2")
    one = Collective("collective-permute", "data", 8, 100, 1)
    all_links = Collective("all-gather", "data", 2, 200, 1)
    assert one.sent == all_links.sent
    slower = estimate.seconds(one, where) / estimate.seconds(all_links, where)
    assert slower == pytest.approx(6)


def test_time_is_the_longest_of_three():
    made = counted()
    parts = (made.compute_s, made.memory_s, made.network_s)
    assert made.step_s == max(parts)
    assert 0 < made.mfu <= 1
    assert made.pairs_per_second == made.batch_size / made.step_s


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=30"], "does not divide by the mesh"),
        (["mesh.fsdp=3"], "do not divide by 3"),
    ],
)
def test_what_does_not_divide(overrides, message):
    with pytest.raises(UserError, match=message):
        counted("clip.py:demo", "h100:8", 1, *overrides)


# --- the batch --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("clip", ()),
        ("medclip", ()),
        ("medclip", ("data.unpaired.texts_per_image=1.5",)),
        ("supervised", ()),
    ],
)
def test_the_abstract_batch_is_the_readers(name, more, tiny_data):
    small = ["data.image_size=32", "data.crop_from=36", "data.min_patients=2", *more]
    config = config_of(f"{name}.py:demo", *small, "train.batch_size=8")
    datasets = catalog.training_datasets(tiny_data, ())
    tokenizer = make_tokenizer(datasets, config.data)
    inputs = TrainInput(datasets, config.data, tokenizer, 0, 8)
    made = jax.tree.map(lambda of: (of.shape, of.dtype), inputs.batch(0))
    mesh = topology.parse("h100:1").mesh({"data": -1})
    told = estimate.abstract_batch(config, mesh)
    assert jax.tree.map(lambda of: (of.shape, np.dtype(of.dtype)), told) == made


# --- the program ------------------------------------------------------------------


def test_a_plan_that_fits(tmp_path, capsys):
    path = tmp_path / "new" / "plan.json"
    argv = [DEMO, "--topology=h100:8", "--batch=512", f"--json={path}"]
    assert plan.main(argv) == 0
    told = capsys.readouterr().out
    for part in ("fits", "parameters", "optimizer", "MFU", "any program must send"):
        assert part in told
    figures = json.loads(path.read_text())
    assert figures["fits"] is True
    assert figures["chips"] == 8
    assert figures["batch_size"] == 512
    assert figures["peak_bytes"] < figures["capacity_bytes"]
    assert math.isfinite(figures["step_seconds_at_least"])


def test_a_plan_that_does_not_fit_says_what_to_change(capsys):
    argv = [DEMO, "--topology=h100:1", "--batch=131072"]
    assert plan.main(argv) == 1
    told = capsys.readouterr().out
    assert "does not fit" in told
    parts = int(told.split("train.micro_batches=")[1].split()[0])
    assert "--config.model.remat=true" in told
    assert "--batch " in told
    # What is advised helps.
    assert plan.main([*argv, f"--config.train.micro_batches={parts}"]) == 0


def test_search_finds_the_largest_batch(capsys):
    argv = [DEMO, "--topology=h100:1", "--search"]
    assert plan.main(argv) == 0
    told = capsys.readouterr().out
    best = re.search(r"best, as `train` takes it: (.*)", told)[1].split()
    _, config = train_options.parse([DEMO, *best])  # each is an option of it
    batch = config.train.batch_size
    assert plan.main([DEMO, "--topology=h100:1", f"--batch={batch}"]) == 0
    assert plan.main([DEMO, "--topology=h100:1", f"--batch={batch * 9 // 8}"]) == 1


def test_search_splits_what_is_too_large_for_one_device():
    """Four H100 hold the optimizer of a very wide text tower; one does not."""
    config = config_of(
        "clip.py:demo",
        "model.text.dim=16384",
        "model.text.mlp=65536",
        "model.remat=true",
    )
    found = search.search(config, topology.parse("h100:8"), QUIET)
    assert found
    assert all(of.fits for of in found)
    assert min(of.mesh["fsdp"] for of in found) > 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([DEMO, "--topology=v9:2x2"], "generation"),
        ([DEMO, "--topology=h100:8", "--bach=3"], "unknown option '--bach=3'"),
        ([DEMO, "--topology=h100:8", "--config.mesh.fsdp"], "KEY=VALUE"),
        (["--config=clip.py:none", "--topology=h100:8"], "unknown variant"),
    ],
)
def test_refusals(argv, message):
    with pytest.raises(UserError, match=message):
        plan.main(argv)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        plan.main(["--help"])
    told = capsys.readouterr().out
    for part in ("examples:", "--search", "v5p:8x8x8", "h100:8", "Exit status 1"):
        assert part in told


# --- recipes, compiled for TPUs -----------------------------------------------------

SHALLOW = {
    "swin": "--config.model.image.depths=(1,1,2,1)",  # every width, one shifted
    "resnet": "--config.model.image.stage_sizes=(1,1,1,1)",
    "vit": "--config.model.image.depth=2",
}
RECIPES = {
    "medclip.py:swin": "swin",
    "medclip.py:resnet": "resnet",
    "clip.py:vit": "vit",
    "siglip.py:vit": "vit",
    "convirt.py:paper": "resnet",
    "cxr_bert.py:general": "resnet",
    "cxr_bert.py:matching": "resnet",
    "biovil.py:paper": "resnet",
    "biovil.py:local": "resnet",
    "biovil_t.py:paper": "resnet",
    "gloria.py:paper": "resnet",
    "mgca.py:paper": "vit",
    "mgca.py:resnet": "resnet",
    "supervised.py:resnet": "resnet",
    "simclr.py:paper": "resnet",
    "simclr.py:convirt": "resnet",
    "moco.py:paper": "resnet",
    "moco.py:convirt": "resnet",
}


# Two layers of text have three states to add up.
MORE = {"gloria.py:paper": ["--config.gloria.text_layers=3"]}


def test_every_full_size_recipe_is_among_them():
    """Variants that a config names, without the small ones."""
    for name in config_flags.shipped():
        with pytest.raises(UserError) as refused:
            config_of(f"{name}.py:no such variant")
        has = str(refused.value).split("this config has ")[1].split(" (written")[0]
        full = {of for of in has.split(", ") if of[:4] not in ("demo", "pack")}
        assert {of for of in RECIPES if of.startswith(f"{name}.py")} == {
            f"{name}.py:{variant}" for variant in full
        }


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install '.[tpu]'",
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_compile_for_a_tpu(recipe, tmp_path, capsys):
    """At full width, with two layers or one block a stage, parameters split."""
    path = tmp_path / "plan.json"
    argv = [f"--config={recipe}", "--topology=v5e:2x2", "--batch=64", f"--json={path}"]
    argv += [SHALLOW[RECIPES[recipe]], "--config.model.text.layers=2"]
    argv += ["--config.mesh.fsdp=2", "--quick", *MORE.get(recipe, ())]
    assert plan.main(argv) == 0, capsys.readouterr().out
    figures = json.loads(path.read_text())
    assert figures["compiled"]
    state = figures["parameter_bytes"] + figures["optimizer_bytes"]
    assert state < figures["peak_bytes"] < figures["capacity_bytes"]
    assert figures["memory_seconds"] > figures["compute_seconds"] > 0
    sent = sum(of["sent_bytes"] for of in figures["collectives"])
    least = sum(figures["sent_bytes_at_least"].values())
    # Who hides words reads the table of words in two passes and at the end, and each
    # sends the table's gradient whole, as an all-reduce over the four chips.
    config = config_of(recipe)
    table = 4 * config.model.text.vocab_size * 768 * 2 * 3 / 4 if "mlm" in config else 0
    # Were activations sent for want of whole parameters, it would be many times that.
    assert sent < 3 * least + 2 * table
