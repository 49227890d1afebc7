"""The exported model in PyTorch: this file needs torch and transformers alone.

It lies in every exported folder, beside the weights:

    import torch
    from torch_model import load, preprocess     # run in the exported folder

    model = load(".")
    films = preprocess([image], model.settings)              # PIL images or arrays
    images = model.embed_images(films)                        # [N, D], length 1
    texts = model.embed_texts(model.tokenize(["no pneumothorax."]))
    logits = model.score(images, texts)                       # [N, M]
"""

import json
from pathlib import Path

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
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class DualEncoder(nn.Module):
    """Image and text towers into one space.

    Attributes:
      settings: medclip_jax.json as a dict.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.settings = json.loads((self.folder / "medclip_jax.json").read_text())
        self.image_encoder = self._image_encoder()
        self.text_encoder = self._text_encoder()
        heads = load_file(str(self.folder / "projection.safetensors"))
        self.image_projection = _head(heads, "image_projection.")
        self.text_projection = _head(heads, "text_projection.")
        self.eval()

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

    def _text_encoder(self):
        import transformers

        pooler = self.settings["text"]["pooler"]
        folder = self.folder / "text_encoder"
        return _whole(transformers.BertModel, folder, add_pooling_layer=pooler)

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> [B, D] of length 1."""
        x = torch.as_tensor(films_BxHxWx1).float() / 255.0
        x = (x - self.settings["mean"]) / self.settings["std"]
        x = x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
        out = self.image_encoder(x)
        image = self.settings["image"]
        if image["name"] == "swin":
            out = out.pooler_output
        elif image["name"] == "vit":
            out = {
                "cls": lambda: out.last_hidden_state[:, 0],
                "mean": lambda: out.last_hidden_state[:, 1:].mean(1),
                "pooler": lambda: out.pooler_output,
            }[image["pooling"]]()
        return nn.functional.normalize(self.image_projection(out), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask"} of [B, T] -> [B, D] of length 1.

        Where padding takes part in the pooling, T must be `text_length`.
        """
        mask = torch.as_tensor(texts["attention_mask"]).long()
        out = self.text_encoder(
            input_ids=torch.as_tensor(texts["input_ids"]).long(),
            attention_mask=mask,
            output_hidden_states=True,
        )
        return nn.functional.normalize(
            self.text_projection(self._pool(out, mask)), dim=-1
        )

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


def _whole(cls, folder, **options):
    """from_pretrained, refusing weights that are missing or left over."""
    model, info = cls.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **options
    )
    odd = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if odd:
        raise ValueError(f"{folder} does not fit {cls.__name__}: {odd}")
    return model


def _linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def _head(heads, prefix):
    if prefix + "weight" in heads:
        return _linear(heads[prefix + "weight"], heads.get(prefix + "bias"))
    hidden, out = (
        _linear(heads[f"{prefix}{name}.weight"], heads.get(f"{prefix}{name}.bias"))
        for name in ("hidden", "out")
    )
    return nn.Sequential(hidden, nn.ReLU(), out)


def load(folder):
    """The model of an exported folder, in float32, for inference."""
    return DualEncoder(folder)


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
