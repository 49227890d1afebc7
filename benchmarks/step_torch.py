"""The PyTorch peer of benchmarks/step.py: towers of `transformers`, dense losses.

Plain code as one would write it for one device; torch and transformers alone.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from benchmarks.step import resident_bytes, serve

MAX_LOG_SCALE = float(np.log(100.0))
CLASSES = {
    "swin": transformers.SwinModel,
    "vit": transformers.ViTModel,
    "bert": transformers.BertModel,
}


def tower(folder: Path, **options: Any) -> nn.Module:
    """A tower of `transformers` from a folder, every weight of it and no other."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    made, info = CLASSES[kind].from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **options
    )
    if odd := {name: sorted(map(str, keys)) for name, keys in info.items() if keys}:
        raise SystemExit(f"{folder} does not fit {CLASSES[kind].__name__}: {odd}")
    return made


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


class Peer(nn.Module):
    """Both towers, their heads and the loss.

    Args:
      folder: with settings.json and the weights.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.settings = json.loads((folder / "settings.json").read_text())
        self.pooling = self.settings["image_pooling"]
        # ViTModel has a pooler of its own only where it is asked for.
        is_vit = self.settings["image"] == "vit"
        options = {"add_pooling_layer": self.pooling == "pooler"} if is_vit else {}
        self.image = tower(folder / "image", **options)
        self.text = tower(
            folder / "text", add_pooling_layer=self.settings["text_pooler"]
        )
        heads = load_file(str(folder / "heads.safetensors"))
        self.image_head, self.text_head = (
            linear(heads[f"{name}.weight"], heads.get(f"{name}.bias"))
            for name in ("image_projection", "text_projection")
        )
        self.log_scale = nn.Parameter(torch.tensor(self.settings["log_scale"]))

    def trunk(self, films_BxHxWx1: torch.Tensor) -> torch.Tensor:
        """uint8 films -> [B, F]."""
        x = (films_BxHxWx1.float() / 255.0 - self.settings["mean"]) / self.settings[
            "std"
        ]
        out = self.image(x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous())
        if self.settings["image"] == "swin" or self.pooling == "pooler":
            return out.pooler_output.float()
        if self.pooling == "mean":
            return out.last_hidden_state[:, 1:].float().mean(1)
        return out.last_hidden_state[:, 0].float()

    def pooled(self, ids_BxT: torch.Tensor, mask_BxT: torch.Tensor) -> torch.Tensor:
        """Texts -> [B, C]."""
        pool = self.settings["text_pool"]
        layers = pool == "layers_1_2_last"
        out = self.text(
            input_ids=ids_BxT, attention_mask=mask_BxT, output_hidden_states=layers
        )
        if pool == "cls":
            return out.last_hidden_state[:, 0].float()
        if pool == "pooler":
            return out.pooler_output.float()
        keep = torch.ones_like(mask_BxT) if self.settings["pool_padding"] else mask_BxT
        keep = (keep > 0)[..., None]
        if pool == "max":
            return out.last_hidden_state.float().masked_fill(~keep, -torch.inf).amax(1)
        words = out.last_hidden_state.float()
        if layers:
            words = sum(out.hidden_states[i].float() for i in (1, 2, -1)) / 3
        return (words * keep).sum(1) / keep.sum(1).clamp(min=1)

    def heads_and_loss(
        self,
        trunk_BxF: torch.Tensor,
        pooled_BxC: torch.Tensor,
        image_labels_NxK: torch.Tensor,
        text_labels_MxK: torch.Tensor,
    ) -> torch.Tensor:
        """The loss in float32, from the features."""
        with torch.autocast(trunk_BxF.device.type, enabled=False):
            images = functional.normalize(self.image_head(trunk_BxF), dim=-1)
            texts = functional.normalize(self.text_head(pooled_BxC), dim=-1)
            scale = self.log_scale.clamp(0.0, MAX_LOG_SCALE).exp()
            logits_NxM = scale * images @ texts.T
            if self.settings["method"] == "clip":
                target = torch.arange(len(images), device=images.device)
                rows = functional.cross_entropy(logits_NxM, target)
                return (rows + functional.cross_entropy(logits_NxM.T, target)) / 2
            # Uncertain and not given count as negative, the default of the configs.
            image, text = (
                (labels == 1).float() for labels in (image_labels_NxK, text_labels_MxK)
            )
            if self.settings["target"] == "cosine":
                image, text = functional.normalize(image), functional.normalize(text)
            alike = image @ text.T
            rows = functional.cross_entropy(logits_NxM, alike.softmax(-1))
            columns = functional.cross_entropy(logits_NxM.T, alike.T.softmax(-1))
            return (rows + columns) / 2

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch."""
        return self.heads_and_loss(
            self.trunk(batch["films"]),
            self.pooled(batch["ids"], batch["mask"]),
            batch["image_labels"],
            batch["text_labels"],
        )


class Theirs:
    """The step and its parts.

    Args:
      folder: see `Peer`; with the batch.
      is_compiled: whether torch.compile is used.

    Attributes:
      parts: by name, what runs a number of steps and waits for them.
    """

    def __init__(self, folder: Path, is_compiled: bool):
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as ours by default
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Peer(folder).to(self.device).train()
        settings = self.model.settings
        torch.manual_seed(settings["seed"])
        with np.load(folder / "batch.npz") as arrays:
            self.batch = {
                name: torch.from_numpy(array).to(self.device)
                for name, array in arrays.items()
            }
        for name in ("ids", "mask"):
            self.batch[name] = self.batch[name].long()
        self.losses: list[float] = []
        self.is_bfloat16 = settings["dtype"] == "bfloat16"
        self.clip = settings["optimizer"]["clip_norm"]
        self.optimizer = self._optimizer(settings["optimizer"])
        self.parts = self._parts(torch.compile if is_compiled else lambda f: f)

    def _optimizer(self, options: dict) -> torch.optim.AdamW:
        decayed, not_decayed = [], []
        for name, parameter in self.model.named_parameters():
            is_vector = parameter.ndim < 2 or "relative_position_bias" in name
            (not_decayed if is_vector else decayed).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": options["weight_decay"]},
                {"params": not_decayed, "weight_decay": 0.0},
            ],
            lr=options["learning_rate"],
            betas=(options["b1"], options["b2"]),
            eps=options["eps"],
            fused=True,
        )

    def _parts(self, wrap: Callable) -> dict[str, Callable[[int], None]]:
        model, batch = self.model, self.batch
        whole, trunk = wrap(model.forward), wrap(model.trunk)
        pooled, loss = wrap(model.pooled), wrap(model.heads_and_loss)
        features: dict[str, torch.Tensor] = {}

        def cast() -> torch.autocast:
            kind = self.device.type
            return torch.autocast(kind, torch.bfloat16, enabled=self.is_bfloat16)

        def update() -> None:
            if self.clip > 0:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            self.optimizer.step()

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with cast():
                value = whole(batch)
            value.backward()
            update()
            if len(self.losses) < 2:
                self.losses.append(value.item())

        def image() -> None:
            model.image.zero_grad(set_to_none=True)
            with cast():
                out = trunk(batch["films"])
            out.sum().backward()
            features["image"] = out.detach()

        def text() -> None:
            model.text.zero_grad(set_to_none=True)
            with cast():
                out = pooled(batch["ids"], batch["mask"])
            out.sum().backward()
            features["text"] = out.detach()

        def heads() -> None:
            model.image_head.zero_grad(set_to_none=True)
            model.text_head.zero_grad(set_to_none=True)
            one, other = (features[name].requires_grad_() for name in ("image", "text"))
            one.grad = other.grad = None
            loss(one, other, batch["image_labels"], batch["text_labels"]).backward()

        def repeated(function: Callable[[], None]) -> Callable[[int], None]:
            def run(steps: int) -> None:
                for _ in range(steps):
                    function()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()

            return run

        return {
            "step": repeated(step),
            "image tower": repeated(image),
            "text tower": repeated(text),
            "heads and loss": repeated(heads),
            "optimizer": repeated(update),
        }

    def facts(self) -> dict:
        """What the report says beside the seconds."""
        is_cuda = self.device.type == "cuda"
        return {
            "losses": self.losses,
            "memory_bytes": (
                torch.cuda.max_memory_allocated() if is_cuda else resident_bytes()
            ),
            "versions": (
                f"torch {torch.__version__}, transformers {transformers.__version__}"
            ),
            "python": platform.python_version(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", required=True, choices=("eager", "compiled"))
    parser.add_argument("--folder", required=True, type=Path)
    args = parser.parse_args()
    theirs = Theirs(args.folder, args.side == "compiled")
    serve(theirs.parts, theirs.facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
