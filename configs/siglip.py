"""SigLIP (arXiv 2303.15343) on pairs of films and report sentences.

Variants, written after a colon:

  vit   ViT-S/16 and BERT-base.
  demo  small encoders from scratch on the simulated hospital.

Command:
  medclip-jax train --config configs/siglip.py:vit --workdir runs/siglip --data shards
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("vit", "demo"), "vit")
    config = common.base_config("siglip")
    config.siglip = ConfigDict({"text_pool": "cls"})
    if variant == "demo":
        return common.use_demo_sizes(config)
    config.model.image = ConfigDict({**common.VIT_SMALL, "pretrained": ""})
    config.train.batch_size = 512
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95
    return config
