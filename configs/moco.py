"""MoCo v2 (arXiv 2003.04297): films alone, a queue of keys, a momentum encoder.

Variants, written after a colon:

  paper    ResNet-50: batch 256 in 8 groups of statistics, queue of 65,536, temperature
           0.2, SGD 0.03 as a cosine, decay 1e-4, 200 epochs.
  convirt  as the baseline of ConVIRT (arXiv 2010.00747, appendix E): batch 64 in 2
           groups, queue of 4,096, temperature 0.07, SGD 0.0075, a tenth at 60 and 80 of
           100 epochs.
  demo     a small encoder from scratch on the simulated hospital.

Steps are those of 377,110 films (MIMIC-CXR). Colours are gray here: of the paper's jitter,
brightness and contrast are left.

Command:
  medclip-jax train --config configs/moco.py:paper --workdir runs/moco --data shards
"""

from ml_collections import ConfigDict

from configs import common

FILMS = 377_110


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "convirt", "demo"), "paper")
    config = common.base_config("moco")
    config.moco = ConfigDict(
        {
            "queue": 65536,
            "momentum": 0.999,
            "temperature": 0.2,
            "hidden": 2048,
            "groups": 8,  # of a batch, each with its own batch statistics
            "shuffle": True,
        }
    )
    config.data.view = "two_crops"
    config.checkpoint.best_metric = "loss"
    config.model.embed_dim = 128
    if variant == "demo":
        common.use_demo_sizes(config)
        config.moco.update(
            {"queue": 1024, "momentum": 0.99, "hidden": 128, "groups": 2}
        )
        config.train.eval_every_steps = 0
        config.data.augment.update({"crop_area_min": 0.3, "flip": 0.5})
        return config
    config.data.augment = ConfigDict(
        {
            "crop_area_min": 0.2,
            "flip": 0.5,
            "brightness": 0.4,
            "contrast": 0.4,
            "blur_sigma_min": 0.1,
            "blur_sigma_max": 2.0,
        }
    )
    config.optimizer.update(
        {
            "name": "sgd",
            "learning_rate": 0.03,
            "weight_decay": 1e-4,
            "warmup_fraction": 0.0,
            "clip_norm": 0.0,
            "decay_rules": "all",
        }
    )
    epochs = 200
    config.train.batch_size = 256
    if variant == "convirt":
        config.moco.update({"queue": 4096, "temperature": 0.07, "groups": 2})
        config.optimizer.update({"learning_rate": 0.0075, "schedule": "drops"})
        config.train.batch_size, epochs = 64, 100
    config.train.steps = epochs * FILMS // config.train.batch_size
    return config
