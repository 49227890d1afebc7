"""Films and texts of a split for evaluation: no augmentation, nothing drawn."""

import concurrent.futures
import dataclasses
import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.records import DamagedRecord, Dataset
from medclip_jax.errors import UserError
from medclip_jax.inputs import catalog as catalogs
from medclip_jax.inputs import images
from medclip_jax.inputs.stores import TextStore

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvalImages:
    """The films of a split; labels and ids are in RAM, pixels are read when asked for.

    Attributes:
      ids, patient_ids, study_ids, dataset_names, views, splits: strings, [N] each.
        Ids are unique within a dataset; join them with `dataset_names` across datasets.
      labels_Nx14: int8 raw codes.
      image_size: pixels.
    """

    ids: np.ndarray
    patient_ids: np.ndarray
    study_ids: np.ndarray
    dataset_names: np.ndarray
    views: np.ndarray
    splits: np.ndarray
    labels_Nx14: np.ndarray
    image_size: int
    resampling: str
    _datasets: Sequence[Dataset]
    _dataset_N: np.ndarray
    _row_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def read(
        self, indices: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes films.

        Args:
          indices: positions in this set, in any order.

        Returns:
          films uint8 [b, H, W, 1]; weight float32 [b], 0 for a film that cannot be
          decoded (it is black, and its id is logged).
        """
        size = self.image_size
        films = np.zeros((len(indices), size, size, 1), np.uint8)
        weight = np.ones(len(indices), np.float32)
        for row, index in enumerate(indices):
            dataset = self._datasets[self._dataset_N[index]]
            try:
                data = dataset.images[int(self._row_N[index])]["film"]
                film = images.evaluation_film(data, size, self.resampling)
                films[row, ..., 0] = film
            except (DamagedRecord, images.BadFilm) as error:
                weight[row] = 0
                name = f"{self.dataset_names[index]}/{self.ids[index]}"
                _log.warning("film %s is left out (weight 0): %s", name, error)
        return films, weight

    def record(self, index: int) -> dict:
        """The stored record of a film, without its pixels."""
        record = self._datasets[self._dataset_N[index]].images[int(self._row_N[index])]
        return {name: value for name, value in record.items() if name != "film"}

    def batches(
        self,
        batch_size: int = 64,
        indices: Sequence[int] | np.ndarray | None = None,
        workers: int = 2,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Films in batches of one size, the last one padded, decoded ahead by threads.

        Args:
          batch_size: films a batch.
          indices: which films, in this order; None is all.
          workers: threads; each has one batch in hand, and one waits.

        Yields:
          films_BxHxWx1 uint8; weight_B float32, 0 for padding and for a bad film;
          index_B int64, position in this set, -1 for padding.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            waiting: deque[concurrent.futures.Future] = deque()
            for part in parts:
                waiting.append(pool.submit(self._padded, part, batch_size))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _padded(self, part: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        films, weight = self.read(part)
        missing = batch_size - len(part)
        return {
            "films_BxHxWx1": np.pad(films, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "weight_B": np.pad(weight, (0, missing)),
            "index_B": np.pad(part, (0, missing), constant_values=-1).astype(np.int64),
        }


@dataclasses.dataclass(frozen=True)
class EvalTexts:
    """The sentences, or the reports, of a split.

    Attributes:
      texts: strings, [M]. Report text is protected: it is for encoding, not for logs.
      labels_Mx14: int8 raw codes.
      patient_ids, study_ids, dataset_names: strings, [M] each.
    """

    texts: list[str]
    labels_Mx14: np.ndarray
    patient_ids: np.ndarray
    study_ids: np.ndarray
    dataset_names: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


def load_images(
    datasets: Sequence[Dataset],
    split: str,
    image_size: int,
    views: Sequence[str] = (),
    resampling: str = "bilinear",
) -> EvalImages:
    """The films of a split, in the order of patient, time and study.

    Args:
      datasets: opened datasets.
      split: "train", "validate" or "test"; "" is all three.
      image_size: pixels; films are padded to a square and resized.
      views: image views to keep; empty is all.
      resampling: "bilinear" (the official evaluation datasets) or "bicubic" (the
        official processor).

    Raises:
      UserError: the split has no film of these views.
    """
    catalog = catalogs.build(datasets, split, views)
    if not len(catalog.image_row_I):
        names = ", ".join(dataset.name for dataset in datasets)
        which = f" of the views {', '.join(views)}" if views else ""
        of = f"split {split!r} of {names}" if split else names
        raise UserError(f"{of} has no films{which}")
    study = catalog.image_study_I
    return EvalImages(
        ids=catalog.image_id_I,
        patient_ids=catalog.study_patient_Q[study],
        study_ids=catalog.study_id_Q[study],
        dataset_names=catalog.study_dataset_Q[study],
        views=catalog.image_view_I,
        splits=catalog.study_split_Q[study],
        labels_Nx14=catalog.image_labels_Ix14,
        image_size=image_size,
        resampling=resampling,
        _datasets=tuple(datasets),
        _dataset_N=catalog.image_dataset_I,
        _row_N=catalog.image_row_I,
    )


def load_texts(
    datasets: Sequence[Dataset],
    split: str,
    kind: str = "sentence",
    sections: Sequence[str] = ("findings", "impression"),
) -> EvalTexts:
    """The texts of a split, in the order of patient, time and study.

    Args:
      datasets: opened datasets.
      split: "train", "validate" or "test".
      kind: "sentence", each with its own labels, or "report".
      sections: whose sentences; empty is all. A report that has none of them keeps
        all of its sentences, as in training.

    Raises:
      UserError: the split has no text, or `kind` is unknown.
    """
    if kind not in ("sentence", "report"):
        raise UserError(
            f"kind of text: expected 'sentence' or 'report', found {kind!r}"
        )
    catalog = catalogs.build(datasets, split, sections=sections)
    store = TextStore(datasets, catalog)
    reports = np.flatnonzero(catalog.report_count_R)
    if not len(reports):
        names = ", ".join(dataset.name for dataset in datasets)
        raise UserError(f"split {split!r} of {names} has no report text")
    if kind == "report":
        texts = [store.read((int(report), -1)) for report in reports]
        labels, owner = catalog.report_labels_Rx14[reports], reports
    else:
        texts = [
            text for report in reports for text in store.sentences((int(report), -1))
        ]
        labels, owner = catalog.sentence_labels_Sx14, catalog.sentence_report_S
    study = catalog.report_study_R[owner]
    return EvalTexts(
        texts=texts,
        labels_Mx14=labels,
        patient_ids=catalog.study_patient_Q[study],
        study_ids=catalog.study_id_Q[study],
        dataset_names=catalog.study_dataset_Q[study],
    )


def normalize_sentence(text: str) -> str:
    """Lower case, words and numbers only, single spaces: to compare sentences by."""
    return " ".join(re.findall(r"\w+", text.lower()))


def training_sentences(
    datasets: Sequence[Dataset], split: str = "train"
) -> frozenset[str]:
    """All sentences of a split, of every section, normalised.

    What an evaluation prompt must not be one of.
    """
    catalog = catalogs.build(datasets, split)
    store = TextStore(datasets, catalog)
    reports = np.flatnonzero(catalog.report_count_R)
    return frozenset(
        normalize_sentence(text)
        for report in reports
        for text in store.sentences((int(report), -1))
    )
