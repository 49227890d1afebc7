"""GLoRIA (ICCV 2021): films and report sentences, words and regions.

Variants, written after a colon:

  paper  ResNet-50 at 299 px and BERT-base of 97 tokens: batch 48, Adam 5e-5 with betas
         0.5 and 0.999, gradient norm 0.25, 50 epochs of 191,229 films. The official
         plateau schedule never fires (gloria/builder.py, run.py), so the learning rate
         is constant. The paper starts from ImageNet and Bio_ClinicalBERT: name them by
         model.image.pretrained, model.text.pretrained and model.text.tokenizer.
  demo   small encoders from scratch on the simulated hospital.

Command:
  medclip-jax train --config configs/gloria.py:paper --workdir runs/gloria --data shards
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "demo"), "paper")
    config = common.base_config("gloria")
    config.gloria = ConfigDict(
        {
            "stage": 3,  # whose map holds the regions
            "text_layers": 4,  # the last ones, added up
            "unknown_id": -1,  # 100 (BERT): each [UNK] shortens a text, officially
            "words": {
                # "regions": one softmax, as the paper has it.
                "attention": "words_then_regions",
                "aggregate": "sum",  # or "mean", "paper"
                "unit": False,
                "sharpness": 4.0,
                "focus": 5.0,
            },
            "scale": 10.0,
            "global_weight": 1.0,
            "local_weight": 1.0,
            "resize_to": 299,
            "similarity": "both",  # or "global", "local"
            "window": "words",  # "characters": the official code's
        }
    )
    config.data.frontal_only = True
    if variant == "demo":
        common.use_demo_sizes(config)
        config.gloria.resize_to = 0
        config.gloria.text_layers = 2
        return config
    config.model.embed_dim = 768
    config.model.text.pooler = False
    config.data.text_length = 97
    config.data.sections = ("impression",)
    config.data.mean, config.data.std = 0.5, 0.5
    config.data.augment = ConfigDict({})  # random crops alone
    config.train.steps = 50 * (191_229 // 48)
    config.train.batch_size = 48
    config.optimizer.update(
        {
            "name": "adam",
            "learning_rate": 5e-5,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "weight_decay": 1e-6,
            "clip_norm": 0.25,
            "b1": 0.5,
        }
    )
    return config
