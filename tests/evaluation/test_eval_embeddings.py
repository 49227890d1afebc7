"""Maps and clusters of films, on films that lie apart by their class."""

import dataclasses

import numpy as np
import planted
import planted_tasks as toy
import pytest
from sklearn import metrics as sk

from data_pipelines.annotations import Task
from medclip_jax.evaluation import embeddings, suite

COVIDX = Task("multiclass", ("normal", "pneumonia", "COVID-19"))


def classes_of(count=300):
    return np.random.default_rng(3).choice(3, count, p=[0.6, 0.3, 0.1])


def by_name(results):
    return {(row.metric, row.dataset): row for row in results.rows}


@pytest.fixture(scope="module")
def measured():
    films = toy.films(np.eye(3)[classes_of()], COVIDX, "covidx", kind="covidx")
    return films, suite.run(
        planted.bench(films, seeds=3), toy.networks(), ["embeddings"]
    )


def test_planted_classes_are_clusters(measured):
    _, results = measured
    rows = by_name(results)
    silhouette = rows["silhouette", "set (covidx)"]
    assert silhouette.value > 0.8 and silhouette.untrained < 0.3
    assert silhouette.low <= silhouette.value <= silhouette.high
    nmi = rows["nmi", "set (covidx)"]
    assert nmi.value == pytest.approx(1) and nmi.std == pytest.approx(0)
    assert nmi.untrained < 0.3 and 0 <= nmi.chance < 0.1
    assert len(results.sections[0].pictures) == len(embeddings.maps())
    assert "embeddings on set" not in results.skipped


def test_figures_are_sklearns_in_the_space(measured):
    films, results = measured
    test = films.where("test")
    network = toy.networks()["trained"]
    network.embed(films, test, np.zeros(0, int))
    vectors = network.joint(films, test)
    classes = films.classes["covidx"].codes_KxC[test].argmax(1)
    row = by_name(results)["silhouette", "set (covidx)"]
    want = sk.silhouette_score(vectors, classes, metric="cosine")
    assert row.value == pytest.approx(want, abs=1e-6)


def test_silhouette_by_hand():
    """Two classes of two: within them cosine distance 0, between them 1."""
    vectors = np.array([[1, 0], [3, 0], [0, 1], [0, 0.5]])
    np.testing.assert_allclose(
        embeddings.silhouettes(vectors, np.array([0, 0, 1, 1])), 1, atol=1e-9
    )
    # a is 1 to the film of its own class; b is the mean of 0 and 1.
    mixed = embeddings.silhouettes(vectors, np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(mixed, -0.5, atol=1e-9)


def test_the_largest_classes_are_thinned():
    classes = classes_of()
    films = toy.films(np.eye(3)[classes], COVIDX, "covidx")
    group = embeddings.Group("x", films, np.arange(300), classes, COVIDX.labels)
    made = embeddings.thin(group, 0, most=100)
    rare = int((classes == 2).sum())
    counts = np.bincount(made.classes)
    assert counts.sum() == 100 and counts[2] == rare
    assert abs(int(counts[0]) - int(counts[1])) <= 1
    assert (classes[made.positions] == made.classes).all()
    assert embeddings.thin(group, 0, most=300) is group
    other = embeddings.thin(group, 1, most=100)
    assert set(other.positions) != set(made.positions)


def test_the_five_classes_have_a_map():
    results = suite.run(
        planted.bench(planted.films(60), seeds=2), toy.networks(), ["embeddings"]
    )
    assert by_name(results)["nmi", "toy"].value == pytest.approx(1)


def test_too_few_films_are_told():
    films = toy.films(np.eye(3)[np.zeros(60, int)], COVIDX, "covidx")
    bench = planted.bench(films)
    assert embeddings.plan(bench) == []
    assert "normal 20" in bench.skipped["embeddings on set (covidx)"]
    few = toy.films(np.eye(3)[classes_of(12)], COVIDX, "covidx")
    bench = planted.bench(dataclasses.replace(few))
    assert embeddings.plan(bench) == []


@pytest.mark.slow
def test_umap_lays_films_on_the_plane():
    if "UMAP" not in embeddings.maps():
        pytest.skip("umap-learn is not installed")
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    points = embeddings.maps()["UMAP"](vectors, 0)
    assert points.shape == (40, 2) and np.isfinite(points).all()
