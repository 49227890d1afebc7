"""Retrieval of films by films and of the 8x200 set by words."""

import csv
import dataclasses

import jax.numpy as jnp
import numpy as np
import planted
import planted_tasks as toy
import pytest

from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation import eight_by_200 as eight
from medclip_jax.evaluation import metrics, suite
from medclip_jax.evaluation import retrieval_image_to_image as protocol
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Options
from medclip_jax.methods.interface import ImageEmbedding, TextEmbedding

SIDE = 24
RULES = ("atelectasis", "cardi", "edema", "rib|clavicle", "no acute|normal heart",
         "effusion", "pneumonia", "pneumothorax")  # fmt: skip


class Bands:
    """A film's eight bands, and a text's keywords."""

    def embed_images(self, variables, films):
        bands = films["current_BxHxWx3"][..., 0].reshape(-1, 8, 3 * SIDE).mean(2)
        mixed = (bands - bands.mean(1, keepdims=True)) @ variables["mix"]
        return ImageEmbedding(mixed, planted._unit(mixed))

    def embed_texts(self, variables, texts):
        return TextEmbedding(planted._unit(texts["ids_BxT"].astype(jnp.float32) + 1e-3))

    def score(self, variables, images, texts):
        return images.joint_BxD @ texts.joint_BxD.T


class Keywords:
    def encode(self, texts, length):
        ids = np.array(
            [
                [
                    any(w in text.lower() for w in rule.split("|"))
                    or (c == 1 and "heart" in text and "normal heart" not in text)
                    or (c == 1 and "cardiac" in text)
                    for c, rule in enumerate(RULES)
                ]
                for text in texts
            ],
            np.int32,
        )
        return {"ids_BxT": ids, "mask_BxT": np.ones_like(ids)}


def networks():
    embedder = Embedder(
        Bands(), lambda x: jnp.repeat(x / 255.0, 3, -1), Keywords(), 8, 64
    )
    blind = np.zeros((8, 8), np.float32)
    blind[0] = np.random.default_rng(0).normal(size=8)
    mix = {"trained": np.eye(8, dtype=np.float32), "untrained": blind}
    return {name: Network(name, embedder, {"mix": of}) for name, of in mix.items()}


def films_of(count=240, per_patient=2):
    """Films with one of the eight labels each, in turn; two of a patient."""
    of = planted.films(count)
    rng, classes = np.random.default_rng(0), np.arange(count) % 8
    labels = np.zeros((count, 14), np.int8)
    labels[np.arange(count), [FINDINGS.index(eight.EIGHT[c]) for c in classes]] = 1
    pixels = rng.integers(0, 120, (count, SIDE, SIDE, 1)).astype(np.uint8)
    for film, c in enumerate(classes):
        pixels[film, c * 3 : c * 3 + 3] += 60
    return dataclasses.replace(
        of,
        labels_Nx14=labels,
        patients=np.array([f"patient{i // per_patient:05d}" for i in range(count)]),
        ids=np.array(
            [f"train/patient{i:05d}/study1/view1_frontal.jpg" for i in range(count)]
        ),
        kind="chexpert",
        read=lambda positions: iter([pixels[positions]]),
    )


def run(
    films, names=("retrieval_text_to_image", "retrieval_image_to_image"), **options
):
    bench = planted.bench(films, **options)
    return suite.run(bench, networks(), names)


def rows_of(results, protocol):
    return {row.metric: row for row in results.rows if row.protocol == protocol}


def test_precision_oracle():
    """Labels in the order of rank 0 1 0 1 0 2, query of class 0."""
    agree = np.array([[1, 0, 1, 0, 1, 0]], bool)
    found = metrics.precision_at_k(-np.arange(6.0)[None], agree, (1, 2, 3, 5))
    want = {1: 1.0, 2: 0.5, 3: 0.666667, 5: 0.6}
    for k, value in want.items():
        assert found[k][0] == pytest.approx(value, abs=1e-6)


def test_a_category_admits_films_with_no_other_label():
    labels = np.full((6, 14), -2)
    at = FINDINGS.index
    labels[:, at("Fracture")] = 1
    labels[1, at("Support Devices")] = 1  # devices count as a label
    labels[2, at("Edema")] = -1  # and so does an uncertain one
    labels[3, at("Edema")] = 0
    labels[4] = -2
    labels[4, at("Consolidation")] = 1  # none of the eight
    labels[5] = 0
    fracture = eight.EIGHT.index("Fracture")
    assert eight.class_of(labels).tolist() == [fracture, -1, -1, fracture, -1, -1]


def test_the_rule_parts_patients_and_balances():
    films = films_of()
    made = eight.draw(films, Options(minimum=10, per_class=20))
    assert len(made.queries) == 8 * 6 and len(set(made.queries)) == 48
    asking = set(films.patients[made.queries])
    assert not asking & set(films.patients[made.candidates])
    counts = np.bincount(made.candidate_classes)
    assert len(counts) == 8 and len(set(counts)) == 1 and 1 <= counts[0] <= 20
    assert (eight.class_of(films.labels_Nx14[made.queries]) == made.query_classes).all()
    other = eight.draw(films, Options(minimum=10, per_class=20, seed=1))
    assert set(other.queries) != set(made.queries)
    with pytest.raises(UserError, match="Fracture 30"):
        eight.draw(films, Options(minimum=50))
    films.labels_Nx14[:] = 0
    with pytest.raises(eight.NotItsQuestion):
        eight.draw(films, Options(minimum=50))


def test_planted_films_find_their_class():
    films = films_of()
    results = run(films, per_class=50)
    images = rows_of(results, "retrieval_image_to_image/8x200")
    assert set(images) == {f"precision_at_{k}" for k in (1, 5, 10, 50, 100)}
    assert images["precision_at_10"].value == 1
    assert images["precision_at_10"].untrained < 0.4
    assert images["precision_at_10"].chance == pytest.approx(1 / 8)
    texts = rows_of(results, "retrieval_text_to_image/8x200")
    # "Retrocardiac atelectasis" says the word of two categories to this network.
    assert texts["precision_at_5"].value > 0.95 and texts["precision_at_5"].n == 40
    gallery = next(s for s in results.sections if s.title.startswith("Words"))
    assert [query.asks for query in gallery.queries] == list(eight.EIGHT)
    assert gallery.protocol == "retrieval_image_to_image"
    definitions = {row.definition for row in (*images.values(), *texts.values())}
    assert definitions == {protocol.ABOUT.definition}


def test_words_for_8x200_are_asked_without_the_protocol_of_their_name():
    results = run(films_of(), ["retrieval_image_to_image"], per_class=50)
    texts = rows_of(results, "retrieval_text_to_image/8x200")
    assert texts["precision_at_5"].definition == protocol.ABOUT.definition
    assert not rows_of(results, "retrieval_text_to_image")


def test_a_film_never_finds_its_own_patient():
    # Two equal films a patient, of random classes: only the patient is to be found.
    films = planted.films(100)
    bands = np.random.default_rng(0).integers(0, 255, (50, 20, 20, 1)).astype(np.uint8)
    pixels = np.repeat(bands, 2, axis=0)
    labels = films.labels_Nx14[np.random.default_rng(1).permutation(50)]
    films = dataclasses.replace(
        films,
        labels_Nx14=np.repeat(labels, 2, axis=0),
        read=lambda positions: iter([pixels[positions]]),
    )
    results = suite.run(planted.bench(films, minimum=2), toy.networks(),
                        ["retrieval_image_to_image"])  # fmt: skip
    row = rows_of(results, "retrieval_image_to_image")["precision_at_1"]
    assert row.value < 0.5  # 1 with the twin among the candidates
    lists = protocol.Lists("x", ("a",), np.arange(4), np.zeros(4), np.arange(4),
                           np.zeros(4), "")  # fmt: skip
    assert protocol.others(films, lists).sum(1).tolist() == [2, 2, 2, 2]


# --- Published lists --------------------------------------------------------------


def write_lists(folder, films):
    """ConVIRT's layout, in the order of its repository."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]
    classes = eight.class_of(films.labels_Nx14)
    for kind in ("image-retrieval", "text-retrieval"):
        (folder / kind).mkdir(parents=True)
        with (folder / kind / "candidate.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for at in range(80, 240):
                name = "CheXpert-v1.0-small/" + films.ids[at]
                cells = [str(float(v)) for v in films.labels_Nx14[at]]
                writer.writerow([name, "Male", 60, "Frontal", "AP", *cells])
    rows = [
        {
            "Variable": eight.EIGHT[classes[at]],
            "Path": "CheXpert-v1.0-small/" + films.ids[at],
        }
        for at in range(80)
    ]
    texts = [
        {"Variable": name, "Text": f"secret {rule.split('|')[0]}, seen"}
        for name, rule in zip(eight.EIGHT, RULES)
    ]
    for kind, of in (("image-retrieval", rows), ("text-retrieval", texts)):
        with (folder / kind / "query.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, of[0])
            writer.writeheader()
            writer.writerows(of)


def test_published_lists_are_joined_by_id(tmp_path):
    films = films_of()
    films.splits[:] = "train"
    films.splits[:8] = "test"
    write_lists(tmp_path, films)
    results = run(films, queries=tmp_path)
    row = rows_of(results, "retrieval_image_to_image/8x200")["precision_at_5"]
    assert row.value == 1 and row.n == 80 and "160 candidates" in row.note
    assert "ConVIRT's lists" in row.note
    words = rows_of(results, "retrieval_text_to_image/8x200")["precision_at_5"]
    assert words.value == 1 and words.n == 8
    shown = [q.shown for part in results.sections for q in part.queries]
    assert not any("secret" in text for text in shown)
    other = dataclasses.replace(films, kind="mimic_cxr")
    bench = planted.bench(other, queries=tmp_path)
    protocol.plan(bench)
    assert "needs at least" in bench.skipped["retrieval_image_to_image/8x200 on toy"]


def test_a_list_that_does_not_fit_is_named(tmp_path):
    films = films_of()
    write_lists(tmp_path, films)
    less = dataclasses.replace(films, ids=films.ids.copy())
    less.ids[100:110] = [
        f"train/patient9{i}/study1/view1_frontal.jpg" for i in range(10)
    ]
    with pytest.raises(
        UserError, match=r"10 of 240 films are not in toy: patient00100/"
    ):
        eight.published_images(tmp_path, less)
    bench = planted.bench(less, queries=tmp_path)
    protocol.plan(bench)
    assert "10 of 240" in bench.skipped["retrieval_image_to_image/8x200 on toy"]
    path = tmp_path / "image-retrieval" / "query.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("Atelectasis", "Mass")]))
    with pytest.raises(UserError, match=r"query\.csv, row 2, column Variable.*'Mass'"):
        eight.published_images(tmp_path, films)
    path.write_text("Path\nx\n")
    with pytest.raises(UserError, match="missing Variable"):
        eight.published_images(tmp_path, films)
    path = tmp_path / "text-retrieval" / "candidate.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("1.0", "0.0", 9)]))
    with pytest.raises(UserError, match=r"candidate\.csv, row 2: .* found none"):
        eight.published_texts(tmp_path, films)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        eight.published_texts(tmp_path, films)


def test_film_keys():
    for path in (
        "CheXpert-v1.0-small/train/patient1/study2/view1_frontal.jpg",
        "train/patient1/study2/view1_frontal.jpg",
        "patient1/study2/view1_frontal.png",
    ):
        assert eight.film_key(path) == "patient1/study2/view1_frontal"
