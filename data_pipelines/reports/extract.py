"""Knowledge extraction: the 14 findings of a sentence and of a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NO_FINDING,
    NOT_GIVEN,
    POSITIVE,
    SUPPORT_DEVICES,
    UNCERTAIN,
)
from data_pipelines.reports.chexpert import ChexpertRules
from data_pipelines.reports.lexicon import Lexicon
from data_pipelines.reports.sections import label_sections
from data_pipelines.reports.sentences import is_notification, split_sentences

Mention = tuple[int, int]
"""(index of a finding, or OTHER for one outside the 14; code)."""


class _Rules(Protocol):
    def mentions(self, sentence: str) -> list[Mention]: ...


RULE_SETS: dict[str, Callable[[], _Rules]] = {
    "medclip_jax": Lexicon,
    "chexpert": ChexpertRules,
}


def _combine(codes: set[int], rules: str) -> int:
    """One code of all mentions of a finding.

    A positive mention wins, then an uncertain one. The CheXpert labeler's code lets
    uncertain win over positive where there is a negative mention too.

    Reference: stanfordmlgroup/chexpert-labeler, stages/aggregate.py, dict_to_vec.
    """
    if rules == "chexpert" and codes >= {NEGATIVE, UNCERTAIN}:
        return UNCERTAIN
    if POSITIVE in codes:
        return POSITIVE
    if UNCERTAIN in codes:
        return UNCERTAIN
    return NEGATIVE if NEGATIVE in codes else NOT_GIVEN


def _label_mentions(mentions: Sequence[Mention], rules: str) -> np.ndarray:
    labels = np.full(len(FINDINGS), NOT_GIVEN, np.int8)
    told: dict[int, set[int]] = {}
    clean = True
    for finding, code in mentions:
        told.setdefault(finding, set()).add(code)
        if code != NEGATIVE and finding != SUPPORT_DEVICES:
            clean = False
    for finding, codes in told.items():
        if finding >= 0:
            labels[finding] = _combine(codes, rules)
    labels[NO_FINDING] = POSITIVE if clean else NOT_GIVEN
    return labels


class Extractor:
    """Labels sentences with the 14 findings.

    Args:
      rules: "medclip_jax", the project's own tables; "chexpert", the CheXpert
        labeler's phrases and its order of classification.

    Raises:
      ValueError: another name.
    """

    def __init__(self, rules: str = "medclip_jax") -> None:
        if rules not in RULE_SETS:
            raise ValueError(f"rules {rules!r}: expected one of {sorted(RULE_SETS)}")
        self.rules = rules
        self._rules: _Rules = RULE_SETS[rules]()

    def label_sentence(self, sentence: str) -> np.ndarray:
        """Labels one sentence.

        Args:
          sentence: text of one sentence.

        Returns:
          int8 [14], codes of `data_pipelines.findings`. No Finding is positive when
          nothing but devices is told as present or possible, else not given.
        """
        return _label_mentions(self._rules.mentions(sentence), self.rules)

    def label_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Labels sentences; returns int8 [S, 14]."""
        labels = np.full((len(sentences), len(FINDINGS)), NOT_GIVEN, np.int8)
        for row, sentence in enumerate(sentences):
            labels[row] = self.label_sentence(sentence)
        return labels

    def label_report(self, sentences: Sequence[str]) -> np.ndarray:
        """Labels a report from all mentions of its sentences; returns int8 [14].

        For the rules "chexpert" this differs from `aggregate` where one sentence
        both doubts and denies a finding that another one states.
        """
        mentions = [m for text in sentences for m in self._rules.mentions(text)]
        return _label_mentions(mentions, self.rules)


def aggregate(sentence_labels: np.ndarray, rules: str = "medclip_jax") -> np.ndarray:
    """Joins the labels of a report's sentences.

    Args:
      sentence_labels: int8 [S, 14], codes of `data_pipelines.findings`.
      rules: how positive, negative and uncertain mentions of one finding join.

    Returns:
      int8 [14]. No Finding is positive when it is so in every sentence, as for a
      report without sentences it is not given.
    """
    labels = np.full(len(FINDINGS), NOT_GIVEN, np.int8)
    for finding in range(len(FINDINGS)):
        codes = set(sentence_labels[:, finding].tolist()) - {NOT_GIVEN}
        labels[finding] = _combine(codes, rules)
    clean = len(sentence_labels) > 0 and np.all(
        sentence_labels[:, NO_FINDING] == POSITIVE
    )
    labels[NO_FINDING] = POSITIVE if clean else NOT_GIVEN
    return labels


@dataclass(frozen=True)
class ReportText:
    """A report read.

    Attributes:
      sections: all sections by name, in reading order.
      sentences: cleaned sentences of the sections that may be labelled.
      sentence_sections: the section of each sentence.
      sentence_labels: int8 [S, 14].
      labels: int8 [14], of the whole report.
    """

    sections: dict[str, str]
    sentences: list[str]
    sentence_sections: list[str]
    sentence_labels: np.ndarray
    labels: np.ndarray


@cache
def _extractor(rules: str) -> Extractor:
    return Extractor(rules)


def process_report(
    text: str, rules: str = "medclip_jax", study: str = ""
) -> ReportText:
    """Reads a report: sections, sentences, and the findings of each sentence.

    Only findings and impression (or the last paragraph, or a report without headings)
    are read: indication and history ask, they do not tell. Sentences about who was
    told, and when, are left out.

    Args:
      text: a raw report.
      rules: rule set, see `Extractor`.
      study: MIMIC-CXR study id, for the reports whose text no rule finds.

    Returns:
      The sections, sentences and labels; no sentence where there is nothing to read,
      and then labels that are all not given.
    """
    sections, names = label_sections(text, study)
    sentences: list[str] = []
    sentence_sections: list[str] = []
    for name in names:
        for sentence in split_sentences(sections[name]):
            if not is_notification(sentence):
                sentences.append(sentence)
                sentence_sections.append(name)
    extractor = _extractor(rules)
    labels = extractor.label_sentences(sentences)
    whole = (
        extractor.label_report(sentences)
        if rules == "chexpert" and sentences
        else aggregate(labels, rules)
    )
    return ReportText(sections, sentences, sentence_sections, labels, whole)
