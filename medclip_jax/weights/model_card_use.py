"""The part of a model card that says what was written and how to use it."""

from collections.abc import Mapping
from typing import Any

USE = """\
## Files and use

| path | what |
|---|---|
{files}

```python
import sys

sys.path.insert(0, "DIR")  # this folder
from torch_model import {names}

model = load("DIR")
{example}
```

{note}"""
FILMS = "films = preprocess([film], model.settings)  # PIL images, 8-bit gray\n"
TEXTS = 'tokens = model.tokenize(["There is no pneumothorax."])\n'
BOTH = """\
images = model.embed_images(films)
texts = model.embed_texts(tokens)
logits = model.score(images, texts)"""
PARTS = """
images.joint_NxD, images.regions_NxRxD, images.grid
texts.joint_MxD"""
WORDS = ", texts.words_MxTxD, texts.mask_MxT"
EXAMPLES = {
    "biovil": FILMS + TEXTS + BOTH + PARTS,
    "classifier": FILMS
    + """\
features = model.embed_images(films)
logits = model.class_logits(features)  # of model.settings["findings"]""",
    "cxr_bert": TEXTS
    + """\
texts = model.embed_texts(tokens)
cosines = texts @ texts.T""",
    "dual_encoder": FILMS + TEXTS + BOTH,
    "gloria": FILMS
    + TEXTS
    + BOTH
    + '  # or similarity="global", "local", "both"'
    + PARTS
    + WORDS,
    "image_only": FILMS
    + """\
features = model.embed_images(films)
compared = model.project(features)  # of length 1, what training compared crops by""",
    "mgca": FILMS
    + TEXTS
    + BOTH
    + PARTS
    + WORDS
    + ", texts.looks_MxT, images.looks_NxR",
}
BEFORE = """
# Beside the films before, of the same patients: one vector of both.
images = model.embed_images(films, priors=preprocess([prior], model.settings))"""
NAMES_WORDS = """
# Which piece may stand at [MASK]: logits [M, T, V].
named = model.word_logits(model.tokenize(["There is no [MASK]."]))"""
PROJECTIONS = {
    "biovil": "the maps of patches and of tokens into the joint space",
    "classifier": "the classifier",
    "cxr_bert": "the map of the first token into the joint space",
    "dual_encoder": "the maps into the joint space",
    "gloria": "the maps of films and of regions to the width of words; texts have none",
    "image_only": "the head that training compared crops by",
    "mgca": "the maps into the joint space: of films, patches, texts and words",
}
IMAGE_ENCODERS = {
    "hybrid": "with the names of microsoft/hi-ml's `MultiImageEncoder`, without `fc`: "
    "the `Hybrid` of `torch_model/` loads them, transformers does not",
    "resnet": "with the names of torchvision's ResNet, without `fc`: the `ResNet` of "
    "`torch_model/` loads them, transformers does not",
    "swin": "a Hugging Face `SwinModel`",
    "vit": "a Hugging Face `ViTModel`",
}
GROUNDING = (
    "Where a text is seen: the cosines of `texts.joint_MxD` with "
    "`images.regions_NxRxD`, as a map of `images.grid`."
)
OF_FEATURES = (
    "Probes and fine-tuning take `features`, before the head (SimCLR, arXiv 2002.05709, "
    "section 4.2)."
)
OF_LOGITS = (
    "`torch.sigmoid` makes each logit a number from 0 to 1; a film may have several "
    "findings. Probes take `features`."
)


def section(settings: Mapping[str, Any]) -> str:
    """Markdown on the files and their use.

    Args:
      settings: medclip_jax.json of the export.
    """
    kind, example = settings["kind"], EXAMPLES[settings["kind"]]
    if kind == "biovil" and settings["words"]:
        example += WORDS
    if settings.get("image", {}).get("name") == "hybrid":
        example += BEFORE
    if settings.get("names_words"):
        example += NAMES_WORDS
    return USE.format(
        files="\n".join(f"| `{path}` | {what} |" for path, what in _files(settings)),
        names="load, preprocess" if "image" in settings else "load",
        example=example,
        note=_note(settings),
    )


def _files(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, tower = [], "`config.json` and `model.safetensors` of the"
    if "image" in settings:
        what = IMAGE_ENCODERS[settings["image"]["name"]]
        rows.append(("image_encoder/", f"{tower} image encoder, {what}"))
    if "text" in settings:
        name = "BertForMaskedLM" if settings["names_words"] else "BertModel"
        what = f"{tower} text encoder, a Hugging Face `{name}`"
        rows.append(("text_encoder/", what))
        rows.append(("tokenizer/", "opens with `AutoTokenizer.from_pretrained`"))
    projections = f"{PROJECTIONS[settings['kind']]}, in PyTorch's layout"
    rows += [
        ("projection.safetensors", projections),
        ("medclip_jax.json", "how films and texts are read and scored, sizes, notices"),
        ("torch_model/", "all of it in PyTorch; needs torch, transformers and Pillow"),
    ]
    if official := settings["official"]:
        what = "the state dict of the system's official code"
        if settings["kind"] in ("biovil", "cxr_bert"):
            what = "the state dicts of microsoft/hi-ml, a folder each file"
        rows.append((f"{official}/", what))
    return rows


def _note(settings: Mapping[str, Any]) -> str:
    kind = settings["kind"]
    if "text" not in settings:
        return OF_FEATURES if kind == "image_only" else OF_LOGITS
    padding = _padding(settings)
    has_regions = kind in ("biovil", "gloria", "mgca")
    return f"{GROUNDING}\n\n{padding}" if has_regions else padding


def _padding(settings: Mapping[str, Any]) -> str:
    length = settings["text_length"]
    if settings.get("pool_padding"):
        return (
            f"Averages run over padding: pad every text to {length} tokens, as "
            "`tokenize` does, or its embedding changes."
        )
    if settings.get("gloria", {}).get("window") == "characters":
        return (
            "A score looks at as many slots as a text has characters, empty ones too: "
            f"pad every text to {length} tokens, as `tokenize` does, or its scores change."
        )
    if settings.get("shifted_words"):
        return (
            f"Texts are cut at {length} tokens. A text that fills all places loses its "
            f"last word: pad every text to {length} tokens, as `tokenize` does."
        )
    return f"Texts are cut at {length} tokens; padding changes nothing."
