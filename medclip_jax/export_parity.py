"""Proof of an export: the same films and texts through JAX and through PyTorch."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.findings import SPLITS
from data_pipelines.records import Dataset
from medclip_jax import export_settings
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.inputs import augment, evalset
from medclip_jax.methods import registry
from medclip_jax.methods.gloria import GLoRIA, Similarity
from medclip_jax.methods.image_only import ImageOnly

EXAMPLES = 32
ANY_LENGTH = ("features", "regions", "words")
"""What is not brought to length 1: differences are over the longest vector's length."""
TOKENS = {
    "ids_BxT": "input_ids",
    "mask_BxT": "attention_mask",
    "word_ids_BxT": "word_ids",
    "characters_B": "characters",
}
"""Tokens as methods name them, and as torch_model.py does."""


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
      tolerance: largest difference that passes.

    Returns:
      Lines to print, and whether all differences are within the tolerance.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = load_torch_model(out).load(out)
    films, sentences = examples(run, datasets)
    names = ", ".join(dataset.name for dataset in datasets)
    tokens: dict[str, np.ndarray] = {}
    texts: Any = {}
    if isinstance(run.method, ImageOnly):
        source = f"films of {names}" if names else "random films"
    elif sentences is None:
        tokens = random_tokens(run)
        texts = {TOKENS[name]: array for name, array in tokens.items()}
        source = "random films and token ids"
    else:
        tokens = encoded(run, sentences)
        texts = model.tokenize(sentences)
        source = f"films and sentences of {names}"
        for name, array in tokens.items():
            found = texts.get(TOKENS[name], array)  # words: of GLoRIA's alone
            if not np.array_equal(np.asarray(found), array):
                return [f"the exported tokenizer gives other {TOKENS[name]}"], False
    ours = in_jax(run.config, variables, films, tokens)
    theirs = in_torch(model, films, texts)
    lines, passed = [], True
    for name, expected in ours.items():
        difference = np.abs(expected - theirs[name]).max()
        over = ""
        if name in ANY_LENGTH:
            difference /= np.linalg.norm(expected, axis=-1).max()
            over = " over the longest one's length"
        # A NaN must fail, so the comparison is not turned round.
        passed = passed and bool(difference <= tolerance)
        lines.append(
            f"largest difference of {name}{over}, JAX against PyTorch: "
            f"{difference:.2e} over {len(expected)}"
        )
    verdict = "within" if passed else "ABOVE"
    return [*lines, f"{verdict} the tolerance of {tolerance:g} ({source})"], passed


def in_jax(
    config: ConfigDict,
    variables: Mapping[str, Any],
    films_BxHxWx1: np.ndarray,
    tokens: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What is compared, by name, in float32, whatever the config computes in.

    Args:
      config: of the run.
      variables: of its method.
      films_BxHxWx1: uint8.
      tokens: as `embed_texts` of the method takes them; empty of a method of films.

    Returns:
      Float arrays that lead with the films or the texts. Embeddings, projections and
      word masks are [B, ...], scores [B, B] of all films with all texts.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    method: Any = registry.build(config)

    @jax.jit
    def compared(variables, films_BxHxWx1, tokens):
        films_BxHxWx3 = augment.normalize(
            films_BxHxWx1, config.data.mean, config.data.std
        )
        if isinstance(method, ImageOnly):
            images, _ = method.embed(variables, films_BxHxWx3, None, train=False)
            return {"features": images.trunk_BxF, "projections": images.joint_BxD}
        images = method.embed_images(variables, {"current_BxHxWx3": films_BxHxWx3})
        texts = method.embed_texts(variables, tokens)
        found = {
            "image embeddings": images.joint_BxD,
            "text embeddings": texts.joint_BxD,
        }
        if isinstance(method, GLoRIA):
            found["regions"] = images.local_BxPxD
            found["words"] = texts.local_BxWxD
            found["word masks"] = texts.local_mask_BxW
            for similarity in get_args(Similarity):
                by = dataclasses.replace(method, similarity=similarity)
                found[f"scores ({similarity})"] = by.score(variables, images, texts)
        return found

    with jax.default_matmul_precision("highest"):
        found = compared(variables, films_BxHxWx1, dict(tokens))
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def in_torch(
    model: Any, films_BxHxWx1: np.ndarray, texts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The same of an exported model, from tokens as its `tokenize` gives them."""
    kind, images = model.settings["kind"], model.embed_images(films_BxHxWx1)
    if kind == export_settings.IMAGE_ONLY:
        found = {"features": images, "projections": model.project(images)}
    else:
        embedded = model.embed_texts(texts)
        found = {"image embeddings": images, "text embeddings": embedded}
    if kind == export_settings.GLORIA:
        found = {
            "image embeddings": images.joint_NxD,
            "text embeddings": embedded.joint_MxD,
            "regions": images.regions_NxRxD,
            "words": embedded.words_MxTxD,
            "word masks": embedded.mask_MxT,
        }
        for similarity in get_args(Similarity):
            scores_NxM = model.score(images, embedded, similarity)
            found[f"scores ({similarity})"] = scores_NxM
    return {name: tensor.float().numpy() for name, tensor in found.items()}


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


def random_tokens(run: run_lib.Run) -> dict[str, np.ndarray]:
    """Token ids [32, T] of texts of all lengths, in words of one piece or more."""
    rng = np.random.default_rng(1)
    length = run.config.data.text_length
    ids = rng.integers(0, run.tokenizer.vocab_size, (EXAMPLES, length), np.int32)
    lengths_Bx1 = rng.integers(1, length + 1, EXAMPLES)[:, None]
    slots = np.arange(length)
    mask = (slots < lengths_Bx1).astype(np.int32)
    begun = np.cumsum(rng.random((EXAMPLES, length)) < 0.7, axis=1)
    # The first and the last token of a text are of no word.
    within = (slots > 0) & (slots < lengths_Bx1 - 1)
    words = np.where(within, begun - begun[:, 1:2], -1)
    return {
        "ids_BxT": np.where(mask > 0, ids, run.tokenizer.pad_id).astype(np.int32),
        "mask_BxT": mask,
        "word_ids_BxT": words.astype(np.int32),
        "characters_B": (3 * lengths_Bx1[:, 0] // 2).astype(np.int32),
    }


def encoded(run: run_lib.Run, sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Sentences as an evaluation encodes them."""
    length = run.config.data.text_length
    return Embedder(run.method, lambda f: f, run.tokenizer, length).token_ids(sentences)


def load_torch_model(out: Path) -> ModuleType:
    """The exported folder's own PyTorch model."""
    spec = importlib.util.spec_from_file_location("torch_model", out / "torch_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
