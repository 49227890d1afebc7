"""Which image and which text stand in each row of a batch: the views, at work.

`views` has the pure functions on arrays; a sampler here adds the endless shuffled
order and the draws at each position. `images` gives the images of positions alone,
many at a time: which films a host will read.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.findings import NO_FINDING
from medclip_jax.errors import UserError
from medclip_jax.inputs import draw, views
from medclip_jax.inputs.catalog import Catalog
from medclip_jax.inputs.options import DataOptions
from medclip_jax.inputs.streams import Stream


@dataclasses.dataclass(frozen=True)
class Rows:
    """What stands in a part of a batch; -1 is absent.

    Attributes:
      image_N: index of the image.
      report_M: index of the report.
      sentence_M: index of the sentence; -1 with a report is the whole report.
      image_positions_N, text_positions_M: in the endless global order.
    """

    image_N: np.ndarray
    report_M: np.ndarray
    sentence_M: np.ndarray
    image_positions_N: np.ndarray
    text_positions_M: np.ndarray


class Pairs:
    """Each row an image and a text of its study."""

    is_paired, fills_no_finding = True, False

    def __init__(self, catalog: Catalog, options: DataOptions, seed: int):
        self._catalog, self._options, self._seed = catalog, options, seed
        joined = _joined(catalog, options)
        images_of_studies = (catalog.image_study_I, catalog.study_report_Q, joined)
        if options.row == "study":
            self._rows, self._order = views.pairs_by_study(*images_of_studies)
        else:
            self._rows = views.pairs_by_image(*images_of_studies)
        self._stream = Stream({"pairs": (np.arange(len(self._rows)), 1.0)}, seed)
        self.n_images = self.n_texts = len(self._rows)
        if not self.n_images:
            raise UserError(_empty(catalog, options, "no study has a film and a text"))

    def images(self, positions: np.ndarray) -> np.ndarray:
        return self._images_of(self._rows[self._stream.at(positions)], positions)

    def _images_of(self, drawn: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self._options.row != "study":
            return drawn[:, 0]
        pick = draw.below(self._seed, "image", positions, drawn[:, 1])
        return self._order[drawn[:, 0] + pick]

    def rows(self, image_positions: np.ndarray, text_positions: np.ndarray) -> Rows:
        drawn = self._rows[self._stream.at(image_positions)]
        image, report = self._images_of(drawn, image_positions), drawn[:, -1]
        sentence = np.full(len(report), -1)
        if self._options.text == "sentence":
            sentence = _random_sentence(
                self._catalog, report, self._seed, text_positions
            )
        return Rows(image, report, sentence, image_positions, text_positions)

    def describe(self) -> str:
        what = "films" if self._options.row == "image" else "studies"
        return f"{self.n_images} {what} with a text, each step a {self._options.text}"


class Decoupled:
    """Images and sentences drawn independently (MedCLIP, section 3.2)."""

    is_paired, fills_no_finding = False, False

    def __init__(self, catalog: Catalog, options: DataOptions, seed: int):
        self._catalog = catalog
        self._streams = _unpaired_streams(catalog, options)
        weights = options.unpaired
        images = {
            "paired images": (self._streams.paired_images, weights.paired_weight),
            "images alone": (self._streams.image_only, weights.image_only_weight),
        }
        texts = _set_normal_apart(
            {
                "paired texts": (self._streams.paired_texts, weights.paired_weight),
                "texts alone": (self._streams.text_only, weights.text_only_weight),
            },
            catalog.sentence_labels_Sx14[:, NO_FINDING] == 1,
            weights.normal_text_weight,
        )
        self._sizes = {k: len(items) for k, (items, _) in {**images, **texts}.items()}
        self._images, self._texts = Stream(images, seed), Stream(texts, seed)
        self.n_images, self.n_texts = len(self._images), len(self._texts)
        for what, size in (("film", self.n_images), ("sentence", self.n_texts)):
            if not size:
                reason = f"no {what} with labels in a stream of a weight above 0"
                raise UserError(_empty(catalog, options, reason))

    def images(self, positions: np.ndarray) -> np.ndarray:
        return self._images.at(positions)

    def rows(self, image_positions: np.ndarray, text_positions: np.ndarray) -> Rows:
        sentence = self._texts.at(text_positions)
        report = self._catalog.sentence_report_S[sentence]
        image = self.images(image_positions)
        return Rows(image, report, sentence, image_positions, text_positions)

    def describe(self) -> str:
        shares = {**self._images.shares, **self._texts.shares}
        parts = [f"{self._sizes[k]} {k} ({share:.0%})" for k, share in shares.items()]
        return f"{', '.join(parts)}, drawn apart; {_left_out(self._streams)}"


class Official:
    """Each image brings a text: its own, or a prompt of like labels."""

    is_paired, fills_no_finding = False, True

    def __init__(self, catalog: Catalog, options: DataOptions, seed: int):
        self._catalog, self._options, self._seed = catalog, options, seed
        self._joined = _joined(catalog, options)
        self._streams = _unpaired_streams(catalog, options)
        weights = options.unpaired
        self._images = Stream(
            {
                "with a report": (self._streams.paired_images, weights.paired_weight),
                "without": (self._streams.image_only, weights.image_only_weight),
            },
            seed,
        )
        self.n_images = self.n_texts = len(self._images)
        if not self.n_images or not len(catalog.sentence_report_S):
            reason = "it needs films with labels and at least one sentence"
            raise UserError(_empty(catalog, options, reason))
        self._prompts = functools.lru_cache(maxsize=4)(self._make_prompts)

    def images(self, positions: np.ndarray) -> np.ndarray:
        return self._images.at(positions)

    def rows(self, image_positions: np.ndarray, text_positions: np.ndarray) -> Rows:
        catalog = self._catalog
        image = self.images(image_positions)
        study = catalog.image_study_I[image]
        has_own = self._joined[study]
        sentence = np.full(len(image), -1)
        sentence[has_own] = _random_sentence(
            catalog,
            catalog.study_report_Q[study[has_own]],
            self._seed,
            text_positions[has_own],
        )
        random = draw.bits(self._seed, "prompt", text_positions)
        for row in np.flatnonzero(~has_own):
            prompts = self._prompts(int(image_positions[row]) // self.n_images)
            found = views.prompt_for_image(
                catalog.image_labels_Ix14[image[row]],
                catalog.sentence_labels_Sx14[prompts],
                random[row],
            )
            sentence[row] = prompts[found] if found >= 0 else -1
        report = np.where(sentence >= 0, catalog.sentence_report_S[sentence], -1)
        return Rows(image, report, sentence, image_positions, text_positions)

    def _make_prompts(self, epoch: int) -> np.ndarray:
        per_class = self._options.unpaired.prompts_per_class
        labels = self._catalog.sentence_labels_Sx14
        return views.prompt_table(labels, per_class, self._seed, epoch)

    def describe(self) -> str:
        shares = ", ".join(f"{v:.0%} {k}" for k, v in self._images.shares.items())
        return (
            f"{self.n_images} films ({shares}), each brings a sentence; "
            f"{len(self._prompts(0))} prompts; {_left_out(self._streams)}"
        )


class Images:
    """Images alone, for methods that read no text: those with labels ("images"), or
    all of them, each in two crops."""

    is_paired, fills_no_finding = False, False

    def __init__(self, catalog: Catalog, options: DataOptions, seed: int):
        known = (catalog.image_labels_Ix14 != views.NOT_GIVEN).any(axis=1)
        if options.view == "two_crops":
            known[:] = True
        self._options = options
        self._stream = Stream({"images": (np.flatnonzero(known), 1.0)}, seed)
        self.n_images = self.n_texts = int(known.sum())
        self._unlabelled = int((~known).sum())
        if not self.n_images:
            what = "has labels" if options.view == "images" else "is there"
            raise UserError(_empty(catalog, options, f"no film {what}"))

    def images(self, positions: np.ndarray) -> np.ndarray:
        return self._stream.at(positions)

    def rows(self, image_positions: np.ndarray, text_positions: np.ndarray) -> Rows:
        image = self.images(image_positions)
        absent = np.full(len(text_positions), -1)
        return Rows(image, absent, absent, image_positions, text_positions)

    def describe(self) -> str:
        if self._options.view == "two_crops":
            return f"{self.n_images} films, each in two crops"
        return f"{self.n_images} films with labels; {self._unlabelled} without left out"


class Reports:
    """Reports alone, for methods that read no films: whole, or two sections of each."""

    is_paired, fills_no_finding = False, False

    def __init__(self, catalog: Catalog, options: DataOptions, seed: int):
        self._options = options
        usable = catalog.report_count_R > 0
        if options.view == "sections":
            usable = catalog.report_has_all_R
        self._stream = Stream({"reports": (np.flatnonzero(usable), 1.0)}, seed)
        self.n_images = self.n_texts = int(usable.sum())
        self._lacking = int((~usable).sum())
        if not self.n_texts:
            what = f"sections {' and '.join(options.sections)}"
            of = what if options.view == "sections" else "sentences"
            raise UserError(_empty(catalog, options, f"no report has {of}"))

    def images(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros(0, np.int64)

    def rows(self, image_positions: np.ndarray, text_positions: np.ndarray) -> Rows:
        report = self._stream.at(text_positions)
        none = self.images(image_positions)
        whole = np.full(len(report), -1)
        return Rows(none, report, whole, none, text_positions)

    def describe(self) -> str:
        if self._options.view == "reports":
            return f"{self.n_texts} reports"
        both = " and ".join(self._options.sections)
        return f"{self.n_texts} reports with {both}; {self._lacking} without left out"


View = Pairs | Decoupled | Official | Images | Reports


def make(catalog: Catalog, options: DataOptions, seed: int) -> View:
    """The view that the options name.

    Raises:
      UserError: the view is empty.
    """
    if options.view in ("pairs", "with_prior"):
        return Pairs(catalog, options, seed)
    if not options.films:
        return Reports(catalog, options, seed)
    if not options.reads_text:
        return Images(catalog, options, seed)
    kind = Decoupled if options.unpaired.sampling == "decoupled" else Official
    return kind(catalog, options, seed)


def _joined(catalog: Catalog, options: DataOptions) -> np.ndarray:
    return views.joined_studies(
        catalog.image_study_I,
        catalog.study_report_Q,
        catalog.report_count_R,
        catalog.study_share_Q,
        options.paired_fraction,
    )


def _unpaired_streams(catalog: Catalog, options: DataOptions) -> views.Streams:
    return views.unpaired_streams(
        catalog.image_study_I,
        catalog.image_labels_Ix14,
        catalog.report_study_R[catalog.sentence_report_S],
        catalog.sentence_labels_Sx14,
        _joined(catalog, options),
    )


def _set_normal_apart(
    parts: dict[str, tuple[np.ndarray, float]], is_normal_S: np.ndarray, weight: float
) -> dict[str, tuple[np.ndarray, float]]:
    """Sentences that say No Finding as parts of their own, their weight times this.

    Most sentences of reports say so. Two of them agree fully, so that they fill the
    target, and what the findings look like is learnt late.
    """
    if weight == 1:
        return parts
    apart = {}
    for name, (items, of_all) in parts.items():
        normal = is_normal_S[items]
        apart[name] = (items[~normal], of_all)
        apart[f"{name}, normal"] = (items[normal], of_all * weight)
    return apart


def _random_sentence(
    catalog: Catalog, report: np.ndarray, seed: int, positions: np.ndarray
) -> np.ndarray:
    counts = catalog.report_count_R[report]
    pick = draw.below(seed, "sentence", positions, counts)
    return catalog.report_first_R[report] + pick


def _left_out(streams: views.Streams) -> str:
    return (
        f"left out because nothing is known of them: {streams.unlabelled_images} "
        f"images, {streams.unlabelled_texts} sentences"
    )


def _empty(catalog: Catalog, options: DataOptions, reason: str) -> str:
    return (
        f"view {options.view!r} is empty: {reason}. Split {options.train_split!r} has "
        f"{len(catalog.image_row_I)} films and {len(catalog.report_row_R)} reports; "
        "check config.data.view, datasets, train_split, sections and the weights"
    )
