"""SimCLR (arXiv 2002.05709): films alone, two crops of each.

Variants, written after a colon:

  paper    ResNet-50, head of two layers with BatchNorm: batch 4096, LARS 4.8 with ten of
           a hundred epochs of warm-up, decay 1e-6, temperature 0.1. Steps are those of
           100 epochs of 377,110 films (MIMIC-CXR).
  convirt  as the baseline of ConVIRT (arXiv 2010.00747, appendix E), sthalles/SimCLR: a
           head without BatchNorm, batch 128, Adam 3e-4, decay 1e-4, 100 epochs.
  demo     a small encoder from scratch on the simulated hospital.

Colours are gray here: of the papers' jitter, brightness and contrast are left.

Command:
  medclip-jax train --config configs/simclr.py:paper --workdir runs/simclr --data shards
"""

from ml_collections import ConfigDict

from configs import common

FILMS, EPOCHS = 377_110, 100


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "convirt", "demo"), "paper")
    config = common.base_config("simclr")
    config.simclr = ConfigDict(
        {
            "temperature": 0.1,
            "sum_of_views": False,  # True: google-research/simclr, twice the loss
            "hidden": 2048,
            "layers": 2,
            "batch_norm": True,
        }
    )
    config.data.view = "two_crops"
    config.checkpoint.best_metric = "loss"
    config.model.embed_dim = 128
    if variant == "demo":
        common.use_demo_sizes(config)
        config.simclr.hidden = 128
        config.train.eval_every_steps = 0
        config.data.augment.update({"crop_area_min": 0.3, "flip": 0.5})
        return config
    config.data.mean, config.data.std = 0.0, 1.0  # neither code takes a mean off
    config.data.augment = ConfigDict(
        {
            "crop_area_min": 0.08,
            "flip": 0.5,
            "brightness": 0.8,
            "contrast": 0.8,
            "blur_sigma_min": 0.1,
            "blur_sigma_max": 2.0,
        }
    )
    if variant == "paper":
        config.train.batch_size = 4096
        config.optimizer.update(
            {"name": "lars", "learning_rate": 4.8, "weight_decay": 1e-6}
        )
    else:
        config.simclr.batch_norm = False
        config.train.batch_size = 128
        config.optimizer.update(
            {
                "name": "adam",
                "learning_rate": 3e-4,
                "weight_decay": 1e-4,
                "decay_rules": "all",
                "warmup_fraction": 0.0,
            }
        )
    config.optimizer.clip_norm = 0.0
    config.train.steps = EPOCHS * FILMS // config.train.batch_size
    return config
