"""Our side of benchmarks/step.py: the train step of a config, and its parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.step import random_batch, resident_bytes
from medclip_jax import export_settings
from medclip_jax import run as run_lib
from medclip_jax.assemble import assemble
from medclip_jax.inputs import augment
from medclip_jax.methods.interface import Features, ImageEmbedding, TextEmbedding
from medclip_jax.methods.towers import l2_normalize
from medclip_jax.runtime import mesh as mesh_lib
from medclip_jax.runtime import throughput
from medclip_jax.runtime.state import TrainState
from medclip_jax.runtime.step import example_keys
from medclip_jax.weights import files, huggingface, pretrained


class Ours:
    """The compiled step and its parts, with a batch on the device.

    Args:
      name: of the config.
      config: a two-tower method's.
      folder: gets the settings, initial weights and batch for the peers.

    Attributes:
      parts: by name, what runs a number of steps and waits for them.
    """

    def __init__(self, name: str, config: Any, folder: Path):
        self.name, self.config = name, config
        self.losses: list[float] = []
        mesh = mesh_lib.make_mesh({"data": -1})
        self.made = assemble(config, mesh)
        self.state = self.made.create(config)
        batch = random_batch(config)
        self._write(batch, folder)
        self.batch = mesh_lib.place_batch(batch, mesh)
        self.devices = list(mesh.devices.flatten())
        self.parts = self._parts()

    def facts(self) -> dict:
        """What the report says beside the seconds."""
        config, device = self.config, self.devices[0]
        peak = throughput.peak(self.devices)
        flops = self.made.method.forward_flops(run_lib.spec(config))
        memory = device.memory_stats() or {}
        params = jax.tree.leaves(self.state.variables["params"])
        return {
            "config": self.name,
            "batch_size": config.train.batch_size,
            "image_size": config.data.image_size,
            "text_length": config.data.text_length,
            "dtype": config.model.dtype,
            "parameters": sum(leaf.size for leaf in params),
            "device": device.device_kind,
            "losses": self.losses,
            "flops": 3 * flops * config.train.batch_size,
            "peak_flops": peak.flops,
            "peak": peak.source,
            "memory_bytes": memory.get("peak_bytes_in_use", resident_bytes()),
            "versions": f"jax {jax.__version__}",
        }

    def _parts(self) -> dict[str, Callable[[int], None]]:
        method, data, batch = self.made.method, self.config.data, self.batch
        keys_B = example_keys(jax.random.key(0), self.config.train.batch_size)

        def image(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            films = batch["films"]["current_BxHxWx1"]
            out = method.image_encoder.apply(
                {"params": params},
                augment.normalize(films, data.mean, data.std),
                train=True,
                keys_B=keys_B,
                **method.asked("image", True),
            )
            return out.trunk_BxF.sum(), out.trunk_BxF

        def text(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            mask_BxT = batch["texts"]["mask_BxT"]
            out = method.text_encoder.apply(
                {"params": params},
                batch["texts"]["ids_BxT"],
                mask_BxT,
                train=True,
                keys_B=keys_B,
                **method.asked("text", True),
            )
            pooled_BxC = method.text_head.pooled(out, mask_BxT)
            return pooled_BxC.sum(), pooled_BxC

        def loss(of: tuple, batch: Any) -> jax.Array:
            params, trunk_BxF, pooled_BxC = of

            def unit(head: Any, tower: str, features: jax.Array) -> jax.Array:
                return l2_normalize(head.apply({"params": params[tower]}, features))

            images = unit(method.image_head.layer, "image", trunk_BxF)
            texts = unit(method.text_head.layer, "text", pooled_BxC)
            features = Features(ImageEmbedding(trunk_BxF, images), TextEmbedding(texts))
            step = jax.numpy.zeros((), jax.numpy.int32)
            return method.objective({"params": params}, features, batch, None, step)[0]

        def update(state: TrainState, grads: Any) -> TrainState:
            params = state.variables["params"]
            updates, opt_state = self.made.optimizer.update(
                grads, state.opt_state, params
            )
            variables = {"params": optax.apply_updates(params, updates)}
            return TrainState(state.step + 1, variables, opt_state)

        image_grad = jax.jit(jax.grad(image, has_aux=True))
        text_grad = jax.jit(jax.grad(text, has_aux=True))
        loss_grad = jax.jit(jax.grad(loss))
        update = jax.jit(update, donate_argnums=0)
        held: dict[str, Any] = {}
        # Of the parameters' sizes and signs: what their values are costs nothing.
        grads = jax.tree.map(lambda leaf: leaf + 1e-3, self.state.variables["params"])

        def whole(steps: int) -> None:
            for _ in range(steps):
                self.state, metrics = self.made.step(self.state, batch)
                if len(self.losses) < 2:
                    self.losses.append(float(metrics["loss"]))
            jax.block_until_ready((self.state, metrics))

        def repeated(name: str, function: Callable[[], Any]) -> Callable[[int], None]:
            def run(steps: int) -> None:
                for _ in range(steps):
                    held[name] = function()
                jax.block_until_ready(held[name])

            return run

        def of(tower: str, part: str) -> Any:
            return self.state.variables["params"][tower][part]

        def of_loss() -> Any:
            heads = {tower: of(tower, "projection") for tower in ("image", "text")}
            heads["logit_scale"] = self.state.variables["params"]["logit_scale"]
            return loss_grad((heads, held["image"][1], held["text"][1]), batch)

        def optimize(steps: int) -> None:
            for _ in range(steps):
                self.state = update(self.state, grads)
            jax.block_until_ready(self.state)

        return {
            "step": whole,
            "image tower": repeated(
                "image", lambda: image_grad(of("image", "encoder"), batch)
            ),
            "text tower": repeated(
                "text", lambda: text_grad(of("text", "encoder"), batch)
            ),
            "heads and loss": repeated("loss", of_loss),
            "optimizer": optimize,
        }

    def _write(self, batch: dict, folder: Path) -> None:
        """Settings, initial weights in PyTorch's layout, and the batch."""
        config, method = self.config, self.made.method
        variables = jax.device_get(self.state.variables)
        for tower in ("image", "text"):
            name = config.model[tower].name
            encoder = getattr(method, f"{tower}_encoder")
            size = config.data.image_size if tower == "image" else None
            params = {"params": variables["params"][tower]["encoder"]}
            state = pretrained.converter(name).to_torch(params)
            described = huggingface.to_config(
                name, export_settings.fields_of(encoder), size
            )
            (folder / tower).mkdir()
            files.write_safetensors(state, folder / tower / files.SAFETENSORS)
            (folder / tower / "config.json").write_text(json.dumps(described))
        files.write_safetensors(
            export_settings.heads(variables), folder / "heads.safetensors"
        )
        settings = {
            "seed": config.seed,
            "method": config.method,
            "dtype": config.model.dtype,
            "mean": config.data.mean,
            "std": config.data.std,
            "image": config.model.image.name,
            "text_pooler": method.text_encoder.pooler,
            "image_pooling": getattr(method.image_encoder, "pooling", "mean"),
            "text_pool": method.text_head.pool,
            "pool_padding": method.text_head.padding,
            "target": getattr(method, "target", ""),
            "log_scale": float(variables["params"]["logit_scale"]),
            "optimizer": config.optimizer.to_dict(),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        np.savez(
            folder / "batch.npz",
            films=batch["films"]["current_BxHxWx1"],
            ids=batch["texts"]["ids_BxT"],
            mask=batch["texts"]["mask_BxT"],
            image_labels=batch["image_labels_Nx14"],
            text_labels=batch["text_labels_Mx14"],
        )
