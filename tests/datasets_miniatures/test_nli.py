"""RadNLI and MedNLI: two spellings of one format."""

import collections
import json
import re

import pytest
from mimic_annotations import PATIENTS, annotate, prepare, rows

from data_pipelines.hospital.grammar import evaluation_prompts, normalize
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

PAIR = {
    "pair_id": "1",
    "gold_label": "entailment",
    "sentence1": "small left effusion",
    "sentence2": "effusion",
}

DENIED = re.compile("(there is )?no (?!(significant|interval|relevant) change)")


@pytest.fixture(scope="module")
def raw(hospital, tmp_path_factory):
    root = tmp_path_factory.mktemp("nli")
    for name in ("radnli", "mednli"):
        annotate(name, root / name, hospital)
    return root


def no_prompts(found):
    texts = {normalize(row[f"sentence{n}"]) for row in found for n in (1, 2)}
    return not texts & evaluation_prompts()


def test_radnli_has_each_two_sentences_in_both_orders(raw, tmp_path):
    found = rows(prepare("radnli", raw / "radnli", tmp_path), "sentence_pairs")
    assert no_prompts(found)
    by_split = collections.Counter(row["split"] for row in found)
    assert set(by_split) == {"validate", "test"}
    assert all(abs(many - 8 * PATIENTS) <= 4 for many in by_split.values())
    back = {"entailment": "neutral", "neutral": None, "contradiction": "contradiction"}
    label_of = {(r["sentence1"], r["sentence2"]): r["label"] for r in found}
    for (first, second), label in label_of.items():
        assert label_of[second, first] == back[label] or label == "neutral"
        assert first == first.lower() and first.endswith(" .")
        if label == "contradiction":
            assert bool(DENIED.match(first)) != bool(DENIED.match(second))
        if label == "entailment":  # what follows says nothing of the change
            assert len(second.split()) < 8 and not DENIED.match(second)
    counts = collections.Counter(row["label"] for row in found)
    assert counts["neutral"] > counts["contradiction"] > 0 < counts["entailment"]


def test_mednli_is_balanced_and_hypotheses_lose_their_space(raw, tmp_path):
    lines = (raw / "mednli" / "mli_train_v1.jsonl").read_text().splitlines()
    stored = [json.loads(line) for line in lines]
    assert all(pair["sentence2"].startswith(" ") for pair in stored)
    found = rows(prepare("mednli", raw / "mednli", tmp_path), "sentence_pairs")
    assert no_prompts(found)
    counts = collections.Counter((row["split"], row["label"]) for row in found)
    assert counts == {
        (split, label): many * PATIENTS
        for split, many in (("train", 8), ("validate", 1), ("test", 1))
        for label in ("entailment", "neutral", "contradiction")
    }
    wanted = {pair["pairID"]: pair["sentence2"].strip() for pair in stored}
    train = {r["pair_id"]: r["sentence2"] for r in found if r["split"] == "train"}
    assert train == wanted
    first = {row["sentence1"] for row in found if row["split"] == "train"}
    # The same premise once for each label, but for those that had to be drawn again.
    assert len(first) < 0.5 * len(train)


def test_bad_lines_are_rejected_by_number_and_others_kept(tmp_path):
    bad = [
        b"{broken",
        b'["a"]',
        json.dumps({**PAIR, "pair_id": "2", "gold_label": "-"}).encode(),
        json.dumps({**PAIR, "pair_id": "3", "sentence2": " "}).encode(),
        json.dumps({**PAIR, "pair_id": None}).encode(),
        json.dumps(PAIR).encode(),
        json.dumps({**PAIR, "pair_id": "4"}).encode().replace(b"left", b"l\xe9ft"),
    ]
    more = {**PAIR, "pair_id": "5", "sentence2": "one\u2028line", "parse": "(X)"}
    lines = [json.dumps(PAIR).encode(), *bad, b"", json.dumps(more).encode()]
    lines[-1] = json.dumps(more, ensure_ascii=False).encode()
    raw = tmp_path / "raw" / "release"
    raw.mkdir(parents=True)
    (raw / "radnli_test_v1.jsonl").write_bytes(b"\n".join(lines))
    out = prepare("radnli", raw.parent, tmp_path, "--max-rejected-percent", "90")
    found = {row["pair_id"]: row for row in rows(out, "sentence_pairs")}
    assert found.keys() == {"1", "5"}
    assert found["5"]["sentence2"] == "one\u2028line"
    listed = {r["detail"].split(":")[0]: r for r in read_rows(out / "rejected.csv")}
    assert set(listed) == {f"line {number}" for number in range(2, 9)}
    assert {row["path"] for row in listed.values()} == {"radnli_test_v1.jsonl"}
    assert "not UTF-8" in listed["line 8"]["detail"]
    assert "left" not in (out / "rejected.csv").read_text()


def test_what_is_missing_is_named(tmp_path):
    for name, file in (("radnli", "radnli_dev_v1"), ("mednli", "mli_train_v1")):
        with pytest.raises(UserError, match=file):
            prepare(name, tmp_path, tmp_path / "out")
    # MedNLI's id has another name than RadNLI's.
    (tmp_path / "mli_test_v1.jsonl").write_text(json.dumps(PAIR) + "\n")
    with pytest.raises(UserError, match="pairID is missing"):
        prepare("mednli", tmp_path, tmp_path / "out")
