"""MGCA in PyTorch with the official names, a text at a time where the official code loops.

Written after HKU-MedAI/MGCA, mgca/models/mgca/mgca_module.py and mgca/models/backbones.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision_resnet import ResNet
from transformers import BertConfig, BertModel


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        self.map = scores.softmax(-1)
        return self.proj((self.map @ value).transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(dim, heads), MLP(dim, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)


class ViT(nn.Module):
    def __init__(self, size, patch, dim, depth, heads, mlp):
        super().__init__()
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = 1 + (size // patch) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.blocks = nn.ModuleList(Layer(dim, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, films):
        x = self.patch_embed.proj(films).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        looks = self.blocks[-1].attn.map[:, :, 0, 1:].mean(1)
        return x[:, 0], x[:, 1:], looks.detach()


class MiddleMap(ResNet):
    """The pooled last map, and the third as tokens; films are enlarged first."""

    def __init__(self, side, **sizes):
        super().__init__(**sizes)
        self.side, self.fc = side, nn.Identity()

    def forward(self, films):
        sides = (self.side, self.side)
        films = F.interpolate(films, sides, mode="bilinear", align_corners=True)
        maps = self.maps(films)
        return maps[-1].mean((2, 3)), maps[2].flatten(2).transpose(1, 2), None


class Head(nn.Module):
    def __init__(self, inputs, hidden, dim, is_local):
        super().__init__()
        self.is_local = is_local

        def linear(inputs, outputs):
            if is_local:
                return nn.Conv1d(inputs, outputs, 1)
            return nn.Linear(inputs, outputs)

        self.head = nn.Sequential(
            linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            linear(hidden, dim),
            nn.BatchNorm1d(dim, affine=False),
        )

    def forward(self, x):
        if self.is_local:
            x = self.head(x.transpose(1, 2)).transpose(1, 2)
        else:
            x = self.head(x)
        return F.normalize(x, dim=-1)


class Tower(nn.Module):
    def __init__(self, model, whole, part, hidden, dim):
        super().__init__()
        self.model = model
        self.global_embed = Head(whole, hidden, dim, False)
        self.local_embed = Head(part, hidden, dim, True)


class Official(nn.Module):
    """Attributes:
    pieces: the vocabulary.
    learned: whether tokens attend by `MultiheadAttention`.
    """

    def __init__(self, image, widths, text, pieces, learned, hidden=20, dim=8, count=6):
        super().__init__()
        self.pieces, self.learned, self.is_vit = pieces, learned, isinstance(image, ViT)
        bert = BertModel(
            BertConfig(**text, attn_implementation="eager"), add_pooling_layer=False
        )
        with torch.no_grad():
            bert.embeddings.token_type_embeddings.weight.zero_()
        bert.embeddings.token_type_embeddings.weight.requires_grad = False
        # The official code's own BERT saves it.
        positions = bert.embeddings.position_ids
        bert.embeddings.register_buffer("position_ids", positions, persistent=True)
        self.img_encoder_q = Tower(image, *widths, hidden, dim)
        width = text["hidden_size"]
        self.text_encoder_q = Tower(bert, width, width, hidden, dim)
        self.prototype_layer = nn.Linear(dim, count, bias=False)
        for side in ("patch", "word"):
            layer = nn.MultiheadAttention(dim, 1, batch_first=True)
            setattr(self, f"{side}_local_atten_layer", layer)

    def official_state(self):
        """Arrays by key, as the released files hold them."""
        return {
            key: value.detach().numpy().copy()  # torch moves statistics in place
            for key, value in self.state_dict().items()
            if "token_type_embeddings" not in key
        }

    def embed(self, films, ids):
        """Wholes, patches and words of length 1, and how much is looked at parts."""
        image, text = self.img_encoder_q, self.text_encoder_q
        whole, patches, patch_looks = image.model(films)
        out = text.model(
            input_ids=ids,
            attention_mask=(ids > 0).long(),
            position_ids=torch.zeros_like(ids),
            output_attentions=True,
        )
        looks = out.attentions[-1][:, :, 0, 1:].mean(1)
        joined = [
            self.join(*of) for of in zip(ids, out.last_hidden_state, looks, strict=True)
        ]
        words, looks, real = (torch.stack(of) for of in zip(*joined, strict=True))
        return {
            "image": image.global_embed(whole),
            "patches": image.local_embed(patches),
            "patch_looks": patch_looks,
            "text": text.global_embed(words[:, 0]),
            "words": text.local_embed(words[:, 1:]),
            "word_looks": looks[:, 1:].detach(),
            "real": real[:, 1:],
        }

    def join(self, ids, states, looks):
        """Words of one text: the piece k goes with `looks[k]`, which is of k + 1."""
        slots, weights, open_slot, open_weight = [], [], None, 0.0
        for number, state, look in zip(ids[:-1].tolist(), states, looks, strict=False):
            piece = self.pieces[number]
            if piece.startswith("##"):
                open_slot, open_weight = open_slot + state, open_weight + look
                continue
            if open_slot is not None:
                slots.append(open_slot)
                weights.append(open_weight)
            open_slot, open_weight = state, look
            if piece == "[SEP]":
                slots.append(state)
                weights.append(look)
                break
        rest = len(ids) - len(slots)
        real = torch.arange(len(ids)) < len(slots)
        slots += [torch.zeros_like(states[0])] * rest
        weights += [torch.zeros(())] * rest
        return torch.stack(slots), torch.stack(weights), real

    def losses(self, films, ids):
        """Of wholes, words, patches and prototypes."""
        made = self.embed(films, ids)
        order = torch.arange(len(films))
        scores = made["image"] @ made["text"].T / 0.07
        of_wholes = F.cross_entropy(scores, order) + F.cross_entropy(scores.T, order)
        patches, words = made["patches"], made["words"]
        found = self.find("word", words, patches, None)
        weights = torch.stack([shares(of) for of in made["word_looks"]])
        of_words = aligned(words, F.normalize(found, dim=-1), weights)
        found = self.find("patch", patches, words, ~made["real"])
        if self.is_vit:
            weights = torch.stack([shares(of) for of in made["patch_looks"]])
        else:
            found = F.normalize(found, dim=-1)
            weights = torch.full(patches.shape[:2], 1 / patches.shape[1])
        of_patches = aligned(patches, found, weights)
        image, text = (self.prototype_layer(made[name]) for name in ("image", "text"))
        of_prototypes = -sum(
            (codes(one.detach()) * (other / 0.2).log_softmax(1)).sum(1).mean() / 2
            for one, other in ((image, text), (text, image))
        )
        return of_wholes, of_words, of_patches, of_prototypes

    def find(self, side, tokens, others, padding):
        if self.learned:
            layer = getattr(self, f"{side}_local_atten_layer")
            return layer(tokens, others, others, key_padding_mask=padding)[0]
        scores = tokens @ others.transpose(1, 2) / 0.1
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], -torch.inf)
        return scores.softmax(-1) @ others


def shares(looks):
    """Clipped to the quantiles of what is not 0, of sum 1."""
    real = looks > 0
    ends = torch.tensor([0.1, 0.9])
    low, high = torch.quantile(looks[real], ends)
    clipped = torch.where(real, looks.clip(low, high), 0.0)
    return clipped / clipped.sum()


def aligned(tokens, found, weights):
    scores = tokens @ found.transpose(1, 2) / 0.1
    batch, count, _ = scores.shape
    targets = torch.arange(count).repeat(batch, 1)
    each = F.cross_entropy(scores, targets, reduction="none")
    back = F.cross_entropy(scores.transpose(1, 2), targets, reduction="none")
    return ((each + back) * weights).sum() / batch / 2


def codes(scores):
    """Of the Sinkhorn algorithm in three rounds."""
    q = torch.exp(scores / 0.05).T
    q = q / q.sum()
    count, batch = q.shape
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / count
        q = q / q.sum(0, keepdim=True) / batch
    return (q / q.sum(0, keepdim=True)).T
