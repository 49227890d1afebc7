"""CXR-BERT (ECCV 2022): a text tower from reports alone, in two phases.

Variants, written after a colon:

  general   phase II: BERT-base from random weights with a vocabulary of the corpus, 15 % of
            the words hidden. The paper adds PubMed abstracts and MIMIC-III notes.
  matching  phase III, from the first by init_from: findings look for their impression, tau
            0.5, and a tenth of the masked language loss; sentences are shuffled.
  demo, demo_matching  small encoders on the simulated hospital.

Dropout is 0.25 throughout. Optimizer, batch and length of training are not published.

Commands:
  medclip-jax train --config configs/cxr_bert.py:general --workdir runs/two --data shards
  medclip-jax train --config configs/cxr_bert.py:matching --workdir runs/three \\
    --data shards --config.init_from=runs/two --config.model.text.tokenizer=runs/two/tokenizer
"""

from ml_collections import ConfigDict

from configs import biovil, common


def get_config(arg: str | None = None) -> ConfigDict:
    names = ("general", "matching", "demo", "demo_matching")
    variant = common.choose(arg, names, "general")
    matches = variant.endswith("matching")
    config = common.base_config("cxr_bert")
    config.cxr_bert = ConfigDict(
        {
            "temperature": 0.5,
            "matching_weight": 1.0 if matches else 0.0,
            "mlm_weight": 0.1 if matches else 1.0,
        }
    )
    config.mlm = common.mlm(0.15)
    if variant.startswith("demo"):
        biovil.use_demo(config)
    else:
        biovil.use_paper(config, 480, 100_000)
        config.train.batch_size = 256
    config.data.view = "sections" if matches else "reports"
    config.data.shuffle_sentences = True
    config.checkpoint.best_metric = "loss"
    config.train.eval_every_steps = 0
    return config
