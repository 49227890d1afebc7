"""Segmentation: how well do patches say where a finding is?

A light decoder is trained on the frozen patches of training films. From there decoder
and tower are trained together (`Bench.tune`): "segmentation/tuned".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.annotations import box_mask, decode_mask
from medclip_jax.evaluation import grounding_maps, mask_decoder, metrics, plots_films
from medclip_jax.evaluation.protocol import (
    About,
    Bench,
    Job,
    Need,
    Networks,
    Options,
    Outcome,
    each,
)
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.rows import Row, measured
from medclip_jax.evaluation.sets import Films
from medclip_jax.evaluation.tuning import Tuned, Tuning

NAME = "segmentation"
TUNED = f"{NAME}/tuned"
ABOUT = About(
    "Segmentation",
    "A small convolutional decoder on frozen patches, trained on films of the training "
    "split (as many with the finding as without), chosen by validation Dice; tuned: the "
    "image tower trained on with it, Adam at 1e-4, batches of 64, chosen in the same "
    "way from checkpoints that include the frozen one. dice_positives: mean Dice of the films that have the finding; dice_all: of all "
    "films, where an empty mask told empty counts 1 and told otherwise 0.",
    "Huang et al. (GLoRIA, ICCV 2021), section 4.4 and gloria/lightning/"
    "segmentation_model.py; RSNA and SIIM-ACR challenges",
    (
        "Over all films an empty prediction is right on every film without the finding.",
        "Published figures tune a U-Net on augmented films of 512 pixels: higher.",
        "Boxes are not outlines: a perfect outline does not reach 1 on RSNA.",
        "SIIM split by rows: masks of one film lie on both sides; here films are.",
    ),
)
SOURCES: dict[str, str] = {
    "rsna": "boxes around lung opacities",
    "siim": "masks of pneumothorax",
}
"""Kinds of data sets where a film without an annotation does not have the finding."""

STARTS = ("trained", "untrained", "imagenet")
"""Networks that are trained on; a supervised tower was already."""

LEAST = 10
SHOWN = 3


@dataclass(frozen=True)
class Chosen:
    """Positions of the films of each part, ascending."""

    train: np.ndarray
    validate: np.ndarray
    judged: np.ndarray


def plan(bench: Bench) -> list[Job]:
    """One job a data set whose films are annotated throughout."""
    able = [films for films in bench.films if films.kind in SOURCES]
    if not able:
        kinds = ", ".join(SOURCES)
        bench.skip(NAME, f"no data set is of a kind with masks or boxes ({kinds})")
    jobs = []
    for films in able:
        name = f"{NAME} on {films.name}"
        if bench.options.split == "train":
            bench.skip(name, "the decoder is trained on the split train")
            continue
        chosen, why = choose(films, bench.options)
        if chosen is None:
            bench.skip(name, why)
            continue
        if bench.untuned:
            bench.skip(f"{TUNED} on {films.name}", bench.untuned)
        used = np.unique(np.r_[chosen.train, chosen.validate, chosen.judged])
        measure = _measure(
            films, chosen, bench.options, None if bench.untuned else bench.tune
        )
        jobs.append(Job(name, measure, [Need(films, used, patches=True)]))
    return jobs


def choose(films: Films, options: Options) -> tuple[Chosen | None, str]:
    """Films by seed, half of `max_films` a part; None and why, where there are too few.

    The judged films are drawn as they come; of those to train on and to choose by as
    many have the finding as have not.
    """
    most = max(1, options.max_films // 2)
    judged = _drawn(films, options.split, options.seed)[:most]
    if not len(judged):
        return None, f"it has no films in the split {options.split}"
    taken = set(judged.tolist())
    parts = {}
    for split in ("train", "validate"):
        drawn = [p for p in _drawn(films, split, options.seed) if p not in taken]
        kinds: dict[bool, list[int]] = {True: [], False: []}
        for position in drawn[: 4 * most]:  # a record is read for each
            kinds[_annotated(films, position)].append(position)
        count = min(len(kinds[True]), len(kinds[False]), max(1, most // 2))
        parts[split] = np.sort([*kinds[True][:count], *kinds[False][:count]]).astype(
            int
        )
        taken |= set(parts[split].tolist())
        if count < LEAST:
            return None, (
                f"{LEAST} films with and {LEAST} without {SOURCES[films.kind]} are "
                f"needed in the split {split}, found {len(kinds[True])} and "
                f"{len(kinds[False])}"
            )
    if not any(_annotated(films, position) for position in judged):
        return None, f"no film of the split {options.split} has {SOURCES[films.kind]}"
    return Chosen(parts["train"], parts["validate"], np.sort(judged)), ""


def _drawn(films: Films, split: str, seed: int) -> np.ndarray:
    usable = films.where(split)
    by_id = usable[np.argsort(films.ids[usable], kind="stable")]
    return np.random.default_rng([seed, 19]).permutation(by_id)


def _annotated(films: Films, position: int) -> bool:
    record = films.record(int(position))
    return bool(len(record["masks"]) or len(record["boxes"]))


def masks_of(films: Films, positions: np.ndarray, side: int) -> np.ndarray:
    """What is annotated, in the square that the network sees.

    Args:
      films: the data set.
      positions: int [N].
      side: pixels of the square.

    Returns:
      bool [N, side, side]: the union of a film's masks, else of its boxes.
    """
    made = np.zeros((len(positions), side, side), bool)
    for row, position in enumerate(positions):
        record = films.record(int(position))
        height, width = int(record["original_height"]), int(record["original_width"])
        mask_HxW = box_mask(
            record["boxes"] if not record["masks"] else [], height, width
        )
        for text in record["masks"]:
            mask_HxW |= decode_mask(text)
        stored = int(record["height"]), int(record["width"])
        frame = grounding_maps.padded(height, width, *stored, least=side)
        rows, columns = (
            np.floor(start + (np.arange(side) + 0.5) * length / side).astype(int)
            for start, length in (
                (frame.top, frame.height),
                (frame.left, frame.width),
            )
        )
        down, across = (
            np.flatnonzero((at >= 0) & (at < most))
            for at, most in ((rows, height), (columns, width))
        )
        made[row][np.ix_(down, across)] = mask_HxW[np.ix_(rows[down], columns[across])]
    return made


def _measure(
    films: Films,
    chosen: Chosen,
    options: Options,
    tune: Callable[[Tuning], Tuned] | None,
):
    def measure(networks: Networks) -> Outcome:
        side = next(films.read(chosen.judged[:1])).shape[1]
        train, validate, judged = (
            masks_of(films, positions, side)
            for positions in (chosen.train, chosen.validate, chosen.judged)
        )
        fitted = each(
            networks,
            lambda network: mask_decoder.train(
                mask_decoder.Part(network.patches(films, chosen.train), train),
                mask_decoder.Part(network.patches(films, chosen.validate), validate),
                options.seed,
            ),
            text=False,
        )
        predicted = {
            name: of.predict(networks[name].patches(films, chosen.judged))
            for name, of in fitted.items()
        }
        on = f"decoder fitted on {len(chosen.train)} films"
        rows = dice_rows(NAME, films, chosen, predicted, judged, options, on)
        section = _section(films, chosen.judged, predicted["trained"], judged)
        if tune is None:
            return Outcome(rows, [section])
        starts = [name for name in STARTS if name in fitted]
        tuned = {}
        for number, name in enumerate(starts, 1):
            asked = Tuning(
                networks[name],
                films,
                chosen.train,
                chosen.validate,
                chosen.judged,
                train,
                fitted[name].decoder,
                lambda told: float(mask_decoder.dice(told, validate).mean()),
                options.tune_steps,
                options.seed,
                fitted[name].params,
                number,
                len(starts),
            )
            tuned[name] = tune(asked)
        told = {name: of.told for name, of in tuned.items()}
        on = (
            f"tower and decoder trained on {len(chosen.train)} films, at most "
            f"{options.tune_steps} steps; best after {tuned['trained'].best_step}"
        )
        rows += dice_rows(TUNED, films, chosen, told, judged, options, on)
        return Outcome(rows, [section])

    return measure


def dice_rows(
    protocol: str,
    films: Films,
    chosen: Chosen,
    predicted: Mapping[str, np.ndarray],
    masks_NxSxS: np.ndarray,
    options: Options,
    how: str,
) -> list[Row]:
    """Both kinds of Dice.

    Args:
      protocol: of the rows.
      films, chosen: what was judged.
      predicted: network to bool [N, S, S].
      masks_NxSxS: bool, the truth.
      options: for the seed.
      how: it was trained, for the note.
    """
    values = {n: mask_decoder.dice(of, masks_NxSxS) for n, of in predicted.items()}
    positive = np.asarray(masks_NxSxS.any(axis=(1, 2)))
    areas = masks_NxSxS[positive].mean(axis=(1, 2))
    made = []
    for metric, kept, chance, what in (
        (
            "dice_positives",
            positive,
            float((2 * areas / (1 + areas)).mean()),
            "the whole film told",
        ),
        (
            "dice_all",
            np.ones_like(positive),
            float((~positive).mean()),
            "nothing told",
        ),
    ):
        where = chosen.judged[kept]
        made.append(
            measured(
                protocol,
                films.name,
                metric,
                {name: metrics.Mean(of[kept]) for name, of in values.items()},
                films.patients[where],
                chance,
                units=films.ids[where],
                seed=options.seed,
                note=f"{SOURCES[films.kind]}; {how}; chance: {what}",
            )
        )
    return made


def _section(
    films: Films,
    positions: np.ndarray,
    predicted: np.ndarray,
    masks: np.ndarray,
) -> Section:
    values = mask_decoder.dice(predicted, masks)
    positive = np.flatnonzero(masks.any(axis=(1, 2)))
    order = positive[np.argsort(-values[positive], kind="stable")]
    some = min(SHOWN, len(order))
    middle = (len(order) - some) // 2
    picked: dict[str, Sequence[int]] = {
        "best": order[:some].tolist(),
        "median": order[middle : middle + some].tolist(),
        "worst": order[len(order) - some :].tolist(),
    }
    groups = {
        name: [
            plots_films.Outlined(
                next(films.read(positions[i : i + 1]))[0, ..., 0],
                masks[i],
                predicted[i],
                f"Dice {values[i]:.2f}",
            )
            for i in at
        ]
        for name, at in picked.items()
    }
    text = (
        f"Films with {SOURCES[films.kind]}, ranked by Dice; shown are the first {some}, "
        f"the {some} in the middle and the last, by this rule alone. A small decoder "
        "read the frozen patches."
    )
    caption = "Outlined: what was annotated, and what the decoder told."
    picture = Picture(plots_films.outlines(groups), caption, True)
    return Section(f"Segmentation: {films.name}", text, [picture])
