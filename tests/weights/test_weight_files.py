"""Reading files and folders: what fits, what does not, and what is never opened."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from medclip_jax.errors import UserError
from medclip_jax.models.registry import build_image_encoder, build_text_encoder
from medclip_jax.weights import bert, files, huggingface, layout, pretrained, resnet
from medclip_jax.weights.layout import Place, Report

FIELDS = {
    "vocab_size": 20,
    "dim": 8,
    "layers": 1,
    "heads": 2,
    "mlp": 16,
    "max_positions": 10,
}


def bert_target(**more):
    """Shapes of a small BERT, by hand: names and sizes as the model makes them."""
    import flax.linen as nn
    import jax

    encoder = build_text_encoder({"name": "bert", **FIELDS, **more})
    ids = np.ones((1, 4), np.int32)
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(encoder.init(jax.random.key(0), ids, ids, train=False))
    )
    fields = {name: getattr(encoder, name) for name in encoder.__dataclass_fields__}
    return dict(shapes), fields


def filled(target):
    rng = np.random.RandomState(0)
    leaves = {
        path: np.float32(rng.standard_normal(leaf.shape))
        for path, leaf in layout.flatten(target).items()
    }
    return layout.unflatten(leaves)


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of a small BERT, and what belongs to it."""
    target, fields = bert_target()
    state = bert.to_torch(filled(target))
    files.write_safetensors(state, tmp_path / "model.safetensors")
    config = huggingface.to_config("bert", fields)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path, state, target, fields


def test_a_folder_loads(folder):
    path, state, target, fields = folder
    variables, report = pretrained.load_encoder(path, "bert", fields, target)
    assert report == Report()
    kernel = variables["params"]["layer_0"]["mlp_in"]["kernel"]
    weight = state["encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_array_equal(kernel, weight.T)
    assert kernel.shape == (8, 16)


def test_every_key_that_does_not_fit_is_named(folder):
    path, state, target, fields = folder
    del state["encoder.layer.0.attention.self.query.bias"]
    state["encoder.layer.1.output.dense.bias"] = np.zeros(8, np.float32)
    state["pooler.dense.weight"] = np.zeros((8, 9), np.float32)
    state["embeddings.position_ids"] = np.arange(10)[None]
    files.write_safetensors(state, path / "model.safetensors")
    with pytest.raises(UserError) as error:
        pretrained.load_encoder(path, "bert", fields, target)
    message = str(error.value)
    assert "missing: encoder.layer.0.attention.self.query.bias" in message
    assert "unexpected: encoder.layer.1.output.dense.bias" in message
    assert "pooler.dense.weight has shape [8, 9], needed [8, 8]" in message
    assert "position_ids" not in message
    _, report = bert.from_torch(state, target)
    assert report.ignored == ("embeddings.position_ids",)


def test_another_vocabulary_is_named_with_both_shapes(folder):
    path, _, _, _ = folder
    (path / "config.json").unlink()
    target, fields = bert_target(vocab_size=33)
    wanted = r"word_embeddings.weight has shape \[20, 8\], needed \[33, 8\]"
    with pytest.raises(UserError, match=wanted):
        pretrained.load_encoder(path, "bert", fields, target)


def test_what_shapes_do_not_show_is_read_from_the_config(folder):
    """Heads split a matrix without changing its shape."""
    path, _, target, fields = folder
    with pytest.raises(
        UserError, match=r"num_attention_heads is 2.0, the model's heads is 4.0"
    ):
        pretrained.load_encoder(path, "bert", {**fields, "heads": 4}, target)
    config = json.loads((path / "config.json").read_text())
    for key, value in (("hidden_act", "relu"), ("model_type", "roberta")):
        (path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=value):
            pretrained.load_encoder(path, "bert", fields, target)


def test_a_model_without_pooler_leaves_it_out(folder):
    path, _, _, _ = folder
    target, fields = bert_target(pooler=False)
    _, report = pretrained.load_encoder(path, "bert", fields, target)
    assert sorted(report.ignored) == ["pooler.dense.bias", "pooler.dense.weight"]


def test_16_bit_and_sharded_files(folder):
    path, state, target, fields = folder
    names = sorted(state)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for name, keys in halves.items():
        part = {key: state[key].astype(ml_dtypes.bfloat16) for key in keys}
        save_file(part, path / name)
    index = {key: name for name, keys in halves.items() for key in keys}
    (path / "model.safetensors").unlink()
    index_file = path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    variables, _ = pretrained.load_encoder(path, "bert", fields, target)
    got = variables["params"]["embedding_norm"]["scale"]
    assert got.dtype == np.float32
    wanted = state["embeddings.LayerNorm.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    index["embeddings.LayerNorm.weight"] = "../secret.safetensors"
    index_file.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="outside its folder"):
        files.read(path)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_pickles_that_are_no_plain_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    torch.save({"w": Bomb()}, tmp_path / "zip.bin")
    for name in ("raw.bin", "zip.bin"):
        with pytest.raises(UserError, match="no file of plain tensors"):
            files.read(tmp_path / name)
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(UserError, match="holds a list, not a state dict"):
        files.read(tmp_path / "list.bin")
    torch.save({"epoch": 3, "w": torch.ones(2)}, tmp_path / "mixed.bin")
    with pytest.raises(UserError, match=r"no tensors: \['epoch'\]"):
        files.read(tmp_path / "mixed.bin")
    wrapped = {"state_dict": {"w": torch.ones(2, dtype=torch.bfloat16)}, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.bin")
    np.testing.assert_array_equal(files.read(tmp_path / "wrapped.bin")["w"], [1, 1])


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        files.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected one of model\.safetensors"):
        files.read(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no header here")
    with pytest.raises(UserError, match="is no safetensors file"):
        files.read(tmp_path)
    with pytest.raises(UserError, match="there are hybrid, resnet, swin, vit, bert"):
        pretrained.converter("gpt")


def test_written_files_read_the_same(tmp_path):
    """Also a state whose arrays are transposed views."""
    state = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.zeros((), np.int64),
    }
    files.write_safetensors(state, tmp_path / "x.safetensors")
    back = files.read(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(back["a"], state["a"])
    assert back["b"].shape == () and back["b"].dtype == np.int64


@pytest.mark.parametrize("name", ["swin", "vit", "bert"])
def test_every_architecture_goes_there_and_back(name):
    """Leaf by leaf, so that no two kernels may be swapped on the way."""
    import flax.linen as nn
    import jax

    image = {
        "swin": {"embed_dim": 8, "depths": [1, 2], "heads": [1, 2], "window": 3},
        "vit": {"dim": 8, "depth": 2, "heads": 2, "mlp": 12, "pooling": "pooler"},
    }
    if name == "bert":
        target, _ = bert_target(layers=2)
    else:
        encoder = build_image_encoder({"name": name, **image[name]})
        films = np.zeros((1, 32, 32, 3), np.float32)
        target = dict(
            jax.eval_shape(
                lambda: nn.meta.unbox(
                    encoder.init(jax.random.key(0), films, train=False)
                )
            )
        )
    variables = filled(target)
    module = pretrained.converter(name)
    back, report = module.from_torch(module.to_torch(variables), target)
    assert report == Report()
    for path, value in layout.flatten(variables).items():
        np.testing.assert_array_equal(layout.flatten(back)[path], value)


def test_two_spellings_of_one_key_are_refused():
    both = {"a.LayerNorm.gamma": np.ones(1), "a.LayerNorm.weight": np.ones(1)}
    with pytest.raises(UserError, match="twice, under two spellings"):
        layout.respell(both, layout.OLD_NORM_NAMES)


def test_an_unknown_leaf_is_our_fault():
    with pytest.raises(AssertionError, match="no place for params/extra/kernel2"):
        bert.rule(("params", "extra", "kernel2"))
    assert resnet.rule(("params", "layer2_0", "downsample_conv", "kernel")) == Place(
        "layer2.0.downsample.0.weight", "conv"
    )


def test_load_into_replaces_what_the_config_names(tmp_path):
    """Through a method: the image tower, its batch statistics too."""
    import jax
    from flax.core import meta

    from configs import medclip
    from medclip_jax.methods import registry
    from medclip_jax.methods.interface import Spec

    config = medclip.get_config("demo")
    config.model.image.update({"stage_sizes": (1, 1), "width": 8})
    config.model.text.update({**FIELDS, "layers": 2, "pretrained": ""})
    method = registry.build(config)
    target = meta.unbox(
        jax.eval_shape(lambda: method.init(jax.random.key(0), Spec(32, 8)))
    )
    variables = filled(target)
    encoder = {
        "params": variables["params"]["image"]["encoder"],
        "batch_stats": variables["batch_stats"]["image"],
    }
    state = {key: value + 1 for key, value in resnet.to_torch(encoder).items()}
    files.write_safetensors(state, tmp_path / "resnet.safetensors")
    config.model.image.pretrained = str(tmp_path / "resnet.safetensors")
    loaded, lines = pretrained.load_into(variables, method, config.model)
    assert len(lines) == 1 and lines[0].startswith("image encoder from")
    before, after = layout.flatten(variables), layout.flatten(loaded)
    assert set(before) == set(after)
    for path, value in before.items():
        replaced = path[:3] == ("params", "image", "encoder") or path[0] != "params"
        np.testing.assert_allclose(after[path], value + replaced, rtol=1e-6)
