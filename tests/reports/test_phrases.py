import pytest

from data_pipelines.reports.phrases import PhraseTable, expand_phrase, tokenize


def test_expand_phrase_gives_every_reading():
    assert set(expand_phrase("no|without change(s) in?")) == {
        ("no", "change"),
        ("no", "change", "in"),
        ("no", "changes"),
        ("no", "changes", "in"),
        ("without", "change"),
        ("without", "change", "in"),
        ("without", "changes"),
        ("without", "changes", "in"),
    }
    assert set(expand_phrase("{soft tissue|chest wall} edema")) == {
        ("soft", "tissue", "edema"),
        ("chest", "wall", "edema"),
    }


@pytest.mark.parametrize("phrase", ["the?", "plate-like", "Edema", "a.m"])
def test_expand_phrase_refuses_what_no_text_has(phrase):
    with pytest.raises(ValueError, match="which no text has"):
        expand_phrase(phrase)


def test_tokenize_parts_hyphens_and_expands_short_forms():
    assert tokenize("Plate-like; r/o 2.5 cm nodule, w/o and/or.") == [
        "plate", "like", ";", "rule", "out", "2.5", "cm", "nodule", ",", "without", "or",
    ]  # fmt: skip


def test_scan_takes_the_longest_and_never_overlaps():
    table = PhraseTable()
    table.add("negation", ["no"])
    table.add("pseudo", ["no change in"])
    table.add("finding", ["edema"], (5,))
    table.add("none", ["soft tissue edema"])
    found = table.scan(tokenize("no change in edema, no soft tissue edema of soft"))
    assert [(item.kind, item.start, item.end) for item in found] == [
        ("pseudo", 0, 3),
        ("finding", 3, 4),
        ("negation", 5, 6),
        ("none", 6, 9),
    ]


def test_same_words_under_two_kinds_are_refused_and_payloads_join():
    table = PhraseTable()
    table.add("finding", ["hydropneumothorax"], (9,))
    table.add("finding", ["hydropneumothorax"], (10,))
    assert table.scan(["hydropneumothorax"])[0].payload == (9, 10)
    with pytest.raises(ValueError, match="stands under finding and none"):
        table.add("none", ["hydropneumothorax"])
