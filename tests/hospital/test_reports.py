"""The simulated reports: form, codes, vocabulary, and no evaluation prompt in them."""

import random
import re
from collections import Counter, defaultdict

import pytest

from data_pipelines.findings import FINDINGS, NEGATIVE, NOT_GIVEN, POSITIVE, UNCERTAIN
from data_pipelines.hospital.course import draw_patient, progression
from data_pipelines.hospital.grammar import (
    Context,
    choose_if_any,
    evaluation_prompts,
    expand,
    load,
    normalize,
    parse_line,
    tidy,
)
from data_pipelines.hospital.reports_text import aggregate, write_report
from data_pipelines.reports.sections import parse_sections
from medclip_jax.evaluation import prompts as evaluation

MENTIONS = {
    "effusion": "Pleural Effusion",
    "pneumothora": "Pneumothorax",
    "edema": "Edema",
    "consolidat": "Consolidation",
    "atelecta": "Atelectasis",
    "collapse": "Atelectasis",
    "pneumonia": "Pneumonia",
    "fracture": "Fracture",
    "cardiomegaly": "Cardiomegaly",
    "opaci": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "interstitial marking": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass ": "Lung Lesion",
    "widened": "Enlarged Cardiomediastinum",
    "plaque": "Pleural Other",
    "pleural thickening": "Pleural Other",
    "tube": "Support Devices",
    "picc": "Support Devices",
    "pacemaker": "Support Devices",
}
"""A sentence with this must tell that finding, one way or another."""

COMPARING = re.compile(
    r"\b(new|prior study|previous|unchanged|stable|improv\w+|worsen\w+|persist\w+|"
    r"interval|residual|again|since|no longer|resolved|progress\w+|redemonstrat\w+)\b"
)


@pytest.fixture(scope="module")
def told():
    """(study, before, report) of a few hundred patients."""
    out = []
    for number in range(700):
        patient, before = draw_patient(11, number), None
        for study in patient.studies:
            out.append((study, before, write_report(11, patient.body, study, before)))
            before = study
    return out


@pytest.fixture(scope="module")
def sentences(told):
    return [sentence for _, _, report in told for sentence in report.sentences]


def test_a_report_is_a_function_of_seed_and_state(told):
    patient = draw_patient(11, 0)
    again = write_report(11, patient.body, patient.studies[0], None)
    assert again == told[0][2]
    assert write_report(12, patient.body, patient.studies[0], None) != again


def test_raw_form(told):
    """One space before each body line, 79 columns, title, masks; wet reads above."""
    above = 0
    for _, _, report in told:
        lines = report.text.split("\n")
        assert lines[-1] == "" and max(map(len, lines)) <= 79
        title = next(i for i, line in enumerate(lines) if "FINAL REPORT" in line)
        assert lines[title].startswith(" " * 20)
        assert all(
            re.match(r" \S", line) or line == " " for line in lines[title + 1 : -1]
        )
        above += title > 0
        if title:
            assert lines[title - 1] == " " + "_" * 78
    assert 0.02 < above / len(told) < 0.12
    assert sum("___" in report.text for _, _, report in told) > 0.8 * len(told)


def test_sections_are_found_again(told):
    """The official parser's sections hold the sentences, in order, and no others."""
    styles = Counter()
    for _, _, report in told:
        found = parse_sections(report.text)
        for section in {sentence.section for sentence in report.sentences}:
            want = [s.text for s in report.sentences if s.section == section]
            text = re.sub(
                r"(^|\s)\d+\. (?=[A-Z_])", " ", " ".join(found[section].split())
            )
            assert " ".join(text.split()) == " ".join(want)
            styles[section] += 1
    assert styles["impression"] > 0.7 * len(told)
    assert styles["findings"] > 0.6 * len(told)
    assert styles["last_paragraph"] > 0.02 * len(told)


def test_sentence_codes_follow_the_state(told):
    """Positive only what is there, negative only what is not, hedged what is hedged."""
    for study, _, report in told:
        truth = study.truth()
        for sentence in report.sentences:
            for name, code in zip(FINDINGS[1:], sentence.codes[1:], strict=True):
                if name == "Lung Opacity" and code == POSITIVE:
                    continue  # told with another finding, as in "opacity reflecting ..."
                if code == POSITIVE:
                    assert truth[name] and name not in study.hedged, sentence
                if code == NEGATIVE and name != "Support Devices":
                    assert not truth[name] and name not in study.hedged, sentence
                if code == UNCERTAIN:
                    assert name in study.hedged, sentence
            for index in sentence.findings:
                finding = study.findings[index]
                assert sentence.codes[FINDINGS.index(finding.name)] in (1, -1)


def test_no_sentence_names_a_finding_without_a_code(sentences):
    for sentence in sentences:
        text = sentence.text.lower().replace("tuberculosis", "")
        for word, name in MENTIONS.items():
            if word in text:
                assert sentence.codes[FINDINGS.index(name)] != NOT_GIVEN, sentence


def test_no_finding_of_a_sentence(sentences):
    for sentence in sentences:
        sick = any(
            code in (POSITIVE, UNCERTAIN)
            for name, code in zip(FINDINGS[1:], sentence.codes[1:], strict=True)
            if name != "Support Devices"
        )
        assert sentence.codes[0] in ((NOT_GIVEN,) if sick else (POSITIVE, NOT_GIVEN))
        if sentence.codes[0] == NOT_GIVEN and not sick:
            assert set(sentence.codes[1:]) == {NOT_GIVEN}, "another abnormality"


def test_five_are_always_told(told):
    for study, _, report in told:
        for finding in study.findings:
            code = report.labels[FINDINGS.index(finding.name)]
            hedged = finding.name in study.hedged
            if finding.name in (
                "Atelectasis",
                "Cardiomegaly",
                "Consolidation",
                "Edema",
            ):
                assert code == (UNCERTAIN if hedged else POSITIVE)


def test_aggregation():
    def row(code):
        return (NOT_GIVEN,) * 2 + (code,) + (NOT_GIVEN,) * 11

    cases = {
        (): NOT_GIVEN,
        (0,): 0,
        (0, 0): 0,
        (1, 1): 1,
        (-1,): -1,
        (0, -1): -1,
        (0, 1): 1,
        (-1, 1): 1,
        (0, -1, 1): -1,
    }
    for codes, expected in cases.items():
        assert aggregate([row(code) for code in codes])[2] == expected, codes
    clean, sick = (POSITIVE, *(NOT_GIVEN,) * 13), (NOT_GIVEN,) * 14
    assert aggregate([clean, clean])[0] == POSITIVE
    assert aggregate([clean, sick])[0] == NOT_GIVEN
    assert aggregate([])[0] == NOT_GIVEN


def test_every_finding_in_every_form_and_many_words(sentences):
    forms = defaultdict(set)
    for sentence in sentences:
        for name, code in zip(FINDINGS, sentence.codes, strict=True):
            forms[name, code].add(sentence.text)
    for name in FINDINGS[1:]:
        assert len(forms[name, POSITIVE]) > 150, name
        assert len(forms[name, NEGATIVE]) > 25, name
        assert len(forms[name, UNCERTAIN]) > 20, name


def test_comparison_words_need_a_prior(told):
    comparing = 0
    for _, before, report in told:
        for sentence in report.sentences:
            word = COMPARING.search(sentence.text.lower())
            if before is None:
                assert not word, sentence.text
            comparing += bool(word)
        heading = re.search(r"COMPARISON: +\n? ?\n? ?(.*)", report.text)
        if heading:
            assert heading.group(1).startswith(("None", "No prior")) == (before is None)
    assert comparing > 500


TURN_WORDS = {
    "improving": r"(improv\w+|decreas\w+|smaller|residual|diminished|less \w+|"
    r"partly resolved|partially cleared|partial clearing|better|is now|"
    r"returned)",
    "worsening": r"(worse\w*|increas\w+|progress\w+|more \w+|larger|enlarged further|"
    r"is now)",
    "new": r"(new|newly|development|developed|ap+earance|appeared|apperance|is now|"
    r"placed|insert\w+|placement)",
    "stable": r"(unchanged|stable|persist\w*|similar|again|not significantly changed|"
    r"no \w+ change|remains?|redemonstrat\w+|as before|presistent)",
}
NEVER_WITH = {
    "improving": r"(worse\w*|progress\w+|newly|unchanged|interval increase)",
    "worsening": r"(improv\w+|decreas\w+|newly|unchanged|smaller|residual)",
    "new": r"(worse\w*|progress\w+|improv\w+|decreas\w+|unchanged|residual|stable)",
    "stable": r"(worse\w*|progress\w+|improv\w+|decreas\w+|newly|residual|new)",
}


def test_comparison_words_say_the_course(told):
    seen = Counter()
    for study, before, report in told:
        for sentence in report.sentences:
            if len(sentence.findings) != 1 or UNCERTAIN in sentence.codes[1:]:
                continue
            turn = progression(before, study.findings[sentence.findings[0]])
            if turn == "first":
                continue
            text = sentence.text.lower()
            assert not re.search(rf"\b{NEVER_WITH[turn]}\b", text), (turn, text)
            seen[turn, bool(re.search(rf"\b{TURN_WORDS[turn]}\b", text))] += 1
    for turn in TURN_WORDS:
        assert seen[turn, True] > 1.5 * seen[turn, False], seen


def test_resolved_is_negative(told):
    found = 0
    for _, _, report in told:
        for sentence in report.sentences:
            if re.search(r"no longer|(has|have) (completely )?resolved", sentence.text):
                assert POSITIVE not in sentence.codes[1:]
                assert NEGATIVE in sentence.codes[1:]
                found += 1
    assert found > 30


# --- Evaluation prompts ----------------------------------------------------------


def test_the_generator_knows_every_evaluation_prompt():
    published = {
        normalize(prompt)
        for name in evaluation.PROMPT_FIELDS
        for prompt in evaluation.all_prompts(name)
    } - {""}
    assert len(published) > 700
    assert published <= evaluation_prompts()


def test_no_sentence_is_an_evaluation_prompt(told):
    wanted = {
        normalize(prompt)
        for prompts in evaluation.fourteen_prompts().values()
        for prompt in prompts
    } - {""}
    wanted |= evaluation_prompts()
    for _, _, report in told:
        for sentence in report.sentences:
            assert normalize(sentence.text) not in wanted
        for section, text in parse_sections(report.text).items():
            if section in ("examination", "technique", "comparison"):
                continue
            assert normalize(text) not in wanted
            for piece in re.split(r"[.:;]\s", text):
                assert normalize(re.sub(r"^\d+", "", piece)) not in wanted


def test_without_the_guard_prompts_would_leak(monkeypatch):
    """The guard has something to do: the templates alone do write prompts."""
    from data_pipelines.hospital import wording

    monkeypatch.setattr(wording, "evaluation_prompts", frozenset)
    leaked = 0
    for number in range(300):
        patient, before = draw_patient(11, number), None
        for study in patient.studies:
            report = write_report(11, patient.body, study, before)
            before = study
            leaked += sum(
                normalize(s.text) in evaluation_prompts() for s in report.sentences
            )
    assert leaked > 0


def test_words_of_the_prompts_are_learnt(sentences):
    """Each word of the five classes' prompts is in positive sentences of its class."""
    words = defaultdict(Counter)
    for sentence in sentences:
        for name, code in zip(FINDINGS, sentence.codes, strict=True):
            if code in (POSITIVE, UNCERTAIN):
                words[name].update(re.findall(r"[a-z]+", sentence.text.lower()))
    misspelt = {"apperance", "presistent", "uppper"}
    elsewhere = {  # not said of this finding, yet known words
        "chambers", "other", "remains", "erect", "ap", "of", "limits", "upper", "normal",
        "less", "likely", "left", "ventricular", "chest", "portable", "which", "trace",
    }  # fmt: skip
    for name, prompts in evaluation.five_class_prompts().items():
        needed = {w for p in prompts for w in re.findall(r"[a-z]+", p.lower())}
        missing = needed - misspelt - elsewhere - set(words[name])
        assert not missing, (name, missing)


# --- The template language -------------------------------------------------------


def test_expansion_and_tags():
    rng = random.Random(0)
    drawn = {expand(rng, "[a|b[c|d]|] {x}", {"x": "[1|2]"}) for _ in range(200)}
    assert drawn == {f"{a} {x}" for a in ("a", "bc", "bd", "") for x in "12"}
    line = parse_line("text ;; x3 one kind=a,b free=ED LO+ clear")
    assert (line.weight, line.number, line.also) == (3, "one", (("Lung Opacity", 1),))
    assert line.fits(Context({"kind": "b"}, flags=frozenset({"clear"})))
    assert not line.fits(Context({"kind": "c"}, flags=frozenset({"clear"})))
    assert not line.fits(Context({"kind": "b"}))
    taken = Context({"kind": "b"}, {}, frozenset({"Edema"}), frozenset({"clear"}))
    assert not line.fits(taken)
    assert choose_if_any(rng, ["text ;; kind=z"], Context()) is None
    for broken in ("[a", "a]", "{a"):
        with pytest.raises(ValueError):
            expand(rng, broken, {})
    with pytest.raises(ValueError, match="tag"):
        parse_line("text ;; sometimes")


def test_tidy():
    assert tidy("a  interstitial edema , or a NG tube ") == (
        "An interstitial edema, or an NG tube."
    )
    assert tidy("cough, ? pneumonia?") == "Cough, ? pneumonia?"


def test_every_template_line_parses():
    def lines(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from lines(inner) if key != "grammar" else ()
        elif isinstance(value, list):
            for inner in value:
                yield from lines(inner)

    rng = random.Random(0)
    blank = defaultdict(lambda: "x")
    for name in ("frames", "lungs", "chest", "devices", "neutral"):
        for line in lines(load(name)):
            expand(rng, parse_line(line).text, blank)
