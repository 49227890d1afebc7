"""CLIP (arXiv 2103.00020) on pairs of films and report sentences.

Variants, written after a colon:

  vit   ViT-S/16 and BERT-base.
  demo  small encoders from scratch on the simulated hospital; the pairs-only
        counterpart of configs/medclip.py:demo on the same budget.
  packs  the pairs-only counterpart of configs/medclip.py:packs.

Command:
  medclip-jax train --config configs/clip.py:vit --workdir runs/clip --data shards
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("vit", "demo", "packs"), "vit")
    config = common.base_config("clip")
    config.clip = ConfigDict({"text_pool": "cls"})
    if variant == "demo":
        return common.use_demo_sizes(config)
    if variant == "packs":
        return common.use_packs_sizes(config)
    config.model.image = ConfigDict({**common.VIT_SMALL, "pretrained": ""})
    config.train.batch_size = 512
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.2
    config.optimizer.b2 = 0.98
    return config
