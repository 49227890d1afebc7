"""Proof of an export: the same films and texts through JAX and through PyTorch."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.findings import SPLITS
from data_pipelines.records import Dataset
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.inputs import augment, evalset
from medclip_jax.methods import registry

EXAMPLES = 32


def verify(
    run: run_lib.Run,
    variables: Mapping[str, Any],
    out: Path,
    datasets: Sequence[Dataset],
    tolerance: float,
) -> tuple[list[str], bool]:
    """Embeds the same films and texts in JAX and, from the files alone, in PyTorch.

    Args:
      run: what was exported.
      variables: its variables, on the host.
      out: the exported folder.
      datasets: whose films and sentences to take; random ones where there are none.
      tolerance: largest absolute difference that passes.

    Returns:
      Lines to print, and whether all differences are within the tolerance.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = _load_torch_model(out).load(out)
    films, sentences = examples(run, datasets)
    if sentences is None:
        ids, mask = random_ids(run)
        torch_texts = {"input_ids": ids, "attention_mask": mask}
        source = "random films and token ids"
    else:
        encoded = run.tokenizer.encode(sentences, run.config.data.text_length)
        ids, mask = encoded["ids_BxT"], encoded["mask_BxT"]
        torch_texts = model.tokenize(sentences)
        source = f"films and sentences of {', '.join(d.name for d in datasets)}"
        if not np.array_equal(torch_texts["input_ids"].numpy(), ids):
            return ["the exported tokenizer gives other token ids"], False
    images, texts = embed(run.config, variables, films, ids, mask)
    pairs = {
        "image": (images, model.embed_images(films).numpy(), len(films)),
        "text": (texts, model.embed_texts(torch_texts).numpy(), len(ids)),
    }
    lines, passed = [], True
    for kind, (ours, theirs, count) in pairs.items():
        difference = float(np.abs(ours - theirs).max())
        # A NaN must fail, so the comparison is not turned round.
        passed = passed and difference <= tolerance
        lines.append(
            f"largest difference of {kind} embeddings, JAX against PyTorch: "
            f"{difference:.2e} over {count}"
        )
    verdict = "within" if passed else "ABOVE"
    return [*lines, f"{verdict} the tolerance of {tolerance:g} ({source})"], passed


def embed(
    config: ConfigDict,
    variables: Mapping[str, Any],
    films_BxHxWx1: np.ndarray,
    ids_BxT: np.ndarray,
    mask_BxT: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Joint embeddings in float32, whatever the config computes in.

    Returns:
      images [B, D] and texts [B, D].
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    method = registry.build(config)

    @jax.jit
    def both(variables, films_BxHxWx1, ids_BxT, mask_BxT):
        films_BxHxWx3 = augment.normalize(
            films_BxHxWx1, config.data.mean, config.data.std
        )
        images = method.embed_images(variables, {"current_BxHxWx3": films_BxHxWx3})
        texts = method.embed_texts(
            variables, {"ids_BxT": ids_BxT, "mask_BxT": mask_BxT}
        )
        return images.joint_BxD, texts.joint_BxD

    with jax.default_matmul_precision("highest"):
        images, texts = both(
            variables, films_BxHxWx1, jnp.asarray(ids_BxT), jnp.asarray(mask_BxT)
        )
    return np.asarray(images), np.asarray(texts)


def examples(
    run: run_lib.Run, datasets: Sequence[Dataset]
) -> tuple[np.ndarray, list[str] | None]:
    """Films uint8 [32, S, S, 1], and sentences where the data has any."""
    size = run.config.data.image_size
    films, sentences = None, None
    for split in reversed(SPLITS):
        if films is None and (held := _try(evalset.load_images, datasets, split, size)):
            chosen = np.unique(np.linspace(0, len(held) - 1, EXAMPLES).astype(int))
            pixels, weight = held.read(chosen)
            films = pixels[weight > 0]
        if sentences is None and (held := _try(evalset.load_texts, datasets, split)):
            chosen = np.unique(np.linspace(0, len(held) - 1, EXAMPLES).astype(int))
            sentences = [held.texts[i] for i in chosen]
    if films is None or not len(films):
        films = np.random.default_rng(0).integers(
            0, 256, (EXAMPLES, size, size, 1), np.uint8
        )
    return films, sentences


def _try(load: Any, datasets: Sequence[Dataset], split: str, *args: Any) -> Any:
    try:
        return load(datasets, split, *args) if datasets else None
    except UserError:
        return None  # the split has none; another may


def random_ids(run: run_lib.Run) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [32, T] of texts of all lengths, and their mask."""
    rng = np.random.default_rng(1)
    length = run.config.data.text_length
    ids = rng.integers(0, run.tokenizer.vocab_size, (EXAMPLES, length), np.int32)
    lengths = rng.integers(1, length + 1, EXAMPLES)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return np.where(mask > 0, ids, run.tokenizer.pad_id).astype(np.int32), mask


def _load_torch_model(out: Path) -> ModuleType:
    """The exported folder's own PyTorch model."""
    spec = importlib.util.spec_from_file_location("torch_model", out / "torch_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
