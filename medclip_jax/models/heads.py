"""From what a tower's encoder gives into the joint space, in float32.

A method's heads are modules too: the image head is called with ImageFeatures, the text
head with TextFeatures and the tokens, and both give a `Projected`. Those with one matrix
or one hidden layer, of MedCLIP, CLIP, SigLIP and ConVIRT, are here.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from medclip_jax.models.features import ImageFeatures, TextFeatures
from medclip_jax.models.layers import LayerNorm, gelu
from medclip_jax.models.words import whole_words

TextPool = Literal["layers_1_2_last", "pooler", "cls", "max", "mean"]
TEXT_POOLS = get_args(TextPool)


class Projected(NamedTuple):
    """Attributes:
    joint_BxD: of the whole film or text.
    local_BxLxD: of its parts, patches or words; None where there is none.
    mask_BxL: 1 for a part, 0 for padding; None where all are parts.
    weight_BxL: how much the tower looks at each part; None where it does not tell.
    grid: of patches, height and width; their product is L.
    """

    joint_BxD: jax.Array
    local_BxLxD: jax.Array | None = None
    mask_BxL: jax.Array | None = None
    weight_BxL: jax.Array | None = None
    grid: tuple[int, int] = (0, 0)


class ImageHead(nn.Module):
    """One map for the pooled feature and for each patch.

    Of a linear map the joint vector is then the mean of its patches' (Zhou et al. 2016,
    class activation maps); BioViL's inference does the same with its MLP.

    Attributes:
      layer: [..., F] -> [..., D]; its parameters are the head's own.
    """

    layer: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.layer)

    def __call__(self, features: ImageFeatures, *, train: bool) -> Projected:
        return Projected(
            self.layer(features.trunk_BxF),
            self.layer(features.patches_BxPxC),
            grid=features.grid,
        )


class TextHead(nn.Module):
    """Token states pooled to one vector, and mapped.

    Attributes:
      layer: [B, C] -> [B, D]; its parameters are the head's own.
      pool: how token states become one vector, see `pool_text`.
      padding: averages run over padding too, as in MedCLIP's official code
        (medclip/modeling_medclip.py); a text's embedding then depends on the padded
        length.
    """

    layer: nn.Module
    pool: TextPool = "cls"
    padding: bool = False

    def setup(self) -> None:
        nn.share_scope(self, self.layer)

    def __call__(
        self, features: TextFeatures, texts: Mapping[str, jax.Array], *, train: bool
    ) -> Projected:
        mask_BxT = texts["mask_BxT"]
        return Projected(self.layer(self.pooled(features, mask_BxT)))

    def pooled(self, features: TextFeatures, mask_BxT: jax.Array) -> jax.Array:
        """float32 [B, C]."""
        return pool_text(features, mask_BxT, self.pool, self.padding)


def pool_text(
    features: TextFeatures, mask_BxT: jax.Array, pool: TextPool, padding: bool = False
) -> jax.Array:
    """One vector a text from the states of its tokens.

    Args:
      features: of the text encoder.
      mask_BxT: 1 for a token, 0 for padding.
      pool: see below.
      padding: whether padding counts as tokens.

    Returns:
      float32 [B, C]: "cls" the first token of the last layer; "pooler" BERT's tanh
      pooler; "mean" and "max" over the tokens of the last layer; "layers_1_2_last" the
      mean over tokens of layers 1, 2 and the last (MedCLIP's released ViT model,
      medclip/modeling_medclip.py).
    """
    if pool == "cls":
        return features.words_BxTxC[:, 0].astype(jnp.float32)
    if pool == "pooler":
        assert features.pooler_BxC is not None  # `check_text_pool` asked
        return features.pooler_BxC.astype(jnp.float32)
    keep_BxTx1 = mask_BxT[..., None] > 0
    if padding:
        keep_BxTx1 = jnp.ones_like(keep_BxTx1)
    if pool == "max":
        words_BxTxC = features.words_BxTxC.astype(jnp.float32)
        return jnp.where(keep_BxTx1, words_BxTxC, -jnp.inf).max(1)
    layers = (
        [features.hidden[i] for i in (1, 2, -1)]
        if pool == "layers_1_2_last"
        else [features.words_BxTxC]
    )
    words: Any = sum(layer.astype(jnp.float32) for layer in layers) / len(layers)
    count = jnp.maximum(keep_BxTx1.sum(1), 1)
    return jnp.where(keep_BxTx1, words, 0.0).sum(1) / count


def linear_head(dim: int, *, bias: bool = False, name: str | None = None) -> nn.Dense:
    """One matrix, by default without bias: MedCLIP and CLIP.

    Args:
      dim: width D of the joint space.
      bias: whether to add one.
      name: of the submodule, inside another module.

    Returns:
      A module, float [B, F] -> float32 [B, D].
    """
    return _dense(dim, ("embed", "joint"), bias=bias, name=name)


class MLPHead(nn.Module):
    """One hidden layer with ReLU, of the trunk's width: ConVIRT section 3.3.

    The paper leaves the hidden width open.

    Attributes:
      dim: width D of the joint space.
    """

    dim: int

    @nn.compact
    def __call__(self, trunk_BxF: jax.Array) -> jax.Array:
        """float [B, F] -> float32 [B, D]."""
        width = trunk_BxF.shape[-1]
        hidden_BxF = _dense(width, ("embed", "mlp"), name="hidden")(trunk_BxF)
        return _dense(self.dim, ("mlp", "joint"), name="out")(nn.relu(hidden_BxF))


class TokenMLP(nn.Module):
    """One hidden layer of GELU and LayerNorm: CXR-BERT's projection of token states.

    Reference: Boecking et al. (BioViL), arXiv 2204.09817, section 2.1; microsoft/hi-ml,
    health_multimodal/text/model/modelling_cxrbert.py (BertProjectionHead).

    Attributes:
      dim: width of the hidden layer and of the joint space.
      epsilon: of LayerNorm.
    """

    dim: int
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """float [..., C] -> float32 [..., D], of any length."""
        hidden = gelu(_dense(self.dim, ("embed", "mlp"), name="hidden")(states))
        hidden = LayerNorm(self.epsilon, name="norm")(hidden)
        return _dense(self.dim, ("mlp", "joint"), name="out")(hidden)


class PatchMLP(nn.Module):
    """Each patch by a hidden layer with batch norm; the film is the mean of its patches.

    Reference: Boecking et al. (BioViL), arXiv 2204.09817, section 2.2; microsoft/hi-ml,
    health_multimodal/image/model/modules.py (MLP, of 1x1 convolutions) and model.py.

    Attributes:
      dim: width of the hidden layer and of the joint space.
    """

    dim: int

    @nn.compact
    def __call__(self, features: ImageFeatures, *, train: bool) -> Projected:
        x_BxPxD = features.patches_BxPxC.astype(jnp.float32)
        hidden = _dense(self.dim, ("embed", "mlp"), bias=False, name="hidden")
        x_BxPxD = nn.relu(_batch_norm(train, name="norm")(hidden(x_BxPxD)))
        local_BxPxD = _dense(self.dim, ("mlp", "joint"), name="out")(x_BxPxD)
        return Projected(local_BxPxD.mean(axis=1), local_BxPxD, grid=features.grid)


class TokenHead(nn.Module):
    """One map for the first token, which stands for the text, and for each other piece.

    Attributes:
      layer: [..., C] -> [..., D]; its parameters are the head's own.
    """

    layer: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.layer)

    def __call__(
        self, features: TextFeatures, texts: Mapping[str, jax.Array], *, train: bool
    ) -> Projected:
        states_BxTxD = self.layer(features.words_BxTxC)
        return Projected(states_BxTxD[:, 0], states_BxTxD, texts["word_ids_BxT"] >= 0)


class BatchNormMLP(nn.Module):
    """Two layers, each with batch norm: of wholes and of parts in MGCA and Med-ST.

    Statistics of parts are over examples and parts, padding too.

    Reference: HKU-MedAI/MGCA, mgca/models/backbones/encoder.py (GlobalEmbedding and
    LocalEmbedding, whose 1x1 convolutions are linear layers).

    Attributes:
      dim: width of the joint space.
      hidden: width of the hidden layer.
      batch_norm: after each layer, the last one without scale and offset; else none.
    """

    dim: int
    hidden: int = 2048
    batch_norm: bool = True

    @nn.compact
    def __call__(self, states: jax.Array, *, train: bool) -> jax.Array:
        """float [..., C] -> float32 [..., D], of any length."""
        x = _dense(self.hidden, ("embed", "mlp"), name="hidden")(states)
        if self.batch_norm:
            x = _batch_norm(train, name="norm")(x)
        x = _dense(self.dim, ("mlp", "joint"), name="out")(nn.relu(x))
        if self.batch_norm:
            x = _batch_norm(train, scale=False, bias=False, name="out_norm")(x)
        return x


class FilmAndPatchesHead(nn.Module):
    """The pooled feature and the patches of a map, each by a `BatchNormMLP`.

    Attributes:
      dim, hidden, batch_norm: of the two MLPs.
      stage: whose map gives the patches, counted from 1; 0 is the last.
    """

    dim: int
    hidden: int = 2048
    batch_norm: bool = True
    stage: int = 0

    @nn.compact
    def __call__(self, features: ImageFeatures, *, train: bool) -> Projected:
        patches_BxPxC, grid = features.map_of(self.stage)

        def mlp(name: str) -> BatchNormMLP:
            return BatchNormMLP(self.dim, self.hidden, self.batch_norm, name=name)

        return Projected(
            mlp("global")(features.trunk_BxF, train=train),
            mlp("local")(patches_BxPxC, train=train),
            weight_BxL=features.attended_BxP,
            grid=grid,
        )


class ReportAndWordsHead(nn.Module):
    """The first token, and whole words after it, each by a `BatchNormMLP`.

    Parts are the words of a text and its [SEP], one token fewer than it is long.

    Attributes:
      dim, hidden, batch_norm: of the two MLPs.
      shifted: see `words.whole_words`.
    """

    dim: int
    hidden: int = 2048
    batch_norm: bool = True
    shifted: bool = False

    @nn.compact
    def __call__(
        self, features: TextFeatures, texts: Mapping[str, jax.Array], *, train: bool
    ) -> Projected:
        words_BxTxC, mask_BxT, weight_BxT = whole_words(
            features.words_BxTxC,
            texts["word_ids_BxT"],
            texts["mask_BxT"],
            features.attended_BxT,
            self.shifted,
        )

        def mlp(name: str) -> BatchNormMLP:
            return BatchNormMLP(self.dim, self.hidden, self.batch_norm, name=name)

        return Projected(
            mlp("global")(words_BxTxC[:, 0], train=train),
            mlp("local")(words_BxTxC[:, 1:], train=train),
            mask_BxT[:, 1:],
            None if weight_BxT is None else weight_BxT[:, 1:],
        )


class ProjectionMLP(nn.Module):
    """Layers with ReLU between them, on the pooled feature of an image: SimCLR, MoCo v2.

    Attributes:
      hidden: width of the hidden layers.
      dim: width D of what is compared.
      layers: how many, the last one too.
      batch_norm: after each layer, and then without biases, the last norm without an
        offset, as google-research/simclr has it (tf2/model.py); else biases alone, as
        MoCo v2's "mlp" (moco/builder.py).
    """

    hidden: int
    dim: int
    layers: int = 2
    batch_norm: bool = False

    @nn.compact
    def __call__(self, features: ImageFeatures, *, train: bool) -> Projected:
        x_BxD = features.trunk_BxF.astype(jnp.float32)
        for number in range(self.layers):
            last = number == self.layers - 1
            width, axes = (self.dim, "joint") if last else (self.hidden, "mlp")
            x_BxD = _dense(
                width, ("embed", axes), bias=not self.batch_norm, name=f"layer_{number}"
            )(x_BxD)
            if self.batch_norm:
                norm = _batch_norm(train, bias=not last, name=f"norm_{number}")
                x_BxD = norm(x_BxD)
            x_BxD = x_BxD if last else nn.relu(x_BxD)
        return Projected(x_BxD)


def _batch_norm(
    train: bool, *, scale: bool = True, bias: bool = True, name: str
) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_scale=scale,
        use_bias=bias,
        use_fast_variance=False,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",)),
        name=name,
    )


def _dense(
    dim: int, axes: tuple[str, str], *, bias: bool = True, name: str | None = None
) -> nn.Dense:
    kernel_init = nn.initializers.lecun_normal()
    return nn.Dense(
        dim,
        use_bias=bias,
        dtype=jnp.float32,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )
