"""What a batch is filled from: films and texts by index, kept in RAM where they fit."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.records import DamagedRecord, Dataset
from medclip_jax.errors import UserError
from medclip_jax.inputs import images
from medclip_jax.inputs.catalog import Catalog

_log = logging.getLogger(__name__)

# So few bad records never stop a run, whatever the rate: the first batch is small.
_FEW_BAD = 4


class BadRecords:
    """Counts what could not be read, names it once, and stops above a rate.

    Each record counts once, however often it is read: what is held in RAM is not read
    again, what is damaged is.

    Args:
      kind: "film" or "report", for messages.
      max_rate: share of the records read so far above which reading stops; 0 stops at
        the first.
    """

    def __init__(self, kind: str, max_rate: float):
        self._kind, self._max_rate = kind, max_rate
        self._names: dict[int, str] = {}
        self._read: set[int] = set()
        self._lock = threading.Lock()

    @property
    def ids(self) -> list[str]:
        """What could not be read so far."""
        with self._lock:
            return sorted(self._names.values())

    def count_good(self, index: int) -> None:
        """Counts a record that was read; `index` as in `note`."""
        with self._lock:
            self._read.add(index)

    def note(self, index: int, name: str, error: Exception) -> None:
        """Counts a bad record.

        Args:
          index: of it in the catalog.
          name: its id.
          error: what is wrong with it.

        Raises:
          UserError: too large a share of the records is bad.
        """
        with self._lock:
            self._read.add(index)
            is_new = index not in self._names
            self._names[index] = name
            n_bad, n_read = len(self._names), len(self._read)
            names = sorted(self._names.values())[:5]
        if is_new:
            _log.warning("%s %s is left out (weight 0): %s", self._kind, name, error)
        if n_bad > (max(_FEW_BAD, self._max_rate * n_read) if self._max_rate else 0):
            raise UserError(
                f"{n_bad} of {n_read} {self._kind}s read could not be decoded, more "
                f"than config.data.max_bad_rate = {self._max_rate:g} allows; the first "
                f"ids: {', '.join(names)}. The last: {error}. Mend the data and start "
                "the same command again, or raise the rate"
            )


class FilmStore:
    """Films of the training size, decoded once and kept up to a number of bytes.

    Which films are held depends on who came first; what is returned does not. Safe
    to use from several threads.

    Args:
      datasets: opened datasets, as the catalog was built from.
      catalog: says where each image is.
      image_size: pixels that training crops.
      crop_from: pixels of the films returned.
      cache_bytes: the most bytes of pixels to hold; 0 holds none.
      max_bad_rate: share of undecodable films above which reading stops.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        catalog: Catalog,
        image_size: int,
        crop_from: int,
        cache_bytes: int,
        max_bad_rate: float,
    ):
        self._datasets = datasets
        self._catalog = catalog
        self._image_size = image_size
        self._crop_from = crop_from
        self._most_held = cache_bytes // (crop_from * crop_from)
        self._held: dict[int, np.ndarray] = {}
        self._bad = BadRecords("film", max_bad_rate)
        self._lock = threading.Lock()

    @property
    def bad_ids(self) -> list[str]:
        """Ids of the films that could not be read or decoded so far."""
        return self._bad.ids

    def film(self, index: int) -> np.ndarray | None:
        """The film of an image, or None if its record is damaged.

        Args:
          index: of the image in the catalog.

        Returns:
          uint8 [crop_from, crop_from]; not to be written to.

        Raises:
          UserError: too large a share of the films is bad.
        """
        held = self._held.get(index)
        if held is not None:
            return held
        dataset = self._datasets[self._catalog.image_dataset_I[index]]
        try:
            data = dataset.images[int(self._catalog.image_row_I[index])]["film"]
            film = images.training_film(data, self._image_size, self._crop_from)
        except (DamagedRecord, images.BadFilm) as error:
            name = f"{dataset.name}/{self._catalog.image_id_I[index]}"
            self._bad.note(index, name, error)
            return None
        self._bad.count_good(index)
        with self._lock:
            if len(self._held) < self._most_held:
                film.setflags(write=False)
                self._held[index] = film
        return film


class TextStore:
    """The texts of the reports, by report and sentence.

    Args:
      datasets: opened datasets, as the catalog was built from.
      catalog: says where each report is.
      max_bad_rate: share of damaged reports above which `read_good` stops.
      sections: those that are read apart.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        catalog: Catalog,
        max_bad_rate: float = 0.0,
        sections: Sequence[str] = (),
    ):
        self._sections = sections
        self._datasets = datasets
        self._catalog = catalog
        self._bad = BadRecords("report", max_bad_rate)

    def read(self, key: tuple[int, int]) -> str:
        """A sentence, or kept sentences of a report.

        Args:
          key: (index of the report, number of the sentence in its record); a negative
            number joins those of `sentences`.

        Raises:
          DamagedRecord: its bytes are not those that were written.
        """
        report, number = key
        if number < 0:
            return " ".join(self.sentences(key))
        return self._record(report)["sentences"][number]

    def read_good(
        self, key: tuple[int, int], read: Callable[[tuple[int, int]], Any] | None = None
    ) -> Any:
        """As `read`, but None for a damaged report, which is counted and named.

        Args:
          key: see `read`.
          read: another of the ways to read; `sentences`.

        Raises:
          UserError: too large a share of them is damaged.
        """
        try:
            text = (read or self.read)(key)
        except DamagedRecord as error:
            dataset = self._datasets[self._catalog.report_dataset_R[key[0]]]
            study = self._catalog.study_id_Q[self._catalog.report_study_R[key[0]]]
            self._bad.note(key[0], f"{dataset.name}/{study}", error)
            return None
        self._bad.count_good(key[0])
        return text

    def sentences(self, key: tuple[int, int]) -> list[str]:
        """The sentences of a report that the catalog kept.

        Args:
          key: (index of the report, -1), or (it, -2 - n): those of the n-th of
            `sections` alone.
        """
        report, number = key
        record = self._record(report)
        first = self._catalog.report_first_R[report]
        last = first + self._catalog.report_count_R[report]
        kept = list(self._catalog.sentence_number_S[first:last])
        if number < -1:
            wanted, names = self._sections[-2 - number], record["sentence_sections"]
            kept = [n for n in kept if names[n] == wanted]
        return [record["sentences"][n] for n in kept]

    def _record(self, report: int) -> dict:
        dataset = self._datasets[self._catalog.report_dataset_R[report]]
        return dataset.reports[int(self._catalog.report_row_R[report])]
