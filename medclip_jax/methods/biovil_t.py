"""BioViL-T: a film is seen beside the one before it.

Bannur et al., "Learning to Exploit Temporal Structure for Biomedical Vision-Language
Processing", CVPR 2023, arXiv 2301.04558. Official code, of inference alone:
microsoft/hi-ml, hi-ml-multimodal.

Section 3.1: the image encoder is a ResNet whose patches, with those of the film before,
go through a transformer (`models/hybrid.py`); films need not be registered, and there
may be none before. Section 3.2: the losses of BioViL-L, and hidden words are named with
the help of the film's patches. How, and the temperatures, are not published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from medclip_jax.errors import UserError
from medclip_jax.methods.biovil import BioViL
from medclip_jax.methods.masked_words import MaskedWords
from medclip_jax.models.hybrid import Hybrid


@dataclass(frozen=True)
class BioViLT(BioViL):
    """As BioViL, on the view that brings the film before; a batch may hold both kinds."""

    view: str = "with_prior"

    @classmethod
    def from_config(cls, config: Any) -> Self:
        made = super().from_config(config)
        if not isinstance(made.image_encoder, Hybrid):
            raise UserError(
                "BioViL-T compares a film with the one before: model.image.name must be "
                f"hybrid; found {config.model.image.name}"
            )
        return made

    @classmethod
    def masked(cls, config: Any, text_encoder: Any) -> MaskedWords:
        heads = text_encoder.heads if config.biovil_t.mlm_reads_film else 0
        return MaskedWords.of(config.mlm, text_encoder, heads)

    @property
    def reads_prior(self) -> bool:
        """Whether `embed_images` makes use of the film before."""
        return True

    def image_inputs(self, films: Mapping[str, jax.Array]) -> tuple[Any, ...]:
        current_BxHxWx3 = films["current_BxHxWx3"]
        if "prior_BxHxWx3" not in films:
            return (current_BxHxWx3,)
        return current_BxHxWx3, films["prior_BxHxWx3"], films["has_prior_B"]

    def blank_films(self, films_BxHxWx3: jax.Array) -> tuple[Any, ...]:
        return films_BxHxWx3, films_BxHxWx3, jnp.ones(len(films_BxHxWx3), bool)
