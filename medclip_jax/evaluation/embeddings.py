"""How films lie in the joint space: a map of them, and how well the classes part.

The map shows what there is to see and measures nothing; the silhouette and the clusters
that k-means finds are computed in the space itself, not on the map.
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score, silhouette_samples
from threadpoolctl import threadpool_limits

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import metrics, plots, tasks, zero_shot_five
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

NAME = "embeddings"
ABOUT = About(
    "Films in the joint space",
    "silhouette: mean over films of (b - a) / max(a, b), a the mean cosine distance to "
    "films of the same class and b to those of the nearest other class. nmi: normalised "
    "mutual information of the classes with k-means of the unit vectors, k the number "
    "of classes, mean over seeds. The maps are t-SNE by cosine distance.",
    "Rousseeuw 1987 (silhouette); van der Maaten and Hinton 2008 (t-SNE); Wang et al. "
    "(MedCLIP, EMNLP 2022) shows such a map of CheXpert-5x200",
    (
        "Distances and sizes of groups on a t-SNE map mean nothing.",
        "Perplexity and seed change the map; papers do not state theirs.",
        "Films of one patient lie together whatever their class.",
    ),
)
MOST = plots.TSNE_FILMS
LEAST = 8
"""Fewer films than this make no map."""


@dataclass(frozen=True)
class Group:
    """Films of one map.

    Attributes:
      title: the data set, with the question where that is needed.
      films: the data set.
      positions: int [N].
      classes: int [N].
      names: of the classes.
    """

    title: str
    films: Films
    positions: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]


def plan(bench: Bench) -> list[Job]:
    """One job a five-class set, and one a multi-class question."""
    jobs = []
    for group in find_groups(bench):
        needs = [Need(group.films, group.positions)]
        measure = _measure(group, bench.options)
        jobs.append(Job(f"{NAME} on {group.title}", measure, needs))
    return jobs


def find_groups(bench: Bench) -> list[Group]:
    """The films of each map; at most MOST, as many of each class as may be."""
    options, found = bench.options, []
    for films in bench.films:
        try:
            five = zero_shot_five.choose_films(films, options)
        except UserError as error:
            if not films.tasks:  # else it has classes of its own
                bench.skip(f"{NAME} on {films.name}", str(error))
            continue
        found.append(Group(films.name, films, five.indices, five.classes, EVAL_FIVE))
    for question in tasks.questions(bench, "multiclass"):
        asked = tasks.ask(question, options.split, options)
        # The unit of a point is a film, also where a study is judged.
        classes = asked.classes[asked.owner]
        title = f"{question.films.name} ({question.name})"
        names = tuple(question.task.labels)
        found.append(Group(title, question.films, asked.positions, classes, names))
    thinned = [thin(group, options.seed) for group in found]
    return [group for group in thinned if _enough(group, bench)]


def _enough(group: Group, bench: Bench) -> bool:
    counts = np.bincount(group.classes, minlength=len(group.names))
    if len(group.positions) >= LEAST and (counts > 1).sum() > 1:
        return True
    told = ", ".join(f"{n} {c}" for n, c in zip(group.names, counts))
    bench.skip(
        f"{NAME} on {group.title}",
        f"a map needs {LEAST} films and two classes with more than one; found {told}",
    )
    return False


def thin(group: Group, seed: int, most: int = MOST) -> Group:
    """At most so many films: the largest classes are thinned first, by id and seed."""
    if len(group.positions) <= most:
        return group
    rng = np.random.default_rng([seed, 51])
    by_id = np.argsort(group.films.ids[group.positions], kind="stable")
    order = rng.permutation(by_id)
    rank = np.zeros(len(order), int)
    for c in np.unique(group.classes):
        members = order[group.classes[order] == c]
        rank[members] = np.arange(len(members))
    # In rounds: one film of each class, then a second of each, until there are enough.
    kept = np.sort(np.lexsort((group.classes, rank))[:most])
    return Group(
        group.title,
        group.films,
        group.positions[kept],
        group.classes[kept],
        group.names,
    )


def _measure(group: Group, options: Options):
    def measure(networks: Networks) -> Outcome:
        vectors = each(
            networks, lambda n: n.joint(group.films, group.positions), text=False
        )
        rows = cluster_rows(vectors, group, options.seeds, options.seed)
        return Outcome(rows, [_section(group, vectors, rows, options.seed)])

    return measure


def cluster_rows(
    vectors: Mapping[str, np.ndarray], group: Group, seeds: int, seed: int = 0
) -> list[Row]:
    """The silhouette with its interval over patients, and the clusters' agreement.

    Args:
      vectors: network to float [N, D].
      group: the films.
      seeds: clusterings.
      seed: of the first, and of the bootstrap.
    """
    films, classes = group.films, group.classes
    silhouette = measured(
        NAME,
        group.title,
        "silhouette",
        {name: metrics.Mean(silhouettes(of, classes)) for name, of in vectors.items()},
        films.patients[group.positions],
        0.0,
        units=films.ids[group.positions],
        seed=seed,
        note="cosine distance, from -1 to 1",
    )
    found = {name: clusters(of, group, seeds, seed) for name, of in vectors.items()}
    agreement = {
        name: [normalized_mutual_info_score(classes, one) for one in of]
        for name, of in found.items()
    }
    rng = np.random.default_rng([seed, 52])
    chance = [
        normalized_mutual_info_score(rng.permutation(classes), one)
        for one in found["trained"]
    ]
    means = {name: float(np.mean(of)) for name, of in agreement.items()}
    nmi = Row(
        NAME,
        group.title,
        "nmi",
        means["trained"],
        len(classes),
        float(np.mean(chance)),
        means.get("untrained"),
        std=float(np.std(agreement["trained"])),
        supervised=means.get("supervised"),
        imagenet=means.get("imagenet"),
        note=f"k-means with {len(np.unique(classes))} clusters, {seeds} seeds; chance is "
        "that of shuffled classes",
    )
    return [silhouette, nmi]


def silhouettes(vectors_NxD: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float [N], of each film by cosine distance."""
    with threadpool_limits(1):
        return silhouette_samples(_unit(vectors_NxD), classes, metric="cosine")


def clusters(
    vectors_NxD: np.ndarray, group: Group, seeds: int, seed: int = 0
) -> list[np.ndarray]:
    """The cluster of each film, int [N], one clustering a seed."""
    count = len(np.unique(group.classes))
    with threadpool_limits(1):
        return [
            KMeans(count, n_init=3, random_state=seed + number).fit_predict(
                _unit(vectors_NxD)
            )
            for number in range(seeds)
        ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def maps() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Ways to lay films on the plane: t-SNE, and UMAP where it is installed."""
    made: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"t-SNE": plots.project}
    # By its distribution: a folder that is called umap is no such package.
    if any(importlib.metadata.distributions(name="umap-learn")):
        made["UMAP"] = _umap
    return made


def _umap(vectors_NxD: np.ndarray, seed: int) -> np.ndarray:
    import umap  # an optional package that takes seconds to load

    neighbours = min(15, len(vectors_NxD) - 1)
    model = umap.UMAP(
        n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1
    )
    return np.asarray(model.fit_transform(np.asarray(vectors_NxD, np.float32)))


def _section(
    group: Group,
    vectors: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    seed: int,
) -> Section:
    pictures = []
    for way, lay in maps().items():
        panels = {name: lay(of, seed) for name, of in vectors.items()}
        picture = plots.tsne(panels, group.classes, group.names)
        text = f"{way} of {len(group.positions)} films by cosine distance; the axes have no unit."
        pictures.append(Picture(picture, text, wide=True))
    told = ", ".join(f"{row.metric} {row.value:.2f} (untrained {row.untrained:.2f})"
                     for row in rows if row.untrained is not None)  # fmt: skip
    text = (
        "Each point is a film. A map shows neighbours; how far groups lie apart on it "
        f"means nothing. In the space itself: {told}."
    )
    return Section(f"Films in the joint space: {group.title}", text, pictures)
