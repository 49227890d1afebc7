"""Export of a checkpoint: what is written, and that PyTorch gives the same from it."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from medclip_jax import export, export_parity, export_settings
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.weights import files
from tests.exported import compared, make_config, make_run, run_export


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    return folder


CASES = [
    ("medclip", "resnet"),
    ("medclip", "swin"),
    ("medclip", "vit"),
    ("convirt", "resnet"),
    ("siglip", "swin"),
]


@pytest.mark.parametrize(("method", "image"), CASES)
def test_pytorch_gives_the_same(method, image, workdir, capsys):
    pytest.importorskip("torch")
    make_run(workdir, make_config(method, image))
    status, out = run_export(workdir, "--verify")
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert compared(printed) == {"image embeddings", "text embeddings", "scores"}
    assert "within the tolerance of 0.0001 (random films and token ids)" in printed
    card = (out / "README.md").read_text()
    for line in printed.splitlines():
        if line.startswith(("largest difference", "note: ")):
            assert line.removeprefix("note: ") in card
    official = (out / "medclip_official" / "model.safetensors").is_file()
    # ConVIRT's projections have two layers, SigLIP has a bias: no place for them.
    assert official == (method == "medclip" and image != "vit")


GLORIA = {
    "resnet": {"resize_to": 40, "unknown_id": 1},
    "vit": {"window": "characters", "similarity": "local", "text_layers": 1},
    "swin": {"words": {"attention": "regions", "unit": True, "sharpness": 2.0}},
}


@pytest.mark.parametrize("image", GLORIA)
def test_gloria_s_regions_words_and_scores(image, workdir, capsys):
    pytest.importorskip("torch")
    make_run(workdir, make_config("gloria", image, **GLORIA[image]))
    status, out = run_export(workdir, "--verify")
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert compared(printed) == {
        "image embeddings",
        "text embeddings",
        "regions over the longest one's length",
        "words over the longest one's length",
        "masks of words",
        "scores (global)",
        "scores (local)",
        "scores (both)",
    }
    assert (out / "gloria_official").is_dir() == (image == "resnet")
    settings = json.loads((out / "medclip_jax.json").read_text())
    assert settings["kind"] == "gloria" and settings["prompt_pooling"] == "max"
    config = json.loads((out / "image_encoder" / "config.json").read_text())
    assert image == "resnet" or config["image_size"] == 32


def test_gloria_s_words_of_sentences(workdir, tiny_data, capsys):
    """The exported tokenizer tells words and characters as an evaluation does."""
    pytest.importorskip("torch")
    make_run(workdir, make_config("gloria", window="characters"))
    status, out = run_export(workdir, "--verify", "--data", str(tiny_data))
    printed = capsys.readouterr().out
    assert status == 0 and compared(printed), printed
    assert "(films and sentences of mimic_cxr)" in printed
    texts = ["no [effusion].", "", "heart size " * 9]
    run = run_lib.open_run(workdir, "latest")
    ours = export_parity.encoded(run, texts)
    theirs = export_parity.load_torch_model(out).load(out).tokenize(texts)
    assert ours.keys() == export_parity.TOKENS.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[export_parity.TOKENS[name]], array)


@pytest.mark.parametrize(
    ("method", "image"), [("simclr", "resnet"), ("moco", "swin"), ("moco", "vit")]
)
def test_methods_of_films_alone(method, image, workdir, capsys):
    """The tower and its head, SimCLR's with BatchNorm; of MoCo the query encoder's."""
    pytest.importorskip("torch")
    config = make_config(method, image)
    variables = make_run(workdir, config)
    status, out = run_export(workdir, "--verify", "--tolerance", "1e-5")
    printed = capsys.readouterr().out
    assert status == 0, printed
    features = "features over the longest one's length"
    assert compared(printed) == {features, "projections"}
    assert "within the tolerance of 1e-05 (random films)" in printed
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        "README.md",
        "medclip_jax.json",
        "projection.safetensors",
        *(f"torch_model/{path.name}" for path in export.TORCH_MODEL.glob("*.py")),
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
    }
    heads = files.read(out / "projection.safetensors")
    kernel = variables["params"]["image"]["projection"]["layer_1"]["kernel"]
    np.testing.assert_array_equal(heads["image_projection.layer_1.weight"], kernel.T)
    assert ("image_projection.norm_0.running_var" in heads) == (method == "simclr")
    card = (out / "README.md").read_text()
    assert "model.project(features)" in card and "embed_texts" not in card
    assert ("the key encoder and the queue are not written" in card) == (
        method == "moco"
    )
    assert ("the names of torchvision's ResNet" in card) == (image == "resnet")


def test_what_is_written(workdir, capsys):
    variables = make_run(workdir, make_config())
    status, out = run_export(workdir)
    assert status == 0
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "medclip_jax.json",
        "projection.safetensors",
        *(f"torch_model/{path.name}" for path in export.TORCH_MODEL.glob("*.py")),
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "medclip_official/model.safetensors",
    } <= names
    official = files.read(out / "medclip_official")
    image = files.read(out / "image_encoder")
    text = files.read(out / "text_encoder")
    heads = files.read(out / "projection.safetensors")
    for key, value in image.items():
        np.testing.assert_array_equal(value, official[f"vision_model.model.{key}"])
    for key, value in text.items():
        np.testing.assert_array_equal(value, official[f"text_model.model.{key}"])
    fc = heads["image_projection.weight"]
    np.testing.assert_array_equal(fc, official["vision_model.model.fc.weight"])
    kernel = variables["params"]["image"]["projection"]["kernel"]
    np.testing.assert_array_equal(fc, np.asarray(kernel).T)
    settings = json.loads((out / "medclip_jax.json").read_text())
    assert settings["text_pool"] == "layers_1_2_last" and not settings["pool_padding"]
    assert settings["step"] == 7 and settings["image_size"] == 32
    printed = capsys.readouterr().out
    assert "note: medclip_official: the official code pools texts" in printed


def test_both_official_files_hold_the_same(workdir):
    pytest.importorskip("torch")
    make_run(workdir, make_config("medclip", "swin"))
    _, out = run_export(workdir)
    safe = files.read(out / "medclip_official" / "model.safetensors")
    plain = files.read(out / "medclip_official" / "pytorch_model.bin")
    assert set(safe) == set(plain)
    for key, value in safe.items():
        np.testing.assert_array_equal(value, plain[key])
        assert value.dtype == plain[key].dtype


def test_the_card_tells_data_and_limits(workdir, tmp_path):
    make_run(workdir, make_config())
    row = {
        "protocol": "zero_shot",
        "dataset": "hospital",
        "metric": "accuracy",
        "value": 0.6789,
        "chance": 0.2,
        "untrained": 0.21,
        "n": 500,
    }
    part = {**row, "protocol": "zero_shot/Edema", "value": 0.1111}
    step = run_lib.open_run(workdir, "latest").step
    results = {"rows": [row, part], "checkpoint": f"{workdir} step {step + 1}"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=f"but step {step} is exported"):
        run_export(workdir, "--results", str(tmp_path))
    results["checkpoint"] = f"{workdir} step {step}"
    (tmp_path / "results.json").write_text(json.dumps(results))
    _, out = run_export(workdir, "--results", str(tmp_path))
    card = (out / "README.md").read_text()
    for text in (
        "`f00d`",
        "`beef`",
        "simulated",
        "0.6789",
        "loss 1.25",
        "Not a medical",
    ):
        assert text in card
    assert "license: apache-2.0" in card
    assert "0.1111" not in card


def test_a_card_without_notice_warns(workdir):
    make_run(workdir, make_config())
    data = json.loads((workdir / workdir_lib.DATA).read_text())
    del data["notices"]
    workdir_lib.write_json(workdir / workdir_lib.DATA, data)
    _, out = run_export(workdir)
    card = (out / "README.md").read_text()
    assert "license: other" in card
    assert "Treat the weights as made from protected health information" in card


@pytest.mark.parametrize(
    ("method", "file", "key"),
    [
        ("medclip", "text_encoder/model", "encoder.layer.1.output.dense.weight"),
        ("medclip", "projection", "image_projection.weight"),
        ("gloria", "projection", "region_projection.weight"),
        ("simclr", "projection", "image_projection.norm_0.running_var"),
    ],
)
def test_a_changed_file_is_found(method, file, key, workdir):
    """One tensor of the exported files is altered before they are loaded."""
    pytest.importorskip("torch")
    make_run(workdir, make_config(method))
    _, out = run_export(workdir)
    path = out / f"{file}.safetensors"
    state = {k: v.copy() for k, v in files.read(path).items()}
    state[key][0] += 0.05
    files.write_safetensors(state, path)
    run = run_lib.open_run(workdir, "latest")
    lines, passed = export_parity.verify(
        run, jax.device_get(run.variables), out, [], 1e-4
    )
    assert not passed
    assert "ABOVE the tolerance" in lines[-1]


def test_a_missing_tensor_is_refused(workdir):
    pytest.importorskip("torch")
    make_run(workdir, make_config("medclip", "swin"))
    _, out = run_export(workdir)
    file = out / "image_encoder" / "model.safetensors"
    state = dict(files.read(file))
    del state["encoder.layers.0.blocks.1.output.dense.bias"]
    files.write_safetensors(state, file)
    run = run_lib.open_run(workdir, "latest")
    with pytest.raises(ValueError, match=r"blocks\.1\..*fc2\.bias|output\.dense\.bias"):
        export_parity.verify(run, jax.device_get(run.variables), out, [], 1e-4)


def test_an_earlier_export_is_replaced_and_nothing_else(workdir):
    make_run(workdir, make_config())
    _, out = run_export(workdir)
    (out / "stale").write_text("x")
    status, _ = run_export(workdir)
    assert status == 0 and not (out / "stale").exists()
    (out / "medclip_jax.json").unlink()
    with pytest.raises(UserError, match="not empty and is no earlier export"):
        run_export(workdir)


def test_methods_that_torch_model_does_not_know_are_refused(workdir, monkeypatch):
    make_run(workdir, make_config("supervised"))
    monkeypatch.delitem(export_settings.KINDS, "supervised")
    with pytest.raises(
        UserError, match="'supervised', which is not exported: expected one of biovil"
    ):
        run_export(workdir)
    assert not (workdir.parent / "export").exists()


def test_grids_that_transformers_cannot_run_are_named(workdir):
    config = make_config("medclip", "swin")
    config.model.image.window = 5  # the grids are 8 and 4
    make_run(workdir, config)
    run = run_lib.open_run(workdir, "latest")
    (line,) = export.small_grids(run)
    assert "stage 1 has a grid of 4 x 4, smaller than the window of 5" in line


def test_verify_without_torch_says_how_to_get_it(workdir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "torch" else find(n, *a)
    )
    with pytest.raises(UserError, match="needs PyTorch: pip install"):
        run_export(workdir, "--verify")


@pytest.mark.parametrize("method", ["medclip", "gloria"])
def test_the_exported_folder_stands_alone(method, workdir):
    """In another process, which cannot import medclip_jax: texts and PIL images."""
    pytest.importorskip("torch")
    make_run(workdir, make_config(method, "vit"))
    _, out = run_export(workdir)
    code = """
import sys
sys.modules["medclip_jax"] = sys.modules["jax"] = None
import numpy as np
from PIL import Image
from torch_model import load, preprocess
model = load(".")
films = [Image.fromarray(np.full((50, 40), 9 * i, np.uint8)) for i in range(3)]
images = model.embed_images(preprocess(films, model.settings))
texts = model.embed_texts(model.tokenize(["no effusion.", "heart size is normal"]))
logits = model.score(images, texts)
joint = getattr(images, "joint_NxD", images)
print(tuple(logits.shape), bool((joint.norm(dim=1) - 1).abs().max() < 1e-5))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(3, 2) True"
