"""MGCA (NeurIPS 2022): films and reports, patches and words, prototypes.

Variants, written after a colon:

  paper   ViT-B/16 and the first six layers of BERT-base, 112 tokens: batch 144, AdamW
          2e-5, weight decay 0.05 on all, 40 % warm-up, 50 epochs of 217,000 films. The
          paper starts from DeiT-B and Bio_ClinicalBERT: name them by
          model.image.pretrained, model.text.pretrained and model.text.tokenizer. The
          folder of the text tower must hold six layers:
          BertModel.from_pretrained(NAME, num_hidden_layers=6).save_pretrained(DIR).
          In the official text the impression stands before the findings, without
          punctuation; here it is as written.
  resnet  the same with ResNet-50 at 299 px.
  demo    small encoders from scratch on the simulated hospital.

As the official code is run (mgca_module.py): mgca.attention=cosines,
mgca.shifted_words=True, mgca.sum_directions=True, mgca.local_weight=1.0,
mgca.prototype_weight=1.0, model.text.one_position=True.

Command:
  medclip-jax train --config configs/mgca.py:paper --workdir runs/mgca --data shards
"""

from ml_collections import ConfigDict

from configs import common

EPOCH = 217_000 // 144  # steps


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "resnet", "demo"), "paper")
    config = common.base_config("mgca")
    config.mgca = ConfigDict(
        {
            "resize_to": 0,
            "hidden": 2048,  # of the heads
            "stage": 0,  # whose map gives the patches; 0 is the last
            "shifted_words": False,  # True: words weighed as in the official code
            "temperature": 0.07,
            "local_temperature": 0.1,
            "attention": "learned",  # "cosines": without parameters
            "patch_weights": "attention",  # "alike": for a tower without first token
            "unit_patches": False,
            "sum_directions": False,
            "prototypes": 500,
            "prototype_temperature": 0.2,
            "epsilon": 0.05,
            "iterations": 3,
            "frozen_steps": EPOCH,
            "global_weight": 1.0,
            "local_weight": 0.7,
            "prototype_weight": 0.5,
        }
    )
    config.model.embed_dim = 128
    config.data.frontal_only = True
    config.data.text = "report"
    if variant == "demo":
        common.use_demo_sizes(config)
        use_resnet(config)
        config.mgca.update({"hidden": 256, "prototypes": 50, "frozen_steps": 30})
        config.model.text.update({"pooler": False, "one_position": False})
        config.data.text_length = 64
        # At 3e-3 the towers settle on what patches and words tell without their films:
        # their places. Wholes are then never told apart.
        config.optimizer.learning_rate = 1e-3
        return config
    config.model.image = ConfigDict({**common.VIT_BASE, "pretrained": ""})
    config.model.image.epsilon = 1e-6
    if variant == "resnet":
        config.model.image = ConfigDict({**common.RESNET50, "pretrained": ""})
        use_resnet(config)
        config.mgca.resize_to = 299
    config.model.text.update({"layers": 6, "pooler": False, "one_position": False})
    config.data.text_length = 112
    config.data.mean, config.data.std = 0.5, 0.5
    config.data.augment = ConfigDict({})  # random crops alone
    config.train.steps = 50 * EPOCH
    config.train.batch_size = 144
    config.optimizer.update(
        {
            "learning_rate": 2e-5,
            "warmup_fraction": 0.4,
            "weight_decay": 0.05,
            "decay_rules": "all",
            "clip_norm": 0.0,
        }
    )
    return config


def use_resnet(config: ConfigDict) -> ConfigDict:
    """As in the official code: the third stage's patches count alike, and so does what
    they find, at length 1."""
    config.mgca.update({"stage": 3, "patch_weights": "alike", "unit_patches": True})
    return config
