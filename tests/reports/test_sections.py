import pytest

from data_pipelines.reports.sections import (
    label_sections,
    normalize_heading,
    official_label_text,
    parse_sections,
)

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with cough.  Rule out pneumonia.
 
 COMPARISON:  ___
 
 FINDINGS: 
 
 The lungs are clear.  LEFT LUNG: no effusion.
 
 IMPRESSION: 
 
 No acute process.
"""


def test_official_sections_by_name():
    sections = parse_sections(REPORT, official=True)
    assert list(sections) == [
        "preamble",
        "examination",
        "indication",
        "comparison",
        "findings",
        "impression",
    ]
    assert sections["impression"].strip() == "No acute process."
    # A heading inside a line is no heading.
    assert "LEFT LUNG: no effusion." in sections["findings"]
    assert official_label_text(REPORT) == "No acute process."


def test_label_sections_never_hold_indication():
    sections, names = label_sections(REPORT)
    assert names == ["findings", "impression"]
    assert "Rule out" in sections["indication"]


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("NDICATION", "impression"),
        ("FINIDNGS", "findings"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("CLINICAL INFORMATION", "history"),
        ("RELEVANT HISTORY", "history"),
        ("REASON FOR EXAM", "indication"),
        ("CHEST CT IMPRESSION", "impression"),
        ("LINES AND TUBES", "lines and tubes"),
    ],
)
def test_headings_are_named(heading, name):
    assert normalize_heading(heading) == name


def test_last_of_duplicates_wins_and_empty_is_dropped():
    text = "\n IMPRESSION: addendum text\n \n FINDINGS: \n IMPRESSION: original text\n"
    sections = parse_sections(text, official=True)
    assert sections["impression"].strip() == "original text"
    assert "findings" not in sections


def test_official_heading_swallows_the_heading_of_its_first_line():
    text = "\n FINDINGS:\n IMPRESSION: Small effusion.\n HISTORY: Cough.\n"
    sections = parse_sections(text, official=True)
    assert list(sections) == ["preamble", "findings", "history"]
    assert "IMPRESSION: Small effusion." in sections["findings"]
    assert parse_sections(text)["impression"] == "Small effusion."


def test_last_paragraph_of_a_report_without_findings():
    text = "\n HISTORY: Cough, r/o pneumonia.\n \n Small effusion.\n \n Big heart.\n"
    for official in (True, False):
        sections = parse_sections(text, official)
        assert sections["history"].strip() == "Cough, r/o pneumonia."
        assert "Small effusion." in sections["last_paragraph"]
    assert label_sections(text)[1] == ["last_paragraph"]


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("FINDINGS: Small effusion.", "findings"),
        ("\n CHEST, 2 VIEWS: Small effusion.", "findings"),
        ("\n PATIENT'S HISTORY: x\n AP & LATERAL CHEST: Small effusion.", "findings"),
        ("Indication: cough\nFindings: Small effusion.", "findings"),
        ("History: cough\r\nImpression:\r\nSmall effusion.", "impression"),
    ],
)
def test_gaps_of_the_official_parser_are_handled(text, section):
    assert parse_sections(text)[section] == "Small effusion."
    assert parse_sections(text, official=True).get(section) != "Small effusion."
    assert label_sections(text)[1] == [section]


def test_wet_read_above_a_report_without_headings_is_cut():
    text = f" WET READ: large effusion\n {'_' * 40}\n FINAL REPORT\n Small effusion.\n"
    sections, names = label_sections(text)
    assert "large effusion" not in " ".join(sections[name] for name in names)
    plain = f" Large effusion\n {'_' * 40}\n FINAL REPORT\n Small effusion.\n"
    assert parse_sections(plain) == {"full report": "Small effusion."}


def test_plain_text_is_read_whole_and_indication_alone_is_not():
    assert label_sections("Small effusion.")[1] == ["full report"]
    assert label_sections("\n INDICATION: effusion?\n")[1] == []
    assert label_sections("")[1] == []


def test_mimic_exceptions():
    text = "0123456789" * 100
    assert label_sections(text, "s50525523")[0]["custom"] == text[201:349]
    assert label_sections(text, "50525523")[1] == ["custom"]
    assert label_sections("Small effusion.", "s58235663")[1] == []
    recommended = "\n IMPRESSION: a\n RECOMMENDATION(S): b\n"
    assert label_sections(recommended, "s50913680")[1] == ["recommendations"]
