"""MedCLIP (EMNLP 2022, arXiv 2210.10163): unpaired films and texts.

Variants, written after a colon:

  swin    Swin-Tiny and BERT-base, the paper's "ViT": batch 100, AdamW 5e-5, weight
          decay 1e-4, 10 % warm-up, cosine. Start from ImageNet and Bio_ClinicalBERT
          weights by --config.model.image.pretrained=DIR,
          --config.model.text.pretrained=DIR and --config.model.text.tokenizer=DIR.
  resnet  the same with ResNet-50.
  demo    a small ResNet and a two-layer BERT from scratch on the simulated
          hospital: minutes on two CPU cores.
  packs   the demo's encoders on a thousand real films and texts, most of them
          without a partner: see benchmarks/RESULTS.md.

Command:
  medclip-jax train --config configs/medclip.py:swin --workdir runs/swin --data shards
"""

from ml_collections import ConfigDict

from configs import common

TOWERS = {"swin": common.SWIN_TINY, "resnet": common.RESNET50}
VARIANTS = (*TOWERS, "demo", "packs")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, VARIANTS, "swin")
    config = common.base_config("medclip")
    config.data.view = "unpaired"
    config.data.text_length = 77
    config.medclip = ConfigDict(
        {
            # The paper's cosine; the official code takes "dot".
            "target": "cosine",
            # The released ViT weights' pooling; "pooler" for the ResNet's.
            "text_pool": "layers_1_2_last",
            # The official code averages over padding too.
            "pool_padding": False,
            # An early official checkpoint has a bias in the text projection.
            "text_bias": False,
            # The inverse temperature at the start, of the official code.
            "initial_scale": 1 / 0.07,
        }
    )
    if variant in ("demo", "packs"):
        # Where nothing is pretrained. The target is a softmax over cosines, that is at
        # a scale of 1; from 14 the first thing learnt is to make all logits equal, and
        # the embeddings fall together.
        config.medclip.initial_scale = 2.0
        # Most sentences of a report say that nothing is found.
        config.data.unpaired.normal_text_weight = 0.1
    if variant == "demo":
        return common.use_demo_sizes(config)
    if variant == "packs":
        return common.use_packs_sizes(config)
    config.model.image = ConfigDict({**TOWERS[variant], "pretrained": ""})
    # The paper's 10 epochs over 570,000 images at batch 100.
    config.train.steps = 57_000
    config.train.batch_size = 100
    return config
