"""Naming hidden pieces of texts: cross-entropies over a whole vocabulary, in tiles.

References: Devlin et al. (BERT), arXiv 1810.04805, section 3.1;
transformers/models/bert/modeling_bert.py (BertLMPredictionHead), whose logits are
products with the table of words, and a bias.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from medclip_jax.losses.ring import batch_mesh
from medclip_jax.losses.squares import AXES

LOGITS = 1 << 24
"""Logits of a tile, 64 MiB."""


def masked_token_losses(
    states_BxTxC: jax.Array,
    table_VxC: jax.Array,
    bias_V: jax.Array,
    ids_BxT: jax.Array,
    named_BxT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies of the pieces that are to be named.

    Within `jax.sharding.use_abstract_mesh` each device takes its own texts, a tile of
    pieces at a time, and the backward pass makes each tile's logits anew; the table's
    gradient is added up over the devices once, not tile by tile.

    Args:
      states_BxTxC: what each place says, in the dtype that products are made in.
      table_VxC: the words.
      bias_V: of each.
      ids_BxT: int32, what the pieces were.
      named_BxT: bool, which are to be named.

    Returns:
      losses_BxT float32, 0 where nothing is to be named; and whether the highest logit
      is the right one, bool [B, T], False there.
    """
    mesh, of_texts = batch_mesh(), _in_tiles
    if mesh is not None:
        texts, whole = PartitionSpec(AXES), PartitionSpec()
        of_texts = jax.shard_map(
            of_texts,
            mesh=mesh,
            in_specs=(texts, whole, whole, texts),
            out_specs=texts,
            check_vma=False,
        )
    losses_BxT, right_BxT = of_texts(states_BxTxC, table_VxC, bias_V, ids_BxT)
    return jnp.where(named_BxT, losses_BxT, 0.0), right_BxT & named_BxT


def _in_tiles(
    states_BxTxC: jax.Array, table_VxC: jax.Array, bias_V: jax.Array, ids_BxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    @jax.checkpoint
    def of_piece(piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state_C, label = piece
        # Rounded here and not before: the tiles' gradients add up in float32.
        logits_V = bias_V + jnp.matmul(
            table_VxC.astype(state_C.dtype), state_C, preferred_element_type=jnp.float32
        )
        loss = jax.nn.logsumexp(logits_V) - logits_V[label]
        return loss, logits_V.argmax() == label

    shape = ids_BxT.shape
    rows = max(1, min(ids_BxT.size, LOGITS // len(table_VxC)))
    losses, right = lax.map(
        of_piece,
        (states_BxTxC.reshape(-1, states_BxTxC.shape[-1]), ids_BxT.ravel()),
        batch_size=rows,
    )
    return losses.reshape(shape), right.reshape(shape)
