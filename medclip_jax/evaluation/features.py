"""What one network makes of films and texts: embedded once, asked for by all protocols.

Films are embedded in one pass, sharded over all devices, and may be kept on disk under
the network's and the data's fingerprints, so that another evaluation of the same
checkpoint reads them instead.
"""

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medclip_jax import storage
from medclip_jax.errors import UserError
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.sets import Films
from medclip_jax.methods.interface import (
    AttendsByWords,
    ClassifiesFilms,
    ImageEmbedding,
    Method,
    TextEmbedding,
    Variables,
)

Place = tuple[Films, int]
"""A data set and the position of a film in it."""


@dataclass(frozen=True)
class Patches:
    """Local features of films, row by row of the grid.

    Attributes:
      trunk_BxPxF: the last feature map, before any projection.
      local_BxPxD: in the joint space, of any length; None where there is none.
      grid: height and width of the map in patches; their product is P.
    """

    trunk_BxPxF: np.ndarray
    local_BxPxD: np.ndarray | None
    grid: tuple[int, int]


class Network:
    """One set of variables of a method, and what was embedded with it.

    Args:
      name: "trained", "untrained", ...
      embedder: of the method.
      variables: of the method.
      reads_text: whether it has a text tower.
      cache: folder to keep features in; None keeps them in memory alone.
    """

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        variables: Variables,
        reads_text: bool = True,
        cache: Path | None = None,
    ):
        self.name, self.reads_text = name, reads_text
        self._embedder, self._variables = embedder, variables
        self._cache = cache
        self._digest = digest(variables) if cache else ""
        self._films: dict[str, _Stored] = {}
        self._texts: dict[str, tuple[np.ndarray, ...]] = {}
        self._pairs: dict[Any, ImageEmbedding] = {}
        self.embedded = 0  # films that went through the network, for the report

    def embed(self, films: Films, positions: np.ndarray, patches: np.ndarray) -> None:
        """Embeds the films of one data set, each once.

        Args:
          films: the data set.
          positions: int [K], ascending.
          patches: int [k], those among them whose local features are kept.
        """
        if self._embedder.local:  # its `score` compares patches with words
            patches = positions
        stored = self._load(films)
        before = self.embedded
        for part, local in (
            (np.setdiff1d(positions, patches), False),
            (patches, True),
        ):
            lacking = [p for p in part if not stored.has(films.ids[p], local)]
            if not lacking:
                continue
            made = self._embedder.films(
                self._variables,
                films.read(np.asarray(lacking)),
                f"{films.name}: films, {self.name}",
                patches=local,
            )
            stored.add(films.ids[lacking], made)
            self.embedded += len(lacking)
        if self._cache and self.embedded > before:
            stored.save(self._path(films))

    def images(self, films: Films, positions: np.ndarray) -> ImageEmbedding:
        """Trunk and joint vectors of films, host arrays in the order asked for.

        Local features are with them for a method that scores by these.
        """
        images = self._films[films.name].vectors(films.ids[positions])
        if not self._embedder.local:
            return images
        patches = self.patches(films, positions)
        local: dict[str, Any] = {  # of host arrays
            "patches_BxPxC": patches.trunk_BxPxF,
            "local_BxPxD": patches.local_BxPxD,
            "grid": patches.grid,
        }
        return dataclasses.replace(images, **local)

    def trunk(self, films: Films, positions: np.ndarray) -> np.ndarray:
        """float32 [K, F], before any projection."""
        return np.asarray(self.images(films, positions).trunk_BxF)

    def joint(self, films: Films, positions: np.ndarray) -> np.ndarray:
        """float32 [K, D] unit vectors; the trunk's where there is no joint space."""
        images = self.images(films, positions)
        if images.joint_BxD is not None:
            return np.asarray(images.joint_BxD)
        trunk_BxF = np.asarray(images.trunk_BxF)
        norms = np.linalg.norm(trunk_BxF, axis=1, keepdims=True)
        return trunk_BxF / np.maximum(norms, 1e-12)

    def patches(self, films: Films, positions: np.ndarray) -> Patches:
        """Local features of films that were needed with `patches`."""
        return self._films[films.name].local(films.ids[positions])

    @property
    def reads_prior(self) -> bool:
        """Whether the method sees a film beside the one before it."""
        return bool(getattr(self.method, "reads_prior", False))

    def compared(self, pairs: Sequence[tuple[Place, Place]]) -> ImageEmbedding:
        """Films, each with the film before; each distinct pair is embedded once.

        Args:
          pairs: (current, before), each a data set and a position in it.

        Returns:
          Trunk and joint vectors of the pairs, host arrays in the order given.
        """
        keys = [tuple((of.name, of.ids[at]) for of, at in pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs) if key not in self._pairs}

        def read() -> Iterator[dict[str, np.ndarray]]:
            every, size = list(new.values()), self._embedder.batch_size
            for start in range(0, len(every), size):
                current, prior = zip(*every[start : start + size])
                yield {"current": _films_at(current), "prior": _films_at(prior)}

        if new:
            label = f"pairs of films, {self.name}"
            made = self._embedder.compared(self._variables, read(), label)
            for row, key in enumerate(new):
                self._pairs[key] = jax.tree.map(lambda leaf, at=row: leaf[at], made)
        rows = [self._pairs[key] for key in keys]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def texts(self, texts: Sequence[str]) -> TextEmbedding:
        """Embeds texts; each distinct one once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            made = self._embedder.texts(self._variables, new, f"texts, {self.name}")
            leaves, self._text_form = jax.tree.flatten(made)
            for row, text in enumerate(new):
                self._texts[text] = tuple(leaf[row] for leaf in leaves)
        columns = zip(*(self._texts[text] for text in texts))
        return jax.tree.unflatten(self._text_form, [np.stack(c) for c in columns])

    @property
    def method(self) -> Method:
        """What it is made of, for a protocol that trains further."""
        return self._embedder.method

    @property
    def variables(self) -> Variables:
        """Of the method."""
        return self._variables

    def token_ids(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as `embed_texts` takes them: `ids_BxT`, `mask_BxT`, ..., on the host."""
        return self._embedder.token_ids(texts)

    def logits(
        self, films: Films, positions: np.ndarray, texts: Sequence[str]
    ) -> np.ndarray:
        """logits_NxM of films with texts, by the method's own `score`."""
        return self._embedder.logits(
            self._variables, self.images(films, positions), self.texts(texts)
        )

    def word_maps(self, place: Place, text: str) -> list[tuple[str, np.ndarray]]:
        """Where each word of a text looks in a film that was needed with `patches`.

        Returns:
          Words in their order, each with its attention, float32 [h, w] of sum 1; none
          for a method whose words do not look for regions, or that scores without them.
        """
        method, (films, position) = self.method, place
        if not isinstance(method, AttendsByWords) or not self._embedder.local:
            return []
        images = self.images(films, np.array([position]))
        weights_BxWxP = method.word_attention(
            self._variables, images, self.texts([text])
        )
        weights_WxP = np.asarray(weights_BxWxP[0])
        words = self._embedder.words(text)[: len(weights_WxP) - 1]
        maps = [weights_P.reshape(images.grid) for weights_P in weights_WxP[1:]]
        return list(zip(words, maps))

    def class_logits(self, films: Films, positions: np.ndarray) -> np.ndarray:
        """logits_Nx14 of embedded films, of a method that classifies them."""
        method = self.method
        if not isinstance(method, ClassifiesFilms):
            raise TypeError(f"{type(method).__name__} gives no class logits")
        images = self.images(films, positions)
        return np.asarray(method.class_logits(self._variables, images))

    def _load(self, films: Films) -> "_Stored":
        if films.name not in self._films:
            path = self._path(films) if self._cache else None
            self._films[films.name] = _Stored.load(path)
        return self._films[films.name]

    def _path(self, films: Films) -> Path:
        assert self._cache is not None
        size = f"{films.fingerprint} {self._digest} {self._embedder.signature}"
        key = hashlib.sha256(size.encode()).hexdigest()[:24]
        return self._cache / f"{films.name}-{self.name}-{key}.npz"


def _films_at(places: Sequence[Place]) -> np.ndarray:
    """uint8 [N, H, W, 1] of places in any sets and any order."""
    found: dict[tuple[str, int], np.ndarray] = {}
    for films in {of.name: of for of, _ in places}.values():
        positions = np.unique([at for of, at in places if of is films])
        read = np.concatenate(list(films.read(positions)))
        found |= {(films.name, int(at)): film for at, film in zip(positions, read)}
    return np.stack([found[of.name, at] for of, at in places])


class _Stored:
    """Features of one data set's films by id."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.local_rows: dict[str, int] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.grid = (0, 0)

    def has(self, image_id: str, local: bool) -> bool:
        return image_id in (self.local_rows if local else self.rows)

    def add(self, ids: Sequence[str] | np.ndarray, made: ImageEmbedding) -> None:
        self._append(ids, self.rows, {"trunk": made.trunk_BxF, "joint": made.joint_BxD})
        if made.patches_BxPxC is not None:
            local = {"patches": made.patches_BxPxC, "local": made.local_BxPxD}
            self._append(ids, self.local_rows, local)
            self.grid = made.grid

    def _append(
        self,
        ids: Sequence[str] | np.ndarray,
        rows: dict[str, int],
        parts: Mapping[str, Any],
    ) -> None:
        given = {n: np.asarray(part) for n, part in parts.items() if part is not None}
        held = {name: self.arrays[name] for name in given if name in self.arrays}
        start = len(next(iter(held.values()))) if held else 0
        for place, image_id in enumerate(ids):
            rows[str(image_id)] = start + place
        for name, part in given.items():
            both = [held[name], part] if held else [part]
            self.arrays[name] = np.concatenate(both)

    def vectors(self, ids: Sequence[str] | np.ndarray) -> ImageEmbedding:
        rows = [self.rows[str(image_id)] for image_id in ids]
        joint = self.arrays.get("joint")
        made: Any = ImageEmbedding  # of host arrays
        return made(self.arrays["trunk"][rows], None if joint is None else joint[rows])

    def local(self, ids: Sequence[str] | np.ndarray) -> Patches:
        rows = [self.local_rows[str(image_id)] for image_id in ids]
        local = self.arrays.get("local")
        return Patches(
            self.arrays["patches"][rows],
            None if local is None else local[rows],
            self.grid,
        )

    def save(self, path: Path) -> None:
        storage.make_folder(path.parent)
        with storage.writing(path) as file:
            np.savez(
                file,
                ids=np.array(list(self.rows)),
                local_ids=np.array(list(self.local_rows)),
                grid=np.array(self.grid),
                **self.arrays,  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: Path | None) -> "_Stored":
        made = cls()
        if path is None or not path.is_file():
            return made
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                held = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: expected features kept by an earlier evaluation, could not "
                f"read it ({type(error).__name__}); delete it, they are made anew"
            ) from None
        made.rows = {str(i): row for row, i in enumerate(held.pop("ids"))}
        made.local_rows = {str(i): row for row, i in enumerate(held.pop("local_ids"))}
        height, width = held.pop("grid")
        made.grid = (int(height), int(width))
        made.arrays = held
        return made


def digest(variables: Variables | Mapping[str, Any]) -> str:
    """A hash of all variables' bytes."""
    made = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        made.update(jax.tree_util.keystr(path).encode())
        made.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return made.hexdigest()
