"""benchmarks/input.py: it runs on shards, and its ratios are those of its figures."""

import re

import pytest

from benchmarks import input as benchmark

pytest.importorskip("torch")


@pytest.mark.slow
def test_the_ratios_are_those_of_the_figures(tiny_data, capsys):
    few = ["--batch_size=8", "--seconds=0.2", "--films=64"]
    assert benchmark.main([f"--data={tiny_data}", *few]) == 0
    text = capsys.readouterr().out

    def rate(label):
        found = re.search(rf"^{label}\s+(\d+) /?(films|s)", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    held = {how: rate(f"batches, {how}") for how in ("nothing held", "all held")}
    assert held["all held"] > held["nothing held"] > 0
    augmenting = rate("augment and normalise")
    for how, ours in held.items():
        for decoder in ("pillow", "simplejpeg"):
            theirs = rate(f"DataLoader, {decoder}")
            (plain, augmented) = re.search(
                rf"ratio, {how}, to DataLoader with {decoder}: ([\d.]+); with "
                r"augmentation ([\d.]+)",
                text,
            ).groups()
            assert float(plain) == pytest.approx(ours / theirs, abs=0.11, rel=0.01)
            both = 1 / (1 / ours + 1 / augmenting)
            assert float(augmented) == pytest.approx(both / theirs, abs=0.11, rel=0.01)
