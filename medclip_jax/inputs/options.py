"""The reader's options: `config.data`, checked once and in full."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from medclip_jax.errors import UserError

VIEWS = (
    "pairs", "with_prior", "unpaired", "images", "two_crops", "reports", "sections",
)  # fmt: skip
TEXTS_ALONE = ("reports", "sections")
SAMPLINGS = ("decoupled", "official")
_LISTS = ("datasets", "views", "sections")


def _require(holds: bool, name: str, found: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"config.data.{name} must be {expected}, found {found!r}")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Device augmentation (`augment.py`); the defaults do nothing."""

    flip: float = 0.0  # probability; swaps left and right while reports name sides
    brightness: float = 0.0  # factor in 1 -+ this
    contrast: float = 0.0  # factor in 1 -+ this
    rotate_degrees: float = 0.0  # -+ this
    translate: float = 0.0  # share of the side, -+ this
    scale_min: float = 1.0
    scale_max: float = 1.0
    interpolation: str = "nearest"  # or "bilinear"
    blur_sigma_min: float = 0.0  # pixels
    blur_sigma_max: float = 0.0  # pixels; 0 is no blur
    crop_area_min: float = 1.0  # host: share of the area kept by a random crop

    def __post_init__(self) -> None:
        _require(0 <= self.flip <= 1, "augment.flip", self.flip, "in [0, 1]")
        for name in ("brightness", "contrast", "translate"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"augment.{name}", value, "in [0, 1]")
        _require(
            0 < self.scale_min <= self.scale_max,
            "augment.scale_min, scale_max",
            (self.scale_min, self.scale_max),
            "0 < scale_min <= scale_max",
        )
        _require(
            0 <= self.blur_sigma_min <= self.blur_sigma_max,
            "augment.blur_sigma_min, blur_sigma_max",
            (self.blur_sigma_min, self.blur_sigma_max),
            "0 <= blur_sigma_min <= blur_sigma_max",
        )
        _require(
            0 < self.crop_area_min <= 1,
            "augment.crop_area_min",
            self.crop_area_min,
            "in (0, 1]",
        )
        valid = ("nearest", "bilinear")
        _require(
            self.interpolation in valid,
            "augment.interpolation",
            self.interpolation,
            f"one of {valid}",
        )


@dataclasses.dataclass(frozen=True)
class Unpaired:
    sampling: str = "decoupled"
    paired_weight: float = 1.0
    image_only_weight: float = 1.0
    text_only_weight: float = 1.0
    normal_text_weight: float = 1.0  # "decoupled": of sentences that say No Finding
    texts_per_image: float = 1.0
    prompts_per_class: int = 200  # "official": rows a class in the prompt table


@dataclasses.dataclass(frozen=True)
class DataOptions:
    image_size: int = 224
    text_length: int = 64
    datasets: tuple[str, ...] = ()
    view: str = "pairs"
    uncertain: str = "zero"
    not_given: str = "zero"
    mean: float = 0.5862785803043838
    std: float = 0.27950088968644304
    crop_from: int = 256
    vocab_size: int = 8192
    min_patients: int = 3
    frontal_only: bool = False
    views: tuple[str, ...] = ()
    train_split: str = "train"
    text: str = "sentence"  # of the views of pairs; or "report"
    row: str = "image"  # of those too; or "study": one of its images at random
    sections: tuple[str, ...] = ("findings", "impression")  # () is all
    shuffle_sentences: bool = False  # of a text of several, anew each time
    fraction: float = 1.0  # share of the patients that are trained on at all
    paired_fraction: float = 1.0  # share of patients whose films and reports join
    augment: Augment = Augment()
    unpaired: Unpaired = Unpaired()
    prefetch: int = 2
    workers: int = 2
    cache_bytes: int = 2 << 30
    max_bad_rate: float = 0.01

    @property
    def films(self) -> tuple[str, ...]:
        """The films of an example, as a batch names them: NAME_BxHxWx1."""
        if self.view in TEXTS_ALONE:
            return ()
        more = {"two_crops": ("second",), "with_prior": ("prior",)}
        return ("current", *more.get(self.view, ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """What stands before the names of an example's token arrays, one a text."""
        return ("", "second_") if self.view == "sections" else ("",)

    @property
    def reads_text(self) -> bool:
        """Whether the view has texts at all."""
        return self.view not in ("images", "two_crops")

    def texts_of(self, images: int) -> int:
        """How many texts a batch of so many images has."""
        is_decoupled = self.view == "unpaired" and self.unpaired.sampling == "decoupled"
        return round(images * self.unpaired.texts_per_image) if is_decoupled else images

    @classmethod
    def of(cls, config: "Mapping[str, Any] | DataOptions") -> "DataOptions":
        """Reads `config.data`; keys left out keep their defaults.

        Raises:
          UserError: an unknown key or a value out of range, with the valid ones.
        """
        if isinstance(config, DataOptions):
            return config
        return _build(cls, config, "data")

    def __post_init__(self) -> None:
        for name in ("image_size", "text_length", "prefetch", "workers"):
            value = getattr(self, name)
            _require(value >= 1, name, value, "at least 1")
        _require(
            self.crop_from >= self.image_size,
            "crop_from",
            self.crop_from,
            f"at least image_size = {self.image_size} (equal: no crop)",
        )
        _require(self.view in VIEWS, "view", self.view, f"one of {VIEWS}")
        for name, valid in (
            ("uncertain", ("zero", "one", "keep", "ignore")),
            ("not_given", ("zero", "ignore")),
            ("text", ("sentence", "report")),
            ("row", ("image", "study")),
        ):
            value = getattr(self, name)
            _require(value in valid, name, value, f"one of {valid}")
        paired = self.paired_fraction
        _require(0 <= paired <= 1, "paired_fraction", paired, "in [0, 1]")
        _require(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        self._check_unpaired()
        if self.view == "sections":
            _require(
                len(self.sections) == 2,
                "sections",
                self.sections,
                "two, with view 'sections', which compares them",
            )

    def _check_unpaired(self) -> None:
        unpaired = self.unpaired
        _require(
            unpaired.sampling in SAMPLINGS,
            "unpaired.sampling",
            unpaired.sampling,
            f"one of {SAMPLINGS}",
        )
        for name in (
            "paired_weight",
            "image_only_weight",
            "text_only_weight",
            "normal_text_weight",
        ):
            value = getattr(unpaired, name)
            _require(value >= 0, f"unpaired.{name}", value, "at least 0")
        ratio = unpaired.texts_per_image
        _require(ratio > 0, "unpaired.texts_per_image", ratio, "above 0")
        _require(
            unpaired.sampling == "decoupled" or ratio == 1,
            "unpaired.texts_per_image",
            ratio,
            "1 with sampling 'official', where each image brings its text",
        )


_PARTS = {
    "augment": Augment,
    "unpaired": Unpaired,
}


def _build(cls: type, config: Mapping[str, Any], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(config.keys()) - set(names))
    if unknown:
        raise UserError(
            f"unknown key in config.{where}: {', '.join(unknown)}; valid keys: "
            f"{', '.join(names)}"
        )
    values: dict[str, Any] = {}
    for name in config:
        value = config[name]
        if name in _PARTS and not dataclasses.is_dataclass(value):
            value = _build(_PARTS[name], value, f"{where}.{name}")
        elif name in _LISTS:
            value = (value,) if isinstance(value, str) else tuple(value)
        values[name] = value
    return cls(**values)
