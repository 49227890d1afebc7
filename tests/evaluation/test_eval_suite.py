"""All protocols on a method whose answer is known, and the report made of them."""

import base64
import functools
import json
import re

import numpy as np
import planted
import pytest

from data_pipelines.findings import EVAL_FIVE
from medclip_jax.errors import UserError
from medclip_jax.evaluation import (
    page,
    plots,
    protocols,
    report,
    rows,
    sections,
    suite,
)
from medclip_jax.evaluation.features import digest
from medclip_jax.evaluation.sets import Sentences

NAMES = (
    "zero_shot_five",
    "zero_shot_findings",
    "retrieval_image_to_text",
    "retrieval_text_to_image",
    "retrieval_exact",
)


def run(films, sentences=None, names=NAMES, networks=None, **options):
    bench = planted.bench(films, sentences, **options)
    return suite.run(bench, networks or planted.networks(), names)


@pytest.fixture(scope="module")
def measured():
    films, sentences = planted.films(), planted.sentences()
    return films, sentences, run(films, sentences, by_view=True)


def by_name(result):
    return {(row.protocol, row.metric, row.dataset): row for row in result.rows}


def test_planted_findings_are_found_and_untrained_is_near_chance(measured):
    _, _, result = measured
    found = by_name(result)
    head = found["zero_shot_five", "accuracy", "toy"]
    assert head.value == 1 and head.n == 100 and head.chance == 0.2
    assert head.untrained < 0.6
    assert found["zero_shot_five", "auroc", "toy"].value == 1
    assert found["zero_shot_findings/Edema", "auroc", "toy"].value > 0.95
    for protocol in ("retrieval_image_to_text", "retrieval_text_to_image"):
        for k in (1, 2, 5, 10):
            assert found[protocol, f"precision_at_{k}", "toy"].value == 1
    assert result.films == {"toy": 100}
    gallery = next(part for part in result.sections if part.queries)
    assert (
        gallery.protocol == "retrieval_image_to_text"
    )  # without mistakes, no failures
    assert [query.asks for query in gallery.queries] == list(EVAL_FIVE)


def test_findings_within_each_view(measured):
    found = by_name(measured[2])
    assert found["zero_shot_findings", "auroc", "toy AP"].n == 50
    assert found["zero_shot_findings", "auroc", "toy PA"].n == 50


def test_exact_retrieval_finds_the_class_and_guesses_within_it(measured):
    row = by_name(measured[2])["retrieval_exact/image_to_text", "recall_at_10", "toy"]
    # 100 reports, 20 of the film's class, all alike to this network.
    assert 0.4 < row.value < 0.6
    assert row.chance == pytest.approx(0.1)


def test_findings_that_cannot_be_measured_are_named(measured):
    skipped = measured[2].skipped
    assert "Fracture 0 positive" in skipped["some of zero_shot_findings on toy"]


def test_without_reports_retrieval_is_skipped_by_name():
    result = run(planted.films())
    for protocol in ("retrieval_by_class", "retrieval_exact"):
        assert result.skipped[f"{protocol} on toy"] == "this split has no report text"
    assert not any(row.protocol.startswith("retrieval") for row in result.rows)


def test_only_the_rows_asked_for_are_given():
    films, sentences = planted.films(), planted.sentences()
    result = run(films, sentences, ["retrieval_text_to_image"])
    assert {row.protocol for row in result.rows} == {"retrieval_text_to_image"}


def test_every_figure_says_what_it_is_and_of_what_data(measured):
    for row in measured[2].rows:
        assert row.data == "of toy 100" and len(row.definition) > 60
        if "calibration" not in row.protocol:
            assert row.sample is not None and len(row.sample.units) == row.n


def test_every_film_is_embedded_once():
    films, sentences = planted.films(), planted.sentences()
    networks = planted.networks()
    run(films, sentences, networks=networks)
    assert all(network.embedded == 100 for network in networks.values())


def test_a_method_that_scores_patches_is_given_them():
    films = planted.films(count=30)
    network = planted.networks(method=planted.PlantedLocal())["trained"]
    network.embed(films, np.arange(30), np.arange(0))
    texts = ["edema", "effusion"]
    got = network.logits(films, np.arange(4, 12), texts)
    local = network.patches(films, np.arange(4, 12)).local_BxPxD
    words = network.texts(texts).joint_BxD
    want = np.einsum("npd,md->npm", local, words).max(1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_features_are_kept_for_the_next_evaluation(tmp_path):
    films, sentences = planted.films(), planted.sentences()
    first = run(films, sentences, networks=planted.networks(tmp_path))
    again = planted.networks(tmp_path)
    second = run(films, sentences, networks=again)
    assert all(network.embedded == 0 for network in again.values())
    assert [r.as_json() for r in second.rows] == [r.as_json() for r in first.rows]
    # Local features of some films are added; the others are not embedded again.
    again["trained"].embed(films, np.arange(100), np.arange(7))
    assert again["trained"].embedded == 7
    some = again["trained"].patches(films, np.arange(3, 7))
    fresh = planted.networks()["trained"]
    fresh.embed(films, np.arange(10), np.arange(10))
    np.testing.assert_allclose(
        some.local_BxPxD, fresh.patches(films, np.arange(3, 7)).local_BxPxD, atol=1e-6
    )
    assert some.grid == (planted.SIDE, 1)
    order = np.array([5, 90, 2])
    np.testing.assert_allclose(
        again["trained"].trunk(films, order),
        np.concatenate([again["trained"].trunk(films, order[[i]]) for i in range(3)]),
    )


def test_other_weights_or_other_data_have_other_features(tmp_path):
    films = planted.films()
    networks = planted.networks(tmp_path)
    for network in networks.values():
        network.embed(films, np.arange(10), np.arange(0))
    assert len(list(tmp_path.iterdir())) == 2
    other = planted.films(count=50)
    networks["trained"].embed(other, np.arange(10), np.arange(0))
    fresh = planted.networks(tmp_path)
    fresh["trained"].embed(other, np.arange(10), np.arange(0))
    assert fresh["trained"].embedded == 10  # of the same name, other contents
    a, b = {"x": np.ones(3)}, {"x": np.array([1, 1, 1.0001])}
    assert digest(a) == digest({"x": np.ones(3)}) != digest(b)


def test_damaged_features_are_named(tmp_path):
    films = planted.films()
    planted.networks(tmp_path)["trained"].embed(films, np.arange(9), np.arange(0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}.*delete it"):
        planted.networks(tmp_path)["trained"].embed(films, np.arange(9), np.arange(0))


def test_too_few_films_of_a_class_are_told():
    films = planted.films(count=20, lateral=1)
    with pytest.raises(
        UserError, match=r"(?s)no protocol could.*zero_shot_five on toy"
    ) as e:
        run(films, names=["zero_shot_five"], minimum=4)
    assert "Atelectasis 3" in str(e.value)
    assert run(films, names=["zero_shot_five"], minimum=4, frontal=False).rows


def test_same_seed_same_figures(measured):
    films, sentences, result = measured
    again = run(films, sentences, by_view=True)
    assert [row.as_json() for row in again.rows] == [
        row.as_json() for row in result.rows
    ]


def test_protocols_are_chosen_by_prefix():
    everything = tuple(protocols.PROTOCOLS)
    assert protocols.select("all") == everything
    assert protocols.select("zero_shot_f") == NAMES[:2]
    assert protocols.select("retrieval_exact") == ("retrieval_exact",)
    chosen = protocols.select("retrieval_t, zero_shot_five")
    assert chosen == ("zero_shot_five", "retrieval_text_to_image")
    with pytest.raises(UserError, match=r"'probe'.*zero_shot_five"):
        protocols.select("zero_shot,probe")
    with pytest.raises(UserError, match="names none"):
        protocols.select(" ,")


def test_every_protocol_tells_what_it_is():
    for name in protocols.PROTOCOLS:
        about = protocols.module_of(name).ABOUT
        assert about.title and about.source and len(about.definition) > 60
        assert about.traps


@functools.cache
def drawn(show_text):
    """The sections, drawn once for all tests."""
    films, sentences = planted.films(), planted.sentences()
    return run(films, sentences, show_text=show_text).sections


def render(made):
    return page.render(made, protocols.abouts())


def write(made, out):
    return report.write(made, render(made), out)


def make(measured, show_text, simulated=False):
    result = measured[2]
    return report.Report(
        title="Evaluation <of> a test",
        checkpoint="runs/x step 3",
        data="toy test",
        rows=result.rows,
        facts={"Method": "planted"},
        simulated=simulated,
        sections=drawn(show_text),
        skipped=result.skipped,
        details={"Config": "seed: 0"},
        limits=sections.limits(result.rows, simulated, 0, 10, True),
        extra={"prompt_overlap": 0},
    )


@pytest.fixture(scope="module")
def written(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write(make(measured, show_text=False), out)
    return out


def test_results_json_keeps_its_promise(written, measured):
    results = json.loads((written / "results.json").read_text())
    assert {"checkpoint", "data", "rows", "prompt_overlap", "skipped"} <= set(results)
    always = {"protocol", "dataset", "metric", "value", "n", "chance", "untrained"}
    always |= {"definition", "data"}
    for row in results["rows"]:
        assert always | {"low", "high"} <= set(row)
        assert re.match("zero_shot|retrieval", row["protocol"])
        assert isinstance(row["value"], float) and isinstance(row["n"], int)
    assert len(results["rows"]) == len(measured[2].rows)
    table = (written / "results.md").read_text()
    cells = ("zero_shot_five", "toy", "accuracy", "1.000 ± 0.000")
    assert re.search(r"\| " + r" +\| ".join(cells) + r" +\|", table)


def test_the_page_needs_no_network(written):
    html = (written / "report.html").read_text()
    assert not re.search(r"https?://|//[a-z]+\.|<link|<script|@import|url\(", html)
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) > 25
    for source in sources:
        kind, data = source.split(";base64,")
        magic = {"data:image/png": b"\x89PNG", "data:image/jpeg": b"\xff\xd8"}[kind]
        assert base64.b64decode(data).startswith(magic)
    assert "Evaluation &lt;of&gt; a test" in html


def test_report_text_is_shown_only_when_allowed(written, measured):
    hidden = (written / "report.html").read_text()
    assert "secret" not in hidden and re.search(r"study s\d\d\d", hidden)
    assert "secret" not in (written / "results.json").read_text()
    shown = render(make(measured, show_text=True))
    assert "secret" in shown


def test_simulated_data_says_so_first(measured, written):
    html = render(make(measured, show_text=True, simulated=True))
    assert 0 < html.index("Simulated data") < html.index("zero-shot accuracy")
    assert "Simulated data" not in (written / "report.html").read_text()


def test_baselines_stand_in_the_ladder(measured):
    from dataclasses import replace

    made = make(measured, show_text=False)
    head = replace(made.rows[0], pixels_logistic=0.38, supervised=0.9)
    html = render(replace(made, rows=[head]))
    assert "16 × 16 pixels" in html and 'style="width:38.0%"' in html
    assert "0.380" in report.plain_table([head])
    assert head.as_json()["supervised"] == 0.9
    assert "supervised" not in made.rows[0].as_json()


def test_nan_becomes_null():
    row = rows.Row("retrieval_x", "d", "m", float("nan"), 1, 0.2, None, float("nan"))
    plain = row.as_json()
    assert plain["value"] is None and plain["low"] is None and "std" not in plain
    json.dumps(plain, allow_nan=False)


def test_metrics_lines_torn_and_repeated(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert sections.training(file) is None
    file.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "zero_shot/accuracy": 0.3}\n'
        '{"step": 2, "loss": 2.0, "zero_shot/accuracy": 0.3}\n{"step": 3, "lo'
    )
    assert len(sections.read_metrics(file)) == 3
    assert "2 logged steps" in sections.training(file).pictures[0].caption
    file.write_text('{"step": 1}\n')
    assert sections.training(file) is None


def test_pictures_are_pngs_of_the_same_bytes():
    counts = np.array([[3, 1], [0, 0]])
    first = plots.confusion_matrix(counts, ["a", "b"])
    assert first.startswith(b"\x89PNG")
    assert first == plots.confusion_matrix(counts, ["a", "b"])


def test_tsne_survives_equal_embeddings():
    points = plots.project(np.ones((20, 4), np.float32))
    assert points.shape == (20, 2) and np.isfinite(points).all()
    with pytest.raises(ValueError, match="3 films"):
        plots.project(np.ones((3, 4)))


def test_reports_with_the_same_words_are_one_candidate():
    texts = planted.sentences()
    words = list(texts.texts)
    words[10:12] = ["THERE IS Atelectasis, secret0", "The bones are intact."]
    same = Sentences(words, texts.labels_Mx14, texts.patients, texts.studies)
    result = run(planted.films(), same, ["retrieval_exact"])
    assert result.rows[0].note == "99 candidates" and result.rows[0].n == 100
