"""Encoders against PyTorch on the same random weights: outputs and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.models.registry import build_image_encoder, build_text_encoder
from medclip_jax.weights import files, huggingface, pretrained
from medclip_jax.weights.layout import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torchvision_resnet import ResNet as TorchResNet

TOLERANCE = 1e-4


def value_and_grad(function, *args):
    graded = jax.jit(jax.value_and_grad(function, has_aux=True))
    return graded(*args)


def shake(module, seed=0):
    """Random weights, norms and biases included, so that nothing is at a default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise * (2.0 / value[0].numel()) ** 0.5)
            else:
                value.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            if name.endswith("running_var"):
                value.copy_(1.0 + 0.1 * torch.rand(value.shape, generator=generator))
    return module


def arrays(state):
    return {key: value.detach().numpy() for key, value in state.items()}


def gradients(module):
    return {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in module.named_parameters()
    }


def fields_of(encoder):
    return {name: getattr(encoder, name) for name in encoder.__dataclass_fields__}


def zeros(encoder, *args):
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(encoder.init(jax.random.key(0), *args, train=False))
    )
    return jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), dict(shapes))


def assert_close(ours, theirs, what):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(
        ours / scale, theirs / scale, atol=TOLERANCE, err_msg=what
    )


def assert_same_gradients(ours, theirs_by_key, name, target):
    """`theirs_by_key` goes through the converter, which also maps gradients."""
    theirs, _ = pretrained.converter(name).from_torch(theirs_by_key, target)
    theirs = flatten({"params": theirs["params"]})
    ours = flatten({"params": ours})
    assert set(ours) == set(theirs)
    for path, value in ours.items():
        assert_close(value, theirs[path], "/".join(path))


FILMS = {
    # grid 14, 7: windows fit; grid 13 x 15: padding to windows and odd merges
    "even": (56, 56),
    "odd": (50, 58),
}


@pytest.mark.parametrize("size", FILMS)
def test_swin(size, tmp_path):
    height, width = FILMS[size]
    encoder = build_image_encoder(
        {
            "name": "swin",
            "embed_dim": 12,
            "depths": [2, 2],
            "heads": [2, 4],
            "window": 5,
        }
    )
    config = huggingface.to_config("swin", fields_of(encoder), 56)
    theirs = shake(transformers.SwinModel(transformers.SwinConfig(**config))).eval()
    theirs.save_pretrained(tmp_path)
    films = np.random.RandomState(0).randn(2, height, width, 3).astype(np.float32)
    target = zeros(encoder, films)
    variables, _ = pretrained.load_encoder(tmp_path, "swin", fields_of(encoder), target)

    probe = np.random.RandomState(1).randn(2, 24).astype(np.float32)
    out = theirs(torch.tensor(films.transpose(0, 3, 1, 2)))
    (out.pooler_output * torch.tensor(probe)).sum().backward()

    def value(params):
        features = encoder.apply({"params": params}, films, train=False)
        return (features.trunk_BxF * probe).sum(), features

    (_, ours), grads = value_and_grad(value, variables["params"])
    assert_close(ours.trunk_BxF, out.pooler_output.detach(), "trunk")
    assert_close(ours.patches_BxPxC, out.last_hidden_state.detach(), "patches")
    assert_same_gradients(grads, gradients(theirs), "swin", target)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_vit(pooling, tmp_path):
    encoder = build_image_encoder(
        {
            "name": "vit",
            "patch": 8,
            "dim": 24,
            "depth": 2,
            "heads": 3,
            "mlp": 40,
            "pooling": pooling,
        }
    )
    config = huggingface.to_config("vit", fields_of(encoder), 32)
    theirs = shake(transformers.ViTModel(transformers.ViTConfig(**config))).eval()
    theirs.save_pretrained(tmp_path)
    films = np.random.RandomState(0).randn(2, 32, 32, 3).astype(np.float32)
    target = zeros(encoder, films)
    variables, report = pretrained.load_encoder(
        tmp_path, "vit", fields_of(encoder), target
    )
    pooler = ("pooler.dense.bias", "pooler.dense.weight")
    assert tuple(sorted(report.ignored)) == (() if pooling == "pooler" else pooler)

    probe = np.random.RandomState(1).randn(2, 24).astype(np.float32)
    out = theirs(torch.tensor(films.transpose(0, 3, 1, 2)))
    trunk = {
        "cls": out.last_hidden_state[:, 0],
        "mean": out.last_hidden_state[:, 1:].mean(1),
        "pooler": out.pooler_output,
    }[pooling]
    (trunk * torch.tensor(probe)).sum().backward()

    def value(params):
        features = encoder.apply({"params": params}, films, train=False)
        return (features.trunk_BxF * probe).sum(), features

    (_, ours), grads = value_and_grad(value, variables["params"])
    assert_close(ours.trunk_BxF, trunk.detach(), "trunk")
    assert_close(ours.patches_BxPxC, out.last_hidden_state[:, 1:].detach(), "patches")
    assert_same_gradients(grads, gradients(theirs), "vit", target)


def test_bert(tmp_path):
    encoder = build_text_encoder(
        {
            "name": "bert",
            "vocab_size": 60,
            "dim": 24,
            "layers": 3,
            "heads": 3,
            "mlp": 40,
            "max_positions": 16,
        }
    )
    config = huggingface.to_config("bert", fields_of(encoder))
    theirs = shake(transformers.BertModel(transformers.BertConfig(**config))).eval()
    theirs.save_pretrained(tmp_path)
    ids = np.array([[2, 7, 9, 11, 3, 0, 0], [2, 5, 30, 31, 32, 59, 3]], np.int32)
    mask = (ids != 0).astype(np.int32)
    target = zeros(encoder, ids, mask)
    variables, _ = pretrained.load_encoder(tmp_path, "bert", fields_of(encoder), target)

    probe = np.random.RandomState(1).randn(2, 24).astype(np.float32)
    out = theirs(
        input_ids=torch.tensor(ids).long(),
        attention_mask=torch.tensor(mask),
        output_hidden_states=True,
    )
    # Padding enters the mean, so that the padding row's gradient is tested too.
    pooled = sum(out.hidden_states[i].mean(1) for i in (1, 2, -1)) + out.pooler_output
    (pooled * torch.tensor(probe)).sum().backward()

    def value(params):
        features = encoder.apply({"params": params}, ids, mask, train=False)
        pooled = sum(features.hidden[i].mean(1) for i in (1, 2, -1))
        return ((pooled + features.pooler_BxC) * probe).sum(), features

    (_, ours), grads = value_and_grad(value, variables["params"])
    assert len(ours.hidden) == 4
    for index, state in enumerate(out.hidden_states):
        assert_close(ours.hidden[index], state.detach(), f"hidden {index}")
    assert_close(ours.pooler_BxC, out.pooler_output.detach(), "pooler")
    assert_same_gradients(grads, gradients(theirs), "bert", target)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
@pytest.mark.parametrize("train", [False, True])
def test_resnet(kind, train, tmp_path):
    encoder = build_image_encoder(
        {"name": "resnet", "stage_sizes": [2, 1, 1], "width": 8, "block": kind}
    )
    theirs = shake(TorchResNet((2, 1, 1), 8, kind)).train(train)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    films = np.random.RandomState(0).randn(3, 37, 44, 3).astype(np.float32)
    target = zeros(encoder, films)
    variables, report = pretrained.load_encoder(
        tmp_path / "resnet.pth", "resnet", fields_of(encoder), target
    )
    assert "fc.weight" in report.ignored

    probe = np.random.RandomState(1).randn(3, encoder.feature_dim).astype(np.float32)
    pixels = torch.tensor(films.transpose(0, 3, 1, 2))
    trunk = theirs(pixels)
    (trunk * torch.tensor(probe)).sum().backward()

    def value(params):
        features, state = encoder.apply(
            {**variables, "params": params}, films, train=train, mutable=["batch_stats"]
        )
        return (features.trunk_BxF * probe).sum(), (features, state)

    (_, (ours, state)), grads = value_and_grad(value, variables["params"])
    assert_close(ours.trunk_BxF, trunk.detach(), "trunk")
    assert ours.grid[0] * ours.grid[1] == ours.patches_BxPxC.shape[1]
    buffers = arrays(dict(theirs.named_buffers()))
    assert_same_gradients(grads, {**gradients(theirs), **buffers}, "resnet", target)

    after, _ = pretrained.converter("resnet").from_torch(
        {**gradients(theirs), **buffers}, target
    )
    assert_same_statistics(
        flatten(variables["batch_stats"]),
        flatten(state["batch_stats"]),
        flatten(after["batch_stats"]),
        [3 * 19 * 22, 3 * 10 * 11, 3 * 5 * 6, 3 * 3 * 3] if train else None,
    )


def assert_same_statistics(before, ours, theirs, pixels):
    """Equal but for one thing: torch's running variance takes the unbiased variance
    of a batch of n pixels, n / (n - 1) times ours. `pixels` holds the possible n."""
    for path, value in ours.items():
        wanted = theirs[path]
        if pixels and path[-1] == "var":
            old = 0.9 * np.asarray(before[path])
            ratio = np.median((wanted - old) / (value - old))
            n = min(pixels, key=lambda n: abs(n / (n - 1) - ratio))
            value = old + (value - old) * n / (n - 1)
        assert_close(value, wanted, "/".join(path))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_both_file_kinds_and_old_norm_names(file, tmp_path):
    """Checkpoints that were once TensorFlow's spell LayerNorm gamma and beta."""
    config = {
        "name": "bert",
        "vocab_size": 20,
        "dim": 8,
        "layers": 1,
        "heads": 2,
        "mlp": 16,
    }
    encoder = build_text_encoder(config)
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(**huggingface.to_config("bert", fields_of(encoder)))
    )
    state = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in arrays(shake(theirs).state_dict()).items()
    }
    state = {key: value.copy() for key, value in state.items()}
    assert any(key.endswith("gamma") for key in state)
    if file.endswith("bin"):
        files.write_torch(state, tmp_path / file)
    else:
        files.write_safetensors(state, tmp_path / file)
    ids = np.ones((1, 4), np.int32)
    target = zeros(encoder, ids, ids)
    variables, report = pretrained.load_encoder(
        tmp_path, "bert", fields_of(encoder), target
    )
    assert all(key.startswith("cls.") for key in report.ignored)
    wanted = theirs.bert.embeddings.LayerNorm.weight.detach().numpy()
    got = variables["params"]["embedding_norm"]["scale"]
    np.testing.assert_array_equal(got, wanted)
