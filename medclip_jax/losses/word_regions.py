"""Words that look for their regions: the local score of GLoRIA, and its loss.

Each word of a text attends to the regions of a film; the score of the pair says how well
what the words found resembles them. Texts are the classes of a film, and films those of
a text, as in a global contrastive loss.

References: Huang et al., "GLoRIA: A Multimodal Global-Local Representation Learning
Framework for Label-Efficient Medical Image Recognition", ICCV 2021, section 3.3, and
marshuang80/gloria, gloria/loss/gloria_loss.py; Boecking et al., "Making the Most of Text
Semantics to Improve Biomedical Vision-Language Processing" (BioViL), ECCV 2022, whose
variant BioViL-L adds such a term.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from medclip_jax.errors import check_choice
from medclip_jax.losses.infonce import paired_cross_entropies
from medclip_jax.losses.ring import batch_mesh
from medclip_jax.losses.similarity import FLOOR, weights_or_ones
from medclip_jax.losses.squares import AXES

Attention = Literal["words_then_regions", "regions"]
Aggregate = Literal["sum", "mean", "paper", "max"]
SCORES = 1 << 24
"""Word-region scores of a tile, 64 MiB; a tile takes as many texts as have so many."""


@dataclass(frozen=True)
class WordRegions:
    """How words and regions are compared.

    Attributes:
      attention: "words_then_regions", the official code: the scores become a softmax
        over the words of each region, and these, times `sharpness`, the logits of a
        softmax over the regions of each word. "regions": the scores themselves are.
      aggregate: what a pair's cosines become. "sum": log of the sum of exp over words,
        the official code; it grows with the number of words. "mean": of the mean.
        "paper": that sum over `focus`, GLoRIA's equation. "max": the highest alone,
        what the official code scores with at inference.
      unit: whether words and regions are brought to length 1 first.
      sharpness: factor of the attention's logits; GLoRIA's temp1.
      focus: factor of the cosines; temp2.
    """

    attention: Attention = "words_then_regions"
    aggregate: Aggregate = "sum"
    unit: bool = False
    sharpness: float = 4.0
    focus: float = 5.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "WordRegions":
        """From a config's entries, named as above.

        Raises:
          UserError: an unknown attention or aggregate.
        """
        check_choice("words.attention", config["attention"], Attention)
        check_choice("words.aggregate", config["aggregate"], Aggregate)
        return cls(**config)

    def attend(
        self, regions_NxRxD: jax.Array, words_MxWxD: jax.Array, mask_MxW: jax.Array
    ) -> jax.Array:
        """weights_NxMxWxR, float32: where each word of each text looks in each film."""
        scores_NxMxWxR = _product("nrd,mwd->nmwr", regions_NxRxD, words_MxWxD)
        if self.attention == "words_then_regions":
            keep_MxWx1 = mask_MxW[..., None] > 0
            scores_NxMxWxR = jax.nn.softmax(
                jnp.where(keep_MxWx1, scores_NxMxWxR, FLOOR), axis=2
            )
        return jax.nn.softmax(self.sharpness * scores_NxMxWxR, axis=3)

    def scores(
        self, regions_NxRxD: jax.Array, words_MxWxD: jax.Array, mask_MxW: jax.Array
    ) -> jax.Array:
        """How well each film's regions match each text's words.

        Within `jax.sharding.use_abstract_mesh` the films stay split over its devices
        and each device meets all texts; texts are taken a tile at a time, and the
        backward pass makes each tile anew.

        Args:
          regions_NxRxD: float [N, R, D].
          words_MxWxD: float [M, W, D].
          mask_MxW: 1 for a word that takes part, 0 for one that does not.

        Returns:
          scores_NxM, float32.

        Raises:
          ValueError: shapes do not fit.
        """
        _check(regions_NxRxD, words_MxWxD, mask_MxW)
        mesh, of_films = batch_mesh(), self._in_tiles
        if mesh is not None:
            films = PartitionSpec(AXES)
            of_films = jax.shard_map(
                of_films,
                mesh=mesh,
                in_specs=(films, PartitionSpec(), PartitionSpec()),
                out_specs=films,
                check_vma=False,
            )
        return of_films(
            regions_NxRxD.astype(jnp.float32), words_MxWxD.astype(jnp.float32), mask_MxW
        )

    def _in_tiles(
        self, regions_NxRxD: jax.Array, words_MxWxD: jax.Array, mask_MxW: jax.Array
    ) -> jax.Array:
        texts, words, _ = words_MxWxD.shape
        a_text = regions_NxRxD.shape[0] * regions_NxRxD.shape[1] * words
        tile = functools.partial(jax.checkpoint(self._tile), regions_NxRxD)
        scores_MxN = lax.map(
            lambda text: tile(*jax.tree.map(lambda a: a[None], text))[:, 0],
            (words_MxWxD, mask_MxW),
            batch_size=max(1, min(texts, SCORES // a_text)),
        )
        return scores_MxN.T

    def _tile(
        self, regions_NxRxD: jax.Array, words_MxWxD: jax.Array, mask_MxW: jax.Array
    ) -> jax.Array:
        if self.unit:
            regions_NxRxD, words_MxWxD = _unit(regions_NxRxD), _unit(words_MxWxD)
        weights_NxMxWxR = self.attend(regions_NxRxD, words_MxWxD, mask_MxW)
        found_NxMxWxD = _product("nmwr,nrd->nmwd", weights_NxMxWxR, regions_NxRxD)
        inner_NxMxW = (found_NxMxWxD * words_MxWxD).sum(-1)
        lengths_NxMxW = _length(found_NxMxWxD) * _length(words_MxWxD)
        cosines_NxMxW = inner_NxMxW / jnp.maximum(lengths_NxMxW, 1e-8)
        logits_NxMxW = jnp.where(mask_MxW > 0, self.focus * cosines_NxMxW, FLOOR)
        if self.aggregate == "max":
            return logits_NxMxW.max(-1)
        total_NxM = jax.nn.logsumexp(logits_NxMxW, axis=-1)
        if self.aggregate == "mean":
            total_NxM -= jnp.log(jnp.maximum((mask_MxW > 0).sum(-1), 1))
        return total_NxM / self.focus if self.aggregate == "paper" else total_NxM


def word_regions_loss(
    regions_NxRxD: jax.Array,
    words_MxWxD: jax.Array,
    mask_MxW: jax.Array,
    scale: float,
    how: WordRegions,
    *,
    image_weight_N: jax.Array | None = None,
    text_weight_M: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies of scaled local scores to the own partner.

    Args:
      regions_NxRxD, words_MxWxD, mask_MxW: as of `WordRegions.scores`; film i goes
        with text i.
      scale: factor of the scores, 10 in GLoRIA (temp3).
      how: words and regions are compared.
      image_weight_N: float [N], 0 removes the film; ones when None.
      text_weight_M: float [M], 0 removes the text; ones when None.

    Returns:
      Image to text and text to image, float32 scalars; the papers add them up.
    """
    logits_NxM = scale * how.scores(regions_NxRxD, words_MxWxD, mask_MxW)
    n, m = logits_NxM.shape
    rows = weights_or_ones(image_weight_N, n, "image_weight_N")
    columns = weights_or_ones(text_weight_M, m, "text_weight_M")
    return paired_cross_entropies(logits_NxM, rows, columns)


def _product(form: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(form, one, other, precision=lax.Precision.HIGHEST)


def _length(vectors: jax.Array) -> jax.Array:
    """Of vectors [..., D]; the gradient at 0 is 0."""
    return jnp.sqrt(jnp.maximum((vectors * vectors).sum(-1), 1e-24))


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / _length(vectors)[..., None]


def _check(regions: jax.Array, words: jax.Array, mask: jax.Array) -> None:
    if regions.ndim != 3 or words.ndim != 3 or mask.shape != words.shape[:2]:
        raise ValueError(
            "expected regions [N, R, D], words [M, W, D] and their mask [M, W]; found "
            f"shapes {regions.shape}, {words.shape} and {mask.shape}"
        )
    if regions.shape[2] != words.shape[2]:
        raise ValueError(
            "regions and words must share their width D; found "
            f"{regions.shape[2]} (regions) and {words.shape[2]} (words)"
        )
