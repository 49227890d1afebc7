"""Phrase grounding: does a phrase's map light up where the phrase's boxes are?

The cosines of a film's patches with the phrase are smoothed, laid over the original
film, and held against the union of the boxes that were drawn for the phrase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.annotations import box_mask
from medclip_jax.evaluation import grounding_maps as maps
from medclip_jax.evaluation import metrics, plots_films
from medclip_jax.evaluation.features import Network
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
from medclip_jax.evaluation.sets import Films, Table

NAME = "grounding"
ABOUT = About(
    "Phrase grounding",
    "Cosines of patches and phrase, smoothed (sigma 1.5 cells) and interpolated over "
    "the original film, against the union of the phrase's boxes. cnr: |mean inside - "
    "mean outside| / sqrt(sum of the variances); signed_cnr: the same with its sign; "
    "miou: mean IoU of map > 0.1, ..., 0.5; pointing_game: whether the highest point "
    "lies inside. Each is the mean over the phrases of a category, then over "
    "categories.",
    "Boecking et al. (BioViL, ECCV 2022), section 4.2; microsoft/hi-ml, "
    "health_multimodal/vlp/inference_engine.py; MS-CXR, physionet.org/content/ms-cxr",
    (
        "The published ratio is absolute: a map that is dark in the box scores too.",
        "Thresholds act on the cosine: with another scale of it mIoU is another.",
        "BioViL crops the film and misses boxes in the margin; here it is padded.",
        "Boxes of one phrase are united; others average over them.",
        "The smoothing counts in cells: on a map of few cells little contrast is left.",
        "A mean over phrases instead of categories: a third of MS-CXR is cardiomegaly.",
        "Films of MS-CXR lie in the training split of MIMIC-CXR: hold them out.",
    ),
)
METRICS = ("cnr", "signed_cnr", "miou", "pointing_game")
LONGEST = 1024
"""Films with a longer side are sampled at every k-th pixel, in the middle of blocks of
k x k. Of a film of 2544 x 3056 that takes 0.07 s a phrase instead of 0.8 s and moves a
phrase's ratio by 0.002 and its mIoU by 0.0002 (standard deviation), up and down alike:
the mean over a thousand phrases by 0.0001 at most."""
SHOWN, WORDS_SHOWN = 2, 6


@dataclass(frozen=True)
class Phrase:
    """A phrase with its film.

    Attributes:
      row: of the side table `phrases`.
      films, position: where its film is.
      stored: height and width of the stored film.
    """

    row: Mapping[str, Any]
    films: Films
    position: int
    stored: tuple[int, int]

    @property
    def text(self) -> str:
        """What is embedded: without the mark at its end, as the official engine does."""
        return self.row["text"].strip().rstrip("!?.")


def plan(bench: Bench) -> list[Job]:
    """One job a table of phrases."""
    jobs = []
    for table in bench.phrases:
        name = f"{NAME} on {table.name}"
        if not bench.abilities.reads_text:
            bench.skip(name, "the method reads no text")
            continue
        if not bench.abilities.local:
            bench.skip(name, "the method gives no patches in the joint space")
            continue
        phrases, left_out = find_phrases(table, bench)
        told = "; ".join(f"{count} phrases: {why}" for why, count in left_out.items())
        if not phrases:
            bench.skip(name, told)
            continue
        if told:
            bench.skip(f"some of {name}", told)
        sets = {phrase.films.name: phrase.films for phrase in phrases}
        needs = [
            Need(
                films,
                np.unique([p.position for p in phrases if p.films is films]),
                True,
            )
            for films in sets.values()
        ]
        measure = _measure(table, phrases, bench.options)
        jobs.append(Job(name, measure, needs, table.fingerprint))
    return jobs


def find_phrases(table: Table, bench: Bench) -> tuple[list[Phrase], dict[str, int]]:
    """The phrases whose films are in the split that is judged.

    Returns:
      The phrases in the order of their ids; reason to how many are left out for it.
    """
    found = bench.find([row["image_id"] for row in table.rows])
    split = bench.options.split
    phrases: list[Phrase] = []
    left_out: dict[str, int] = {}
    for row in sorted(table.rows, key=lambda row: row["phrase_id"]):
        why = ""
        if row["image_id"] not in found:
            why = "their films are in no prepared data set"
        else:
            films, position = found[row["image_id"]]
            record = films.record(position)
            stored = int(record["height"]), int(record["width"])
            high = stored[1] * row["image_height"] / row["image_width"]
            if films.splits[position] != split:
                why = f"their films are in the split {films.splits[position]}, not {split}"
            elif abs(high - stored[0]) > 2:
                # Rounding moves a side by one pixel; more is another picture.
                why = "image_width x image_height are not of their film's shape"
        if why:
            left_out[why] = left_out.get(why, 0) + 1
        else:
            phrases.append(Phrase(row, films, position, stored))
    return phrases, left_out


def _measure(table: Table, phrases: Sequence[Phrase], options: Options):
    def measure(networks: Networks) -> Outcome:
        size = next(phrases[0].films.read(np.array([phrases[0].position]))).shape[1]
        found = each(networks, lambda n: coarse_maps(n, phrases), text=True)
        figures = {name: _figures(phrases, of, size) for name, of in found.items()}
        rng = np.random.default_rng([options.seed, 15])
        noise = [
            maps.smooth(rng.normal(size=map_hxw.shape)) for map_hxw in found["trained"]
        ]
        blind = _figures(phrases, noise, size)
        rows, skipped = _rows(
            table, phrases, figures, blind, found["trained"][0].shape, options
        )
        ratios = figures["trained"][:, 1]
        picked = _picked(ratios)
        sections = [_section(table, phrases, found["trained"], ratios, picked, options)]
        if looks := _words_section(
            table, phrases, networks["trained"], picked, options
        ):
            sections.append(looks)
        return Outcome(rows, sections, skipped)

    return measure


def coarse_maps(network: Network, phrases: Sequence[Phrase]) -> list[np.ndarray]:
    """Smoothed cosines of each phrase with the patches of its film, float64 [h, w]."""
    texts = network.texts([phrase.text for phrase in phrases]).joint_BxD
    made = []
    for phrase, text_D in zip(phrases, texts):
        patches = network.patches(phrase.films, np.array([phrase.position]))
        assert patches.local_BxPxD is not None  # `plan` asked
        local_PxD = patches.local_BxPxD[0].astype(np.float64)
        lengths_P = np.maximum(np.linalg.norm(local_PxD, axis=1), 1e-12)
        cosines_P = local_PxD @ text_D / lengths_P
        made.append(maps.smooth(cosines_P.reshape(patches.grid)))
    return made


def phrase_figures(
    map_hxw: np.ndarray,
    frame: maps.Frame,
    boxes: Sequence[Sequence[float]],
    height: int,
    width: int,
    longest: int = LONGEST,
) -> np.ndarray:
    """All figures of one phrase.

    Args:
      map_hxw: smoothed cosines.
      frame: where the map lies in the film.
      boxes: x, y, width, height in pixels of the film.
      height, width: of the film.
      longest: see LONGEST.

    Returns:
      float64 [5]: one of each of METRICS; share of the film inside the boxes.
    """
    step = -(-max(height, width) // longest)
    rows, columns = (np.arange(step // 2, side, step) for side in (height, width))
    inside_RxC = box_mask(boxes, height, width)[np.ix_(rows, columns)]
    placed_RxC = maps.place(map_hxw, frame, rows, columns)
    ratio = maps.signed_cnr(placed_RxC, inside_RxC)
    overlap = maps.ious(placed_RxC, inside_RxC).mean()
    point = maps.pointing(placed_RxC, inside_RxC)
    return np.array([abs(ratio), ratio, overlap, point, inside_RxC.mean()])


def _figures(
    phrases: Sequence[Phrase], found: Sequence[np.ndarray], size: int
) -> np.ndarray:
    made = []
    for phrase, map_hxw in zip(phrases, found):
        shape = phrase.row["image_height"], phrase.row["image_width"]
        frame = maps.padded(*shape, *phrase.stored, least=size)
        made.append(phrase_figures(map_hxw, frame, phrase.row["boxes"], *shape))
    return np.array(made)


def _rows(
    table: Table,
    phrases: Sequence[Phrase],
    figures: Mapping[str, np.ndarray],
    blind: np.ndarray,
    grid: tuple[int, ...],
    options: Options,
) -> tuple[list[Row], dict[str, str]]:
    """Rows, the means over categories first; what is left out and why."""
    # A box as large as the film has no outside: no ratio, for no network.
    usable = np.isfinite(figures["trained"][:, 0])
    skipped = {}
    if not usable.all():
        skipped[f"cnr of some phrases of {NAME} on {table.name}"] = (
            f"{(~usable).sum()} phrases have boxes that cover all of the film, or none"
        )
    categories = np.array([phrase.row["category"] for phrase in phrases])
    patients = np.array([phrase.row["patient_id"] for phrase in phrases])
    units = np.array([phrase.row["phrase_id"] for phrase in phrases])
    heads, details = [], []
    for column, metric in enumerate(METRICS):
        kept = usable if "cnr" in metric else np.ones(len(phrases), bool)
        groups = {
            str(name): np.flatnonzero(kept & (categories == name))
            for name in np.unique(categories[kept])
        }
        if not groups:
            continue
        chances = {
            name: _chance(metric, blind[rows], figures["trained"][rows])
            for name, rows in groups.items()
        }
        heads.append(
            measured(
                NAME,
                table.name,
                metric,
                {
                    network: metrics.MeanOf(
                        [metrics.Mean(of[r, column], r) for r in groups.values()]
                    )
                    for network, of in figures.items()
                },
                patients,
                float(np.mean(list(chances.values()))),
                units=units,
                seed=options.seed,
                note=f"mean over {len(groups)} categories; map of {grid[0]} x {grid[1]} "
                f"cells; chance: {CHANCE[metric]}",
            )
        )
        details += [
            measured(
                f"{NAME}/{name}",
                table.name,
                metric,
                {n: metrics.Mean(of[rows, column]) for n, of in figures.items()},
                patients[rows],
                chances[name],
                units=units[rows],
                seed=options.seed,
            )
            for name, rows in groups.items()
        ]
    return heads + details, skipped


CHANCE = {
    "cnr": "maps of smoothed noise",
    "signed_cnr": "maps of smoothed noise, on average",
    "miou": "the whole film predicted",
    "pointing_game": "a point anywhere in the film",
}


def _chance(metric: str, blind: np.ndarray, figures: np.ndarray) -> float:
    if metric == "cnr":
        return float(blind[:, 0].mean())
    return 0.0 if metric == "signed_cnr" else float(figures[:, 4].mean())


def _picked(ratios: np.ndarray) -> dict[str, np.ndarray]:
    """SHOWN phrases each, of the best, the middle and the worst signed ratios."""
    order = np.argsort(-ratios, kind="stable")
    order = order[np.isfinite(ratios[order])]
    some = min(SHOWN, len(order))
    middle = (len(order) - some) // 2
    return {
        "best": order[:some],
        "median": order[middle : middle + some],
        "worst": order[len(order) - some :],
    }


def _section(
    table: Table,
    phrases: Sequence[Phrase],
    found: Sequence[np.ndarray],
    ratios: np.ndarray,
    picked: Mapping[str, np.ndarray],
    options: Options,
) -> Section:
    groups = {
        name: [_shown(phrases[i], found[i], ratios[i], options) for i in at]
        for name, at in picked.items()
    }
    some = len(picked["best"])
    text = (
        "Where the network finds what a phrase tells. Phrases are ranked by the "
        f"signed contrast-to-noise ratio; shown are the first {some}, the {some} in "
        "the middle and the last, by this rule alone. All maps share one scale."
    )
    if not options.show_text:
        text += " Report text is protected and not shown (--show-text)."
    caption = (
        "Films with the boxes drawn for a phrase; right of each the map of its phrase."
    )
    pictures = [Picture(plots_films.heat_maps(groups), caption, True)] if some else []
    return Section(f"Phrase grounding: {table.name}", text, pictures)


def _words_section(
    table: Table,
    phrases: Sequence[Phrase],
    network: Network,
    picked: Mapping[str, np.ndarray],
    options: Options,
) -> Section | None:
    """Where the single words look; None for a method whose words do not."""
    rows = {}
    for name, at in picked.items():
        for phrase in [phrases[i] for i in at[:1]]:
            looks = network.word_maps((phrase.films, phrase.position), phrase.text)
            rows[name] = [
                _shown(phrase, weights_hxw, None, options,
                       word if options.show_text else f"word {number}")
                for number, (word, weights_hxw) in enumerate(looks[:WORDS_SHOWN], 1)
            ]  # fmt: skip
    if not any(rows.values()):
        return None
    text = (
        "Where each word of a phrase looks in the phrase's film, as the method attends; "
        f"of the same phrases as above, the first of each kind and its first "
        f"{WORDS_SHOWN} words. The weights of a word add up to 1 over the film."
    )
    caption = "One phrase a row, one word a film; the boxes are those of the phrase."
    pictures = [Picture(plots_films.word_maps(rows), caption, True)]
    return Section(f"Attention of words: {table.name}", text, pictures)


def _shown(
    phrase: Phrase,
    map_hxw: np.ndarray,
    ratio: float | None,
    options: Options,
    title: str = "",
) -> plots_films.HeatMap:
    film_SxS = next(phrase.films.read(np.array([phrase.position])))[0, ..., 0]
    size = len(film_SxS)
    row = phrase.row
    frame = maps.padded(row["image_height"], row["image_width"], *phrase.stored, size)
    across, down = size / frame.width, size / frame.height
    boxes = [
        ((x - frame.left) * across, (y - frame.top) * down, w * across, h * down)
        for x, y, w, h in row["boxes"]
    ]
    pixels = np.arange(size)
    placed = maps.place(map_hxw, maps.Frame(0, 0, size, size), pixels, pixels)
    told = row["text"] if options.show_text else f"phrase {row['phrase_id']}"
    if ratio is not None:
        title = f"{row['category']}, CNR {ratio:+.2f}"
    return plots_films.HeatMap(film_SxS, placed, boxes, title, told)
