"""Official weights in, a workdir out; and what was exported comes back the same."""

import jax
import numpy as np
import pytest
from flax.core import meta

from medclip_jax import config_flags, export, import_weights
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.methods import registry
from medclip_jax.weights import files, gloria, medclip, mgca
from medclip_jax.weights.layout import flatten

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Heart", "heart", "size"]
SMALL = {
    "swin": [
        "--config.model.image.embed_dim=8",
        "--config.model.image.depths=(2,1)",
        "--config.model.image.heads=(2,2)",
        "--config.model.image.window=4",
    ],
    "resnet": [
        "--config.model.image.stage_sizes=(1,1)",
        "--config.model.image.width=8",
    ],
}
COMMON = [
    "--config.model.text.dim=16",
    "--config.model.text.layers=3",
    "--config.model.text.heads=2",
    "--config.model.text.mlp=24",
    "--config.model.text.max_positions=16",
    f"--config.model.text.vocab_size={len(VOCABULARY)}",
    "--config.model.embed_dim=12",
    "--config.data.image_size=32",
    "--config.data.text_length=12",
]


def config_of(image, options):
    """The config of weights with this image encoder."""
    anchor = medclip.IMAGE_ENCODERS[image].ANCHOR
    state = {f"{medclip.VISION}model.{anchor}": np.zeros(1)}
    return import_weights.make_config(medclip, state, options, None)


def official(image, folder, *more):
    """A small model's weights in the official layout, and its tokenizer."""
    config = config_of(image, [*SMALL[image], *COMMON, *more])
    method = registry.build(config)
    shapes = meta.unbox(
        jax.eval_shape(run_lib.initializer(config, method), jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: np.float32(0.1 + 0.3 * abs(rng.standard_normal(s.shape))), shapes
    )
    state, _ = medclip.to_torch(variables, image)
    files.write_safetensors(state, folder / "model.safetensors")
    Tokenizer.from_vocabulary(VOCABULARY).save(folder / "tokenizer")
    return variables


def run_import(image, folder, *more):
    argv = [
        "--weights",
        str(folder / "model.safetensors"),
        "--tokenizer",
        str(folder / "tokenizer"),
        "--out",
        str(folder / "workdir"),
    ]
    return import_weights.main([*argv, *SMALL[image], *COMMON, *more])


def test_a_bias_of_the_text_projection_is_taken(tmp_path):
    variables = official("swin", tmp_path, "--config.medclip.text_bias=True")
    assert run_import("swin", tmp_path) == 0
    run = run_lib.open_run(tmp_path / "workdir", "latest")
    assert run.config.medclip.text_bias
    np.testing.assert_array_equal(
        run.variables["params"]["text"]["projection"]["bias"],
        variables["params"]["text"]["projection"]["bias"],
    )


@pytest.mark.parametrize("image", SMALL)
def test_import_then_export_gives_the_same_state_dict(image, tmp_path):
    variables = official(image, tmp_path)
    assert run_import(image, tmp_path) == 0
    run = run_lib.open_run(tmp_path / "workdir", "latest")
    for path, value in flatten(jax.device_get(run.variables)).items():
        np.testing.assert_array_equal(value, flatten(variables)[path])
    assert run.method.text_head.pool == medclip.TEXT_POOL[image]
    assert run.method.text_head.padding
    out = tmp_path / "export"
    argv = ["--workdir", str(tmp_path / "workdir"), "--out", str(out)]
    assert export.main(argv) == 0
    before = files.read(tmp_path / "model.safetensors")
    after = files.read(out / "medclip_official" / "model.safetensors")
    assert set(before) == set(after)
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])
    assert "data-use agreements apply" in (out / "README.md").read_text()


def test_the_official_casing_and_the_tokenizers_own(tmp_path):
    official("resnet", tmp_path)
    import_weights.main(
        [
            *("--weights", str(tmp_path / "model.safetensors")),
            *("--tokenizer", str(tmp_path / "tokenizer")),
            *("--out", str(tmp_path / "workdir"), *SMALL["resnet"], *COMMON),
        ]
    )
    tokenizer = run_lib.open_run(tmp_path / "workdir", "latest").tokenizer
    assert tokenizer.encode(["Heart"], 4)["ids_BxT"][0, 1] == VOCABULARY.index("heart")


def test_what_does_not_fit_is_refused(tmp_path):
    official("resnet", tmp_path)
    with pytest.raises(UserError, match=r"missing: vision_model\.model\.layer3\.0"):
        run_import("resnet", tmp_path, "--config.model.image.stage_sizes=(1,1,1)")
    assert not (tmp_path / "workdir" / "config.json").exists()
    with pytest.raises(UserError, match="unknown option '--colour'"):
        run_import("resnet", tmp_path, "--colour")
    assert run_import("resnet", tmp_path) == 0
    with pytest.raises(UserError, match="is a workdir already"):
        run_import("resnet", tmp_path)


def test_defaults_are_the_published_sizes():
    config = config_of("swin", [])
    assert config.model.text.vocab_size == 28996
    assert config.model.image.window == 7
    assert config_flags.to_json(config)["model"]["embed_dim"] == 512
    assert config.medclip.text_pool == "layers_1_2_last"
    assert config_of("resnet", []).medclip.text_pool == "pooler"


def gloria_official(folder):
    """A small GLoRIA's variables, state dict and what `import` takes of them."""
    options = [
        *(of for of in SMALL["resnet"] if "stage_sizes" not in of),
        "--config.model.image.stage_sizes=(1,1,1,1)",
        *(of for of in COMMON if "embed_dim" not in of),
        "--config.model.embed_dim=16",  # as the text tower
        "--config.gloria.text_layers=2",
    ]
    pooler = {f"gloria.{gloria.POOLER}": np.zeros(1)}
    config = import_weights.make_config(gloria, pooler, options, None)
    assert config.model.text.pooler
    method = registry.build(config)
    shapes = meta.unbox(
        jax.eval_shape(run_lib.initializer(config, method), jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: np.float32(0.1 + 0.3 * abs(rng.standard_normal(s.shape))), shapes
    )
    state, report = gloria.to_torch(variables, "resnet")
    assert report.fits
    files.write_safetensors(state, folder / "model.safetensors")
    Tokenizer.from_vocabulary(VOCABULARY).save(folder / "tokenizer")
    argv = ["--weights", str(folder / "model.safetensors")]
    argv += ["--tokenizer", str(folder / "tokenizer")]
    argv += ["--out", str(folder / "workdir"), *options]
    return config, variables, state, argv


def test_gloria_s_weights(tmp_path):
    """Under the names of the official code, and of its training code."""
    config, variables, state, argv = gloria_official(tmp_path)
    dim, width = config.model.embed_dim, config.model.image.width
    prefix = "gloria.img_encoder."
    assert state[f"{prefix}global_embedder.weight"].shape == (dim, 32 * width)
    assert state[f"{prefix}local_embedder.weight"].shape == (dim, 16 * width, 1, 1)
    for key in (
        f"{prefix}global_embedder.bias",
        f"{prefix}model.layer3.0.downsample.1.running_var",
        "gloria.text_encoder.model.encoder.layer.0.attention.self.query.weight",
        "gloria.text_encoder.model.embeddings.LayerNorm.bias",
    ):
        assert key in state
    state = {f"model.{key}": value for key, value in state.items()}
    files.write_safetensors(state, tmp_path / "model.safetensors")
    assert import_weights.main(argv) == 0
    run = run_lib.open_run(tmp_path / "workdir", "latest")
    found = flatten(jax.device_get(run.variables))
    assert found.keys() == flatten(variables).keys()
    for path, value in flatten(variables).items():
        np.testing.assert_array_equal(found[path], value)
    with pytest.raises(UserError, match="--text_pool is of MedCLIP's weights"):
        import_weights.main([*argv, f"--out={tmp_path / 'x'}", "--text_pool=pooler"])


def test_gloria_s_import_then_export_gives_the_same_state_dict(tmp_path, capsys):
    """Pooler, tables and counters too, so that the official code loads it strictly."""
    _, _, before, argv = gloria_official(tmp_path)
    assert import_weights.main(argv) == 0
    out = tmp_path / "export"
    workdir = ["--workdir", str(tmp_path / "workdir"), "--out", str(out)]
    assert export.main(workdir) == 0
    after = files.read(out / "gloria_official" / "model.safetensors")
    assert set(before) == set(after)
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])
        assert value.dtype == after[key].dtype
    printed = capsys.readouterr().out
    for line in (
        "the official code has gloria.text_layers=4; this model 2",
        "the official code has gloria.window=characters; this model words",
    ):
        assert f"note: gloria_official: {line}, as torch_model/ does" in printed
    assert "words.sharpness" not in printed and "strict=False" not in printed
    assert "data-use agreement applies" in (out / "README.md").read_text()


def test_gloria_s_weights_without_a_pooler(tmp_path):
    """As training here leaves them: said of the export, and taken by the import."""
    _, variables, state, argv = gloria_official(tmp_path)
    del variables["params"]["text"]["encoder"]["pooler"]
    less, report = gloria.to_torch(variables, "resnet")
    assert set(report.missing) == set(state) - set(less) and len(report.missing) == 2
    files.write_safetensors(less, tmp_path / "model.safetensors")
    assert import_weights.main(argv) == 0
    config = run_lib.open_run(tmp_path / "workdir", "latest").config
    assert not config.model.text.pooler
    with pytest.raises(UserError, match="GLoRIA's layout has a ResNet, no 'swin'"):
        gloria.to_torch(variables, "swin")


def test_mgca_s_weights(tmp_path):
    """Of the ViT, told by its keys; as the official code has it, at length 1."""
    options = [
        *(f"--config.model.image.{of}" for of in ("dim=16", "depth=2", "heads=2")),
        *("--config.model.image.mlp=24", "--config.mgca.hidden=20", *COMMON),
    ]
    anchor = {"img_encoder_q.model.pos_embed": np.zeros(1)}
    config = import_weights.make_config(mgca, anchor, options, None)
    shapes = meta.unbox(
        jax.eval_shape(
            run_lib.initializer(config, registry.build(config)), jax.random.key(0)
        )
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: np.float32(0.1 + 0.3 * abs(rng.standard_normal(s.shape))), shapes
    )
    # What the released file has besides.
    unused = {
        "word_local_atten_layer.in_proj_weight": np.zeros((36, 12)),
        "patch_local_atten_layer.out_proj.bias": np.zeros(12),
    }
    state = {**mgca.to_torch(variables, "vit")[0], **unused}
    files.write_safetensors(state, tmp_path / "model.safetensors")
    Tokenizer.from_vocabulary(VOCABULARY).save(tmp_path / "tokenizer")
    argv = ["--weights", str(tmp_path / "model.safetensors")]
    argv += ["--tokenizer", str(tmp_path / "tokenizer")]
    argv += ["--out", str(tmp_path / "workdir"), *options]
    assert import_weights.main(argv) == 0
    run = run_lib.open_run(tmp_path / "workdir", "latest")
    assert run.config.model.text.one_position and run.config.mgca.shifted_words
    assert run.method.attention == "cosines" and run.method.sum_directions
    assert run.method.text_head.shifted
    back, _ = mgca.to_torch(jax.device_get(run.variables), "vit")
    assert back.keys() | unused.keys() == state.keys()
    prototypes = state["prototype_layer.weight"]
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    for key, value in back.items():
        np.testing.assert_allclose(value, state[key], rtol=1e-6, err_msg=key)


def test_weights_of_another_system_are_named(tmp_path):
    files.write_safetensors(
        {"visual.proj": np.zeros(3)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        UserError, match="state dict of MedCLIP, GLoRIA, MGCA, CXR-BERT"
    ):
        run_import("swin", tmp_path)
