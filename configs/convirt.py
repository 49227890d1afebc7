"""ConVIRT (arXiv 2010.00747): paired films and report sentences.

Variants, written after a colon:

  paper  ResNet-50 and BERT-base: batch 32, Adam 1e-4, lambda 0.75, temperature 0.1;
         embeddings and the first six layers of BERT frozen (appendix A). The paper
         halves the learning rate when the validation loss stalls; here it decays as
         a cosine.
  demo   small encoders from scratch on the simulated hospital.

Command:
  medclip-jax train --config configs/convirt.py:paper --workdir runs/convirt \
      --data shards
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "demo"), "paper")
    config = common.base_config("convirt")
    config.convirt = ConfigDict(
        {"temperature": 0.1, "image_to_text": 0.75, "text_pool": "max"}
    )
    if variant == "demo":
        return common.use_demo_sizes(config)
    config.train.steps = 1_000_000
    config.train.batch_size = 32
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-6
    config.optimizer.frozen = (
        "text/encoder/(word|position|type)_embedding",
        "text/encoder/embedding_norm/.*",
        "text/encoder/layer_[0-5]/.*",
    )
    config.data.augment.update(
        {
            "brightness": 0.4,
            "contrast": 0.4,
            "rotate_degrees": 20.0,
            "translate": 0.1,
            "scale_min": 0.95,
            "scale_max": 1.05,
        }
    )
    return config
