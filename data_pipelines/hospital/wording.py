"""Fills the templates for one finding: place words, severity words, sentences."""

import random

from data_pipelines.findings import NEGATIVE, POSITIVE, UNCERTAIN
from data_pipelines.hospital.grammar import (
    Context,
    Line,
    choose,
    choose_if_any,
    evaluation_prompts,
    expand,
    load,
    normalize,
    tidy,
)
from data_pipelines.hospital.state import Finding

LUNG_BLOCKS = (
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
)
"""With one of these nobody writes that the lungs are clear or free of opacity."""

_HEIGHT = {"upper": "upper", "middle": "mid", "lower": "lower"}
_ADJECTIVES: dict[tuple[str, str], str] = {
    ("left", "upper"): "[left upper lobe|left upper lung|left upper zone]",
    ("left", "middle"): "[lingular|left mid lung|left mid zone]",
    ("left", "lower"): "[left lower lobe|left basilar|left lower lung|retrocardiac"
    "|left basal|left lung base]",
    ("right", "upper"): "[right upper lobe|right upper lung|right upper zone]",
    ("right", "middle"): "[right middle lobe|right mid lung|right mid zone]",
    ("right", "lower"): "[right lower lobe|right basilar|right lower lung|right basal"
    "|right lung base]",
    ("bilateral", "upper"): "[bilateral upper lobe|bilateral upper lung|biapical]",
    ("bilateral", "lower"): "[bibasilar|bilateral lower lobe|bilateral basilar"
    "|bibasilar|bilateral]",
    ("bilateral", "none"): "[bilateral|diffuse bilateral|diffuse]",
}
_PLACES: dict[tuple[str, str], str] = {
    ("left", "upper"): "[in the left upper lobe|at the left upper lobe"
    "|in the left upper lung zone|in the upper left lung]",
    ("left", "middle"): "[in the lingula|in the left mid lung zone|in the left mid lung"
    "|at the mid lung zone on the left]",
    ("left", "lower"): "[in the left lower lobe|at the left lung base"
    "|at the left base|in the left lower lung zone|in the retrocardiac region"
    "|at the left lower lobe]",
    ("right", "upper"): "[in the right upper lobe|at the right upper lobe"
    "|in the right upper lung zone|in the upper right lung]",
    ("right", "middle"): "[in the right middle lobe|in the right mid lung zone"
    "|in the right mid lung|at the mid lung zone on the right]",
    ("right", "lower"): "[in the right lower lobe|at the right lung base"
    "|at the right base|in the right lower lung zone|at the right lower lobe]",
    ("bilateral", "upper"): "[in both upper lobes|in the upper lung zones"
    "|at both lung apices]",
    ("bilateral", "lower"): "[at the lung bases|at both lung bases|in both lower lobes"
    "|at the bilateral lung bases|in the lower lung zones|bibasally]",
    ("bilateral", "none"): "[bilaterally|throughout both lungs|in both lungs]",
}


def severity_band(severity: float) -> str:
    """The word class of a severity: "slight", "medium" or "large"."""
    if severity < 0.5:
        return "slight"
    return "medium" if severity < 0.75 else "large"


def context_of(finding: Finding, course: str = "first") -> Context:
    """What lines fit a finding, and its slots (not those of the sentence)."""
    band = severity_band(finding.severity)
    side, lobe = finding.side, finding.lobe
    values = {
        "kind": finding.kind,
        "side": side,
        "lobe": lobe,
        "band": band,
        "course": course,
    }
    zone_height = _HEIGHT.get(lobe, "lower")
    pleural = "apical" if lobe == "upper" else "basal"
    sides = "both" if side == "bilateral" else f"the {side}"
    point = "apex" if lobe == "upper" else "lung base"
    points = "apices" if lobe == "upper" else "lung bases"
    where = f"at both {points}" if side == "bilateral" else f"at the {side} {point}"
    scale = load_group(finding.name).get("severity", "degree")
    chest = "chest" if side in ("midline", "bilateral") else f"{side} hemithorax"
    lobe_name = f"{side} {lobe} lobe"
    if (side, lobe) == ("left", "middle"):
        lobe_name = "lingula"
    slots = {
        "side": side,
        "sides": sides,
        "loc": _ADJECTIVES.get((side, lobe), ""),
        "at": _PLACES.get((side, lobe), ""),
        "zone": f"{side} {zone_height} lung",
        "lobe": lobe_name,
        "height": _HEIGHT.get(lobe, ""),
        "pside": f"[{side}|{side} {pleural}]",
        "pat": where,
        "chest": chest,
        "sev": load("frames")["severity"][scale][band],
        "adv": {
            "slight": "[mildly|minimally|slightly|mildly]",
            "medium": "[moderately|mildly to moderately|moderately]",
            "large": "[severely|markedly|moderately to severely]",
        }[band],
        "cm": load("devices")["slots"]["cm"],
    }
    return Context(values, slots)


def load_group(name: str) -> dict:
    """The templates of one finding; {} for devices, which have a file of their own."""
    for file in ("lungs", "chest"):
        if name in load(file):
            return load(file)[name]
    return {}


def number_slots(number: str, suffix: str = "") -> dict[str, str]:
    """Articles and verbs that agree with a noun: "one", "many" or "" (mass)."""
    many = number == "many"
    return {
        f"a{suffix}": "a " if number == "one" else "",
        f"an{suffix}": "a " if number == "one" else "",
        f"is{suffix}": "are" if many else "is",
        f"has{suffix}": "have" if many else "has",
        f"s{suffix}": "" if many else "s",
        f"the{suffix}": "[the |]",
    }


class Clause:
    """A sentence before it is placed: its text, what it tells, of which findings."""

    def __init__(self, text: str, codes: dict[str, int], findings: tuple[int, ...]):
        self.text, self.codes, self.findings = text, codes, findings


TYPOS = {
    "persistent": "presistent",
    "appearance": "apperance",
    "right upper": "right uppper",
    "bilateral": "bilatreal",
}
TYPO_RATE = 0.02
"""Of sentences that hold such a word; the published prompts have three of them."""


def finish(rng: random.Random, make) -> str:
    """Expands until the sentence is none of the evaluation prompts.

    Args:
      rng: the report's stream.
      make: draws one raw sentence.

    Returns:
      The tidy sentence.
    """
    for _ in range(50):
        text = tidy(make())
        for word, typo in TYPOS.items():
            if word in text and rng.random() < TYPO_RATE:
                text = text.replace(word, typo, 1)
        if normalize(text) not in evaluation_prompts():
            return text
    raise AssertionError("a template can make nothing but evaluation prompts")


MODE_SIGN = {"resolved": NEGATIVE, "hedged": UNCERTAIN, "negative": NEGATIVE}


def draw_line(rng: random.Random, group: dict, mode: str, context: Context) -> Line:
    """A sentence of the finding's own, or a frame that any finding can take."""
    own = choose_if_any(rng, group.get(mode, []), context)
    if own is not None and rng.random() < 0.4:
        return own
    return choose(rng, load("frames")["frames"][mode], context)


def draw_noun(rng: random.Random, name: str, mode: str, context: Context) -> Line:
    """The noun phrase that a frame takes, with its number."""
    group = load_group(name)
    lines = group["short"] if mode in ("hedged", "resolved") else group["noun"]
    return choose(rng, lines, context)


def compose(
    rng: random.Random, finding: Finding, mode: str, context: Context
) -> tuple[str, dict[str, int]]:
    """One raw sentence on one finding other than devices.

    Args:
      rng: the report's stream.
      finding: what to tell.
      mode: "positive", "new", "stable", "improving", "worsening", "resolved",
        "hedged".
      context: of the finding, with the sentence's own slots.

    Returns:
      The text, and the codes that it tells.
    """
    noun = draw_noun(rng, finding.name, mode, context)
    frame = draw_line(rng, load_group(finding.name), mode, context)
    while frame.number and "np" not in frame.text and "short" not in frame.text:
        frame = draw_line(rng, load_group(finding.name), mode, context)
    if frame.number and frame.number != noun.number:
        frame = Line("[possible|suspected] {short}" if mode == "hedged" else "{np}")
    slots = {**context.slots, **number_slots(noun.number)}
    slots |= {"np": noun.text, "short": noun.text, "bare": bare(rng, finding.name)}
    uses_noun = "{np}" in frame.text or "{short}" in frame.text
    codes = dict(frame.also) | (dict(noun.also) if uses_noun else {})
    codes[finding.name] = MODE_SIGN.get(mode, POSITIVE)
    return expand(rng, frame.text, slots), codes


def bare(rng: random.Random, name: str) -> str:
    """The finding's noun without place or severity, for negations."""
    return rng.choice(load_group(name)["bare"])
