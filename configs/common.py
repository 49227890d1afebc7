"""Defaults that every experiment starts from, and the shared sizes of encoders."""

from ml_collections import ConfigDict

BERT_BASE = {
    "name": "bert",
    "vocab_size": 28996,
    "dim": 768,
    "layers": 12,
    "heads": 12,
    "mlp": 3072,
    "max_positions": 512,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
BERT_DEMO = {
    "name": "bert",
    "vocab_size": 28996,
    "dim": 128,
    "layers": 2,
    "heads": 4,
    "mlp": 256,
    "max_positions": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
RESNET50 = {"name": "resnet", "stage_sizes": (3, 4, 6, 3), "width": 64}
RESNET_DEMO = {
    "name": "resnet",
    "stage_sizes": (1, 1, 1, 1),
    "width": 16,
    "block": "basic",
}
# Weak: the demo sees each film a few dozen times, and films of 80 px lose small things.
DEMO_AUGMENT = {
    "flip": 0.0,
    "brightness": 0.1,
    "contrast": 0.1,
    "rotate_degrees": 5.0,
    "translate": 0.03,
    "scale_min": 0.95,
    "scale_max": 1.05,
}
SWIN_TINY = {
    "name": "swin",
    "patch": 4,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "heads": (3, 6, 12, 24),
    "window": 7,
    "drop_path": 0.1,
}
VIT_SMALL = {
    "name": "vit",
    "patch": 16,
    "dim": 384,
    "depth": 12,
    "heads": 6,
    "mlp": 1536,
}
VIT_BASE = {**VIT_SMALL, "dim": 768, "heads": 12, "mlp": 3072}


def base_config(method: str) -> ConfigDict:
    """Every key that an experiment may set, with its default.

    Args:
      method: name of a method; experiments add its switches under that name.
    """
    config = ConfigDict()
    config.method = method
    config.seed = 0
    # Workdir of another run whose variables this one starts from, where they fit.
    config.init_from = ""
    config.model = ConfigDict(
        {
            # pretrained: folder or file of published weights to start from.
            "image": {**RESNET50, "pretrained": ""},
            # tokenizer: folder or hub name; "" trains WordPiece on the corpus.
            "text": {**BERT_BASE, "pretrained": "", "tokenizer": ""},
            "embed_dim": 512,
            "dtype": "bfloat16",
            "remat": False,
            # Layers of one form as a loop: a shorter compile, the same parameters.
            "scan_layers": False,
            # "cudnn": fused, of ViT and BERT, in training on an NVIDIA GPU in 16 bit
            # and without dropout of attention weights (text.attention_dropout=0).
            "attention": "plain",
        }
    )
    config.data = _data()
    config.train = ConfigDict(
        {
            "steps": 60_000,
            "batch_size": 128,
            # Parts that the encoders see in turn; the gradient is the whole batch's.
            "micro_batches": 1,
            "log_every_steps": 50,
            "eval_every_steps": 1000,
            "eval_examples": 1000,
            "watchdog_seconds": 1800.0,
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 5e-5,
            "schedule": "cosine",
            "drops": (0.6, 0.8),  # of the run: where the schedule "drops" tenfold
            "warmup_fraction": 0.1,
            "weight_decay": 1e-4,
            "clip_norm": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            # "standard": no decay of norms, biases, scales; "medclip_official"; "all".
            "decay_rules": "standard",
            "frozen": (),
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    # How long the processes of a run of many hosts wait for each other.
    config.hosts = ConfigDict(
        {
            "join_seconds": 300.0,  # for all to be there, at the start
            "heartbeat_seconds": 100.0,  # silence after which one is taken for dead
            "meet_seconds": 1200.0,  # before a save, an evaluation, the end
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every_steps": 1000,
            "keep_latest": 2,
            "keep_best": 1,
            "best_metric": "zero_shot/accuracy",
        }
    )
    return config


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "datasets": (),  # all that are found under --data
            "view": "pairs",
            "train_split": "train",
            "image_size": 224,
            "crop_from": 256,
            "text_length": 64,
            "mean": 0.5862785803043838,
            "std": 0.27950088968644304,
            "frontal_only": False,
            "uncertain": "zero",
            "not_given": "zero",
            "vocab_size": 8192,
            "min_patients": 5,
            "sections": ("findings", "impression"),
            "text": "sentence",
            "shuffle_sentences": False,  # of a text of several, anew each time
            "fraction": 1.0,  # of the patients
            "paired_fraction": 1.0,  # of those, whose films and reports join
            "augment": {
                "flip": 0.5,
                "brightness": 0.2,
                "contrast": 0.2,
                "rotate_degrees": 10.0,
                "translate": 0.0625,
                "scale_min": 0.8,
                "scale_max": 1.1,
            },
            "unpaired": {
                "sampling": "decoupled",
                "paired_weight": 1.0,
                "image_only_weight": 1.0,
                "text_only_weight": 1.0,
                "normal_text_weight": 1.0,
                "texts_per_image": 1.0,
            },
            "cache_bytes": 2**31,
            "prefetch": 2,
            "workers": 2,
            # Share of damaged records above which a run stops; 0 stops at the first.
            "max_bad_rate": 0.01,
        }
    )


def mlm(rate: float) -> ConfigDict:
    """Hidden words: `config.mlm` of a method that names some.

    Args:
      rate: share of the words.
    """
    # mask_id: set from the tokenizer when a run starts; 4 in vocabularies made here.
    return ConfigDict({"rate": rate, "whole_words": True, "mask_id": 4})


def use_demo_sizes(config: ConfigDict) -> ConfigDict:
    """Encoders and data for minutes on two CPU cores, from scratch.

    The films of the demo are small, and flipping is off: the reports name sides.
    """
    config.model.image = ConfigDict({**RESNET_DEMO, "pretrained": ""})
    config.model.text = ConfigDict({**BERT_DEMO, "pretrained": "", "tokenizer": ""})
    config.model.embed_dim = 128
    config.model.dtype = "float32"
    config.data.image_size = 80
    config.data.crop_from = 88
    config.data.text_length = 32
    config.data.vocab_size = 2048
    config.data.frontal_only = True
    config.data.augment = ConfigDict(DEMO_AUGMENT)
    config.train.steps = 1500
    config.train.batch_size = 64
    config.train.log_every_steps = 25
    config.train.eval_every_steps = 300
    config.train.eval_examples = 400
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.checkpoint.every_steps = 300
    return config


def use_packs_sizes(config: ConfigDict) -> ConfigDict:
    """Small encoders from scratch on a thousand real films (benchmarks/real_films.sh).

    Half of the texts are captions without a film, and most films have no text.
    """
    use_demo_sizes(config)
    config.data.frontal_only = False  # the captions' and cases' views are not all known
    config.data.image_size = 112
    config.data.crop_from = 128
    config.data.text_length = 64
    config.data.min_patients = 3
    config.train.steps = 600
    config.train.eval_every_steps = 0
    config.checkpoint.best_metric = "loss"
    return config


def choose(arg: str | None, variants: tuple[str, ...], default: str) -> str:
    """The variant that a config's argument names.

    Raises:
      ValueError: there is no such variant.
    """
    name = arg or default
    if name not in variants:
        raise ValueError(
            f"unknown variant {name!r}; this config has {', '.join(variants)} "
            "(written after the colon, as in configs/medclip.py:swin)"
        )
    return name
