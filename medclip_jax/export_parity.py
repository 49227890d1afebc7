"""Proof of an export: the same films and texts through JAX and through PyTorch."""

import dataclasses
import importlib
import sys
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
from medclip_jax.methods.gloria import Similarity
from medclip_jax.methods.interface import TextEmbedding
from medclip_jax.weights import biovil

EXAMPLES = 32
ANY_LENGTH = ("features", "logits", "regions", "words")
"""What is not brought to length 1: differences are over the longest vector's length."""
TOKENS = {
    "ids_BxT": "input_ids",
    "mask_BxT": "attention_mask",
    "word_ids_BxT": "word_ids",
    "characters_B": "characters",
}
"""Tokens as methods name them, and as torch_model/ does."""


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
    model, towers = load_torch_model(out).load(out), export_settings.towers_of(run)
    films, sentences = examples(run, datasets)
    names = ", ".join(dataset.name for dataset in datasets)
    tokens: dict[str, np.ndarray] = {}
    texts: Any = {}
    read = " and ".join({"image": "films", "text": "token ids"}[of] for of in towers)
    source = f"random {read}"
    if "text" not in towers:
        source = f"films of {names}" if names else source
    elif sentences is None:
        tokens = random_tokens(run)
        texts = {TOKENS[name]: array for name, array in tokens.items()}
    else:
        tokens = encoded(run, sentences)
        texts = model.tokenize(sentences)
        source = f"{read.replace('token ids', 'sentences')} of {names}"
        for name, array in tokens.items():
            if not np.array_equal(np.asarray(texts[TOKENS[name]]), array):
                return [f"the exported tokenizer gives other {TOKENS[name]}"], False
    ours = in_jax(run.config, variables, films, tokens)
    theirs = in_torch(model, films, texts)
    lines, passed = differences(ours, theirs, tolerance)
    verdict = "within" if passed else "ABOVE"
    return [*lines, f"{verdict} the tolerance of {tolerance:g} ({source})"], passed


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float
) -> tuple[list[str], bool]:
    """One line for each array of `in_jax` and `in_torch`, and whether all are near.

    Args:
      ours, theirs: arrays by the same names.
      tolerance: largest difference that passes.
    """
    lines, passed = [], True
    for name, expected in ours.items():
        difference = np.abs(expected - theirs[name]).max()
        over = ""
        if name.startswith(ANY_LENGTH):
            difference /= np.linalg.norm(expected, axis=-1).max()
            over = " over the longest one's length"
        # A NaN must fail, so the comparison is not turned round.
        passed = passed and bool(difference <= tolerance)
        lines.append(
            f"largest difference of {name}{over}, JAX against PyTorch: "
            f"{difference:.2e} over {len(expected)}"
        )
    return lines, passed


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
      Float arrays that lead with the films or the texts; scores are [B, B], of all films
      with all texts.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    method: Any = registry.build(config)
    kind = export_settings.KINDS[config.method]

    @jax.jit
    def compared(variables, films_BxHxWx1, tokens):
        films_BxHxWx3 = augment.normalize(
            films_BxHxWx1, config.data.mean, config.data.std
        )
        if not tokens:
            return _films_in_jax(kind, method, variables, films_BxHxWx3)
        texts = method.embed_texts(variables, tokens)
        found = _texts_in_jax(kind, method, variables, texts)
        if kind == "cxr_bert":
            texts_BxD = texts.joint_BxD
            return {**found, "scores": texts_BxD @ texts_BxD.T / method.temperature}
        pairs = _pairs_in_jax(kind, method, variables, films_BxHxWx3, texts)
        return {**found, **pairs}

    with jax.default_matmul_precision("highest"):
        found = compared(variables, films_BxHxWx1, dict(tokens))
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def _films_in_jax(
    kind: str, method: Any, variables: Any, films_BxHxWx3: jax.Array
) -> dict[str, jax.Array]:
    """Of a method without texts."""
    if kind == "image_only":
        images, _ = method.embed(variables, films_BxHxWx3, None, train=False)
        return {"features": images.trunk_BxF, "projections": images.joint_BxD}
    images = method.embed_images(variables, {"current_BxHxWx3": films_BxHxWx3})
    logits_BxC = method.class_logits(variables, images)
    return {"features": images.trunk_BxF, "logits of findings": logits_BxC}


def _texts_in_jax(
    kind: str, method: Any, variables: Any, texts: TextEmbedding
) -> dict[str, jax.Array]:
    parts = (texts.local_BxWxD, texts.local_mask_BxW, texts.local_weight_BxW)
    has_parts = kind in export_settings.WITH_PARTS
    found = _named("text", texts.joint_BxD, *(parts if has_parts else ()))
    params = variables["params"]
    if biovil.names_words(params):
        head = {"params": params["masked_words"]}
        said: Any = method.masked_words.head.apply(head, texts.words_BxTxC)
        table_VxC = params["text"]["encoder"]["word_embedding"]
        found["logits of words"] = said[0] @ table_VxC.T + said[1]
    return found


def _pairs_in_jax(
    kind: str,
    method: Any,
    variables: Any,
    films_BxHxWx3: jax.Array,
    texts: TextEmbedding,
) -> dict[str, jax.Array]:
    """Of films, and of films with texts."""
    found: dict[str, jax.Array] = {}
    reads_prior = getattr(method, "reads_prior", False)
    for name, has_prior_B in _priors(reads_prior, len(films_BxHxWx3)).items():
        films: dict[str, Any] = {"current_BxHxWx3": films_BxHxWx3}
        if has_prior_B is not None:
            films |= {"prior_BxHxWx3": films_BxHxWx3[::-1], "has_prior_B": has_prior_B}
        images = method.embed_images(variables, films)
        parts = (images.local_BxPxD, None, images.local_weight_BxP)
        has_parts = kind in export_settings.WITH_PARTS
        made = _named("image", images.joint_BxD, *(parts if has_parts else ()))
        if kind == "gloria":
            for similarity in get_args(Similarity):
                by = dataclasses.replace(method, similarity=similarity)
                made[f"scores ({similarity})"] = by.score(variables, images, texts)
        else:
            made["scores"] = method.score(variables, images, texts)
        found |= {f"{of}{name}": array for of, array in made.items()}
    return found


def in_torch(
    model: Any, films_BxHxWx1: np.ndarray, texts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The same of an exported model, from tokens as its `tokenize` gives them."""
    kind = model.settings["kind"]
    if kind in ("image_only", "classifier"):
        images = model.embed_images(films_BxHxWx1)
        found = {"features": images}
        if kind == "image_only":
            found["projections"] = model.project(images)
        else:
            found["logits of findings"] = model.class_logits(images)
    else:
        found = _with_texts_in_torch(model, films_BxHxWx1, texts)
    return {name: tensor.float().cpu().numpy() for name, tensor in found.items()}


def _with_texts_in_torch(
    model: Any, films_BxHxWx1: np.ndarray, texts: Mapping[str, Any]
) -> dict[str, Any]:
    embedded, has_films = model.embed_texts(texts), "image" in model.settings
    # A vector, or a tuple of vector, words, mask and how much is looked at each.
    has_parts = isinstance(embedded, tuple)
    found = _named("text", *(embedded if has_parts else [embedded]))
    if model.settings["names_words"]:
        found["logits of words"] = model.word_logits(texts)
    if not has_films:
        return {**found, "scores": model.score(embedded, embedded)}
    reads_prior = model.settings["image"]["name"] == "hybrid"
    for name, has_prior_B in _priors(reads_prior, len(films_BxHxWx1)).items():
        images = (
            model.embed_images(films_BxHxWx1)
            if has_prior_B is None
            else model.embed_images(
                films_BxHxWx1, films_BxHxWx1[::-1].copy(), has_prior_B
            )
        )
        made = _named("image", images)
        if has_parts:
            made = _named(
                "image", images.joint_NxD, images.regions_NxRxD, None, images.looks_NxR
            )
        if model.settings["kind"] == "gloria":
            for of in get_args(Similarity):
                made[f"scores ({of})"] = model.score(images, embedded, of)
        else:
            made["scores"] = model.score(images, embedded)
        found |= {f"{of}{name}": tensor for of, tensor in made.items()}
    return found


def _named(
    tower: str, joint: Any, parts: Any = None, mask: Any = None, looks: Any = None
) -> dict[str, Any]:
    """What is embedded, by what `verify` calls it; without what there is none of."""
    of = {"image": "regions", "text": "words"}[tower]
    made = {
        f"{tower} embeddings": joint,
        of: parts,
        f"masks of {of}": mask,
        f"looks at {of}": looks,
    }
    return {name: array for name, array in made.items() if array is not None}


def _priors(reads_prior: bool, films: int) -> dict[str, np.ndarray | None]:
    """Which films have one before, bool [B], by what `verify` calls it."""
    if not reads_prior:
        return {"": None}
    every = np.ones(films, bool)
    return {
        "": None,
        " beside films before": every,
        " where some have a film before": np.arange(films) % 2 > 0,
    }


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
    """The exported folder's own package, as who uses it imports it."""
    for name in [of for of in sys.modules if of.partition(".")[0] == "torch_model"]:
        del sys.modules[name]  # of another exported folder
    importlib.invalidate_caches()
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(out))
    try:
        return importlib.import_module("torch_model")
    finally:
        sys.path.remove(str(out))
        sys.dont_write_bytecode = compiles
