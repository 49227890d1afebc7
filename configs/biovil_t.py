"""BioViL-T (CVPR 2023): a film beside the one before it, and its report.

Variants, written after a colon:

  paper  ResNet-50 at 448 px, a transformer of three blocks over both films, BERT-base:
         batch 240, AdamW 2e-5, 50 epochs; 45 % of the words hidden and named with the
         film's help. The paper starts from CXR-BERT's general phase (init_from). The
         temperature and the number of pairs are not published: BioViL's stand in.
  demo   small encoders from scratch on the simulated hospital.

Command:
  medclip-jax train --config configs/biovil_t.py:paper --workdir runs/t --data shards
"""

from ml_collections import ConfigDict

from configs import biovil, common

HYBRID = {
    "name": "hybrid",
    "dim": 256,
    "blocks": 3,
    "heads": 8,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "drop_path": 0.25,
    "positions_in_values": True,
}


def get_config(arg: str | None = None) -> ConfigDict:
    variant = common.choose(arg, ("paper", "demo"), "paper")
    config = common.base_config("biovil_t")
    config.biovil_t = biovil.switches(0.5)
    config.biovil_t.global_weight = 1.0
    config.biovil_t.mlm_reads_film = True
    config.mlm = common.mlm(0.45)
    config.data.view = "with_prior"
    config.data.frontal_only = True
    config.data.text = "report"
    config.data.shuffle_sentences = True
    if variant == "demo":
        biovil.use_demo(config)
    else:
        biovil.use_paper(config, 448, 50 * (146_700 // 240))
    config.model.image = ConfigDict({**config.model.image, **HYBRID})
    if variant == "demo":
        config.model.image.update(
            {"dim": 64, "heads": 4, "dropout": 0.0, "attention_dropout": 0.0,
             "drop_path": 0.0}
        )  # fmt: skip
    return config
