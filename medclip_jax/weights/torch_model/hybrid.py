"""BioViL-T's image encoder: a ResNet, and a transformer over a film and the one before.

Names are those of microsoft/hi-ml, health_multimodal/image/model (encoder.py and
transformer.py), after "encoder.".
"""

import numpy as np
import torch
from torch import nn
from torch_model.resnet import ResNet


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.proj_q = nn.Linear(dim, dim, bias=False)
        self.proj_k = nn.Linear(dim, dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, placed, values):
        batch, tokens, dim = placed.shape
        split = (batch, tokens, self.heads, dim // self.heads)
        asked = ((self.proj_q, placed), (self.proj_k, placed), (self.proj_v, values))
        parts = [layer(of).view(split).transpose(1, 2) for layer, of in asked]
        found = nn.functional.scaled_dot_product_attention(*parts)
        return self.proj(found.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim, heads, positions_in_values):
        super().__init__()
        self.positions_in_values = positions_in_values
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(dim, heads)
        layers = {"fc1": nn.Linear(dim, dim), "fc2": nn.Linear(dim, dim)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x, place):
        y = self.norm1(x)
        x = x + self.attn(y + place, y + place if self.positions_in_values else y)
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden)


class Pooler(nn.Module):
    """What changed since the film before, by patch of the current one."""

    def __init__(self, dim, blocks, heads, positions_in_values):
        super().__init__()
        self.type_embed = nn.Parameter(torch.zeros(2, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, positions_in_values) for _ in range(blocks)
        )
        self.norm_post = nn.LayerNorm(dim, 1e-6)

    def forward(self, current_BxCxHxW, previous_BxCxHxW):
        _, dim, height, width = current_BxCxHxW.shape
        place = sine_positions(height, width, dim).to(self.type_embed)
        place = torch.cat([place + self.type_embed[0], place + self.type_embed[1]])
        both = (current_BxCxHxW, previous_BxCxHxW)
        x = torch.cat([of.flatten(2).transpose(1, 2) for of in both], 1)
        for block in self.blocks:
            x = block(x, place)
        x = self.norm_post(x)[:, : height * width]
        return x.transpose(1, 2).reshape(current_BxCxHxW.shape)


class Hybrid(nn.Module):
    """A patch is what the film shows there, beside what changed since the one before."""

    def __init__(self, settings):
        super().__init__()
        stages, width, block = (
            settings[of] for of in ("stage_sizes", "width", "block")
        )
        self.encoder = ResNet(stages, width, block)
        channels = width * 2 ** (len(stages) - 1) * (4 if block == "bottleneck" else 1)
        dim = settings["dim"]
        self.backbone_to_vit = nn.Conv2d(channels, dim, 1, bias=False)
        self.vit_pooler = Pooler(
            dim, settings["blocks"], settings["heads"], settings["positions_in_values"]
        )
        self.missing_previous_emb = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, films_Bx3xHxW, priors_Bx3xHxW=None, has_prior_B=None):
        """Maps [B, C, h, w]; `priors` are read where `has_prior_B` is true."""

        def patches(films_Bx3xHxW):
            return self.backbone_to_vit(self.encoder(films_Bx3xHxW)[-1])

        current = patches(films_Bx3xHxW)
        changed = self.missing_previous_emb.expand_as(current)
        if priors_Bx3xHxW is not None and has_prior_B.any():
            changed = changed.clone()
            previous = patches(priors_Bx3xHxW[has_prior_B])
            changed[has_prior_B] = self.vit_pooler(current[has_prior_B], previous)
        return torch.cat([current, changed], 1)


def sine_positions(height, width, dim):
    """Where each patch lies, [height * width, dim]: of its row, then of its column."""
    half = dim // 2
    period = 10000.0 ** (2 * (np.arange(half) // 2) / half)

    def of(size):
        turn = 2 * np.pi * np.arange(1, size + 1) / (size + 1e-6)
        angle = turn[:, None] / period
        return np.where(np.arange(half) % 2, np.cos(angle), np.sin(angle))

    rows, columns = np.repeat(of(height), width, 0), np.tile(of(width), (height, 1))
    return torch.from_numpy(np.concatenate([rows, columns], 1))
