"""Sentences on tubes, lines and wires, and on findings that are only feared."""

import random

from data_pipelines.findings import NEGATIVE, POSITIVE, UNCERTAIN
from data_pipelines.hospital import wording
from data_pipelines.hospital.course import (
    PLACES,
    pick,
    progression,
    resolved,
    stream,
)
from data_pipelines.hospital.grammar import Context, choose, expand, load
from data_pipelines.hospital.state import KINDS, Finding, Study

DEVICES = "Support Devices"
MANY = ("sternal_wires",)


def phantom(study: Study, name: str) -> Finding:
    """A finding that the report fears and the film does not have; fixed by the study."""
    rng = stream(study.patient_id, study.study_id, name, "phantom")
    kind = rng.choice(KINDS[name])
    sides, lobes = PLACES[name, kind]
    side, lobe = pick(rng, sides), pick(rng, lobes)
    if side == "bilateral" and lobe == "middle":
        lobe = "lower"
    return Finding(name, side, lobe, 0.3, kind, rng.getrandbits(31))


def tell_devices(
    rng: random.Random, study: Study, before: Study | None, slots: dict[str, str]
) -> list[wording.Clause]:
    """One clause a device: where it ends, whether it is new, that it was removed.

    Args:
      rng: the report's stream.
      study, before: now and then (None at the first study).
      slots: those of the sentence (`cmp`, `cmpo`, `view`).

    Returns:
      The clauses; where devices are hedged, a single uncertain one.
    """
    if DEVICES in study.hedged:
        present = [f for f in study.findings if f.name == DEVICES]
        device = present[0] if present else phantom(study, DEVICES)
        told: tuple[int, ...] = (study.findings.index(device),) if present else ()
        text = _say(rng, device, "hedged", slots)
        return [wording.Clause(text, {DEVICES: UNCERTAIN}, told)]
    clauses = []
    for index, device in enumerate(study.findings):
        if device.name != DEVICES:
            continue
        mode = progression(before, device)
        if mode == "first" or rng.random() < 0.2:
            mode = "positive"
        text = _say(rng, device, mode, slots)
        clauses.append(wording.Clause(text, {DEVICES: POSITIVE}, (index,)))
    for device in resolved(before, study):
        if device.name == DEVICES and rng.random() < 0.6:
            text = _say(rng, device, "resolved", slots)
            clauses.append(wording.Clause(text, {DEVICES: NEGATIVE}, ()))
    return clauses


def _say(rng: random.Random, device: Finding, mode: str, slots: dict[str, str]) -> str:
    words = load("devices")["kinds"][device.kind]
    number = "many" if device.kind in MANY else "one"

    def make() -> str:
        context = wording.context_of(device)
        frame = choose(rng, load("devices")["frames"][mode], Context())
        while frame.number and frame.number != number:
            frame = choose(rng, load("devices")["frames"][mode], Context())
        filled = {**context.slots, **slots, **wording.number_slots(number)}
        filled["label"] = expand(rng, rng.choice(words["label"]), filled)
        at = choose(rng, words["at"], Context())
        filled["at"] = expand(rng, at.text, filled)
        return expand(rng, frame.text, filled)

    return wording.finish(rng, make)
