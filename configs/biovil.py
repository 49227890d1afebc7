"""BioViL (ECCV 2022): films and reports, and hidden words named.

Variants, written after a colon:

  paper       ResNet-50 at 480 px and BERT-base with a vocabulary of its own: 146,700 pairs,
              tau 0.5, dropout 0.25. Optimizer, batch and length of training are not
              published; those of BioViL-T stand in, at 30 pairs a device of 8, 50 epochs.
              The paper starts from CXR-BERT (configs/cxr_bert.py, by init_from) and from
              SimCLR on the same films. Films are not sheared here.
  local       BioViL-L: the same with a loss of words and patches.
  demo        small encoders from scratch on the simulated hospital.
  demo_local  the same for BioViL-L.

Command:
  medclip-jax train --config configs/biovil.py:paper --workdir runs/biovil --data shards
"""

from ml_collections import ConfigDict

from configs import common

# The paper's of words and patches is said to be GLoRIA's; which of its forms is not.
WORDS = {
    "attention": "regions",  # "words_then_regions": GLoRIA's official code
    "aggregate": "mean",  # or "sum", which favours long texts; "paper"
    "unit": True,
    "sharpness": 4.0,
    "focus": 5.0,
}


def get_config(arg: str | None = None) -> ConfigDict:
    names = ("paper", "local", "demo", "demo_local")
    variant = common.choose(arg, names, "paper")
    config = common.base_config("biovil")
    config.biovil = switches(0.1 if variant.endswith("local") else 0.0)
    config.mlm = common.mlm(0.15)
    config.data.frontal_only = True
    config.data.text = "report"
    config.data.shuffle_sentences = True
    if variant.startswith("demo"):
        return use_demo(config)
    return use_paper(config, 480, 50 * (146_700 // 240))


def switches(local_weight: float) -> ConfigDict:
    """What BioViL and BioViL-T have alike."""
    return ConfigDict(
        {
            "temperature": 0.5,
            "global_weight": 0.5,
            "local_weight": local_weight,
            "local_scale": 10.0,
            "mlm_weight": 1.0,
            "words": WORDS,
        }
    )


def use_demo(config: ConfigDict) -> ConfigDict:
    """Small encoders; the text tower's are its own from scratch."""
    sections = config.data.sections
    common.use_demo_sizes(config)
    config.data.sections, config.data.text_length = sections, 64
    config.model.text.pooler = False
    return config


def use_paper(config: ConfigDict, crop: int, steps: int) -> ConfigDict:
    """CXR-BERT's sizes, films of 512 pixels cut to `crop` and not normalised."""
    config.model.embed_dim = 128
    config.model.text.update(
        {
            "vocab_size": 30522,
            "pooler": False,
            "dropout": 0.25,
            "attention_dropout": 0.25,
        }
    )
    config.data.vocab_size = 30522
    config.data.text_length = 256
    config.data.image_size, config.data.crop_from = crop, 512
    config.data.mean, config.data.std = 0.0, 1.0
    config.data.augment = ConfigDict(
        {"rotate_degrees": 30.0, "brightness": 0.2, "contrast": 0.2}
    )
    config.train.steps = steps
    config.train.batch_size = 240
    config.optimizer.update(
        {
            "learning_rate": 2e-5,
            "schedule": "linear",
            "warmup_fraction": 0.03,
            "weight_decay": 0.01,
        }
    )
    return config
