"""The exported model in PyTorch: this file needs torch and transformers alone.

It lies in every exported folder, beside the weights:

    import torch
    from torch_model import load, preprocess     # run in the exported folder

    model = load(".")
    films = preprocess([image], model.settings)              # PIL images or arrays
    images = model.embed_images(films)                        # [N, D], length 1
    texts = model.embed_texts(model.tokenize(["no pneumothorax."]))
    logits = model.score(images, texts)                       # [N, M]

Of GLoRIA, `embed_images` and `embed_texts` give regions and words besides. A model of
films alone has no texts: its `embed_images` gives the trunk's features [N, F], and
`project` what training compared crops by.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn


def _conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A residual block with torchvision's names."""

    def __init__(self, inputs, dim, stride, kind):
        super().__init__()
        outputs = dim * (4 if kind == "bottleneck" else 1)
        if kind == "bottleneck":
            plan = ((inputs, dim, 1, 1), (dim, dim, 3, stride), (dim, outputs, 1, 1))
        else:
            plan = ((inputs, dim, 3, stride), (dim, outputs, 3, 1))
        for number, (*channels, kernel, step) in enumerate(plan, start=1):
            setattr(self, f"conv{number}", _conv(*channels, kernel, step))
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels[1]))
        self.convolutions = len(plan)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = x
        for number in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.convolutions:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, of any depth and width."""

    def __init__(self, stage_sizes, width, block):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, self.stages = width, len(stage_sizes)
        for stage, blocks in enumerate(stage_sizes):
            layers = []
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(Block(inputs, width * 2**stage, stride, block))
                inputs = width * 2**stage * (4 if block == "bottleneck" else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        """The map [B, C, H, W] of each stage."""
        x, maps = self.maxpool(torch.relu(self.bn1(self.conv1(x)))), []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class ImageTower(nn.Module):
    """What every exported model has.

    Attributes:
      settings: medclip_jax.json as a dict.
      image_projection, ...: those that projection.safetensors holds.
    """

    def __init__(self, folder, settings):
        super().__init__()
        self.folder, self.settings = Path(folder), settings
        self.image_encoder = self._image_encoder()
        heads = load_file(str(self.folder / "projection.safetensors"))
        for name in sorted({key.partition(".")[0] for key in heads}):
            setattr(self, name, _head(heads, f"{name}."))

    def _image_encoder(self):
        folder, image = self.folder / "image_encoder", self.settings["image"]
        if image["name"] == "resnet":
            model = ResNet(image["stage_sizes"], image["width"], image["block"])
            model.load_state_dict(load_file(str(folder / "model.safetensors")))
            return model
        import transformers

        if image["name"] == "swin":
            return _whole(transformers.SwinModel, folder)
        pooler = image["pooling"] == "pooler"
        return _whole(transformers.ViTModel, folder, add_pooling_layer=pooler)

    def _features(self, films_BxHxWx1, side=0, stage=0):
        """Films, resized to `side`, as pooled features [B, F] and the map [B, P, C],
        row by row: of a ResNet's `stage`, counted from 1, else the last."""
        x = torch.as_tensor(films_BxHxWx1).float() / 255.0
        x = (x - self.settings["mean"]) / self.settings["std"]
        x = x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
        if side:
            how = {"mode": "bilinear", "align_corners": True}
            x = nn.functional.interpolate(x, (side, side), **how)
        out, image = self.image_encoder(x), self.settings["image"]
        if image["name"] == "resnet":
            return out[-1].mean((2, 3)), out[stage - 1].flatten(2).transpose(1, 2)
        if image["name"] == "swin":
            return out.pooler_output, out.last_hidden_state
        pooled = {
            "cls": lambda: out.last_hidden_state[:, 0],
            "mean": lambda: out.last_hidden_state[:, 1:].mean(1),
            "pooler": lambda: out.pooler_output,
        }[image["pooling"]]()
        return pooled, out.last_hidden_state[:, 1:]


class ImageOnly(ImageTower):
    """SimCLR and MoCo v2: the image tower, and its head."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> features [B, F]."""
        return self._features(films_BxHxWx1)[0]

    @torch.no_grad()
    def project(self, images_NxF):
        """Features [N, F] -> [N, D] of length 1, what training compared crops by."""
        return _unit(self.image_projection(images_NxF))


class DualEncoder(ImageTower):
    """Image and text towers into one space."""

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        import transformers

        folder, pooler = self.folder / "text_encoder", settings["text"]["pooler"]
        self.text_encoder = _whole(
            transformers.BertModel, folder, add_pooling_layer=pooler
        )

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> [B, D] of length 1."""
        images_BxF = self._features(films_BxHxWx1)[0]
        return _unit(self.image_projection(images_BxF))

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask"} of [B, T] -> [B, D] of length 1.

        Where padding takes part in the pooling, T must be `text_length`.
        """
        out, mask = self._read(texts)
        return _unit(self.text_projection(self._pool(out, mask)))

    def _read(self, texts):
        """What BERT gives, and the mask [B, T]."""
        mask = torch.as_tensor(texts["attention_mask"]).long()
        out = self.text_encoder(
            input_ids=torch.as_tensor(texts["input_ids"]).long(),
            attention_mask=mask,
            output_hidden_states=True,
        )
        return out, mask

    def _pool(self, out, mask):
        pool = self.settings["text_pool"]
        if pool == "cls":
            return out.last_hidden_state[:, 0]
        if pool == "pooler":
            return out.pooler_output
        keep = torch.ones_like(mask) if self.settings["pool_padding"] else mask
        keep = (keep > 0)[..., None]
        if pool == "max":
            return out.last_hidden_state.masked_fill(~keep, -torch.inf).amax(1)
        layers = (1, 2, -1) if pool == "layers_1_2_last" else (-1,)
        words = sum(out.hidden_states[i] for i in layers) / len(layers)
        return (words * keep).sum(1) / keep.sum(1).clamp(min=1)

    def tokenize(self, texts):
        """Texts -> {"input_ids", "attention_mask"}, padded to `text_length`."""
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(self.folder / "tokenizer"), local_files_only=True
        )
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.settings["text_length"],
            return_tensors="pt",
        )

    def score(self, images_NxD, texts_MxD):
        """Scaled cosines [N, M], plus the bias of a sigmoid loss where there is one."""
        return self.settings["scale"] * images_NxD @ texts_MxD.T + self.settings["bias"]


class Images(NamedTuple):
    """GLoRIA's films: as a whole, of length 1, and their regions, row by row."""

    joint_NxD: torch.Tensor
    regions_NxRxD: torch.Tensor


class Texts(NamedTuple):
    """GLoRIA's texts: as a whole, of length 1, slots of words ([CLS] in slot 0), and
    whether a score looks at a slot."""

    joint_MxD: torch.Tensor
    words_MxTxD: torch.Tensor
    mask_MxT: torch.Tensor


class GLoRIA(DualEncoder):
    """Films and texts as a whole, regions and words; `settings["gloria"]` says how."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> Images."""
        gloria = self.settings["gloria"]
        images_BxF, regions_BxRxC = self._features(
            films_BxHxWx1, gloria["resize_to"], gloria["stage"]
        )
        joint_BxD = _unit(self.image_projection(images_BxF))
        return Images(joint_BxD, self.region_projection(regions_BxRxC))

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask", "word_ids"} of [B, T] -> Texts.

        Where scores look at as many slots as a text has characters, those are needed
        too: "characters" [B].
        """
        out, mask = self._read(texts)
        gloria = self.settings["gloria"]
        states_BxTxC = sum(out.hidden_states[-gloria["text_layers"] :])
        word_ids = torch.as_tensor(texts["word_ids"]).long()
        slots = torch.arange(word_ids.shape[1])
        count = word_ids.amax(1, keepdim=True) + 1
        # [CLS] is slot 0, words follow, then [SEP]; a word is the sum of its pieces.
        slot = torch.where(word_ids >= 0, word_ids, torch.where(slots > 0, count, -1))
        takes_BxSxT = (slot[:, None] + 1 == slots[:, None]) & (mask[:, None] > 0)
        words_BxSxC = takes_BxSxT.float() @ states_BxTxC
        last = count
        if gloria["window"] == "characters":
            last = torch.as_tensor(texts["characters"])[:, None]
        elif gloria["unknown_id"] >= 0:
            unknown = torch.as_tensor(texts["input_ids"]) == gloria["unknown_id"]
            last = count - unknown.sum(1, keepdim=True)
        joint_BxD = _unit(words_BxSxC.mean(1))
        return Texts(joint_BxD, words_BxSxC, (slots >= 1) & (slots <= last))

    def tokenize(self, texts):
        """Besides, the word of each piece (-1: none), and the characters of each text."""
        texts = list(texts)
        tokens = super().tokenize(texts)
        words = [tokens.word_ids(row) for row in range(len(texts))]
        tokens["word_ids"] = torch.tensor(
            [[-1 if word is None else word for word in row] for row in words]
        )
        # Without "[", as the official code counts.
        tokens["characters"] = torch.tensor([len(t.replace("[", "")) for t in texts])
        return tokens

    def score(self, images, texts, similarity=None):
        """Scores [N, M]: "global" of the whole, "local" of the best word, or "both",
        their mean; by default what `settings["gloria"]["similarity"]` says."""
        similarity = similarity or self.settings["gloria"]["similarity"]
        global_NxM = images.joint_NxD @ texts.joint_MxD.T
        if similarity == "global":
            return global_NxM
        each = zip(texts.words_MxTxD, texts.mask_MxT)
        local_MxN = [self._best(images.regions_NxRxD, *text) for text in each]
        local_NxM = torch.stack(local_MxN, 1)
        return local_NxM if similarity == "local" else (local_NxM + global_NxM) / 2

    def _best(self, regions_NxRxD, words_TxD, mask_T):
        """How well the best word of a text [N] resembles what it finds in each film."""
        how = self.settings["gloria"]["words"]
        if how["unit"]:
            regions_NxRxD, words_TxD = _unit(regions_NxRxD), _unit(words_TxD)
        weights_NxTxR = words_TxD @ regions_NxRxD.transpose(1, 2)
        if how["attention"] == "words_then_regions":
            weights_NxTxR = weights_NxTxR.masked_fill(~mask_T[:, None], FLOOR)
            weights_NxTxR = weights_NxTxR.softmax(1)
        weights_NxTxR = (how["sharpness"] * weights_NxTxR).softmax(2)
        found_NxTxD = weights_NxTxR @ regions_NxRxD
        cosines_NxT = nn.functional.cosine_similarity(found_NxTxD, words_TxD, dim=-1)
        return (how["focus"] * cosines_NxT).masked_fill(~mask_T, FLOOR).amax(1)


FLOOR = -1e30  # of what takes no part
KINDS = {"dual_encoder": DualEncoder, "gloria": GLoRIA, "image_only": ImageOnly}


def _whole(cls, folder, **options):
    """from_pretrained, refusing weights that are missing or left over."""
    model, info = cls.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **options
    )
    odd = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if odd:
        raise ValueError(f"{folder} does not fit {cls.__name__}: {odd}")
    return model


def _unit(vectors):
    return nn.functional.normalize(vectors, dim=-1)


def _linear(heads, prefix):
    weight, bias = heads[prefix + "weight"], heads.get(prefix + "bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def _norm(heads, prefix):
    layer = nn.BatchNorm1d(len(heads[prefix + "weight"]))
    layer.weight.data = heads[prefix + "weight"]
    # The last one of SimCLR's has no bias.
    layer.bias.data = heads.get(prefix + "bias", layer.bias.data)
    layer.running_mean.data = heads[prefix + "running_mean"]
    layer.running_var.data = heads[prefix + "running_var"]
    return layer


def _head(heads, prefix):
    """One matrix, or several with ReLU between them, each with a BatchNorm if it has."""
    if prefix + "weight" in heads:
        return _linear(heads, prefix)
    names, parts = [("hidden", ""), ("out", "")], []
    names += [(f"layer_{number}", f"norm_{number}") for number in range(len(heads))]
    for linear, norm in names:
        if f"{prefix}{linear}.weight" not in heads:
            continue
        parts.append(_linear(heads, f"{prefix}{linear}."))
        if f"{prefix}{norm}.weight" in heads:
            parts.append(_norm(heads, f"{prefix}{norm}."))
        parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-1])


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
