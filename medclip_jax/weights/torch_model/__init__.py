"""The exported model in PyTorch: this package needs torch, transformers and Pillow alone.

It lies in every exported folder DIR, beside the weights:

    import sys
    sys.path.insert(0, "DIR")
    from torch_model import load, preprocess

    model = load("DIR")
    films = preprocess([image], model.settings)              # PIL images or arrays
    images = model.embed_images(films)
    texts = model.embed_texts(model.tokenize(["no pneumothorax."]))
    logits = model.score(images, texts)                       # [N, M]

Of CLIP, ConVIRT, MedCLIP and SigLIP both are vectors of length 1, [N, D] and [M, D]; of
BioViL, BioViL-T, GLoRIA and MGCA they hold regions and words besides (`Images`,
`Texts`). `load("DIR").to("cuda")` computes on a GPU. SimCLR, MoCo v2 and classifiers have no texts, CXR-BERT no films.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch_model.biovil import CXRBERT, BioViL
from torch_model.gloria import GLoRIA
from torch_model.mgca import MGCA
from torch_model.towers import Images, Texts
from torch_model.vectors import Classifier, DualEncoder, ImageOnly

__all__ = ["Images", "Texts", "load", "preprocess"]

KINDS = {
    "biovil": BioViL,
    "classifier": Classifier,
    "cxr_bert": CXRBERT,
    "dual_encoder": DualEncoder,
    "gloria": GLoRIA,
    "image_only": ImageOnly,
    "mgca": MGCA,
}


def load(folder):
    """The model of an exported folder, in float32, for inference."""
    settings = json.loads((Path(folder) / "medclip_jax.json").read_text())
    return KINDS[settings["kind"]](folder, settings).eval()


def preprocess(films, settings):
    """Pads films to a black square and resizes them.

    Args:
      films: 8-bit gray PIL images, or uint8 arrays [H, W].
      settings: of the model.

    Returns:
      uint8 array [N, S, S, 1].
    """
    size, out = settings["image_size"], []
    for film in films:
        image = Image.fromarray(np.asarray(film)).convert("L")
        side = max(size, *image.size)
        square = Image.new("L", (side, side))
        corner = ((side - image.width) // 2, (side - image.height) // 2)
        square.paste(image, corner)
        if side != size:
            square = square.resize((size, size), Image.Resampling.BILINEAR)
        out.append(np.asarray(square)[..., None])
    return np.stack(out)
