"""Contrastive losses: pure functions of arrays.

Conventions shared by every loss here. Embeddings come L2-normalised, float32.
`image_weight_N` and `text_weight_M` are 1 for a good example and 0 for padding or a
bad record; a zero weight removes the example both as an anchor and as a negative,
so that a batch with padding has the loss, and the gradients, of the batch without.
Similarities run at the highest matmul precision: on a TPU, and under TF32 on a GPU,
a float32 product is otherwise rounded to fewer bits than a temperature of 0.01 can
stand.
"""

from medclip_jax.losses.infonce import infonce_loss
from medclip_jax.losses.masked_tokens import masked_token_losses
from medclip_jax.losses.nt_xent import nt_xent_loss
from medclip_jax.losses.queue import Queue, enqueued, queue_loss
from medclip_jax.losses.semantic_matching import (
    label_similarity,
    semantic_matching_loss,
    soft_cross_entropy,
)
from medclip_jax.losses.sigmoid import sigmoid_loss
from medclip_jax.losses.word_regions import WordRegions, word_regions_loss

__all__ = [
    "Queue",
    "WordRegions",
    "enqueued",
    "infonce_loss",
    "label_similarity",
    "masked_token_losses",
    "nt_xent_loss",
    "queue_loss",
    "semantic_matching_loss",
    "sigmoid_loss",
    "soft_cross_entropy",
    "word_regions_loss",
]
