"""The config of the runs of these tests: float32, every step logged.

resnet  a ResNet, whose BatchNorm must see the batches of all hosts.
vit     towers that can be cut along every axis and in micro-batches.
"""

from ml_collections import ConfigDict

from configs import common, medclip

IMAGE = {
    "resnet": {**common.RESNET_DEMO, "stage_sizes": (1,), "width": 8},
    "vit": {
        "name": "vit", "patch": 8, "dim": 32, "depth": 1, "heads": 2, "mlp": 64,
    },
}  # fmt: skip
TEXT = {**common.BERT_DEMO, "dim": 32, "layers": 1, "heads": 2, "mlp": 64}


def get_config(arg=None):
    config = medclip.get_config("demo")
    config.model.image = ConfigDict({**IMAGE[arg], "pretrained": ""})
    config.model.text = ConfigDict({**TEXT, "pretrained": "", "tokenizer": ""})
    config.model.embed_dim = 32
    config.medclip.text_pool = "cls"
    config.data.update({"image_size": 32, "crop_from": 36, "cache_bytes": 0})
    config.data.update({"min_patients": 2, "vocab_size": 200})
    config.train.update({"steps": 8, "batch_size": 8, "log_every_steps": 1})
    config.train.update({"eval_every_steps": 0, "eval_examples": 10})
    config.checkpoint.update({"every_steps": 4, "best_metric": "loss"})
    return config
