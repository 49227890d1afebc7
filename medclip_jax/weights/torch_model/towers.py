"""The encoders of an exported folder, and what they give."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch_model.heads import heads
from torch_model.hybrid import Hybrid
from torch_model.resnet import ResNet


class Images(NamedTuple):
    """Films: as a whole, of length 1, and their regions, row by row.

    Attributes:
      joint_NxD: float32.
      regions_NxRxD: float32, of any length, in the space of the words or the texts.
      grid: height and width of the regions; their product is R.
      looks_NxR: how much the tower's first token looks at each; None where it does not
        tell.
    """

    joint_NxD: torch.Tensor
    regions_NxRxD: torch.Tensor
    grid: tuple
    looks_NxR: torch.Tensor | None = None


class Texts(NamedTuple):
    """Texts: as a whole, of length 1, and their words.

    Attributes:
      joint_MxD: float32.
      words_MxTxD: float32, of any length; None of a model that has none.
      mask_MxT: which words take part; None where there are none.
      looks_MxT: how much the tower's first token looks at each; None where it does not
        tell.
    """

    joint_MxD: torch.Tensor
    words_MxTxD: torch.Tensor | None = None
    mask_MxT: torch.Tensor | None = None
    looks_MxT: torch.Tensor | None = None


class Exported(nn.Module):
    """What every exported model has.

    Attributes:
      settings: medclip_jax.json as a dict.
      image_projection, ...: those that projection.safetensors holds.
    """

    def __init__(self, folder, settings):
        super().__init__()
        self.folder, self.settings = Path(folder), settings
        state = load_file(str(self.folder / "projection.safetensors"))
        for name, head in heads(state).items():
            setattr(self, name, head)

    def _here(self, array):
        """An array as a tensor where the model lies."""
        return torch.as_tensor(array, device=next(self.parameters()).device)


class ImageTower(Exported):
    """A model that reads films.

    Attributes:
      image_encoder: of image_encoder/.
    """

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        folder, image = self.folder / "image_encoder", settings["image"]
        self.image_encoder = IMAGE_ENCODERS[image["name"]](folder, image)

    def _features(self, films_BxHxWx1, priors_BxHxWx1=None, has_prior_B=None):
        """Of films, and the ones before where the encoder reads those: pooled [B, F],
        patches [B, R, C], and how much the first token looks at each, or None."""
        pixels, image = self._pixels(films_BxHxWx1), self.settings["image"]
        if image["name"] == "hybrid":
            priors, has_prior_B = self._priors(priors_BxHxWx1, has_prior_B)
            map_BxCxHxW = self.image_encoder(pixels, priors, has_prior_B)
            return map_BxCxHxW.mean((2, 3)), _patches(map_BxCxHxW), None
        if image["name"] == "resnet":
            maps = self.image_encoder(pixels)
            # Stages are counted from 1; 0 is the last.
            of_stage = maps[self.settings["stage"] - 1]
            return maps[-1].mean((2, 3)), _patches(of_stage), None
        if image["name"] == "swin":
            out = self.image_encoder(pixels)
            return out.pooler_output, out.last_hidden_state, None
        tells = image["tells_attention"]
        out = self.image_encoder(pixels, output_attentions=tells)
        looks = out.attentions[-1][:, :, 0, 1:].mean(1) if tells else None
        pooled = {
            "cls": lambda: out.last_hidden_state[:, 0],
            "mean": lambda: out.last_hidden_state[:, 1:].mean(1),
            "pooler": lambda: out.pooler_output,
        }[image["pooling"]]()
        return pooled, out.last_hidden_state[:, 1:], looks

    def _pixels(self, films_BxHxWx1):
        x = self._here(films_BxHxWx1).float() / 255.0
        x = (x - self.settings["mean"]) / self.settings["std"]
        x = x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
        if side := self.settings["resize_to"]:
            how = {"mode": "bilinear", "align_corners": True}
            x = nn.functional.interpolate(x, (side, side), **how)
        return x

    def _priors(self, priors_BxHxWx1, has_prior_B):
        if priors_BxHxWx1 is None:
            return None, None
        if has_prior_B is None:
            has_prior_B = [True] * len(priors_BxHxWx1)
        return self._pixels(priors_BxHxWx1), self._here(has_prior_B).bool()


class TextTower(Exported):
    """A model that reads texts.

    Attributes:
      text_encoder: of text_encoder/, a `BertModel`.
      word_head: names words; of models that were trained to, and whose head needs no
        film.
    """

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        import transformers

        folder, text = self.folder / "text_encoder", settings["text"]
        if settings["names_words"]:
            model = whole(transformers.BertForMaskedLM, folder)
            self.text_encoder, self.word_head = model.bert, model.cls
        else:
            # Other ways to compute attention do not tell it.
            how = {"attn_implementation": "eager"} if text["tells_attention"] else {}
            self.text_encoder = whole(
                transformers.BertModel, folder, add_pooling_layer=text["pooler"], **how
            )

    def tokenize(self, texts):
        """Texts -> {"input_ids", "attention_mask", "word_ids"} of [M, `text_length`].

        "word_ids" tells of each piece the number of its word, of others -1.
        """
        import transformers

        texts = list(texts)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(self.folder / "tokenizer"), local_files_only=True
        )
        tokens = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.settings["text_length"],
            return_tensors="pt",
        )
        words = [tokens.word_ids(row) for row in range(len(texts))]
        tokens["word_ids"] = torch.tensor(
            [[-1 if word is None else word for word in row] for row in words]
        )
        return tokens

    @torch.no_grad()
    def word_logits(self, texts):
        """[M, T, V]: which piece stands in each place, such as where [MASK] does."""
        if not self.settings["names_words"]:
            raise ValueError("this model has no head that names words")
        return self.word_head(self._read(texts)[0].last_hidden_state)

    def _read(self, texts):
        """What BERT gives, and the mask [B, T]."""
        mask = self._here(texts["attention_mask"]).long()
        out = self.text_encoder(
            input_ids=self._here(texts["input_ids"]).long(),
            attention_mask=mask,
            output_hidden_states=True,
            output_attentions=self.settings["text"]["tells_attention"],
        )
        return out, mask


def join_pieces(states_BxTxC, word_ids_BxT, mask_BxT):
    """Sums the states of each word's pieces.

    Slot 0 is [CLS], slots 1 to W the words, slot W + 1 [SEP]; those after are zero.

    Returns:
      Slots [B, T, C], and how many words each text has, [B, 1].
    """
    places = torch.arange(word_ids_BxT.shape[1], device=word_ids_BxT.device)
    words_Bx1 = word_ids_BxT.amax(1, keepdim=True) + 1
    after_BxT = torch.where(places > 0, words_Bx1 + 1, 0)
    slot_BxT = torch.where(word_ids_BxT >= 0, word_ids_BxT + 1, after_BxT)
    takes_BxSxT = (slot_BxT[:, None] == places[:, None]) & (mask_BxT[:, None] > 0)
    return takes_BxSxT.float() @ states_BxTxC, words_Bx1


def unit(vectors):
    """Of length 1."""
    return nn.functional.normalize(vectors, dim=-1)


def square(regions_BxRxD):
    """The grid of a square film's regions."""
    side = round(regions_BxRxD.shape[1] ** 0.5)
    return side, side


def whole(cls, folder, **options):
    """from_pretrained, refusing weights that are missing or left over."""
    model, info = cls.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **options
    )
    odd = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if odd:
        raise ValueError(f"{folder} does not fit {cls.__name__}: {odd}")
    return model


def _resnet(folder, image):
    return _filled(ResNet(image["stage_sizes"], image["width"], image["block"]), folder)


def _hybrid(folder, image):
    return _filled(Hybrid(image), folder)


def _filled(model, folder):
    model.load_state_dict(load_file(str(folder / "model.safetensors")))
    return model


def _swin(folder, image):
    import transformers

    return whole(transformers.SwinModel, folder)


def _vit(folder, image):
    import transformers

    how = {"attn_implementation": "eager"} if image["tells_attention"] else {}
    pooler = image["pooling"] == "pooler"
    return whole(transformers.ViTModel, folder, add_pooling_layer=pooler, **how)


IMAGE_ENCODERS = {"resnet": _resnet, "hybrid": _hybrid, "swin": _swin, "vit": _vit}


def _patches(map_BxCxHxW):
    return map_BxCxHxW.flatten(2).transpose(1, 2)
