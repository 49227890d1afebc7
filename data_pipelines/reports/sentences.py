"""Text -> cleaned sentences: decimals, enumerators and abbreviations kept whole."""

import re
import tomllib
from functools import cache

from data_pipelines.reports.sections import RULES

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_BULLET = re.compile(r"\n[ \t]*(?:[-*\u2022\u00b7][ \t]+|\(?\d{1,2}[.)][ \t]+)")
_SPACE = re.compile(r"\s+")
_UNDERSCORES = re.compile(r"_{2,}")
_ENUMERATOR = re.compile(r"^(?:\(?\d{1,2}[.)]\s+|[-*\u2022\u00b7]\s+)+")
# "1. Clear lungs. 2. No effusion": a number and a period between sentences.
_INLINE_ENUMERATOR = re.compile(
    r"(?:(?<=[.;:!?])|(?<=[.;:!?] ))\s*\(?\d{1,2}[.)]\s+(?=[A-Za-z_])"
)
# A period that no space follows ("effusion.Heart") ends a sentence between words.
_BREAK = re.compile(r"(?<=[a-z)\d]{2})[.!?](?=[A-Z][a-z])|[.!?]+[\"')\]]*(?=\s|$)")
_LETTER = re.compile("[A-Za-z]")


@cache
def _words() -> dict[str, frozenset[str]]:
    table = tomllib.loads((RULES / "sentences.toml").read_text("utf-8"))
    return {name: frozenset(words) for name, words in table.items()}


@cache
def _notification() -> re.Pattern:
    return re.compile(
        "|".join(map(re.escape, sorted(_words()["notification"]))), re.IGNORECASE
    )


def clean_text(text: str) -> str:
    """Repairs characters and folds white space, keeping paragraphs.

    De-identified spans of any length become `___`: a tokenizer sees one placeholder,
    and "Dr. ___" or "___-year-old" keep their shape.

    Args:
      text: section text.

    Returns:
      The text with one newline and one blank line between paragraphs.
    """
    text = text.replace("\r\n", "\n").replace("\ufffd", " ").replace("\u00a0", " ")
    text = text.replace("\u2019", "'").replace("\u2018", "'")
    text = text.replace("\u201c", '"').replace("\u201d", '"')
    text = text.replace("\u2013", "-").replace("\u2014", " - ")
    return _UNDERSCORES.sub("___", text)


def _ends_sentence(before: str, after: str) -> bool:
    """Whether the period between two texts ends a sentence."""
    word = re.split(r"[\s(]", before)[-1].lower()
    words = _words()
    if word in words["never"]:
        return False
    head = after.lstrip()[:1]
    if word in words["before_number"] and (head.isdigit() or head == "_"):
        return False
    if word in words["before_capital"]:
        return head.isupper() or not head
    # An initial: "J. Smith"; but "hepatitis C. No" and "vitamin D." are rarer here.
    return not (len(word) == 1 and word.isalpha() and before[-1:].isupper())


def _split_paragraph(text: str) -> list[str]:
    sentences, start = [], 0
    for match in _BREAK.finditer(text):
        mark = match.group()[0]
        if mark == "." and not _ends_sentence(
            text[start : match.start()], text[match.end() :]
        ):
            continue
        sentences.append(text[start : match.end()])
        start = match.end()
    return [*sentences, text[start:]]


def split_sentences(text: str) -> list[str]:
    """Splits section text into sentences.

    Blank lines, bullets and list numbers end a sentence; line breaks do not.
    Decimals ("2.5 cm"), "Dr. ___", "5 a.m. on", "vs.", "No. 3" stay whole. List
    numbers are dropped. Short sentences ("Clear lungs.") are kept; what holds no
    letter is not.

    Args:
      text: section text, with or without line breaks.

    Returns:
      Sentences in reading order, white space folded, final mark kept.
    """
    sentences = []
    for paragraph in _PARAGRAPH.split("\n" + clean_text(text)):
        for item in _BULLET.split("\n" + paragraph):
            folded = _INLINE_ENUMERATOR.sub(" ", _SPACE.sub(" ", item).strip())
            for sentence in _split_paragraph(folded):
                sentence = _ENUMERATOR.sub("", sentence.strip())
                if _LETTER.search(sentence):
                    sentences.append(sentence)
    return sentences


def is_notification(sentence: str) -> bool:
    """Whether a sentence tells who was told or who signed, and when."""
    return _notification().search(sentence) is not None
