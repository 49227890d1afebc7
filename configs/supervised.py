"""Supervised classification of the 14 findings: the ceiling of zero-shot figures.

Variants, written after a colon:

  resnet  ResNet-50.
  demo    the image encoder of configs/medclip.py:demo.

Command:
  medclip-jax train --config configs/supervised.py:demo --workdir runs/ceiling \
      --data shards
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("resnet", "demo"), "resnet")
    config = common.base_config("supervised")
    config.data.view = "images"
    config.data.uncertain = "ignore"
    config.checkpoint.best_metric = "loss"
    if variant == "demo":
        config = common.use_demo_sizes(config)
        config.train.steps = 1000  # labels teach faster than sentences
        return config
    config.optimizer.learning_rate = 1e-4
    return config
