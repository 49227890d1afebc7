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
    attended_BxP: float32, how much the first token attends to each patch in the last
      layer, the mean over heads; None unless the encoder is made to tell.
    """

    trunk_BxF: jax.Array
    patches_BxPxC: jax.Array
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)
    stages: tuple[jax.Array, ...] = ()
    attended_BxP: jax.Array | None = None

    def map_of(self, stage: int) -> tuple[jax.Array, tuple[int, int]]:
        """A stage's map as patches [B, P, C], row by row, and its grid.

        Args:
          stage: counted from 1. 0, or any of an encoder without stages, is the last.
        """
        if not (stage and self.stages):
            return self.patches_BxPxC, self.grid
        map_BxHxWxC = self.stages[stage - 1]
        batch, height, width, channels = map_BxHxWxC.shape
        return map_BxHxWxC.reshape(batch, height * width, channels), (height, width)


@flax.struct.dataclass
class TextFeatures:
    """Attributes:
    words_BxTxC: compute dtype [B, T, C], the last layer.
    hidden: every hidden state [B, T, C], the embedding output first.
    pooler_BxC: float32 [B, C], tanh of a linear map of the first token, or None.
    attended_BxT: float32, how much the first token attends to each in the last layer,
      the mean over heads; None unless the encoder is made to tell.
    """

    words_BxTxC: jax.Array
    hidden: tuple[jax.Array, ...]
    pooler_BxC: jax.Array | None = None
    attended_BxT: jax.Array | None = None
