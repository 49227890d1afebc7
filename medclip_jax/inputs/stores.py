"""What a batch is filled from: films and texts by index, kept in RAM where they fit."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from data_pipelines.records import Dataset
from medclip_jax.errors import UserError
from medclip_jax.inputs import images
from medclip_jax.inputs.catalog import Catalog

_log = logging.getLogger(__name__)

# So few bad films never stop a run, whatever the rate: the first batch is small.
_FEW_BAD = 4


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
        self._max_bad_rate = max_bad_rate
        self._held: dict[int, np.ndarray] = {}
        self._bad: dict[int, str] = {}
        self._n_read = self._n_bad = 0
        self._lock = threading.Lock()

    @property
    def bad_ids(self) -> list[str]:
        """Ids of the films that could not be decoded so far."""
        with self._lock:
            return sorted(self._bad.values())

    def film(self, index: int) -> np.ndarray | None:
        """The film of an image, or None if it cannot be decoded.

        Args:
          index: of the image in the catalog.

        Returns:
          uint8 [crop_from, crop_from]; not to be written to.

        Raises:
          UserError: too large a share of the films could not be decoded.
        """
        held = self._held.get(index)
        if held is not None:
            self._count(bad=False)
            return held
        dataset = self._datasets[self._catalog.image_dataset_I[index]]
        data = dataset.images[int(self._catalog.image_row_I[index])]["film"]
        try:
            film = images.training_film(data, self._image_size, self._crop_from)
        except images.BadFilm as error:
            name = f"{dataset.name}/{self._catalog.image_id_I[index]}"
            self._note_bad(index, name, error)
            return None
        self._count(bad=False)
        with self._lock:
            if len(self._held) < self._most_held:
                film.setflags(write=False)
                self._held[index] = film
        return film

    def _count(self, bad: bool) -> None:
        with self._lock:
            self._n_read += 1
            self._n_bad += bad

    def _note_bad(self, index: int, name: str, error: images.BadFilm) -> None:
        self._count(bad=True)
        with self._lock:
            is_new = index not in self._bad
            self._bad[index] = name
            n_bad, n_read = self._n_bad, self._n_read
            names = sorted(self._bad.values())[:5]
        if is_new:
            _log.warning("film %s is left out (weight 0): %s", name, error)
        if n_bad > max(_FEW_BAD, self._max_bad_rate * n_read):
            raise UserError(
                f"{n_bad} of {n_read} films read could not be decoded, more than "
                f"config.data.max_bad_rate = {self._max_bad_rate:g} allows; the first "
                f"ids: {', '.join(names)}. Prepare the dataset again, or raise the rate"
            )


class TextStore:
    """The texts of the reports, by report and sentence."""

    def __init__(self, datasets: Sequence[Dataset], catalog: Catalog):
        self._datasets = datasets
        self._catalog = catalog

    def read(self, key: tuple[int, int]) -> str:
        """A sentence, or all kept sentences of a report.

        Args:
          key: (index of the report, number of the sentence in its record); -1 as
            the number joins the sentences that the catalog kept.
        """
        report, number = key
        if number < 0:
            return " ".join(self.kept(report))
        return self._record(report)["sentences"][number]

    def kept(self, report: int) -> list[str]:
        """The sentences of a report that the catalog kept."""
        sentences = self._record(report)["sentences"]
        first = self._catalog.report_first_R[report]
        last = first + self._catalog.report_count_R[report]
        return [sentences[n] for n in self._catalog.sentence_number_S[first:last]]

    def _record(self, report: int) -> dict:
        dataset = self._datasets[self._catalog.report_dataset_R[report]]
        return dataset.reports[int(self._catalog.report_row_R[report])]
