"""The config of the runs of these tests: float32, every step logged.

Its towers can be cut along every axis and see the batch in micro-batches; a ResNet of
two processes is in tests/test_train.py.
"""

from ml_collections import ConfigDict

from configs import common, medclip

SMALL = {"dim": 32, "heads": 2, "mlp": 64, "pretrained": ""}


def get_config(_arg=None):
    config = medclip.get_config("demo")
    config.model.image = ConfigDict({"name": "vit", "patch": 8, "depth": 1, **SMALL})
    config.model.text = ConfigDict(
        {**common.BERT_DEMO, **SMALL, "layers": 1, "tokenizer": ""}
    )
    config.model.embed_dim = 32
    config.medclip.text_pool = "cls"
    config.data.update({"image_size": 32, "crop_from": 36, "cache_bytes": 0})
    config.data.update({"min_patients": 2, "vocab_size": 200})
    config.train.update({"steps": 8, "batch_size": 8, "log_every_steps": 1})
    config.train.update({"eval_every_steps": 0, "eval_examples": 10})
    config.checkpoint.update({"every_steps": 4, "best_metric": "loss"})
    return config
