import os

import pytest

from medclip_jax import config_flags
from medclip_jax.errors import UserError


@pytest.mark.parametrize(
    "name", ["medclip.py:demo", "medclip:demo", "configs/medclip.py:demo"]
)
def test_shipped_configs_from_anywhere(name, tmp_path):
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert config_flags.load_config(name).method == "medclip"
    finally:
        os.chdir(before)


def test_a_file_comes_before_a_shipped_name(tmp_path):
    file = tmp_path / "medclip.py"
    file.write_text(
        "from configs import common\n"
        "def get_config(arg=None):\n"
        "    return common.base_config('clip')\n"
    )
    assert config_flags.load_config(str(file)).method == "clip"


@pytest.mark.parametrize("name", config_flags.shipped())
def test_every_shipped_config_loads(name):
    assert config_flags.load_config(name).method == name


def test_values_take_the_type_of_the_default():
    config = config_flags.load_config(
        "medclip.py:demo",
        [
            "train.steps=1_000",
            "optimizer.learning_rate=1e-3",
            "model.remat=true",
            "data.datasets=mimic_cxr,chexpert",
            "optimizer.frozen=('text/.*',)",
            "model.dtype=bfloat16",
            "data.sections=",
        ],
    )
    assert config.train.steps == 1000
    assert config.optimizer.learning_rate == 1e-3
    assert config.model.remat is True
    assert config.data.datasets == ("mimic_cxr", "chexpert")
    assert config.optimizer.frozen == ("text/.*",)
    assert config.model.dtype == "bfloat16"
    assert config.data.sections == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"Did you mean --config.train.steps\?"),
        ("batch_size=3", r"Did you mean --config.train.batch_size\?"),
        ("train.steps=many", "expected int"),
        ("model.remat=maybe", "expected bool"),
        ("optimizer.learning_rate=fast", "expected float"),
        ("train=3", "is a group.*--config.train.steps"),
        ("train.steps", "needs a value"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(UserError, match=message):
        config_flags.load_config("medclip.py:demo", [override])


def test_unknown_config_and_variant():
    with pytest.raises(UserError, match=r"Did you mean 'medclip'\?"):
        config_flags.load_config("medclp.py:swin")
    with pytest.raises(UserError, match="swim.*swin"):
        config_flags.load_config("medclip.py:swim")
    with pytest.raises(UserError, match="no shipped config"):
        config_flags.load_config("elsewhere/medclip.py")


def test_json_and_back():
    config = config_flags.load_config("medclip.py:swin")
    again = config_flags.from_json(config_flags.to_json(config))
    assert again.to_dict() == config.to_dict()


def test_which_keys_keep_a_run_from_going_on():
    old = config_flags.to_json(config_flags.load_config("medclip.py:demo"))

    def differ(*overrides):
        new = config_flags.load_config("medclip.py:demo", overrides)
        found = config_flags.differences(old, config_flags.to_json(new))
        return [key for key, _, _ in found]

    free = ["train.log_every_steps=7", "mesh.data=4", "checkpoint.every_steps=9"]
    assert differ(*free, "data.workers=5", "train.steps=999999") == []
    assert differ("train.steps=1") == ["train.steps"]
    assert differ("seed=3", "data.augment.flip=0.25") == ["data.augment.flip", "seed"]
    del old["model"]["embed_dim"]
    assert differ() == ["model.embed_dim"]
