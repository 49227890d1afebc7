"""The CheXpert labeler's behaviour, as far as it goes without its parser.

The phrases (substrings, in ../reports/chexpert_labeler, MIT licence), the dropped
mentions, the order of classification, the heart failure rule and No Finding are the
labeler's own. Its negation and uncertainty patterns run on the dependency graph of the
bllip parser, which cannot run here: `rules/chexpert_cues.toml` puts windows of words in
their place. It differs most where a sentence has several clauses without punctuation,
and where the parser itself erred.

Reference: stanfordmlgroup/chexpert-labeler, stages/extract.py, classify.py,
aggregate.py; Irvin et al. 2019, section 3.
"""

import itertools
import re
from importlib import resources

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NO_FINDING,
    POSITIVE,
    UNCERTAIN,
)
from data_pipelines.reports import context
from data_pipelines.reports.context import DOUBTED, NEGATED, OPEN
from data_pipelines.reports.phrases import Item, PhraseTable
from data_pipelines.reports.sections import RULES

PHRASES = resources.files("data_pipelines.reports") / "chexpert_labeler" / "phrases"

_CARDIOMEGALY = FINDINGS.index("Cardiomegaly")
_MEDIASTINUM = FINDINGS.index("Enlarged Cardiomediastinum")
_HEART_FAILURE = frozenset({"chf", "heart failure"})
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[a-z_][a-z0-9_]*|[,;:()?/]")
_CLEANING = (
    (re.compile(r"and/or"), "or"),
    (re.compile(r"(?<=[a-zA-Z])/(?=[a-zA-Z])"), " or "),
    (re.compile(r"\.\."), "."),
    (re.compile(r"(?<=[a-z]),"), ", "),
    (re.compile(r"\s+"), " "),
)
_STABLE_WORDS = re.compile(
    r"mediastin|pericardial|contour|configuration|silhouette|size|heart|shadow"
)


def _read_phrases(folder: str, finding: str) -> list[str]:
    path = PHRASES / folder / f"{finding.lower().replace(' ', '_')}.txt"
    if not path.is_file():
        return []
    return [
        line.replace("_", " ") for line in path.read_text("utf-8").split("\n") if line
    ]


def _generated_unmentions(mentions: list[str], spared: set[str]) -> list[str]:
    """Places that a heart or mediastinum only locates: "in the left heart"."""
    prefixes = itertools.product(
        ("over the", "overly the", "in the"), ("", " superior", " left", " right")
    )
    own = [m.replace("the ", "") for m in mentions if m not in spared]
    return [
        f"{place}{side} {mention}"
        for (place, side), mention in itertools.product(prefixes, own)
    ]


def _union(phrases: list[str]) -> re.Pattern | None:
    return re.compile("|".join(map(re.escape, phrases))) if phrases else None


class ChexpertRules:
    """Finds mentions as the CheXpert labeler does, and classifies each."""

    def __init__(self) -> None:
        self._phrases: list[tuple[int, str]] = []
        self._unmentions: dict[int, re.Pattern] = {}
        for finding, name in enumerate(FINDINGS):
            mentions = _read_phrases("mention", name)
            self._phrases += [(finding, phrase) for phrase in mentions]
            unmentions = _read_phrases("unmention", name)
            if finding in (_CARDIOMEGALY, _MEDIASTINUM):
                spared = {"cardiomegaly", "cardiac enlargement"}
                unmentions += _generated_unmentions(mentions, spared)
            pattern = _union(unmentions)
            if pattern is not None:
                self._unmentions[finding] = pattern
        self._table = PhraseTable()
        context.add_cues(self._table, RULES / "chexpert_cues.toml")

    def mentions(self, sentence: str) -> list[tuple[int, int]]:
        """Lists what a sentence tells: (finding index, code).

        A phrase of the No Finding list, another abnormality, has No Finding's index
        with a code that says whether it is told as present.
        """
        text = clean(sentence)
        spans = self._spans(text)
        if not spans:
            return []
        items = self._items(text, spans)
        flags = context.resolve(items)
        _mark_stable(items, flags, text)
        found = []
        for item, flag in zip(items, flags, strict=True):
            if item.kind != "finding":
                continue
            code = _classify(item, flag)
            finding, phrase = item.payload
            found.append((-1 if finding == NO_FINDING else finding, code))
            if phrase in _HEART_FAILURE and code != NEGATIVE:
                found.append((_CARDIOMEGALY, UNCERTAIN))
        return found

    def _spans(self, text: str) -> list[tuple[int, int, int, str]]:
        """(start, end, finding, phrase) of each mention that is not dropped."""
        spans = []
        for finding, phrase in self._phrases:
            start = text.find(phrase)
            while start >= 0:
                end = start + len(phrase)
                if not self._dropped(finding, text, start, end):
                    spans.append((start, end, finding, phrase))
                start = text.find(phrase, end)
        return sorted(spans)

    def _dropped(self, finding: int, text: str, start: int, end: int) -> bool:
        pattern = self._unmentions.get(finding)
        return pattern is not None and any(
            match.start() < end and start < match.end()
            for match in pattern.finditer(text)
        )

    def _items(self, text: str, spans: list[tuple[int, int, int, str]]) -> list[Item]:
        """Mentions and cues as one list in the order of the sentence."""
        matches = list(_TOKEN.finditer(text))
        mentions, covered = [], set()
        for start, end, finding, phrase in spans:
            inside = [
                index
                for index, match in enumerate(matches)
                if match.start() < end and start < match.end()
            ]
            first, last = (inside[0], inside[-1] + 1) if inside else (0, 1)
            covered.update(inside)
            mentions.append(Item("finding", (finding, phrase), first, last))
        cues = [
            item
            for item in self._table.scan([match.group() for match in matches])
            if not covered.issuperset(range(item.start, item.end))
        ]
        return sorted([*mentions, *cues], key=lambda item: (item.start, item.end))


def clean(sentence: str) -> str:
    """Cleans a sentence as the labeler does before it looks for phrases.

    Reference: stanfordmlgroup/chexpert-labeler, loader/load.py.
    """
    text = sentence.lower()
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return text.strip()


def _mark_stable(items: list[Item], flags: list[int], text: str) -> None:
    """Doubts a heart or mediastinum that is only told to be as before."""
    for at, item in enumerate(items):
        if item.kind != "stable":
            continue
        for index, other in enumerate(items):
            if (
                other.kind == "finding"
                and _STABLE_WORDS.search(other.payload[1])
                and _same_clause(items, index, at)
            ):
                flags[index] |= DOUBTED


def _same_clause(items: list[Item], first: int, second: int) -> bool:
    low, high = sorted((first, second))
    between = [item.kind for item in items[low + 1 : high]]
    return "terminator" not in between and "comma" not in between


_INHERENT = {
    "vascular congestion", "pulmonary congestion", "indistinctness",
    "vascular prominence",
}  # fmt: skip


def _classify(item: Item, flags: int) -> int:
    """Before-negation doubt, negation, after-negation doubt, else positive."""
    if flags & OPEN:
        return UNCERTAIN
    if flags & NEGATED:
        return NEGATIVE
    if flags & DOUBTED or item.payload[1] in _INHERENT:
        return UNCERTAIN
    return POSITIVE
