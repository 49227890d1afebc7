"""Embeds films and texts with a method, in batches, on whatever devices there are."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from medclip_jax.errors import UserError
from medclip_jax.methods.interface import (
    ClassifiesFilms,
    ImageEmbedding,
    Method,
    TextEmbedding,
    Variables,
)

Normalize = Callable[[jax.Array], jax.Array]
"""films_BxHxWx1 uint8 -> films_BxHxWx3 float32, jittable."""

SCORE_BLOCK = 512
"""Rows and columns scored at a time by a method that compares joint vectors alone."""

LOCAL_FIELDS = (
    "patches_BxPxC",
    "local_BxPxD",
    "local_weight_BxP",
    "words_BxTxC",
    "word_mask_BxT",
    "local_BxWxD",
    "local_mask_BxW",
    "local_weight_BxW",
)


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> Mapping[str, np.ndarray]: ...

    def words(self, text: str) -> list[str]: ...


def rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cuts a stream of [b, ...] arrays into arrays of `size` rows; the last may be less."""
    held: list[np.ndarray] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row up to `size` rows, so that one shape is compiled."""
    missing = size - len(array)
    return (
        np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing else array
    )


class Embedder:
    """Compiled inference of one method; serves any variables of its shapes.

    Args:
      method: the method.
      normalize: turns stored films into the network's input.
      tokenizer: encodes texts.
      text_length: tokens a text is cut or padded to: that of training, since a pooling
        without a mask depends on it.
      batch_size: films or texts at a time; rounded up to a multiple of the devices.
      progress: whether to show a bar on stderr.
      between: called between batches; may raise to stop, as on preemption.
      signature: names all of the above that an embedding depends on, for features
        that are kept on disk.
    """

    def __init__(
        self,
        method: Method,
        normalize: Normalize,
        tokenizer: Tokenizer,
        text_length: int,
        batch_size: int = 64,
        progress: bool = False,
        between: Callable[[], None] | None = None,
        signature: str = "",
    ):
        devices = jax.device_count()
        self.batch_size = -(-batch_size // devices) * devices
        self.signature = signature
        self.method = method
        self._tokenizer = tokenizer
        self._text_length = text_length
        self._progress = progress
        self._between = between or (lambda: None)
        self.local = bool(getattr(method, "scores_locally", False))
        self._normalize = normalize
        self._compiled: dict[tuple[str, Mesh], Callable] = {}

    def placed_here(self, total: int, mesh: Mesh) -> np.ndarray:
        """Which rows of a set this process's devices get; the others may be blank.

        Args:
          total: rows of the set.
          mesh: that the variables lie on.

        Returns:
          bool [total].
        """
        placed = _rows_of(mesh).addressable_devices_indices_map((self.batch_size,))
        here = np.zeros(self.batch_size, bool)
        for index in placed.values():
            assert index is not None  # as for devices that hold nothing
            here[index[0]] = True
        return here[np.arange(total) % self.batch_size]

    def films(
        self,
        variables: Variables,
        batches: Iterable[np.ndarray],
        label: str = "films",
        patches: bool = False,
    ) -> ImageEmbedding:
        """Embeds a stream of films.

        Args:
          variables: of the method.
          batches: arrays uint8 [b, H, W, 1] of any b.
          label: what the progress bar says.
          patches: whether local features are given too, in float32: they take much
            more room.

        Returns:
          Host arrays, one row a film in the order given.
        """
        return self._in_batches(
            self._embed_patches if patches else self._embed_films,
            variables,
            rebatch(batches, self.batch_size),
            label,
        )

    def compared(
        self,
        variables: Variables,
        batches: Iterable[Mapping[str, np.ndarray]],
        label: str = "pairs of films",
    ) -> ImageEmbedding:
        """Embeds films beside the films before, by a method that reads both.

        Args:
          variables: of the method.
          batches: "current" and "prior", uint8 [b, H, W, 1] of b <= batch_size.
          label: what the progress bar says.

        Returns:
          Host arrays, one row a pair in the order given.
        """
        return self._in_batches(self._embed_pairs, variables, batches, label)

    def texts(
        self, variables: Variables, texts: Sequence[str], label: str = "texts"
    ) -> TextEmbedding:
        """Embeds texts; host arrays, one row a text in the order given."""

        def encoded() -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, len(texts), self.batch_size):
                part = list(texts[start : start + self.batch_size])
                yield self.token_ids(part)

        return self._in_batches(self._embed_texts, variables, encoded(), label)

    def token_ids(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as `embed_texts` takes them, of the length of training."""
        tokens = dict(self._tokenizer.encode(texts, self._text_length))
        if getattr(self.method, "reads_characters", False):
            lengths = [len(text.replace("[", "")) for text in texts]
            tokens["characters_B"] = np.array(lengths, np.int32)
        return tokens

    def words(self, text: str) -> list[str]:
        """The words of a text, as `token_ids` numbers them."""
        return self._tokenizer.words(text)

    def class_logits(
        self, variables: Variables, batches: Iterable[np.ndarray], label: str = "films"
    ) -> np.ndarray:
        """What a method tells of films without text: logits_Nx14, or one a pixel."""
        return self._in_batches(
            self._class_logits, variables, rebatch(batches, self.batch_size), label
        )

    def logits(
        self, variables: Variables, images: ImageEmbedding, texts: TextEmbedding
    ) -> np.ndarray:
        """logits_NxM of all images with all texts, computed block by block.

        Raises:
          UserError: when a logit is not finite; ranking such logits means nothing.
        """
        score = self._jit(self.method.score, _mesh_of(variables))
        size = self.batch_size if self.local else SCORE_BLOCK
        blocks = []
        for rows in _blocks(images, size):
            parts = [
                np.asarray(score(variables, rows[0], columns[0]))[
                    : rows[1], : columns[1]
                ]
                for columns in _blocks(texts, size)
            ]
            blocks.append(np.concatenate(parts, axis=1))
        logits_NxM = np.concatenate(blocks).astype(np.float32)
        if not np.isfinite(logits_NxM).all():
            bad = int((~np.isfinite(logits_NxM)).sum())
            raise UserError(
                f"{bad} of {logits_NxM.size} logits are not finite, so this checkpoint "
                "cannot be evaluated: expected numbers. Its training diverged; take an "
                "earlier checkpoint with --step, or train with a lower learning rate"
            )
        return logits_NxM

    def _embed_films(self, variables: Variables, films_BxHxWx1: jax.Array):
        films = {"current_BxHxWx3": self._normalize(films_BxHxWx1)}
        return self._kept(self.method.embed_images(variables, films))

    def _embed_patches(self, variables: Variables, films_BxHxWx1: jax.Array):
        films = {"current_BxHxWx3": self._normalize(films_BxHxWx1)}
        images = self.method.embed_images(variables, films)
        if images.patches_BxPxC is None:
            return images
        patches_BxPxC = images.patches_BxPxC.astype(jnp.float32)
        return dataclasses.replace(images, patches_BxPxC=patches_BxPxC)

    def _embed_pairs(self, variables: Variables, pairs: Mapping[str, jax.Array]):
        films = {
            f"{name}_BxHxWx3": self._normalize(films_BxHxWx1)
            for name, films_BxHxWx1 in pairs.items()
        }
        films["has_prior_B"] = jnp.ones(len(films["prior_BxHxWx3"]), bool)
        return self._kept(self.method.embed_images(variables, films))

    def _embed_texts(self, variables: Variables, texts: Mapping[str, jax.Array]):
        return self._kept(self.method.embed_texts(variables, texts))

    def _class_logits(self, variables: Variables, films_BxHxWx1: jax.Array):
        films = {"current_BxHxWx3": self._normalize(films_BxHxWx1)}
        if not isinstance(self.method, ClassifiesFilms):
            raise TypeError(f"{type(self.method).__name__} gives no class logits")
        images = self.method.embed_images(variables, films)
        return self.method.class_logits(variables, images)

    def _kept(self, embedding: Any) -> Any:
        # Local features of a whole test set do not fit a host; only a method that
        # scores with them keeps them.
        if self.local:
            return embedding
        names = {field.name for field in dataclasses.fields(embedding)}
        return embedding.replace(**{n: None for n in LOCAL_FIELDS if n in names})

    def _jit(self, function: Callable, mesh: Mesh) -> Callable:
        key = (function.__name__, mesh)
        if key not in self._compiled:
            replicated = NamedSharding(mesh, PartitionSpec())
            self._compiled[key] = jax.jit(function, out_shardings=replicated)
        return self._compiled[key]

    def _in_batches(
        self, function: Callable, variables: Variables, batches: Iterable, label: str
    ) -> Any:
        mesh = _mesh_of(variables)
        sharding = _rows_of(mesh)
        compiled = self._jit(function, mesh)
        done = []
        bar = tqdm(desc=label, disable=not self._progress, mininterval=2)
        for batch in batches:
            self._between()
            count = len(jax.tree.leaves(batch)[0])
            placed = jax.tree.map(
                lambda a: _place(pad_rows(a, self.batch_size), sharding), batch
            )
            out = compiled(variables, placed)
            done.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:n], out))
            bar.update(count)
        bar.close()
        if not done:
            raise ValueError(f"there are no {label} to embed")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)


def _mesh_of(variables: Variables) -> Mesh:
    """The mesh that the variables lie on; a plain array's own device; else all."""
    leaf = jax.tree.leaves(variables)[0]
    if not isinstance(leaf, jax.Array):
        return Mesh(np.asarray(jax.devices()), ("devices",))
    if isinstance(leaf.sharding, NamedSharding):
        mesh = leaf.sharding.mesh
        assert isinstance(mesh, Mesh)  # a placed array lies on devices
        return mesh
    return Mesh(np.asarray(sorted(leaf.devices(), key=lambda d: d.id)), ("devices",))


def _rows_of(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices: the parameters are not."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def _place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    # Every process holds all rows, or those of its own devices and blank ones.
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _blocks(embedding: Any, size: int) -> Iterator[tuple[Any, int]]:
    total = len(jax.tree.leaves(embedding)[0])
    for start in range(0, total, size):
        count = min(size, total - start)
        part = jax.tree.map(
            lambda a, s=start: pad_rows(np.asarray(a[s : s + size]), size), embedding
        )
        yield part, count
