"""Which mentions of a sentence are negated, doubted, or not told of this film.

The algorithm of ConText (Harkema et al. 2009, J Biomed Inform 42:839), made stricter
for report language: a cue reaches forward or backward over the mentions of its clause
until a terminator, and what ends a list ends its reach.
"""

import tomllib
from importlib.resources.abc import Traversable

from data_pipelines.reports.phrases import Item, PhraseTable

NEGATED, DOUBTED, OPEN, IGNORED = 1, 2, 4, 8
"""Flags of a mention. OPEN is a doubt that beats negation ("cannot exclude")."""

TARGETS = frozenset({"finding", "other", "state"})
_ENDS = frozenset({"terminator", "aside", "sentence_end"})
_SEPARATORS = frozenset({"comma", "and", "or"}) | _ENDS
_DOUBT_STARTS = frozenset(
    {"uncertain_forward", "uncertain_adjective", "uncertain_either", "open_forward"}
)
_NEAR_TOKENS = 4
"""How far an either-way cue looks ahead for its mention."""


def add_cues(table: PhraseTable, path: Traversable) -> None:
    """Adds the cues of a table file to a phrase table, each under its kind."""
    cues = tomllib.loads(path.read_text("utf-8"))
    separators = cues.pop("separators")
    for kind, phrases in {**cues, **separators}.items():
        table.add(kind, phrases)


class _Reach:
    """The forward cues in force while a sentence is walked from left to right."""

    def __init__(self) -> None:
        self.flags = 0
        self.narrow = 0  # those of the flags that a comma ends
        self.verb = False

    def open(self, flag: int, narrow: bool) -> None:
        self.flags |= flag
        self.narrow = self.narrow | flag if narrow else self.narrow & ~flag
        self.verb = False

    def close(self, flags: int = 15) -> None:
        self.flags &= ~flags
        self.narrow &= ~flags
        self.verb = self.verb and bool(self.flags)


def _starts_anew(items: list[Item], at: int) -> bool:
    """Whether what follows a comma or "and" is no longer the list that a cue opened.

    It is not when it has a verb, a doubt or a body part of its own, or begins with a
    degree or an article ("no edema, small effusion"), unless the list is closed by
    "or" later on ("no focal consolidation, large effusion, or pneumothorax").
    """
    own, seen_finding, anew = items[at].kind, False, False
    for index, item in enumerate(items[at + 1 :], at + 1):
        kind = item.kind
        if kind == "nor":
            return False  # "neither effusion, opacity nor fracture is seen"
        if kind in _SEPARATORS:
            if kind == "or" and own == "comma" and not anew:
                return False
            if kind in ("comma", "and") and item is items[at + 1]:
                return False  # ", and": the second separator decides
            break
        if kind == "verb" or kind in _DOUBT_STARTS or _is_subject(items, index):
            return True
        if kind in ("size", "state") and not seen_finding:
            anew = True
        seen_finding = seen_finding or kind == "finding"
    return anew and not (own == "comma" and _closed_by_or(items, at + 1))


def _is_subject(items: list[Item], at: int) -> bool:
    """Whether a body part stands for itself: not the lung of "lung consolidation"."""
    if items[at].kind != "structure":
        return False
    after = items[at + 1] if at + 1 < len(items) else None
    return not (
        after is not None
        and after.kind in ("finding", "other")
        and after.start == items[at].end
    )


def _closed_by_or(items: list[Item], start: int) -> bool:
    for item in items[start:]:
        if item.kind in ("or", "verb") or item.kind in _ENDS:
            return item.kind == "or"
    return False


def _is_attribute(items: list[Item], at: int) -> bool:
    """Whether a state stands directly before its body part: "enlarged heart"."""
    after = items[at + 1] if at + 1 < len(items) else None
    return (
        items[at].kind == "state"
        and after is not None
        and after.kind == "structure"
        and after.start == items[at].end
    )


def _mark_back(items: list[Item], flags: list[int], at: int, flag: int) -> None:
    """Gives a flag to the mentions before a backward cue, over their own list."""
    found = joined = False
    for index in range(at - 1, -1, -1):
        kind = items[index].kind
        if kind in ("finding", "other") or _is_attribute(items, index):
            flags[index] |= flag
            found = True
        elif kind in ("and", "or"):
            # "opacity, and the diaphragm is not seen": the cue has its own subject.
            if not found and items[at].start - items[index].end > 2:
                return
            joined = True
        elif (
            kind in _ENDS
            or kind in ("negation_backward", "uncertain_backward")
            or (found and kind == "verb")
            or (found and kind == "comma" and not joined)
        ):
            return


def _mention_ahead(items: list[Item], at: int) -> int | None:
    """Index of the mention that an either-way cue stands before, if one is near."""
    for index in range(at + 1, len(items)):
        item = items[index]
        if item.kind in _SEPARATORS or item.kind == "verb":
            return None
        if item.start - items[at].end > _NEAR_TOKENS:
            return None
        if item.kind in ("finding", "other", "state"):
            return index
    return None


def _mark_alternatives(items: list[Item], flags: list[int], at: int) -> None:
    """Doubts the mentions on both sides of "or", where nothing denies them."""
    left = at - 1
    while left >= 0 and items[left].kind in ("size", "comma"):
        left -= 1
    right = at + 1
    while right < len(items) and items[right].kind == "size":
        right += 1
    if left < 0 or right == len(items):
        return
    both = items[left].kind == items[right].kind == "finding"
    if both and not (flags[left] | flags[right]) & (NEGATED | IGNORED):
        flags[left] |= DOUBTED
        flags[right] |= DOUBTED


_FORWARD = {
    # kind: (flag, whether a comma ends it)
    "negation_forward": (NEGATED, False),
    "nor": (NEGATED, False),
    "open_forward": (OPEN, False),
    "open_adjective": (OPEN, True),
    "uncertain_forward": (DOUBTED, False),
    "uncertain_adjective": (DOUBTED, True),
    "ignore_forward": (IGNORED, True),
}
_BACKWARD = {
    "negation_backward": NEGATED,
    "open_backward": OPEN,
    "uncertain_backward": DOUBTED,
}
_EITHER = {"negation_either": NEGATED, "uncertain_either": DOUBTED}


def _follows_separator(items: list[Item], at: int) -> bool:
    before = items[at - 1] if at else None
    return (
        before is not None
        and before.kind in ("comma", "and")
        and before.end == items[at].start
    )


def _open_forward(items: list[Item], at: int, reach: _Reach) -> None:
    kind = items[at].kind
    flag, narrow = _FORWARD[kind]
    fresh = _follows_separator(items, at)
    # "no effusion, possible edema" begins anew; "no opacity to suggest edema" goes on.
    if flag == NEGATED or (kind in _DOUBT_STARTS and fresh):
        reach.close()
    reach.open(flag, narrow)


def resolve(items: list[Item]) -> list[int]:
    """Gives each item of a sentence its flags.

    Args:
      items: mentions (kinds "finding", "other", "state", "structure") and cues in
        the order of the sentence.

    Returns:
      For each item the flags that its mention has; 0 for a plain statement.
    """
    flags = [0] * len(items)
    reach = _Reach()
    for at, item in enumerate(items):
        kind = item.kind
        if kind in TARGETS:
            flags[at] |= reach.flags
        elif kind in _FORWARD:
            _open_forward(items, at, reach)
        elif kind in _BACKWARD:
            _mark_back(items, flags, at, _BACKWARD[kind])
        elif kind in _EITHER:
            _resolve_either(items, flags, at, reach)
        elif kind == "versus":
            _mark_back(items, flags, at, DOUBTED)
            reach.open(DOUBTED, narrow=False)
        elif kind in _ENDS:
            reach.close()
        elif kind == "verb":
            reach.verb = True
        elif kind in ("comma", "and") and reach.flags:
            if reach.verb or _starts_anew(items, at):
                reach.close()
            elif kind == "comma":
                reach.close(reach.narrow)
    for at, item in enumerate(items):
        if item.kind == "or":
            _mark_alternatives(items, flags, at)
    return flags


def _resolve_either(
    items: list[Item], flags: list[int], at: int, reach: _Reach
) -> None:
    flag = _EITHER[items[at].kind]
    ahead = _mention_ahead(items, at)
    fresh = _follows_separator(items, at)
    if ahead is None:
        # "opacity, likely scar tissue": what is likely is another thing.
        if not (fresh and flag == DOUBTED):
            _mark_back(items, flags, at, flag)
    elif flag == NEGATED:
        flags[ahead] |= NEGATED
    else:
        if fresh:
            reach.close()
        reach.open(DOUBTED, narrow=True)
