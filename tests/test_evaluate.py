"""`medclip-jax evaluate` on a simulated hospital, from raw files to the report."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines import prepare
from data_pipelines.hospital import simulate
from medclip_jax import cli, evaluate, evaluate_options, train
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.weights import pretrained

pytestmark = pytest.mark.slow

SMALL = [
    "data.image_size=32",
    "data.crop_from=36",
    "data.text_length=16",
    "data.min_patients=1",
    "model.image.width=8",
    "train.steps=2",
    "train.batch_size=8",
    "train.eval_every_steps=0",
    "checkpoint.best_metric=loss",
    "checkpoint.every_steps=2",
]


def train_small(config, workdir, shards, *more):
    flags = [f"--config.{override}" for override in (*SMALL, *more)]
    argv = ["--config", config, "--workdir", str(workdir), "--data", str(shards)]
    assert train.main([*argv, *flags]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards of a small hospital, a run of two steps and a ceiling of two."""
    root = tmp_path_factory.mktemp("evaluate")
    simulated = "--patients 70 --chexpert-patients 8 --seed 3 --size 64 --jobs 1 "
    simulated += "--test-fraction 0.5 --prevalence 1"
    assert simulate.main(["--out", str(root / "raw"), *simulated.split()]) == 0
    for name, folder in (("mimic_cxr", "mimic-cxr"), ("chexpert", "chexpert")):
        raw = str(root / "raw" / folder)
        argv = ["--dataset", name, "--raw", raw, "--out", str(root / "shards")]
        assert prepare.main([*argv, "--jobs", "1"]) == 0
    text = ("model.text.dim=16", "model.text.mlp=16", "data.vocab_size=300")
    train_small("configs/medclip.py:demo", root / "train", root / "shards", *text)
    train_small("configs/supervised.py:demo", root / "ceiling", root / "shards")
    return root


def arguments(made, out, *more):
    argv = ["--workdir", str(made / "train"), "--data", str(made / "shards")]
    return [*argv, "--out", str(out), "--minimum", "1", "--batch-size", "16", *more]


@pytest.fixture(scope="module")
def reported(made):
    out = made / "report"
    assert evaluate.main(arguments(made, out, "--ceiling", str(made / "ceiling"))) == 0
    return out


def test_every_protocol_has_figures_beside_chance_and_untrained(reported):
    results = json.loads((reported / "results.json").read_text())
    rows = {(row["protocol"], row["metric"]): row for row in results["rows"]}
    for name in (
        ("zero_shot_five", "accuracy"),
        ("zero_shot_findings", "auroc"),
        ("retrieval_image_to_text", "precision_at_1"),
        ("retrieval_text_to_image", "precision_at_1"),
        ("retrieval_exact/image_to_text", "recall_at_1"),
    ):
        row = rows[name]
        assert 0 <= row["value"] <= 1 and 0 < row["chance"] < 1
        assert row["untrained"] is not None and row["n"] > 4
    head = rows["zero_shot_five", "accuracy"]
    assert head["low"] <= head["value"] <= head["high"]
    assert head["pixels_logistic"] > 0 and head["supervised"] is not None
    assert results["prompt_overlap"] == 0
    assert results["training_sentences_checked"] > 50
    assert results["same_data_as_training"] is True
    assert results["simulated"] is True
    assert results["skipped"]["zero_shot_five on chexpert"] == (
        "it has no films in the split test"
    )
    assert all(row["definition"] and row["data"] for row in results["rows"])


def test_the_report_is_whole_and_says_that_it_is_simulated(reported):
    page = (reported / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "Simulated data" in page and "supervised network" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<img") >= 7 + 25


def test_the_same_seed_gives_the_same_results(made, reported, tmp_path):
    argv = arguments(made, tmp_path, "--ceiling", str(made / "ceiling"))
    assert evaluate.main(argv) == 0
    again = (tmp_path / "results.json").read_text()
    assert again == (reported / "results.json").read_text()


def test_images_without_reports_skip_retrieval_by_name(made, tmp_path, capsys):
    flags = arguments(made, tmp_path, "--split", "train", "--views", "all")
    flags[flags.index("--data") + 1] = str(made / "shards" / "chexpert")
    assert evaluate.main(flags) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (
        results["skipped"]["retrieval_exact on chexpert"]
        == "this split has no report text"
    )
    assert "not run: retrieval_exact" in capsys.readouterr().out


def test_a_supervised_run_is_asked_what_needs_no_text(made, tmp_path):
    flags = arguments(made, tmp_path, "--protocols", "retrieval_image_to_image")
    flags[flags.index("--workdir") + 1] = str(made / "ceiling")
    assert evaluate.main(flags) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["protocol"] for row in rows} == {"retrieval_image_to_image"}


def test_published_weights_of_the_image_tower_stand_beside(made, tmp_path):
    opened = run_lib.open_run(made / "train")
    collections = {
        "params": opened.variables["params"]["image"]["encoder"],
        "batch_stats": opened.variables["batch_stats"]["image"],
    }
    state = pretrained.converter("resnet").to_torch(collections)
    weights = tmp_path / "resnet.safetensors"
    save_file({name: np.ascontiguousarray(v) for name, v in state.items()}, weights)
    flags = arguments(made, tmp_path, "--protocols", "retrieval_image_to_image")
    assert evaluate.main([*flags, "--imagenet", str(weights)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    # These are the trained tower's own weights, so the two figures are one.
    assert rows and all(row["imagenet"] == row["value"] for row in rows)
    wanted = f"--imagenet: expected {tmp_path / 'none'} to exist"
    with pytest.raises(UserError, match=re.escape(wanted)):
        evaluate.main([*flags, "--imagenet", str(tmp_path / "none")])


def test_a_split_without_films_is_told(made, tmp_path):
    flags = arguments(made, tmp_path, "--split", "test")
    flags[flags.index("--data") + 1] = str(made / "shards" / "chexpert")
    with pytest.raises(UserError, match=r"no films|has films in the split 'test'"):
        evaluate.main(flags)


def test_user_errors_end_with_2_and_say_what_to_do(made, tmp_path, capsys):
    cases = {
        "no protocol begins with 'probe'": ["--protocols", "probe"],
        "expected one that classifies films": ["--ceiling", str(made / "train")],
        "--draws must be at least 1": ["--draws", "0"],
    }
    for message, more in cases.items():
        assert cli.run(evaluate.main, arguments(made, tmp_path / "x", *more)) == 2
        assert message in capsys.readouterr().err
    argv = arguments(made, tmp_path / "x", "--minimum", "150")
    assert cli.run(evaluate.main, [*argv, "--protocols", "zero_shot_five"]) == 2
    assert re.search(r"at least 150 films.*Edema \d+", capsys.readouterr().err)
    flags = arguments(made, tmp_path / "x")
    flags[flags.index("--workdir") + 1] = str(made / "ceiling")
    assert cli.run(evaluate.main, [*flags, "--protocols", "zero_shot"]) == 2
    assert "reads no text" in capsys.readouterr().err


def test_help_tells_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate_options.parser().parse_args(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown and "(default test)" in shown
