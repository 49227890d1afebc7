"""Prompt grammar against the published counts, and the leakage check."""

import pytest

from data_pipelines.findings import FINDINGS
from medclip_jax.errors import UserError
from medclip_jax.evaluation import prompts


@pytest.mark.parametrize(
    ("name", "total", "distinct"),
    [
        ("Atelectasis", 210, 210),
        ("Cardiomegaly", 15, 15),
        ("Consolidation", 192, 192),
        ("Edema", 18, 18),
        ("Pleural Effusion", 54, 36),
        ("COVID", 12, 12),
        ("RSNA Pneumonia", 312, 312),
    ],
)
def test_counts_are_the_published_ones(name, total, distinct):
    texts = prompts.all_prompts(name)
    assert len(texts) == total
    assert len(set(texts)) == distinct


def test_field_order_spelling_and_empty_fields():
    assert prompts.all_prompts("Pleural Effusion")[9] == (
        "small left bilateral pleural effusion"
    )
    assert prompts.all_prompts("Atelectasis")[70] == (
        "mild subsegmental atelectasis at the mid lung zone"
    )
    assert prompts.all_prompts("Edema")[0] == " pulmonary edema "
    consolidation = prompts.all_prompts("Consolidation")
    assert "apperance of patchy consolidation at the right uppper lobe" in consolidation
    assert any("presistent" in text for text in prompts.all_prompts("Edema"))
    rsna = prompts.all_prompts("RSNA Pneumonia")
    assert sum(not text.strip() for text in rsna) == 1
    assert not any("pneumonia" in text for text in rsna)
    assert (
        prompts.all_prompts("COVID")[0] == "patchy ground glass opacity in peripheral"
    )


def test_every_finding_has_prompts_and_an_unknown_name_does_not():
    fourteen = prompts.fourteen_prompts()
    assert tuple(fourteen) == FINDINGS
    assert all(len(set(texts)) >= 6 for texts in fourteen.values())
    with pytest.raises(UserError, match="Hernia"):
        prompts.all_prompts("Hernia")


def test_draws_are_seeded_without_replacement_and_independent_of_other_classes():
    five = prompts.five_class_prompts()
    first = prompts.draw_prompts(five, seed=3)
    assert first == prompts.draw_prompts(five, seed=3)
    assert first != prompts.draw_prompts(five, seed=4)
    assert all(len(set(drawn)) == 10 for drawn in first.values())
    alone = prompts.draw_prompts({"Edema": five["Edema"]}, seed=3)
    assert alone["Edema"] == first["Edema"]
    many = prompts.draw_prompts(five, per_class=100, seed=0)
    assert [len(many[name]) for name in five] == [100, 15, 100, 18, 54]


def test_normalise_strips_case_punctuation_and_spaces():
    assert prompts.normalise("  Mild,  Pulmonary\nEdema. ") == "mild pulmonary edema"
    assert prompts.normalise("___ --") == ""


def test_overlap_counts_and_the_error_names_no_text():
    five = [text for texts in prompts.five_class_prompts().values() for text in texts]
    clean = prompts.count_overlap(["The lungs are clear.", "pulmonary"], five)
    assert clean == {"sentences": 0, "prompts": 0, "checked": 2}
    prompts.require_no_overlap(clean)
    dirty = prompts.count_overlap(
        iter(["MILD PULMONARY EDEMA.", "Clear.", "", "x"]), five
    )
    assert dirty == {"sentences": 1, "prompts": 1, "checked": 4}
    with pytest.raises(UserError, match="1 of 4 training sentences") as caught:
        prompts.require_no_overlap(dirty)
    assert "edema" not in str(caught.value).lower()


def test_the_empty_prompt_matches_no_sentence():
    rsna = prompts.all_prompts("RSNA Pneumonia")
    assert prompts.count_overlap(["", " . "], rsna)["sentences"] == 0
