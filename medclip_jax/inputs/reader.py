"""Shards -> training batches. `batch(step)` is the batch of a step: the state of the
input is the step, and what it gives does not depend on how many hosts ask.

A global batch is cut into equal parts. A host makes the parts that its devices hold,
and reads no record of another part; all parts, joined in their order, are the batch of
one process, bit for bit.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
from medclip_jax.inputs import catalog as catalogs
from medclip_jax.inputs import draw, images, samplers, views, wordpiece
from medclip_jax.inputs.options import DataOptions
from medclip_jax.inputs.stores import FilmStore, TextStore
from medclip_jax.inputs.tokens import TokenCache, Tokenizer, train_wordpiece

Batch = dict[str, Any]
FRONTAL = ("AP", "PA")
_TOKEN_CACHE_BYTES = 256 << 20
# What changes how fast batches come, and not what is in them.
_SPEED_ONLY = ("prefetch", "workers", "cache_bytes", "max_bad_rate")


class TrainInput:
    """Batches of a training run, by step.

    Args:
      data_dir: folder of prepared datasets, or open datasets.
      data_config: `config.data`.
      tokenizer: see `tokens`.
      seed: of the run.
      global_batch: images a step over all processes.
      parts: the parts of a batch that this process makes, in order.
      of: how many parts there are.

    Raises:
      UserError: no data for the view, a batch larger than the data, or one that the
        parts do not divide.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | Sequence[Dataset],
        data_config: Mapping[str, Any] | DataOptions,
        tokenizer: Tokenizer,
        seed: int,
        global_batch: int,
        parts: Sequence[int] = (0,),
        of: int = 1,
    ):
        self.options = DataOptions.of(data_config)
        self.seed = seed
        datasets = catalogs.training_datasets(data_dir, self.options.datasets)
        self.catalog = open_catalog(datasets, self.options)
        self.view = samplers.make(self.catalog, self.options, seed)
        self._prior_I = self._find_priors()
        self.n_images = global_batch
        self.n_texts = self.options.texts_of(global_batch)
        self._parts, self._of = tuple(parts), of
        self._check_sizes()
        self.read_from(datasets)
        self._tokenizer = tokenizer
        self._tokens = TokenCache(
            tokenizer, self.options.text_length, _TOKEN_CACHE_BYTES
        )
        self.fingerprint = self._fingerprint(tokenizer)

    def batch(self, step: int) -> Batch:
        """This process's parts of the batch of a step; a pure function of the step.

        Returns:
          films: {"current_BxHxWx1": uint8}; with the view "two_crops" also
          "second_BxHxWx1", another crop, with "with_prior" also "prior_BxHxWx1", the
          same crop of the film before, and has_prior_B, bool; none with a view of texts
          alone; texts: ids_BxT, mask_BxT, word_ids_BxT int32, and the same with
          "second_" before it of the second section with the view "sections"; image_labels_Nx14, text_labels_Mx14: int8 raw codes;
          image_weight_N, text_weight_M: float32, 0 for what is absent or bad.
        """
        rows = self.view.rows(
            self._positions(step, self.n_images), self._positions(step, self.n_texts)
        )
        films, good_N = self._read_films(rows)
        text_labels, has_text_M = self._text_labels(rows)
        texts, readable_M = self._read_texts(rows)
        has_text_M &= readable_M
        if not self.options.films:
            films = {}
        if self.view.is_paired:  # a pair without its film is no anchor, no negative
            good_N = has_text_M = good_N & has_text_M
        return {
            "films": films,
            "texts": texts,
            "image_labels_Nx14": self.catalog.image_labels_Ix14[rows.image_N],
            "text_labels_Mx14": text_labels,
            "image_weight_N": good_N.astype(np.float32),
            "text_weight_M": has_text_M.astype(np.float32),
        }

    def read_from(self, datasets: list[Dataset]) -> None:
        """Reads the same records from elsewhere from now on, see `stage`."""
        self._datasets = datasets
        self._films = FilmStore(
            datasets,
            self.catalog,
            self.options.image_size,
            self.options.crop_from,
            self.options.cache_bytes,
            self.options.max_bad_rate,
        )
        self._texts = TextStore(
            datasets, self.catalog, self.options.max_bad_rate, self.options.sections
        )

    def prefetch(
        self, start_step: int = 0, stop_step: int = 2**62
    ) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of the steps [start, stop), made ahead by threads, in order."""
        # The batch is made inside one element, so no number of threads changes it.
        steps = grain.MapDataset.range(start_step, stop_step)
        ahead = steps.map(lambda step: (int(step), self.batch(int(step))))
        options = grain.ReadOptions(
            num_threads=self.options.workers,
            prefetch_buffer_size=max(self.options.prefetch, self.options.workers),
        )
        return iter(ahead.to_iter_dataset(options))

    def films_of(self, first: int, last: int) -> np.ndarray:
        """Which films this process reads in the steps [first, last).

        Returns:
          bool [I], by index in the catalog.
        """
        wanted_I = np.zeros(len(self.catalog.image_row_I), bool)
        at_once = max(1, 2**20 // self.n_images)  # steps, so that the arrays stay small
        for begin in range(first, last, at_once):
            steps = range(begin, min(begin + at_once, last))
            positions = [self._positions(step, self.n_images) for step in steps]
            found = self.view.images(np.concatenate(positions))
            wanted_I[found[found >= 0]] = True
            if self._prior_I is not None:
                before = self._prior_I[found[found >= 0]]
                wanted_I[before[before >= 0]] = True
        return wanted_I

    def ids_of(self, step: int) -> dict[str, list[str]]:
        """Ids of the films and reports in the batch of an update, over all processes.

        Args:
          step: counted from 1, as metrics are.
        """
        n, m = self.n_images, self.n_texts
        rows = self.view.rows(
            np.arange(n, dtype=np.int64) + (step - 1) * n,
            np.arange(m, dtype=np.int64) + (step - 1) * m,
        )
        found = self.catalog
        images = rows.image_N[rows.image_N >= 0]
        studies = found.report_study_R[rows.report_M[rows.report_M >= 0]]
        return {
            "films": list(found.image_id_I[images]),
            "reports of studies": list(found.study_id_Q[studies]),
        }

    def describe(self) -> str:
        """What is read, in a few lines: sizes, streams, and the RAM it will take."""
        options = self.options
        ahead = max(options.prefetch, options.workers) + 1
        films = min(options.cache_bytes, self._n_film_bytes())
        view = f"view {options.view}: {self.view.describe()}"
        if self._prior_I is not None:
            view += f"; {(self._prior_I >= 0).mean():.0%} of the films have one before"
        names = ", ".join(
            f"{dataset.name} ({len(dataset.images)} films, "
            f"{len(dataset.reports)} reports)"
            for dataset in self._datasets
        )
        shown = f"{self.n_images} films of {options.image_size} px, "
        lines = [
            f"data: {names}; split {options.train_split}",
            view,
            (
                f"batch: {shown if options.films else ''}"
                f"{self.n_texts} texts of {options.text_length} tokens; this process "
                f"reads {len(self._parts)} of {self._of} parts"
            ),
            (
                f"RAM of this process, at most: films {films / 2**20:.0f} MiB, "
                f"{ahead} batches ahead {ahead * self._batch_bytes() / 2**20:.0f} MiB, "
                f"tokens {_TOKEN_CACHE_BYTES / 2**20:.0f} MiB"
            ),
        ]
        if without := self.catalog.reports_without_sections:
            lines.insert(
                2,
                f"{without} reports have none of the sections "
                f"{', '.join(options.sections)}; all of their sentences are used",
            )
        return "\n".join(lines)

    # -- parts of a batch ---------------------------------------------------------

    def _positions(self, step: int, size: int) -> np.ndarray:
        each = size // self._of
        first = step * size + np.asarray(self._parts, np.int64) * each
        return (first[:, None] + np.arange(each)).ravel()

    def _read_films(
        self, rows: samplers.Rows
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Crops of each film, and which films are not damaged."""
        size, area_min = self.options.image_size, self.options.augment.crop_area_min
        shape = (len(rows.image_N), size, size, 1)
        films = {f"{name}_BxHxWx1": np.zeros(shape, np.uint8)
                 for name in self.options.films}  # fmt: skip
        good = np.zeros(len(rows.image_N), bool)
        # Crops of one film are drawn apart; the film before is cut as the current one.
        draws = {
            f"{name}_BxHxWx1": self._crop_draws(name if name == "second" else "", rows)
            for name in self.options.films
        }

        def cut(name: str, row: int, film: np.ndarray) -> None:
            drawn = draws[name][row]
            films[name][row, ..., 0] = images.crop(film, size, drawn, area_min)

        for row, image in enumerate(rows.image_N):
            film = self._films.film(int(image))
            if film is not None:
                good[row] = True
                for name in films.keys() - {"prior_BxHxWx1"}:
                    cut(name, row, film)
        if self._prior_I is None:
            return films, good
        has_prior = np.zeros(len(rows.image_N), bool)
        for row, prior in enumerate(self._prior_I[rows.image_N]):
            film = self._films.film(int(prior)) if prior >= 0 else None
            if film is not None:
                has_prior[row] = True
                cut("prior_BxHxWx1", row, film)
        return {**films, "has_prior_B": has_prior}, good

    def _find_priors(self) -> np.ndarray | None:
        """Index of the film before each image; None with a view that reads none."""
        if self.options.view != "with_prior":
            return None
        found = self.catalog
        return views.prior_images(
            found.image_study_I,
            found.study_dataset_Q,
            found.study_patient_Q,
            found.study_index_Q,
        )

    def _crop_draws(self, of: str, rows: samplers.Rows) -> np.ndarray:
        """float64 [N, 3]: see `images.crop`."""
        names = (f"{of} crop {what}".strip() for what in ("top", "left", "area"))
        drawn = [
            draw.uniform(self.seed, name, rows.image_positions_N) for name in names
        ]
        return np.stack(drawn, axis=1)

    def _read_texts(
        self, rows: samplers.Rows
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Token arrays, and which texts are not of a damaged report."""
        texts: dict[str, np.ndarray] = {}
        readable_M = np.ones(len(rows.report_M), bool)
        for number, name in enumerate(self.options.texts):
            section = -2 - number if len(self.options.texts) > 1 else -1
            keys = [
                (int(report), self._number(sentence, section)) if report >= 0 else None
                for report, sentence in zip(rows.report_M, rows.sentence_M)
            ]
            made, good_M = self._tokenized(keys, rows.text_positions_M)
            texts |= {f"{name}{key}": array for key, array in made.items()}
            readable_M &= good_M
        return texts, readable_M

    def _tokenized(
        self, keys: Sequence[tuple[int, int] | None], positions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        damaged = set()

        def noted(key: tuple[int, int], text: Any) -> Any:
            if text is None:
                damaged.add(key)
            return text

        def read(key: tuple[int, int]) -> str | None:
            return noted(key, self._texts.read_good(key))

        if not self.options.shuffle_sentences:
            tokens = self._tokens.encode(keys, read)
        else:  # a text is another each time: none is kept
            texts = []
            for key, position in zip(keys, positions):
                sentences = key and noted(
                    key, self._texts.read_good(key, self._texts.sentences)
                )
                texts.append(" ".join(self._shuffled(sentences or [], key, position)))
            tokens = self._tokenizer.encode(texts, self.options.text_length)
        return tokens, np.array([key not in damaged for key in keys], bool)

    def _shuffled(
        self, sentences: list[str], key: tuple[int, int] | None, position: int
    ) -> list[str]:
        if key is None:
            return sentences
        places = position * 1024 + np.arange(len(sentences))  # more than any report has
        order = np.argsort(draw.bits(self.seed, f"sentence order {key[1]}", places))
        return [sentences[place] for place in order]

    def _text_labels(self, rows: samplers.Rows) -> tuple[np.ndarray, np.ndarray]:
        sentence, report = rows.sentence_M, rows.report_M
        labels = np.full((len(report), catalogs.K), catalogs.NOT_GIVEN, np.int8)
        whole = (sentence < 0) & (report >= 0)
        labels[sentence >= 0] = self.catalog.sentence_labels_Sx14[
            sentence[sentence >= 0]
        ]
        labels[whole] = self.catalog.report_labels_Rx14[report[whole]]
        has_text = report >= 0
        if self.view.fills_no_finding:
            labels[has_text] = views.no_finding_where_unknown(labels[has_text])
        return labels, has_text

    def _number(self, sentence: int, section: int) -> int:
        if sentence < 0:
            return section
        return int(self.catalog.sentence_number_S[sentence])

    # -- checks and sums ----------------------------------------------------------

    def _check_sizes(self) -> None:
        for what, size, have in (
            ("images", self.n_images, self.view.n_images),
            ("texts", self.n_texts, self.view.n_texts),
        ):
            if size < 1 or size % self._of:
                raise UserError(
                    f"a step takes {size} {what}, which the mesh cannot cut into "
                    f"{self._of} equal parts (data x fsdp): change "
                    "config.train.batch_size, config.data.unpaired.texts_per_image or "
                    "the mesh (--config.mesh.data=N --config.mesh.fsdp=M)"
                )
            if size > have:
                raise UserError(
                    f"a step takes {size} {what} (config.train.batch_size), but view "
                    f"{self.options.view!r} has only {have}: lower the batch size or "
                    "prepare more data"
                )

    def _fingerprint(self, tokenizer: Tokenizer) -> str:
        options = dataclasses.asdict(self.options)
        facts = {
            "datasets": [(d.name, d.fingerprint) for d in self._datasets],
            "options": {k: v for k, v in options.items() if k not in _SPEED_ONLY},
            "tokenizer": tokenizer.fingerprint,
            "seed": self.seed,
            "batch": [self.n_images, self.n_texts],
        }
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _n_film_bytes(self) -> int:
        return len(self.catalog.image_row_I) * self.options.crop_from**2

    def _batch_bytes(self) -> int:
        films = len(self.options.films) * self.n_images * self.options.image_size**2
        whole = films + self.n_texts * self.options.text_length * 12
        return whole * len(self._parts) // self._of


def open_catalog(datasets: list, options: DataOptions) -> catalogs.Catalog:
    """The catalog of the training split under the options' filters."""
    wanted = options.views or (FRONTAL if options.frontal_only else ())
    return catalogs.build(
        datasets, options.train_split, wanted, options.sections, options.fraction
    )


def make_tokenizer(
    data_dir: str | os.PathLike[str] | Sequence[Dataset],
    data_config: Mapping[str, Any] | DataOptions,
    name: str = "",
) -> Tokenizer:
    """The tokenizer of a run: a saved one by name, or trained on the training texts.

    Args:
      data_dir: folder of prepared datasets, or open datasets.
      data_config: `config.data`.
      name: folder or hub name; empty trains WordPiece on the sentences of the
        training split. A view that reads no text gets the special tokens alone.

    Raises:
      UserError: no such tokenizer, or no text to train on.
    """
    if name:
        return Tokenizer.load(name)
    options = DataOptions.of(data_config)
    if not options.reads_text:
        return Tokenizer.from_vocabulary(list(wordpiece.SPECIAL_TOKENS))
    datasets = catalogs.training_datasets(data_dir, options.datasets)
    catalog = open_catalog(datasets, options)
    texts = TextStore(datasets, catalog)
    reports = np.flatnonzero(catalog.report_count_R)
    studies = catalog.report_study_R[reports]
    return train_wordpiece(
        (texts.read((int(report), -1)) for report in reports),
        catalog.study_dataset_Q[studies] + "/" + catalog.study_patient_Q[studies],
        options.vocab_size,
        options.min_patients,
    )
