"""What a method is: a frozen dataclass with pure functions on explicit variables.

The trainer, the evaluators and the exporter know methods through this file alone.
`Variables` is a dict of collections: "params", and whatever else the method carries
from step to step ("batch_stats"; queues or momentum encoders in others). All of them
are sharded by the same rules and saved in every checkpoint.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax

Variables = dict[str, Any]
State = dict[str, Any]
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Spec(NamedTuple):
    """What shapes a method's parameters: pixels of a side, tokens of a text."""

    image_size: int
    text_length: int


class ExampleKeys(NamedTuple):
    """One PRNG key an example, so that a part of a batch draws what the whole would.

    Attributes:
      images_N: typed keys of the images.
      texts_M: typed keys of the texts.
    """

    images_N: jax.Array
    texts_M: jax.Array


@flax.struct.dataclass
class ImageEmbedding:
    """Attributes:
    trunk_BxF: before any projection; for probes and fine-tuning.
    joint_BxD: L2-normalised float32 in the joint space; None where there is none.
    patches_BxPxC: the trunk's last feature map, row by row, before any projection;
      None where the method has none.
    local_BxPxD: the patches in the joint space, float32 of any length; None where
      there is none.
    grid: height and width of the map in patches; their product is P.
    local_weight_BxP: float32, how much the tower looks at each patch; None where it does
      not tell.
    """

    trunk_BxF: jax.Array
    joint_BxD: jax.Array | None = None
    patches_BxPxC: jax.Array | None = None
    local_BxPxD: jax.Array | None = None
    grid: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    local_weight_BxP: jax.Array | None = None


@flax.struct.dataclass
class TextEmbedding:
    """Attributes:
    joint_BxD: L2-normalised float32 in the joint space.
    words_BxTxC: features of each token; None where the method has none.
    word_mask_BxT: 1 for a token, 0 for padding.
    local_BxWxD: words in the joint space, float32 of any length; None where there is
      none.
    local_mask_BxW: 1 for a word that takes part, 0 for one that does not.
    local_weight_BxW: float32, how much the tower looks at each; None where it does not
      tell.
    """

    joint_BxD: jax.Array
    words_BxTxC: jax.Array | None = None
    word_mask_BxT: jax.Array | None = None
    local_BxWxD: jax.Array | None = None
    local_mask_BxW: jax.Array | None = None
    local_weight_BxW: jax.Array | None = None


@flax.struct.dataclass
class NamedWords:
    """What a text tower made of hidden words.

    Attributes:
      losses_BxT: float32 cross-entropies, 0 where nothing was to be named.
      right_BxT: bool, where the likeliest piece was the right one.
      named_BxT: bool, which pieces were to be named.
    """

    losses_BxT: jax.Array
    right_BxT: jax.Array
    named_BxT: jax.Array


@flax.struct.dataclass
class Features:
    """What `encode` hands to `objective`; every leaf leads with the batch axis.

    Attributes:
      images: of the current films; None for a method that reads none.
      texts: None for a method that reads none.
      second: of the films' second crops, for a method that compares two.
      second_texts: of the reports' second sections, for a method that compares two.
      named: of the texts' hidden words, for a method that hides some.
    """

    images: ImageEmbedding | None
    texts: TextEmbedding | None = None
    second: ImageEmbedding | None = None
    second_texts: TextEmbedding | None = None
    named: NamedWords | None = None


class Method(Protocol):
    """A published system, as the trainer sees it."""

    view: str
    """The view of the data it trains on, when the config names none."""

    def init(self, key: jax.Array, spec: Spec) -> Variables:
        """Parameters boxed with their logical axis names, and other collections."""
        ...

    def encode(
        self, variables: Variables, batch: Batch, keys: ExampleKeys | None, train: bool
    ) -> tuple[Features, State]:
        """Features of a batch, and the collections that the forward pass changed."""
        ...

    def objective(
        self,
        variables: Variables,
        features: Features,
        batch: Batch,
        key: jax.Array | None,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics, State]:
        """The loss (float32 scalar), metrics by name, changed collections."""
        ...

    def after_update(self, variables: Variables, step: jax.Array) -> Variables:
        """Clamps, moving averages, prototypes; applied after the optimizer."""
        ...

    def embed_images(
        self, variables: Variables, films: Mapping[str, jax.Array]
    ) -> ImageEmbedding:
        """Inference on normalised films, `current_BxHxWx3` and what the view has."""
        ...

    def embed_texts(
        self, variables: Variables, texts: Mapping[str, jax.Array]
    ) -> TextEmbedding:
        """Inference on `ids_BxT` and `mask_BxT`."""
        ...

    def score(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """logits_NxM of all images with all texts; call it on blocks."""
        ...

    def forward_flops(self, spec: Spec) -> int:
        """Operations of the encoders for one image and one text; a multiply-add is 2."""
        ...

    def loss_flops(self, spec: Spec, batch: int) -> float:
        """Operations of the loss of so many pairs, forward and backward, in bfloat16
        passes: a product of float32 at the highest precision takes six."""
        ...


@runtime_checkable
class ClassifiesFilms(Protocol):
    """A method that gives one logit a finding without any text."""

    def class_logits(self, variables: Variables, images: ImageEmbedding) -> jax.Array:
        """logits_Bx14 of embedded films, in the order of the 14 findings."""
        ...


@runtime_checkable
class AttendsByWords(Protocol):
    """A method whose words look for regions of a film; `embed_texts` gives its words as
    slots, of which slot s is word s, counted from 1."""

    def word_attention(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> jax.Array:
        """weights_BxWxP, float32: where each word of a text looks in the text's film."""
        ...
