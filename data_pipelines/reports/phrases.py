"""Phrase tables: a small phrase language, and one pass that finds all phrases.

A phrase is words in order, as they stand in normalised text. In a word's place

- `a|b` is either word,
- `word(s)` is the word with or without the letters in parentheses,
- `{soft tissue|chest wall}` is one of several sequences of words,
- a trailing `?` makes the place optional (`of? the?`),
- `,` `;` `:` `(` `)` `?` `.` stand for themselves when they stand alone.

Matching is on whole words: "tube" is not in "tuberculosis". Phrases of all kinds are
found in one pass from left to right, the longest first, and never overlap: "no change
in" hides its "no", "soft tissue edema" its "edema".
"""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

_EXPAND = (
    (re.compile(r"\band\s*/\s*or\b"), " or "),
    (re.compile(r"\bw/\s?o\b"), " without "),
    (re.compile(r"\br/\s?o\b"), " rule out "),
    (re.compile(r"\bc/\s?w\b"), " consistent with "),
    (re.compile(r"\bs/\s?p\b"), " status post "),
)
# A full stop inside the text parts it too, but for one after an abbreviation.
_TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[a-z_][a-z0-9_]*|[,;:()?/]|(?<!vs)(?<!dr)(?<!no)\.(?=\s+\S)|^\.$"
)
_PLACE = re.compile(r"\{[^}]*\}\??|[^\s{}]+")
_PLURAL = re.compile(r"^(.*?)\(([a-z]+)\)$")


class Item(NamedTuple):
    """A phrase found in a sentence."""

    kind: str
    payload: tuple
    start: int  # index of its first token
    end: int  # one past its last token


def tokenize(sentence: str) -> list[str]:
    """Lowers a sentence and cuts it into words and marks.

    Hyphens and apostrophes part words ("plate-like" -> plate, like); a full
    stop is kept where text follows.
    """
    text = sentence.lower()
    if "/" in text:
        for pattern, replacement in _EXPAND:
            text = pattern.sub(replacement, text)
    return _TOKEN.findall(text)


def _choices(place: str) -> list[tuple[str, ...]]:
    optional = len(place) > 1 and place.endswith("?")
    choices: list[tuple[str, ...]] = [()] if optional else []
    for choice in (place[:-1] if optional else place).strip("{}").split("|"):
        plural = _PLURAL.match(choice)
        words = [plural[1], plural[1] + plural[2]] if plural else [choice]
        choices += [tuple(word.split()) for word in words]
    return choices


def expand_phrase(phrase: str) -> list[tuple[str, ...]]:
    """Lists the word sequences that a phrase stands for.

    Args:
      phrase: in the phrase language of this module.

    Returns:
      Sequences of words, at least one word each.

    Raises:
      ValueError: a phrase of optional places alone, or of characters that normalised
        text does not hold.
    """
    sequences = [
        tuple(itertools.chain.from_iterable(places))
        for places in itertools.product(*map(_choices, _PLACE.findall(phrase)))
    ]
    for sequence in sequences:
        if not sequence or not all(map(_TOKEN.fullmatch, sequence)):
            raise ValueError(f"phrase {phrase!r} gives {sequence!r}, which no text has")
    return sequences


class PhraseTable:
    """Finds the longest phrases of all kinds in one pass over a sentence's tokens."""

    def __init__(self) -> None:
        self._root: dict = {}

    def add(self, kind: str, phrases: Iterable[str], payload: tuple = ()) -> None:
        """Adds phrases.

        The same words under one kind join their payloads ("hydropneumothorax" is
        both); the same words under two kinds are an error of the table.

        Raises:
          ValueError: words that stand under two kinds.
        """
        for phrase in phrases:
            for words in expand_phrase(phrase):
                node = self._root
                for word in words:
                    node = node.setdefault(word, {})
                known_kind, known = node.get("", (kind, ()))
                if known_kind != kind:
                    raise ValueError(
                        f"{' '.join(words)!r} stands under {known_kind} and {kind}"
                    )
                new = tuple(value for value in payload if value not in known)
                node[""] = (kind, known + new)

    def scan(self, tokens: list[str]) -> list[Item]:
        """Finds phrases from left to right, the longest at each place."""
        items, position, count = [], 0, len(tokens)
        root = self._root
        while position < count:
            node = root.get(tokens[position])
            if node is None:
                position += 1
                continue
            here, found, end = position + 1, None, position
            while True:
                entry = node.get("")
                if entry is not None:
                    found, end = entry, here
                if here == count:
                    break
                node = node.get(tokens[here])
                if node is None:
                    break
                here += 1
            if found is None:
                position += 1
            else:
                items.append(Item(found[0], found[1], position, end))
                position = end
        return items
