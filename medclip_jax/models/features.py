"""What encoders return, so that methods need not know which encoder they hold."""

import flax.struct
import jax


@flax.struct.dataclass
class ImageFeatures:
    """Attributes:
    trunk_BxF: float32 [B, F], the pooled feature before any projection.
    patches_BxPxC: compute dtype [B, P, C], the last feature map, row by row.
    grid: height and width of that map in patches; their product is P.
    stages: the map of each stage [B, H, W, C], the last one too; empty for an encoder
      that has one resolution.
    """

    trunk_BxF: jax.Array
    patches_BxPxC: jax.Array
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)
    stages: tuple[jax.Array, ...] = ()


@flax.struct.dataclass
class TextFeatures:
    """Attributes:
    words_BxTxC: compute dtype [B, T, C], the last layer.
    hidden: every hidden state [B, T, C], the embedding output first.
    pooler_BxC: float32 [B, C], tanh of a linear map of the first token, or None.
    """

    words_BxTxC: jax.Array
    hidden: tuple[jax.Array, ...]
    pooler_BxC: jax.Array | None = None
