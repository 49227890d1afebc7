"""The methods by name."""

from typing import Any

from medclip_jax.errors import UserError
from medclip_jax.methods.biovil import BioViL
from medclip_jax.methods.biovil_t import BioViLT
from medclip_jax.methods.clip import CLIP
from medclip_jax.methods.convirt import ConVIRT
from medclip_jax.methods.cxr_bert import CXRBERT
from medclip_jax.methods.gloria import GLoRIA
from medclip_jax.methods.interface import Method
from medclip_jax.methods.medclip import MedCLIP
from medclip_jax.methods.mgca import MGCA
from medclip_jax.methods.moco import MoCo
from medclip_jax.methods.siglip import SigLIP
from medclip_jax.methods.simclr import SimCLR
from medclip_jax.methods.supervised import Supervised

METHODS: dict[str, Any] = {
    "biovil": BioViL,
    "biovil_t": BioViLT,
    "clip": CLIP,
    "convirt": ConVIRT,
    "cxr_bert": CXRBERT,
    "gloria": GLoRIA,
    "medclip": MedCLIP,
    "mgca": MGCA,
    "moco": MoCo,
    "siglip": SigLIP,
    "simclr": SimCLR,
    "supervised": Supervised,
}


def build(config: Any) -> Method:
    """The method that `config.method` names, built from the config.

    Args:
      config: an experiment's config. `model.text.vocab_size` must be the size of the
        tokenizer in use.

    Raises:
      UserError: no such method.
    """
    if config.method not in METHODS:
        raise UserError(
            f"config.method must be one of {', '.join(METHODS)}; found "
            f"{config.method!r}"
        )
    return METHODS[config.method].from_config(config)
