"""benchmarks/step.py: the peer computes what our step does."""

import json

import pytest

from benchmarks import step
from medclip_jax import cli

pytest.importorskip("torch")
pytest.importorskip("transformers")

# Nothing is drawn, so that both sides must agree.
CONFIG = """
from configs import clip, medclip

def get_config(arg=None):
    config = {method}.get_config("{variant}")
    config.model.image.update({image})
    config.model.text.update(
        vocab_size=64, dim=32, heads=2, mlp=64, max_positions=16,
        dropout=0.0, attention_dropout=0.0,
    )
    config.model.embed_dim = 16
    config.data.update(image_size=32, crop_from=32, text_length=12)
    config.optimizer.learning_rate = 1e-2
    return config
"""
CASES = {
    "vit": ("clip", {"dim": 32, "heads": 2, "mlp": 64}),
    "swin": (
        "medclip",
        {"embed_dim": 16, "heads": (1, 2), "window": 4, "drop_path": 0.0},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(CASES))
def test_both_sides_compute_the_same_losses(variant, tmp_path, capfd):
    method, image = CASES[variant]
    config, out = tmp_path / "small.py", tmp_path / "result.json"
    config.write_text(CONFIG.format(method=method, variant=variant, image=image))
    options = ["--layers=2", "--rounds=2", "--steps=1", "--peers", "eager"]
    assert step.main([f"--config={config}", f"--json={out}", *options]) == 0
    result = json.loads(out.read_text())
    ours, theirs = (result["facts"][name]["losses"] for name in ("ours", "eager"))
    # The second has seen an update: the gradient, clipping and AdamW agree too.
    assert len(ours) == len(theirs) == 2 and abs(ours[1] - ours[0]) > 1e-2
    assert ours == pytest.approx(theirs, rel=2e-5)
    for part in step.PARTS:
        of = result["seconds"][part]
        assert len(of["ours"]) == len(of["eager"]) == 2 and min(of["ours"]) > 0
        assert result["ratios"][part]["eager"] > 0
    printed = capfd.readouterr().out
    assert "ratio to eager" in printed and "MFU" in printed


def test_a_method_without_a_peer_is_refused(capsys):
    assert cli.run(step.main, ["--config=siglip.py"]) == 2
    assert "CLIP and MedCLIP with a ViT or a Swin" in capsys.readouterr().err
