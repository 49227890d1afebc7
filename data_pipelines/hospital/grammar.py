"""The small template language in which the simulated reports are written.

A template is text with choices `[a|b|]` (nested at will, one is drawn) and slots
`{name}` (filled from a table of templates). A line of the TOML files may end in
` ;; tags`:

  x3                  weight of the line (1 without)
  one, many           grammatical number of the noun (mass without), or, in a frame,
                      the only number that it takes
  kind= side= lobe= band= course=   comma lists; the line fits only these
  free=ED             fits only where that finding is neither present nor hedged
  clear, normal       fits only where the lungs, or all 13 findings, are so
  LO+ LO? LO-         the line also tells that finding: positive, uncertain, negative
"""

import random
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

from data_pipelines.findings import NEGATIVE, POSITIVE, UNCERTAIN

TEMPLATES = Path(__file__).parent / "templates"

ABBREVIATIONS: dict[str, str] = {
    "EC": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LL": "Lung Lesion",
    "LO": "Lung Opacity",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PX": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
}
SIGNS = {"+": POSITIVE, "?": UNCERTAIN, "-": NEGATIVE}


@dataclass(frozen=True)
class Line:
    """One template with its tags."""

    text: str
    weight: float = 1.0
    number: str = ""
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()
    free: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    also: tuple[tuple[str, int], ...] = ()

    def fits(self, context: "Context") -> bool:
        return (
            all(context.values.get(key) in values for key, values in self.only)
            and not any(name in context.taken for name in self.free)
            and all(flag in context.flags for flag in self.flags)
        )


@dataclass
class Context:
    """What decides whether a line fits, and what fills its slots."""

    values: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()


@cache
def parse_line(text: str) -> Line:
    """Parses `template ;; tags`."""
    body, _, tags = text.partition(" ;; ")
    weight, number = 1.0, ""
    only: list[tuple[str, tuple[str, ...]]] = []
    free: list[str] = []
    flags: list[str] = []
    also: list[tuple[str, int]] = []
    for tag in tags.split():
        if re.fullmatch(r"x\d+", tag):
            weight = float(tag[1:])
        elif tag in ("one", "many"):
            number = tag
        elif tag in ("clear", "normal"):
            flags.append(tag)
        elif tag[:2] in ABBREVIATIONS and tag[2:] in SIGNS:
            also.append((ABBREVIATIONS[tag[:2]], SIGNS[tag[2:]]))
        elif tag.startswith("free="):
            free += [ABBREVIATIONS[code] for code in tag[5:].split(",")]
        elif "=" in tag:
            key, values = tag.split("=")
            only.append((key, tuple(values.split(","))))
        else:
            raise ValueError(f"expected a tag that grammar.py names, found {tag!r}")
    lists = tuple(only), tuple(free), tuple(flags), tuple(also)
    return Line(body, weight, number, *lists)


@cache
def load(name: str) -> dict:
    """One TOML file of the templates folder."""
    return tomllib.loads((TEMPLATES / f"{name}.toml").read_text("utf-8"))


def choose_if_any(
    rng: random.Random, lines: list[str], context: Context
) -> Line | None:
    """One of the lines that fit, by weight; None where none fits."""
    if not any(parse_line(line).fits(context) for line in lines):
        return None
    return choose(rng, lines, context)


def choose(rng: random.Random, lines: list[str], context: Context) -> Line:
    """One of the lines that fit, by weight."""
    fitting = [line for line in map(parse_line, lines) if line.fits(context)]
    assert fitting, f"no template fits {context.values}"
    return rng.choices(fitting, [line.weight for line in fitting])[0]


# --- Expansion -------------------------------------------------------------------

_TOKEN = re.compile(r"[\[\]|]|\{\w+\}|[^\[\]|{}]+")


@cache
def _tree(text: str) -> tuple:
    """A sequence of: text, ("slot", name), or ("choice", (sequence, ...))."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError(f"expected balanced braces in the template {text!r}")
    sequence, rest = _sequence(tokens, 0, 0)
    if rest != len(tokens):
        raise ValueError(f"expected balanced brackets in the template {text!r}")
    return sequence


def _sequence(tokens: list[str], at: int, depth: int) -> tuple[tuple, int]:
    parts: list = []
    while at < len(tokens):
        token = tokens[at]
        if token in "|]":
            if not depth:
                raise ValueError(f"expected an opening bracket before {token!r}")
            return tuple(parts), at
        if token == "[":
            options, end = [], "|"
            while end == "|":
                option, at = _sequence(tokens, at + 1, depth + 1)
                options.append(option)
                if at >= len(tokens):
                    raise ValueError("expected a closing bracket in a template")
                end = tokens[at]
            parts.append(("choice", tuple(options)))
        elif token.startswith("{"):
            parts.append(("slot", token[1:-1]))
        else:
            parts.append(token)
        at += 1
    return tuple(parts), at


def expand(rng: random.Random, text: str, slots: dict[str, str]) -> str:
    """Draws every choice and fills every slot; slots may hold templates."""
    return _expand(rng, _tree(text), slots)


def _expand(rng: random.Random, sequence: tuple, slots: dict[str, str]) -> str:
    out = []
    for part in sequence:
        if isinstance(part, str):
            out.append(part)
        elif part[0] == "choice":
            option = part[1][int(rng.random() * len(part[1]))]
            out.append(_expand(rng, option, slots))
        else:
            out.append(_expand(rng, _tree(slots[part[1]]), slots))
    return "".join(out)


_TIDY = [
    (re.compile(r"\s+"), " "),
    (re.compile(r" ([,.;]|\?(?! ))"), r"\1"),
    (re.compile(r"\b([Aa]) (?=[aeiouAEIOU]|NG )"), r"\1n "),
    (re.compile(r"\b(\w+) \1\b"), r"\1"),
]


def tidy(text: str, end: str = ".") -> str:
    """Makes a sentence: single spaces, a or an, a capital first, a full stop last."""
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".")
    return text[0].upper() + text[1:] + (end if text[-1] not in "?" else "")


# --- Evaluation prompts ----------------------------------------------------------


def normalize(text: str) -> str:
    """Lower case, letters and digits alone: how a sentence is held beside a prompt."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


@cache
def evaluation_prompts() -> frozenset[str]:
    """Every zero-shot prompt, normalised; reports must hold none as a sentence."""
    prompts = {
        normalize(" ".join(words))
        for grammar in load("prompts")["grammar"]
        for words in product(*grammar["fields"])
    }
    return frozenset(prompts - {""})
