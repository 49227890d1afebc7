"""Export of methods with parts, pairs of films, texts alone or labels: what PyTorch gives
from the files alone, that a broken file is found, and the official state dicts."""

import json
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from medclip_jax import export, export_parity
from medclip_jax import run as run_lib
from medclip_jax.weights import files
from tests.exported import compared, make_config, make_run, run_export

pytest.importorskip("torch")

LONG = " over the longest one's length"
PARTS = {"image embeddings", f"regions{LONG}", "text embeddings", "scores"}
WORDS = {f"words{LONG}", "masks of words"}
NAMED = {f"logits of words{LONG}"}
PRIORS = {
    f"{name}{before}{LONG if name == 'regions' else ''}"
    for before in (" beside films before", " where some have a film before")
    for name in ("image embeddings", "regions", "scores")
}
LOOKS = {"looks at words", "looks at regions"}


def biovil():
    """With BERT's pooler, which nothing reads."""
    config = make_config("biovil")
    config.model.text.pooler = True
    return config


def biovil_t():
    """With positions that values do not hear of."""
    config = make_config("biovil_t", "hybrid")
    with config.unlocked():
        config.model.image.positions_in_values = False
    return config


def mgca_as_released():
    """Its text tower has one position; its image tower is a ViT."""
    config = make_config(
        "mgca",
        "vit",
        attention="cosines",
        patch_weights="attention",
        shifted_words=True,
    )
    config.model.text.one_position = True
    with config.unlocked():
        config.model.image.update({"pooling": "cls", "epsilon": 1e-6})
    return config


# Config, what is compared, and a file with a tensor of it that is then altered.
CASES = {
    "biovil": (
        biovil,
        PARTS | NAMED,
        "projection.safetensors:image_projection.norm.running_mean",
    ),
    "biovil_l": (
        lambda: make_config("biovil", variant="demo_local", mlm_weight=0.0),
        PARTS | WORDS,
        "projection.safetensors:text_projection.norm.bias",
    ),
    "biovil_t": (
        biovil_t,
        PARTS | WORDS | PRIORS,
        "image_encoder/model.safetensors:vit_pooler.type_embed",
    ),
    "cxr_bert": (
        lambda: make_config("cxr_bert"),
        {"text embeddings", "scores"} | NAMED,
        "text_encoder/model.safetensors:cls.predictions.transform.dense.bias",
    ),
    "mgca_vit": (
        mgca_as_released,
        PARTS | WORDS | LOOKS,
        "projection.safetensors:word_projection.out_norm.running_var",
    ),
    "mgca_resnet": (
        lambda: make_config("mgca", resize_to=40),
        PARTS | WORDS | LOOKS - {"looks at regions"},
        "projection.safetensors:region_projection.hidden.weight",
    ),
    "supervised": (
        lambda: make_config("supervised", "vit"),
        {f"features{LONG}", f"logits of findings{LONG}"},
        "projection.safetensors:classifier.bias",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By case: the workdir, the exported folder, and what its export printed."""
    made = {}

    def of(case, capsys):
        if case not in made:
            folder = tmp_path_factory.mktemp(case) / "train"
            folder.mkdir()
            make_run(folder, CASES[case][0]())
            status, out = run_export(folder, "--verify")
            made[case] = folder, out, status, capsys.readouterr().out
        return made[case]

    return of


@pytest.mark.parametrize("case", CASES)
def test_pytorch_gives_the_same(case, exported, capsys):
    _, out, status, printed = exported(case, capsys)
    assert status == 0, printed
    assert compared(printed) == CASES[case][1]
    assert "within the tolerance of 0.0001 (random " in printed
    card = (out / "README.md").read_text()
    for line in printed.splitlines():
        if line.startswith(("largest difference", "note: ")):
            assert line.removeprefix("note: ") in card


@pytest.mark.parametrize("case", CASES)
def test_a_changed_tensor_is_found(case, exported, capsys, tmp_path, monkeypatch):
    """Altered between what is written and what `--verify` reads."""
    folder, *_ = exported(case, capsys)
    name, _, key = CASES[case][2].partition(":")
    write = export.write

    def write_then_alter(run, variables, out, notices):
        remarks = write(run, variables, out, notices)
        state = {key: value.copy() for key, value in files.read(out / name).items()}
        state[key].reshape(-1)[0] += 0.5
        files.write_safetensors(state, out / name)
        return remarks

    monkeypatch.setattr(export, "write", write_then_alter)
    argv = ["--workdir", str(folder), "--out", str(tmp_path / "out"), "--verify"]
    assert export.main([*argv, "--step", "latest"]) == 1
    assert "ABOVE the tolerance" in capsys.readouterr().out


def test_cards_teach_a_user_of_the_method(exported, capsys):
    cards = {
        case: (exported(case, capsys)[1] / "README.md").read_text() for case in CASES
    }
    for case, card in cards.items():
        has_films, has_texts = case != "cxr_bert", case != "supervised"
        assert ("`image_encoder/`" in card) == has_films
        assert ("import load, preprocess" in card) == has_films
        assert ("`tokenizer/`" in card) == has_texts == ("model.tokenize(" in card)
        assert ("priors=preprocess" in card) == (case == "biovil_t")
        assert ("BertForMaskedLM" in card) == (case in ("biovil", "cxr_bert"))
        assert ("model.word_logits" in card) == (case in ("biovil", "cxr_bert"))
        assert ("texts.words_MxTxD" in card) == (
            case in ("biovil_l", "biovil_t", "mgca_vit", "mgca_resnet")
        )
        assert ("images.looks_NxR" in card) == case.startswith("mgca")
    assert "For research on the language of reports" in cards["cxr_bert"]
    assert 'model.settings["findings"]' in cards["supervised"]
    assert "the head that names words needs a film here" in cards["biovil_t"]


@pytest.mark.parametrize("case", CASES)
def test_the_code_of_a_card_runs(case, exported, capsys, tmp_path, monkeypatch):
    _, out, *_ = exported(case, capsys)
    card = (out / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    film = Image.fromarray(np.full((50, 40), 90, np.uint8))
    (tmp_path / "use.py").write_text(code.replace("DIR", str(out)))
    export_parity.load_torch_model(out)  # not another case's
    monkeypatch.setattr(sys, "path", list(sys.path))
    given = {"film": film, "prior": film.rotate(90)}
    names = runpy.run_path(str(tmp_path / "use.py"), given)
    if "images" in names:
        regions = names["images"].regions_NxRxD.shape
        assert regions[1] == np.prod(names["images"].grid)
        assert names["logits"].shape == (1, 1)
    if "named" in names:
        assert names["named"].shape == (1, 12, 13)


REMARKS = {
    "biovil": [],
    "biovil_l": ["has no cls.predictions, which embeddings do not need"],
    "biovil_t": [
        "has no cls.predictions, which embeddings do not need: load with strict=False",
        "the official code has model.image.positions_in_values=True; this model False",
    ],
    "cxr_bert": [],
    "mgca_vit": ["layer.2.crossattention, word_local_atten_layer, patch_local_atten"],
    "mgca_resnet": [
        "the official code has model.text.one_position=True; this model False",
        "the official code has mgca.shifted_words=True; this model False",
        "the official code has mgca.resize_to=299; this model 40",
        "the official code has mgca.stage=3; this model 1",
    ],
}


@pytest.mark.parametrize("case", REMARKS)
def test_official_files_and_what_they_lack(case, exported, capsys):
    _, out, _, printed = exported(case, capsys)
    settings = json.loads((out / "medclip_jax.json").read_text())
    folder = out / settings["official"]
    assert folder.name == f"{settings['method']}_official"
    parts = [folder]
    if settings["method"] != "mgca":
        names = {"image_model", "text_model"}
        names -= {"image_model"} if case == "cxr_bert" else set()
        parts = [folder / name for name in names]
        assert {path.name for path in folder.iterdir()} == names
    for part in parts:
        safe = files.read(part / files.SAFETENSORS)
        plain = files.read(part / files.PICKLE)
        assert safe.keys() == plain.keys()
        for key, value in safe.items():
            np.testing.assert_array_equal(value, plain[key])
    lines = [line for line in printed.splitlines() if f"{folder.name}" in line]
    for remark in REMARKS[case]:
        assert sum(remark in line for line in lines) == 1, printed
    if not REMARKS[case]:
        assert not lines


def test_regions_lie_in_the_film_as_evaluation_lays_them(exported, capsys):
    for case in ("biovil_t", "mgca_vit", "mgca_resnet"):
        folder, out, *_ = exported(case, capsys)
        run = run_lib.open_run(folder, "latest")
        films, _ = export_parity.examples(run, [])
        model = export_parity.load_torch_model(out).load(out)
        theirs = model.embed_images(films[:1])
        shown = {"current_BxHxWx3": np.repeat(films[:1], 3, axis=3).astype(np.float32)}
        ours = jax.eval_shape(run.method.embed_images, run.variables, shown)
        assert theirs.grid == ours.grid
        assert theirs.grid[0] * theirs.grid[1] == theirs.regions_NxRxD.shape[1]


def test_a_model_computes_where_it_lies(exported, capsys):
    """What is made on the way lies with the parameters, not on the default device."""
    import torch

    for case, (_, names, _) in CASES.items():
        folder, out, *_ = exported(case, capsys)
        run = run_lib.open_run(folder, "latest")
        films, _ = export_parity.examples(run, [])
        tokens = export_parity.random_tokens(run)
        texts = {export_parity.TOKENS[name]: array for name, array in tokens.items()}
        model = export_parity.load_torch_model(out).load(out)
        with torch.device("meta"):
            found = export_parity.in_torch(model, films, texts)
        assert len(found) == len(names)


def test_transformers_loads_what_it_knows(exported, capsys):
    """The towers of MGCA with one position, and CXR-BERT that names words."""
    import transformers

    _, out, *_ = exported("mgca_vit", capsys)
    image = transformers.AutoModel.from_pretrained(out / "image_encoder")
    assert isinstance(image, transformers.ViTModel)
    text = transformers.AutoModel.from_pretrained(out / "text_encoder")
    positions = text.embeddings.position_embeddings.weight
    assert (positions == positions[0]).all()
    _, out, *_ = exported("cxr_bert", capsys)
    text = transformers.AutoModelForMaskedLM.from_pretrained(out / "text_encoder")
    assert isinstance(text, transformers.BertForMaskedLM)
    assert text.config.architectures == ["BertForMaskedLM"]


def test_the_exported_folders_stand_alone(exported, capsys):
    """In another process, which cannot import medclip_jax: texts and PIL images."""
    outs = [str(exported(case, capsys)[1]) for case in CASES]
    code = """
import sys
sys.modules["medclip_jax"] = sys.modules["jax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import Image
from torch_model import load, preprocess
for folder in sys.argv[1:]:
    model, said = load(folder), []
    if "image" in model.settings:
        pictures = [Image.fromarray(np.full((50, 40), 9 * i, np.uint8)) for i in range(3)]
        films = preprocess(pictures, model.settings)
        images = model.embed_images(films)
    if "text" in model.settings:
        tokens = model.tokenize(["no [MASK].", "heart size is normal"])
        texts = model.embed_texts(tokens)
        said.append(model.score(images if "image" in model.settings else texts, texts))
        if model.settings["names_words"]:
            said.append(model.word_logits(tokens))
    else:
        said.append(model.class_logits(images))
    if model.settings["method"] == "biovil_t":
        both = model.embed_images(films, priors=films[::-1].copy())
        said.append((both.joint_NxD != images.joint_NxD).any(1).float())
    print(*(tuple(of.shape) for of in said), all(bool(of.isfinite().all()) for of in said))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *outs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(3, 2) (2, 12, 13) True",
        "(3, 2) True",
        "(3, 2) (3,) True",
        "(2, 2) (2, 12, 13) True",
        "(3, 2) True",
        "(3, 2) True",
        "(3, 14) True",
    ]
