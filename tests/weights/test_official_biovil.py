"""CXR-BERT, BioViL and BioViL-T against PyTorch on the same random weights, and the way
from their two files into a workdir and back."""

import shutil

import jax
import numpy as np
import pytest

from medclip_jax import export, import_weights
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.models import mlm
from medclip_jax.weights import biovil, files, hybrid, pretrained
from medclip_jax.weights.layout import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn

from tests.weights.torchvision_resnet import ResNet

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]
DIM, JOINT = 16, 8
SMALL = [
    "--config.model.image.stage_sizes=(1,1,1,1)",
    "--config.model.image.width=4",
    "--config.model.text.dim=16",
    "--config.model.text.layers=2",
    "--config.model.text.heads=2",
    "--config.model.text.mlp=32",
    "--config.model.text.max_positions=16",
    "--config.model.text.vocab_size=20",
    "--config.model.embed_dim=8",
    "--config.data.image_size=64",
    "--config.data.crop_from=64",
    "--config.data.text_length=12",
]
OF_T = ["--config.model.image.dim=16", "--config.model.image.blocks=2",
        "--config.model.image.heads=2"]  # fmt: skip
rng = np.random.default_rng(0)
FILMS, PRIOR = (rng.random((3, 64, 64, 3)).astype(np.float32) for _ in "ab")
LENGTHS = np.array([[12], [7], [3]])
MASK = (np.arange(12) < LENGTHS).astype(np.int32)
IDS = rng.integers(5, 20, (3, 12)).astype(np.int32) * MASK


class Projector(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(inputs, JOINT, 1, bias=False),
            nn.BatchNorm2d(JOINT),
            nn.ReLU(),
            nn.Conv2d(JOINT, JOINT, 1),
        )


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        for name in "qkv":
            setattr(self, f"proj_{name}", nn.Linear(dim, dim, bias=False))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = (
            of(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
            for of in (self.proj_q, self.proj_k, self.proj_v)
        )
        weights = (q @ k.transpose(2, 3) / (dim // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(dim, heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, dim), "fc2": nn.Linear(dim, dim)}
        )

    def forward(self, x, place):
        x = x + self.attn(self.norm1(x) + place)
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden)


class Pooler(nn.Module):
    def __init__(self, dim, blocks, heads):
        super().__init__()
        self.type_embed = nn.Parameter(torch.zeros(2, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(blocks))
        self.norm_post = nn.LayerNorm(dim, 1e-6)

    def forward(self, current, previous):
        batch, dim, side, _ = current.shape
        half = dim // 2
        turn = 2 * np.pi * np.arange(1, side + 1) / (side + 1e-6)
        angle = turn[:, None] / 10000 ** (2 * (np.arange(half) // 2) / half)
        table = np.where(np.arange(half) % 2, np.cos(angle), np.sin(angle))
        place = np.concatenate(
            [np.repeat(table, side, 0), np.tile(table, (side, 1))], axis=1
        )
        place = torch.tensor(place, dtype=torch.float32)
        place = torch.cat([place + self.type_embed[0], place + self.type_embed[1]])
        x = torch.cat([of.flatten(2).transpose(1, 2) for of in (current, previous)], 1)
        for block in self.blocks:
            x = block(x, place)
        x = self.norm_post(x)[:, : side * side]
        return x.transpose(1, 2).reshape(batch, dim, side, side)


class ImageModel(nn.Module):
    """Of one film, or of a film and the one before; names as in the official code."""

    def __init__(self, pair):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.encoder = ResNet((1, 1, 1, 1), 4, "bottleneck")
        self.pair, features = pair, 128
        if pair:
            self.encoder.backbone_to_vit = nn.Conv2d(128, 16, 1, bias=False)
            self.encoder.vit_pooler = Pooler(16, 2, 2)
            self.encoder.missing_previous_emb = nn.Parameter(torch.zeros(1, 16, 1, 1))
            features = 32
        self.projector = Projector(features)

    def forward(self, films, prior=None):
        def maps(films):
            return self.encoder.encoder.maps(films)[-1]

        x = maps(films)
        if self.pair:
            x = self.encoder.backbone_to_vit(x)
            if prior is None:
                changed = self.encoder.missing_previous_emb.expand_as(x)
            else:
                changed = self.encoder.vit_pooler(
                    x, self.encoder.backbone_to_vit(maps(prior))
                )
            x = torch.cat([x, changed], 1)
        patches = self.projector.model(x)
        return x, patches, nn.functional.normalize(patches.mean((2, 3)))


class TextModel(transformers.BertForMaskedLM):
    def __init__(self):
        super().__init__(
            transformers.BertConfig(
                vocab_size=20, hidden_size=DIM, num_hidden_layers=2,
                num_attention_heads=2, intermediate_size=32, max_position_embeddings=16,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip
        self.cls_projection_head = nn.ModuleDict(
            {
                "dense_to_hidden": nn.Linear(DIM, JOINT),
                "LayerNorm": nn.LayerNorm(JOINT, 1e-12),
                "dense_to_output": nn.Linear(JOINT, JOINT),
            }
        )


def randomize(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype == torch.float32:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return model.eval()


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of weights by system, with the models that they are of."""
    folder = tmp_path_factory.mktemp("published")
    Tokenizer.from_vocabulary(VOCABULARY).save(folder / "tokenizer")
    models = {
        "image": randomize(ImageModel(False)),
        "image_t": randomize(ImageModel(True)),
        "text": randomize(TextModel()),
    }
    for name, model in models.items():
        files.write_safetensors(arrays(model), folder / f"{name}.safetensors")
    return folder, models


def imported(folder, out, names, *more):
    paths = [folder / name for name in names]
    paths = [of if of.is_dir() else of.with_suffix(".safetensors") for of in paths]
    argv = ["--weights", *map(str, paths)]
    argv += ["--tokenizer", str(folder / "tokenizer"), "--out", str(out)]
    small = [of for of in SMALL if "image." not in of or len(names) > 1]
    assert import_weights.main([*argv, *small, *more]) == 0
    return run_lib.open_run(out, "latest")


def chw(films):
    return torch.tensor(films).permute(0, 3, 1, 2)


@pytest.mark.parametrize("system", ["biovil", "biovil_t"])
def test_both_towers_are_pytorch_s(published, tmp_path, system):
    folder, models = published
    pair = system == "biovil_t"
    image = models["image_t" if pair else "image"]
    names = ["image_t" if pair else "image", "text"]
    run = imported(folder, tmp_path / "run", names, *(OF_T if pair else ()))
    assert run.config.method == system
    films = {"current_BxHxWx3": FILMS}
    given = [(films, None)]
    if pair:
        with_prior = {"prior_BxHxWx3": PRIOR, "has_prior_B": np.ones(3, bool)}
        given.append(({**films, **with_prior}, chw(PRIOR)))
    for ours, prior in given:
        made = run.method.embed_images(run.variables, ours)
        with torch.no_grad():
            maps, patches, joint = image(
                chw(FILMS), *([] if prior is None else [prior])
            )
        np.testing.assert_allclose(
            made.trunk_BxF, maps.mean((2, 3)), atol=1e-4, rtol=1e-4
        )
        want = patches.flatten(2).transpose(1, 2)
        np.testing.assert_allclose(made.local_BxPxD, want, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(made.joint_BxD, joint, atol=1e-5)
    np.testing.assert_allclose(
        run.method.embed_texts(run.variables, tokens()).joint_BxD,
        text_joint(models["text"]),
        atol=1e-5,
    )
    # There and back; of ImageNet's classifier, which nothing reads, zeros.
    state, report = biovil.to_torch(
        jax.device_get(run.variables), run.config.model.image.name
    )
    assert report.fits
    every = {**arrays(image), **arrays(models["text"])}
    assert set(every) == set(state)
    for key, value in state.items():
        unread = key.startswith("encoder.encoder.fc.")
        np.testing.assert_array_equal(value, 0 * every[key] if unread else every[key])


@pytest.mark.parametrize("system", ["biovil", "biovil_t", "cxr_bert"])
def test_official_models_load_what_is_exported(published, tmp_path, system):
    """Strictly; and what is imported again is the same to the bit."""
    folder, models = published
    names = {"biovil": ["image", "text"], "biovil_t": ["image_t", "text"]}
    pair = OF_T if system == "biovil_t" else []
    run = imported(folder, tmp_path / "run", names.get(system, ["text"]), *pair)
    out = tmp_path / "export"
    assert export.main(["--workdir", str(tmp_path / "run"), "--out", str(out)]) == 0
    official = out / f"{system}_official"
    shutil.copytree(folder / "tokenizer", official / "tokenizer")
    blank = {"text_model": TextModel()}
    if system != "cxr_bert":
        blank["image_model"] = ImageModel(system == "biovil_t")
    for part, model in blank.items():
        model.load_state_dict(torch.load(official / part / files.PICKLE), strict=True)
        before = arrays(models[names[system][0] if "image" in part else "text"])
        for key, value in arrays(model).items():
            unread = key.startswith("encoder.encoder.fc.")
            np.testing.assert_array_equal(
                value, 0 * before[key] if unread else before[key]
            )
    again = imported(official, tmp_path / "again", sorted(blank), *pair)
    assert_same_variables(run, again)
    # Without the head that names words, as where it needs a film.
    text = official / "text_model" / files.SAFETENSORS
    state = {
        key: value for key, value in files.read(text).items() if "cls.p" not in key
    }
    files.write_safetensors(state, text)
    if system != "cxr_bert":
        less = imported(official, tmp_path / "less", sorted(blank), *pair)
        assert "masked_words" not in less.variables["params"]
        run.variables["params"].pop("masked_words")
        assert_same_variables(run, less)


def assert_same_variables(one, other):
    before, after = (flatten(jax.device_get(of.variables)) for of in (one, other))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path], err_msg=str(path))


def test_an_encoder_of_films_starts_from_the_official_image_model(published, tmp_path):
    folder, _ = published
    run = imported(folder, tmp_path / "run", ["image_t", "text"], *OF_T)
    variables = jax.device_get(run.variables)
    target = {
        "params": variables["params"]["image"]["encoder"],
        "batch_stats": variables["batch_stats"]["image"],
    }
    blank = jax.tree.map(np.zeros_like, target)
    for file in ("image_t.safetensors", "encoder.safetensors"):
        found, _ = pretrained.load_encoder(folder / file, "hybrid", {}, blank)
        for path, value in flatten(target).items():
            np.testing.assert_array_equal(flatten(found)[path], value)
        state = hybrid.to_torch(target)
        files.write_safetensors(state, folder / "encoder.safetensors")
    with pytest.raises(UserError, match="has a resnet or a hybrid, no 'swin'"):
        biovil.to_torch(variables, "swin")


def tokens():
    return {"ids_BxT": IDS, "mask_BxT": MASK, "word_ids_BxT": np.arange(12) + 0 * IDS}


def text_joint(model):
    with torch.no_grad():
        states = model.bert(
            torch.tensor(IDS).long(), torch.tensor(MASK)
        ).last_hidden_state[:, 0]
        head = model.cls_projection_head
        hidden = head["LayerNorm"](nn.functional.gelu(head["dense_to_hidden"](states)))
        return nn.functional.normalize(head["dense_to_output"](hidden)).numpy()


def test_hidden_words_are_named_as_pytorch_names_them(published, tmp_path):
    folder, models = published
    run = imported(folder, tmp_path / "run", ["text"])
    assert run.config.method == "cxr_bert"
    texts, keys = tokens(), jax.random.split(jax.random.key(0), 3)
    named = run.method.masked_words.run(run.variables, texts, keys, False)
    hide = jax.vmap(lambda key: jax.random.fold_in(key, 201))(keys)
    hidden, chosen = mlm.mask_words(IDS, texts["word_ids_BxT"], hide, 0.15, 4, 20, True)
    with torch.no_grad():
        logits = models["text"](
            torch.tensor(np.array(hidden)).long(), torch.tensor(MASK)
        ).logits
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(IDS).long().flatten(), reduction="none"
    ).reshape(3, 12)
    assert chosen.any()
    np.testing.assert_array_equal(named.named_BxT, chosen)
    np.testing.assert_allclose(
        named.losses_BxT, np.where(chosen, losses, 0), atol=1e-5, rtol=1e-5
    )
    right = (logits.argmax(-1).numpy() == IDS) & np.asarray(chosen)
    np.testing.assert_array_equal(named.right_BxT, right)
    joint = run.method.embed_texts(run.variables, texts).joint_BxD
    np.testing.assert_allclose(joint, text_joint(models["text"]), atol=1e-5)


def test_what_does_not_fit_is_named(published, tmp_path):
    folder, _ = published
    with pytest.raises(UserError, match=r"missing: bert\.embeddings"):
        imported(folder, tmp_path / "run", ["image"])
    with pytest.raises(
        UserError, match="holds bert.embeddings.*as another of --weights"
    ):
        imported(folder, tmp_path / "run", ["text", "text"])
    with pytest.raises(UserError, match=r"mismatched: encoder\.encoder\.conv1"):
        wider = "--config.model.image.width=8"
        imported(folder, tmp_path / "run", ["image", "text"], wider)
