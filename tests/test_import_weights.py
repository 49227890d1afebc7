"""Official weights in, a workdir out; and what was exported comes back the same."""

import jax
import numpy as np
import pytest

from medclip_jax import config_flags, export, import_weights
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.inputs.tokens import Tokenizer
from medclip_jax.weights import files, medclip
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


def official(image, folder, *more):
    """A small model's weights in the official layout, and its tokenizer."""
    from flax.core import meta

    from medclip_jax.methods import registry

    config = import_weights.make_config(image, [*SMALL[image], *COMMON, *more], None)
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
    assert run.method.text_pool == medclip.TEXT_POOL[image]
    assert run.method.pool_padding
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
    config = import_weights.make_config("swin", [], None)
    assert config.model.text.vocab_size == 28996
    assert config.model.image.window == 7
    assert config_flags.to_json(config)["model"]["embed_dim"] == 512
    assert config.medclip.text_pool == "layers_1_2_last"
    assert import_weights.make_config("resnet", [], None).medclip.text_pool == "pooler"
