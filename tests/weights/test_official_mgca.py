"""MGCA's official model, written in PyTorch with its names: weights, embeddings, losses."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from medclip_jax import import_weights
from medclip_jax.errors import UserError
from medclip_jax.methods import registry
from medclip_jax.methods.interface import Spec
from medclip_jax.weights import huggingface, mgca
from medclip_jax.weights.layout import flatten

SPEC = Spec(32, 9)
PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "heart", "##s", "clear", "lung", "no", "pneu",
    "##mo", "##nia",
]  # fmt: skip
TEXTS = (
    "[CLS] heart ##s clear [SEP]",
    "[CLS] no pneu ##mo ##nia [SEP]",
    "[CLS] lung ##s clear no heart no lung [SEP]",  # fills all nine
)
SMALL = {
    "image": {
        "vit": ["patch=8", "dim=24", "depth=2", "heads=3", "mlp=40"],
        "resnet": ["stage_sizes=(1,1,1,1)", "width=4"],
    },
    "text": [
        "dim=16", "layers=2", "heads=2", "mlp=24", "max_positions=16", "dropout=0",
        "attention_dropout=0", f"vocab_size={len(PIECES)}",
    ],
}  # fmt: skip
MGCA = ["hidden=20", "prototypes=6", "frozen_steps=0"]


def config_of(image, *more):
    """Of official weights with this image tower."""
    anchor = f"{mgca.TOWERS['image']}model.{'pos_embed' if image == 'vit' else 'conv1'}"
    options = [
        *(f"--config.model.image.{of}" for of in SMALL["image"][image]),
        *(f"--config.model.text.{of}" for of in SMALL["text"]),
        *(f"--config.mgca.{of}" for of in (*MGCA, *more)),
        "--config.model.embed_dim=8",
    ]
    if image == "resnet":
        options.append("--config.mgca.resize_to=48")
    return import_weights.make_config(mgca, {anchor: np.zeros(1)}, options, None)


def target_of(method):
    return nn.meta.unbox(jax.eval_shape(lambda: method.init(jax.random.key(0), SPEC)))


@pytest.mark.parametrize("image", ["vit", "resnet"])
@pytest.mark.parametrize("attention", ["learned", "cosines"])
def test_there_and_back(image, attention):
    config = config_of(image, f"attention={attention}")
    assert config.mgca.patch_weights == ("attention" if image == "vit" else "alike")
    target = target_of(registry.build(config))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: np.float32(0.1 + abs(rng.standard_normal(s.shape))), target
    )
    state, _ = mgca.to_torch(variables, image)
    assert all("/" not in key for key in state)
    state["prototype_layer.weight"] *= 3  # as after an update
    state["text_encoder_q.model.encoder.layer.0.crossattention.self.key.bias"] = (
        np.zeros(16)
    )
    state = {f"module.{key}": value for key, value in state.items()}
    assert mgca.recognises(state)
    back, report = mgca.from_torch(state, target)
    assert report.fits
    assert {key.rpartition(".")[2] for key in report.ignored} == {
        "bias",  # of crossattention
        "num_batches_tracked",
        "position_ids",
    }
    before, after = flatten(variables), flatten(back)
    assert before.keys() == after.keys()
    of_text = ("params", "text", "encoder")
    types = before.pop((*of_text, "type_embedding"))
    before[*of_text, "position_embedding"] += types[0]
    assert not after.pop((*of_text, "type_embedding")).any()
    prototypes = before["params", "prototypes"]
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    for path, value in before.items():
        np.testing.assert_allclose(value, after[path], rtol=1e-6, err_msg=str(path))


def test_parameters_of_the_published_vit():
    """Its trunk, four heads, six layers of text, and what is not called there."""
    anchor = {f"{mgca.TOWERS['image']}model.pos_embed": np.zeros(1)}
    learned = ["--config.mgca.attention=learned"]
    config = import_weights.make_config(mgca, anchor, learned, None)
    target = target_of_size(registry.build(config), Spec(224, 112))
    empty = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), target)
    state, report = mgca.to_torch({"params": empty["params"]}, "vit")
    assert report.missing == tuple(
        f"text_encoder_q.model.encoder.layer.{n}.crossattention" for n in range(6)
    )

    def size(prefix):
        return sum(
            of.size
            for key, of in state.items()
            if key.startswith(prefix) and of.dtype == np.float32
        )

    assert size("img_encoder_q.model.") == 85_798_656
    assert size("text_encoder_q.model.") == 65_190_912
    for tower in ("img", "text"):
        for of in ("global", "local"):
            assert size(f"{tower}_encoder_q.{of}_embed.") == 1_841_280
    assert size("prototype_layer.") == 64_000
    assert size("word_local") == size("patch_local") == 66_048
    assert state["img_encoder_q.local_embed.head.3.weight"].shape == (128, 2048, 1)
    assert state["img_encoder_q.model.blocks.11.attn.qkv.weight"].shape == (2304, 768)


def target_of_size(method, spec):
    return nn.meta.unbox(jax.eval_shape(lambda: method.init(jax.random.key(0), spec)))


def test_what_the_layout_does_not_have_is_refused():
    pooled = {"image": {"encoder": {"pooler": {}}}, "text": {"encoder": {}}}
    with pytest.raises(UserError, match="has a vit or a resnet, no 'swin'"):
        mgca.to_torch({"params": pooled}, "swin")
    with pytest.raises(UserError, match="has one in its image encoder"):
        mgca.to_torch({"params": pooled}, "vit")


def test_a_tower_of_one_position_is_not_written_for_transformers():
    encoder = registry.build(config_of("vit")).text_encoder
    fields = {name: getattr(encoder, name) for name in encoder.__dataclass_fields__}
    with pytest.raises(UserError, match="BertModel numbers its positions"):
        huggingface.to_config("bert", fields)
    config = huggingface.to_config("bert", {**fields, "one_position": False})
    assert config["num_hidden_layers"] == 2
