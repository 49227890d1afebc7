"""Phrase grounding on a planted answer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medclip_jax.evaluation import grounding, suite
from medclip_jax.evaluation.embedding import Embedder
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Abilities, Bench, Options
from medclip_jax.evaluation.sets import Films, Table
from medclip_jax.inputs import images
from medclip_jax.methods.interface import ImageEmbedding, TextEmbedding

# --- A planted answer -----------------------------------------------------------------

SIZE, CELLS = 32, 16
WORDS = {"Bright": 230, "Dark": 75}


class Planted:
    """A patch tells how near its cell is to each of two greys; a word asks for one."""

    def embed_images(self, variables, films):
        cells = films["current_BxHxWx3"][..., 0].reshape(-1, CELLS, 2, CELLS, 2)
        light_BxP = 255 * cells.mean((2, 4)).reshape(-1, CELLS * CELLS)
        hats = [jnp.maximum(1 - abs(light_BxP - v) / 40, 0) for v in WORDS.values()]
        patches = jnp.stack([*hats, 0.3 + 0 * light_BxP], -1)
        local = patches @ variables["mix"]
        local = local / jnp.linalg.norm(local, axis=-1, keepdims=True)
        return ImageEmbedding(light_BxP, None, patches, local, (CELLS, CELLS))

    def embed_texts(self, variables, texts):
        return TextEmbedding(jnp.eye(3)[texts["ids_BxT"][:, 0]])

    def score(self, variables, images, texts):
        raise AssertionError("grounding asks for no logits")


class Words:
    def __init__(self):
        self.seen = []

    def encode(self, texts, length):
        self.seen += texts
        ids = np.array(
            [[list(WORDS).index(text.split()[0])] for text in texts], np.int32
        )
        return {"ids_BxT": ids, "mask_BxT": np.ones_like(ids)}

    def words(self, text):
        return text.split()


def planted(count=24, split="test", shape=(400, 320)):
    """Films with one bright and one dark rectangle, and a phrase for each."""
    rng = np.random.default_rng(0)
    stored = (50, 40)
    pixels = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    rows = []
    for film in range(count):
        drawn = np.full(shape, 150, np.uint8)
        for at, (word, value) in enumerate(WORDS.items()):
            box = [*rng.integers(10, 100, 2), *rng.integers(60, 100, 2)]
            box[1] += 200 * at
            x, y, w, h = box
            drawn[y : y + h, x : x + w] = value
            rows.append(
                {
                    "phrase_id": f"{film:03d}{word}",
                    "image_id": f"film{film}",
                    "patient_id": f"p{film // 2}",
                    "category": word,
                    "text": f"{word} secret area.",
                    "boxes": [[float(v) for v in box]],
                    "image_width": shape[1],
                    "image_height": shape[0],
                    "split": "",
                }
            )
        small = np.asarray(Image.fromarray(drawn).resize(stored[::-1]))
        pixels[film, ..., 0] = images.resize_square(
            images.pad_to_square(small, SIZE), SIZE
        )

    def read(positions):
        yield pixels[positions]

    names = np.array([f"film{i}" for i in range(count)])
    films = Films(
        "toy", names, names, names, names, np.zeros((count, 14), np.int8), read,
        np.full(count, split), lambda i: {"height": stored[0], "width": stored[1]},
        fingerprint="films",
    )  # fmt: skip
    return films, Table("phrases of toy", "ms_cxr", "phrases", rows)


def networks():
    words = Words()
    embedder = Embedder(
        Planted(), lambda x: jnp.repeat(x / 255.0, 3, -1), words, 1, batch_size=8
    )
    mix = np.random.default_rng(5).normal(size=(3, 3)).astype(np.float32)
    made = {
        "trained": Network("trained", embedder, {"mix": np.eye(3, dtype=np.float32)}),
        "untrained": Network("untrained", embedder, {"mix": mix}),
        "imagenet": Network("imagenet", embedder, {"mix": mix}, reads_text=False),
    }
    return made, words


@pytest.fixture(scope="module")
def measured():
    films, table = planted()
    made, words = networks()
    bench = Bench([films], phrases=[table], options=Options(seed=3))
    return suite.run(bench, made, ["grounding"]), words, table


def test_planted_boxes_are_found(measured):
    results, words, table = measured
    rows = {(row.protocol, row.metric): row for row in results.rows}
    head = results.rows[0]
    assert (head.protocol, head.metric, head.dataset) == (
        "grounding",
        "cnr",
        "phrases of toy",
    )
    assert head.value > 2 and head.low < head.value < head.high
    assert head.untrained < head.value - 1
    assert 0.05 < head.chance < 1
    assert head.data == "phrases+films"
    assert "mean over 2 categories; map of 16 x 16 cells" in head.note
    assert head.n == 48 and head.sample.units[0] == "000Bright"
    assert len(set(head.sample.patients)) == 12
    signed = rows["grounding", "signed_cnr"]
    assert signed.value == pytest.approx(head.value)
    assert signed.chance == 0 and abs(signed.untrained) < signed.value / 2
    assert rows["grounding", "pointing_game"].value > 0.9
    area = np.mean(
        [w * h / (400 * 320) for ((_, _, w, h),) in (r["boxes"] for r in table.rows)]
    )
    assert rows["grounding", "pointing_game"].chance == pytest.approx(area, rel=1e-3)
    assert rows["grounding", "miou"].value > 0.25
    assert all(row.imagenet is None for row in results.rows)
    for metric in grounding.METRICS:
        parts = [rows[f"grounding/{name}", metric].value for name in WORDS]
        assert rows["grounding", metric].value == pytest.approx(np.mean(parts))
    # The mark at the end is not embedded.
    assert set(words.seen) == {"Bright secret area", "Dark secret area"}


def test_mean_is_over_categories_not_phrases():
    films, table = planted()
    kept = [r for i, r in enumerate(table.rows) if r["category"] == "Bright" or i < 6]
    made, _ = networks()
    table = dataclasses.replace(table, rows=kept)
    results = suite.run(Bench([films], phrases=[table]), made, ["grounding"])
    rows = {(row.protocol, row.metric): row for row in results.rows}
    bright, dark = (rows[f"grounding/{name}", "cnr"] for name in WORDS)
    assert (bright.n, dark.n) == (24, 3)
    assert rows["grounding", "cnr"].value == pytest.approx(
        (bright.value + dark.value) / 2
    )


def test_gallery_hides_text_and_tells_its_rule(measured):
    section = measured[0].sections[0]
    assert "by this rule alone" in section.text and "protected" in section.text
    assert section.pictures[0].png[:4] == b"\x89PNG"
    figures = json.dumps([row.as_json() for row in measured[0].rows])
    assert "secret" not in figures + section.text + section.pictures[0].caption


def shown_of(monkeypatch, **options):
    got = {}
    monkeypatch.setattr(
        grounding.plots_films, "heat_maps", lambda groups: got.update(groups) or b""
    )
    films, table = planted()
    bench = Bench([films], phrases=[table], options=Options(**options))
    results = suite.run(bench, networks()[0], ["grounding"])
    row = next(r for r in results.rows if r.metric == "signed_cnr")
    return got, row.sample.statistic


def test_gallery_is_chosen_by_rank(monkeypatch):
    got, statistic = shown_of(monkeypatch)
    values = np.concatenate([part.values for part in statistic.parts])
    ranked = [f"CNR {v:+.2f}" for v in np.sort(values)[::-1]]
    titles = {n: [h.title.split(", ")[1] for h in of] for n, of in got.items()}
    assert titles == {"best": ranked[:2], "median": ranked[23:25], "worst": ranked[-2:]}
    first = got["best"][0]
    assert first.told.startswith("phrase ") and "secret" not in first.told
    # Box and film agree in the square that is drawn: the box is as told, inside of it.
    (x, y, w, h) = first.boxes[0]
    cut = first.film_SxS[
        round(y) + 1 : round(y + h) - 1, round(x) + 1 : round(x + w) - 1
    ]
    rest = np.median(first.film_SxS[first.film_SxS > 0])
    light = np.sign(cut.astype(float) - rest).mean()
    assert abs(light) > 0.95
    told = shown_of(monkeypatch, show_text=True)[0]
    assert "secret area." in told["best"][0].told


def skips(bench):
    assert not grounding.plan(bench) or bench.skipped
    return bench.skipped


class Attends(Planted):
    """Words look where a patch is as they ask."""

    scores_locally = True

    def embed_texts(self, variables, texts):
        asked_BxD = jnp.eye(3)[texts["ids_BxT"][:, 0]]
        slots_BxWxD = jnp.stack([0 * asked_BxD, asked_BxD, asked_BxD[:, ::-1]], 1)
        return TextEmbedding(asked_BxD, local_BxWxD=slots_BxWxD)

    def word_attention(self, variables, images, texts):
        scores = jnp.einsum("bwd,bpd->bwp", texts.local_BxWxD, images.local_BxPxD)
        return jax.nn.softmax(20 * scores, axis=-1)


def word_rows(monkeypatch, method, **options):
    got = {}
    monkeypatch.setattr(
        grounding.plots_films, "word_maps", lambda rows: got.update(rows) or b""
    )
    films, table = planted()
    words = Words()
    embedder = Embedder(method, lambda x: jnp.repeat(x / 255.0, 3, -1), words, 1, 8)
    network = Network("trained", embedder, {"mix": np.eye(3, dtype=np.float32)})
    bench = Bench([films], phrases=[table], options=Options(**options))
    results = suite.run(bench, {"trained": network}, ["grounding"])
    return got, results.sections


def test_words_that_look_for_regions_are_shown(monkeypatch):
    got, sections = word_rows(monkeypatch, Attends())
    assert sections[1].title == "Attention of words: phrases of toy"
    assert list(got) == ["best", "median", "worst"]
    first, second = got["best"]
    assert (first.title, second.title) == ("word 1", "word 2")
    assert "secret" not in first.told
    # The first word looks into the box of its phrase, the second elsewhere.
    x, y, w, h = (round(v) for v in first.boxes[0])
    shares = [
        of.map_SxS[y + 2 : y + h - 2, x + 2 : x + w - 2].mean() / of.map_SxS.mean()
        for of in (first, second)
    ]
    assert shares[0] > 3 and shares[1] < 1
    told = word_rows(monkeypatch, Attends(), show_text=True)[0]
    assert told["best"][0].title in WORDS


def test_words_that_do_not_look_are_not_shown(monkeypatch):
    got, sections = word_rows(monkeypatch, Planted())
    assert not got and len(sections) == 1


def test_what_cannot_be_grounded_is_told():
    films, table = planted()
    name = "grounding on phrases of toy"
    no_text = Bench([films], phrases=[table], abilities=Abilities(reads_text=False))
    assert skips(no_text)[name] == "the method reads no text"
    coarse = Bench([films], phrases=[table], abilities=Abilities(local=False))
    assert "no patches" in skips(coarse)[name]
    assert "in no prepared data set" in skips(Bench([], phrases=[table]))[name]
    seen, _ = planted(split="train")
    assert "in the split train, not test" in skips(Bench([seen], phrases=[table]))[name]
    turned = [
        {**row, "image_width": 400, "image_height": 320} for row in table.rows[:3]
    ]
    bench = Bench(
        [films],
        phrases=[dataclasses.replace(table, rows=[*turned, *table.rows[3:]])],
    )
    assert len(grounding.plan(bench)) == 1
    assert bench.skipped[f"some of {name}"].startswith("3 phrases: image_width x")


def test_a_box_as_large_as_the_film_has_no_ratio():
    films, table = planted()
    whole = [{**table.rows[0], "boxes": [[0.0, 0.0, 320.0, 400.0]]}, *table.rows[1:]]
    bench = Bench([films], phrases=[dataclasses.replace(table, rows=whole)])
    results = suite.run(bench, networks()[0], ["grounding"])
    rows = {(row.protocol, row.metric): row for row in results.rows}
    assert np.isfinite(rows["grounding", "cnr"].value)
    assert rows["grounding/Bright", "cnr"].n == 23
    assert rows["grounding/Bright", "miou"].n == 24
    assert "1 phrases" in next(why for k, why in results.skipped.items() if "cnr" in k)


def test_same_seed_same_bits():
    films, table = planted()
    made = [
        suite.run(Bench([films], phrases=[table]), networks()[0], ["grounding"])
        for _ in range(2)
    ]
    assert [r.as_json() for r in made[0].rows] == [r.as_json() for r in made[1].rows]
    assert made[0].sections[0].pictures[0].png == made[1].sections[0].pictures[0].png
