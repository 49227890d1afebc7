"""The project's own rule set: whole words, body parts and what is told of them."""

import tomllib

from data_pipelines.findings import FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN
from data_pipelines.reports import context
from data_pipelines.reports.context import DOUBTED, IGNORED, NEGATED, OPEN
from data_pipelines.reports.phrases import Item, PhraseTable, tokenize
from data_pipelines.reports.sections import RULES

OTHER = -1
"""Stands for a finding outside the 14 in a list of mentions."""

_PASSED = frozenset({"structure", "comma", "and", "or", "none", "size"})


_PLAIN_CODES = {"mentions": POSITIVE, "hints": UNCERTAIN, "denials": NEGATIVE}
"""What the phrases of each list tell when no cue reaches them."""


def flags_to_code(flags: int, plain: int = POSITIVE) -> int | None:
    """Turns a mention's flags into a code; None when the mention is no statement."""
    if flags & IGNORED:
        return None
    if flags & OPEN:
        return UNCERTAIN
    if flags & NEGATED:
        return NEGATIVE
    return UNCERTAIN if flags & DOUBTED else plain


def _read(name: str) -> dict:
    return tomllib.loads((RULES / name).read_text("utf-8"))


def _codes(part: dict) -> dict[str, int]:
    """State -> code of a part of the body."""
    keys = {"negative": NEGATIVE, "positive": POSITIVE, "uncertain": UNCERTAIN}
    return {state: code for key, code in keys.items() for state in part.get(key, ())}


class Lexicon:
    """Finds mentions of the 14 findings in a sentence, and what is told of each."""

    def __init__(self) -> None:
        self._table = PhraseTable()
        for name, entry in _read("mentions.toml").items():
            finding = FINDINGS.index(name)
            for key, code in _PLAIN_CODES.items():
                self._table.add("finding", entry.get(key, ()), ((finding, code),))
        for kind, phrases in _read("not_findings.toml").items():
            self._table.add(kind, phrases)
        structures = _read("structures.toml")
        self._structures = {}
        for name, entry in structures["parts"].items():
            self._structures[name] = (FINDINGS.index(entry["finding"]), _codes(entry))
            self._table.add("structure", entry["phrases"], (name,))
        for state, phrases in structures["states"].items():
            self._table.add("state", phrases, (state,))
        context.add_cues(self._table, RULES / "cues.toml")

    def mentions(self, sentence: str) -> list[tuple[int, int]]:
        """Lists what a sentence tells.

        Args:
          sentence: raw or cleaned text of one sentence.

        Returns:
          (finding index or OTHER, code) in the order of the sentence.
        """
        items = self._table.scan(tokenize(sentence))
        flags = context.resolve(items)
        found = []
        for at, item in enumerate(items):
            if item.kind == "finding":
                doubt = DOUBTED if _is_borderline(items, at) else 0
                for finding, plain in item.payload:
                    code = flags_to_code(flags[at] | doubt, plain)
                    if code is not None:
                        found.append((finding, code))
            elif item.kind == "other":
                code = flags_to_code(flags[at])
                if code is not None:
                    found.append((OTHER, code))
            elif item.kind == "structure":
                for name in item.payload:
                    finding, codes = self._structures[name]
                    state = _state_of(items, at, codes)
                    if state is not None:
                        code = _state_code(codes, items[state], flags[state])
                        if code is not None:
                            found.append((finding, code))
        return found


def _is_borderline(items: list[Item], at: int) -> bool:
    """Whether "borderline" stands before a finding ("borderline cardiomegaly")."""
    before = items[at - 1] if at else None
    return (
        before is not None
        and before.payload == ("borderline",)
        and items[at].start - before.end <= 1
    )


def _relevant(item: Item, codes: dict[str, int]) -> bool:
    return item.kind == "state" and item.payload[0] in codes


def _state_code(codes: dict[str, int], state: Item, flags: int) -> int | None:
    """Code of a body part from its state: "not enlarged" is negative."""
    code = codes[state.payload[0]]
    if code == NEGATIVE:
        # "not normal" names no finding for certain; "likely normal" is still normal.
        return UNCERTAIN if flags & (NEGATED | OPEN) else NEGATIVE
    told = flags_to_code(flags)
    return code if told == POSITIVE else told


def _is_predicate(items: list[Item], at: int) -> bool:
    """Whether a state belongs to a verb before it ("heart is enlarged")."""
    index = at - 1
    while index >= 0 and items[index].kind in ("size", "negation_forward"):
        index -= 1
    return (
        index >= 0
        and items[index].kind == "verb"
        and items[at].start - items[index].end <= 3
    )


def _state_after(items: list[Item], at: int, codes: dict[str, int]) -> int | None:
    verb = False
    for index in range(at + 1, len(items)):
        kind = items[index].kind
        if _relevant(items[index], codes):
            return index
        if kind == "verb":
            verb = True
        elif kind in ("finding", "other", "sentence_end") or (
            kind == "structure" and verb
        ):
            return None
        elif kind in ("comma", "and", "terminator"):
            goes_on = _state_goes_on(items, index, codes)
            if (verb or kind == "terminator") and not goes_on:
                return None
    return None


def _state_goes_on(items: list[Item], at: int, codes: dict[str, int]) -> bool:
    """Whether more of the same body part follows a comma, "and" or "but".

    "heart is stable and enlarged" goes on; "heart is stable, mediastinum enlarged"
    does not.
    """
    following = items[at + 1] if at + 1 < len(items) else None
    if (
        following is not None
        and following.kind in ("and", "terminator")
        and following.start == items[at].end
    ):
        return True  # ", but": the second of them decides
    for item in items[at + 1 :]:
        if item.kind not in ("size", "verb"):
            return _relevant(item, codes)
    return False


def _state_of(items: list[Item], at: int, codes: dict[str, int]) -> int | None:
    """Index of the state told of the body part at an index, if any is.

    Directly before it ("enlarged heart"), else after it in its clause ("heart size
    and contour are normal"), else before the list it stands in ("normal heart,
    mediastinum and hila").
    """
    before = at - 1
    while before >= 0 and items[before].kind == "size":
        before -= 1
    if (
        before >= 0
        and _relevant(items[before], codes)
        and items[at].start - items[before].end <= 2
        # "is a widened mediastinum" tells of the mediastinum, "is widened, ..." not.
        and (items[at].start == items[before].end or not _is_predicate(items, before))
    ):
        return before
    after = _state_after(items, at, codes)
    if after is not None:
        return after
    index = at - 1
    while index >= 0 and items[index].kind in _PASSED:
        index -= 1
    if index >= 0 and _relevant(items[index], codes):
        return None if _is_predicate(items, index) else index
    return None
