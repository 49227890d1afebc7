"""Draws the patients of the simulated hospital: bodies, findings and their course.

Everything is a pure function of (seed, stream, patient number): patient k is the same
whatever the number of patients or processes. The marginal distribution is the same
for every study of a course (a study either keeps its findings or draws them anew).
"""

import random
from collections.abc import Collection
from typing import TypeVar

from data_pipelines.findings import EVAL_FIVE
from data_pipelines.hospital.state import KINDS, Body, Finding, Patient, Study

Key = TypeVar("Key")

MAX_PATIENTS = 1_600_000
"""Beyond it the 8-digit study ids would repeat."""

STUDIES_WEIGHTS = (0.30, 0.22, 0.18, 0.14, 0.10, 0.06)
"""Of patients with 1, 2, ... 6 studies."""

FIVE_COUNT_WEIGHTS = (0.17, 0.63, 0.17, 0.03)
"""Of studies with 0, 1, 2, 3 of the five evaluation findings, among the sick."""

AFFINITY: dict[frozenset[str], float] = {
    frozenset({"Cardiomegaly", "Edema"}): 3.0,
    frozenset({"Edema", "Pleural Effusion"}): 3.0,
    frozenset({"Pleural Effusion", "Atelectasis"}): 3.0,
    frozenset({"Cardiomegaly", "Pleural Effusion"}): 2.0,
    frozenset({"Consolidation", "Pleural Effusion"}): 2.0,
}
"""How much more often two of the five go together than any other two (1)."""

OTHER_RATES: dict[str, float] = {
    "Enlarged Cardiomediastinum": 0.11,
    "Lung Lesion": 0.11,
    "Lung Opacity": 0.13,
    "Pneumonia": 0.13,
    "Pneumothorax": 0.12,
    "Pleural Other": 0.11,
    "Fracture": 0.12,
}
"""Of the remaining findings among the sick, each drawn by itself."""

DEVICE_RATE, SECOND_DEVICE_RATE = 0.30, 0.30
RENEWAL_RATE, DEVICE_RENEWAL_RATE = 0.35, 0.30
"""How often a later study draws its findings, or its devices, anew."""

STAYING_RATES: dict[str, float] = {"Pleural Other": 0.9, "Fracture": 0.9}
"""Of findings that rarely go when the others are drawn anew, that they are kept."""

CHRONIC = ("Enlarged Cardiomediastinum", "Lung Lesion", "Pleural Other", "Fracture")
HEDGE_RATES: dict[str, float] = {"Pneumonia": 0.25, "Lung Lesion": 0.18}
HEDGE_RATE, ABSENT_HEDGE_RATE = 0.10, 0.012
LEAST_SEVERITY = 0.25
LEAST_CHANGE, MOST_CHANGE = 0.2, 0.4
"""Of severity, when a finding gets better or worse; else it does not change at all."""

_LUNG = {"upper": 1.0, "middle": 1.0, "lower": 2.0}
_ONE = {"left": 1.0, "right": 1.0}
_ANY = {"left": 1.0, "right": 1.0, "bilateral": 0.7}
_MID = {"midline": 1.0}
_BOTH = {"bilateral": 1.0}
_NONE = {"none": 1.0}
PLACES: dict[tuple[str, str], tuple[dict[str, float], dict[str, float]]] = {
    ("Enlarged Cardiomediastinum", "wide_mediastinum"): (_MID, _NONE),
    ("Cardiomegaly", "global"): (_MID, _NONE),
    ("Lung Lesion", "nodule"): (_ONE, _LUNG),
    ("Lung Lesion", "mass"): (_ONE, _LUNG),
    ("Lung Opacity", "patchy"): (_ANY, _LUNG),
    ("Lung Opacity", "interstitial"): (_BOTH, {"lower": 1.0, "none": 1.0}),
    ("Edema", "interstitial"): (_BOTH, _NONE),
    ("Edema", "alveolar"): (_BOTH, _NONE),
    ("Consolidation", "lobar"): (_ONE, _LUNG),
    ("Consolidation", "patchy"): (_ANY, _LUNG),
    ("Pneumonia", "bronchopneumonia"): (_ANY, _LUNG),
    ("Pneumonia", "round"): (_ONE, _LUNG),
    ("Atelectasis", "linear"): (_ANY, {"middle": 1.0, "lower": 3.0, "upper": 0.5}),
    ("Atelectasis", "lobar"): (_ONE, _LUNG),
    ("Atelectasis", "subsegmental"): (_ANY, {"middle": 0.6, "lower": 3.0}),
    ("Pneumothorax", "apical"): (_ONE, {"upper": 1.0}),
    ("Pneumothorax", "tension"): (_ONE, _NONE),
    ("Pleural Effusion", "free"): (_ANY, _NONE),
    ("Pleural Effusion", "subpulmonic"): (_ONE, _NONE),
    ("Pleural Other", "thickening"): (_ANY, {"upper": 1.0, "lower": 1.0}),
    ("Pleural Other", "plaque"): (_ANY, {"middle": 1.0, "lower": 1.0}),
    ("Fracture", "rib"): (_ONE, {"upper": 1.0, "middle": 1.0, "lower": 1.0}),
    ("Fracture", "clavicle"): (_ONE, {"upper": 1.0}),
    ("Support Devices", "ett"): (_MID, _NONE),
    ("Support Devices", "picc"): (_ONE, _NONE),
    ("Support Devices", "central_line"): (_ONE, _NONE),
    ("Support Devices", "pacemaker"): ({"left": 4.0, "right": 1.0}, _NONE),
    ("Support Devices", "chest_tube"): (_ONE, _NONE),
    ("Support Devices", "ng_tube"): (_MID, _NONE),
    ("Support Devices", "sternal_wires"): (_MID, _NONE),
}
"""Which sides and lobes, with weights, a kind of finding takes."""

VIEW_SETS: dict[tuple[str, ...], float] = {("PA", "LATERAL"): 0.55, ("AP",): 0.45}


def stream(*names: str | int) -> random.Random:
    """A random stream of its own for each path of names; equal on every machine."""
    return random.Random("/".join(map(str, ("medclip_jax hospital", *names))))


def pick(rng: random.Random, weights: dict[Key, float]) -> Key:
    """One key of `weights`, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def draw_patient(
    seed: int,
    number: int,
    *,
    dataset: str = "mimic_cxr",
    prevalence: float = 0.8,
    difficulty: float = 0.5,
) -> Patient:
    """Draws one patient with all studies.

    Args:
      seed: of the whole simulation.
      number: which patient, 0 to MAX_PATIENTS - 1.
      dataset: "mimic_cxr" or "chexpert"; patients of the two are strangers.
      prevalence: 0..1, share of studies with any finding other than devices.
      difficulty: 0..1; at 0 findings are mostly severe, at 1 mostly slight.

    Returns:
      The patient.
    """
    rng = stream(seed, dataset, number, "state")
    body = draw_body(stream(seed, dataset, number, "body"))
    patient_id = _patient_id(seed, dataset, number)
    count = rng.choices(range(1, 7), STUDIES_WEIGHTS)[0]
    time = int(rng.uniform(*_YEARS) * 365.25 * 86400)
    disease: tuple[Finding, ...] = ()
    devices: tuple[Finding, ...] = ()
    studies = []
    for index in range(count):
        if index:
            time += int(86400 * 10 ** rng.uniform(-0.4, 2.4))
        disease = _next_disease(rng, disease, index, prevalence, difficulty)
        devices = _next_devices(rng, devices, index)
        findings = disease + devices
        studies.append(
            Study(
                patient_id=patient_id,
                study_id=_study_id(seed, dataset, number, index),
                index=index,
                time=time,
                findings=findings,
                views=pick(stream(seed, dataset, number, index, "view"), VIEW_SETS),
                hedged=_draw_hedges(rng, findings),
            )
        )
    return Patient(number, patient_id, body, tuple(studies))


_YEARS = (141.0, 228.0)
"""Years after 1970 in which courses begin: 2111 to 2198, as in MIMIC's shifted dates."""


def draw_body(rng: random.Random) -> Body:
    """Draws a patient's body."""
    return Body(
        sex=rng.choice("MF"),
        age=min(90, max(18, round(rng.gauss(60, 17)))),
        seed=rng.getrandbits(31),
        width=rng.random(),
        height=rng.random(),
        fat=rng.random(),
        heart=rng.random(),
        kyphosis=rng.random(),
    )


def _patient_id(seed: int, dataset: str, number: int) -> str:
    if dataset == "chexpert":
        return f"{number + 1:05d}"
    offset = stream(seed, "patient ids").randrange(10**7)
    return str(10**7 + (number * 7_368_787 + offset) % 10**7)


def _study_id(seed: int, dataset: str, number: int, index: int) -> str:
    """MIMIC-CXR's ids do not follow time; CheXpert's are 1, 2, ... in a patient."""
    if dataset == "chexpert":
        return str(index + 1)
    offset = stream(seed, "study ids").randrange(10**7)
    return str(5 * 10**7 + ((number * 6 + index) * 3_141_593 + offset) % 10**7)


# --- Findings of one study -------------------------------------------------------


def _draw_names(
    rng: random.Random, prevalence: float, known: Collection[str] | None
) -> list[str]:
    """The names of one study; `known` are those of the study before, if any."""
    stay = [
        name
        for name, rate in STAYING_RATES.items()
        if name in (known or ()) and rng.random() < rate
    ]
    if rng.random() >= prevalence:
        return stay
    names: list[str] = []
    for _ in range(rng.choices(range(4), FIVE_COUNT_WEIGHTS)[0]):
        weights = {name: 1.0 for name in EVAL_FIVE if name not in names}
        for name in weights:
            for other in names:
                weights[name] *= AFFINITY.get(frozenset({name, other}), 1.0)
        names.append(pick(rng, weights))
    for name, rate in OTHER_RATES.items():
        if known is not None and name in STAYING_RATES:  # as many come as go
            rate *= (1 - STAYING_RATES[name]) / (1 - rate)
            rate = float(name in stay) if name in known else rate
        if rng.random() < rate:
            names.append(name)
    if not names:
        names.append(rng.choice(list(OTHER_RATES)))
    return names


def draw_finding(
    rng: random.Random, name: str, difficulty: float = 0.5, kind: str = ""
) -> Finding:
    """Draws one finding of its own, as a patient's first study has it.

    Args:
      rng: where kind, severity, place and seed come from.
      name: one of FINDINGS[1:].
      difficulty: 0..1; at 0 findings are mostly severe, at 1 mostly slight.
      kind: one of KINDS[name]; drawn when not given.
    """
    kind = kind or rng.choice(KINDS[name])
    return _draw_finding(rng, name, kind, _draw_severity(rng, difficulty))


def _draw_finding(rng: random.Random, name: str, kind: str, severity: float) -> Finding:
    sides, lobes = PLACES[name, kind]
    side, lobe = pick(rng, sides), pick(rng, lobes)
    if lobe == "middle" and side == "bilateral":
        lobe = "lower" if "lower" in lobes else "upper"
    return Finding(name, side, lobe, severity, kind, rng.getrandbits(31))


def _draw_severity(rng: random.Random, difficulty: float) -> float:
    span = 1.0 - LEAST_SEVERITY
    return round(LEAST_SEVERITY + span * rng.random() ** (0.5 + difficulty), 3)


def _evolve(rng: random.Random, finding: Finding) -> Finding:
    """The same finding in the next study: better, the same, or worse."""
    stable = 0.8 if finding.name in CHRONIC else 0.36
    turn = rng.random()
    change = rng.uniform(LEAST_CHANGE, MOST_CHANGE)
    if turn < stable or finding.name in ("Fracture", "Support Devices"):
        return finding
    if turn > stable + 0.5 * (1 - stable):
        change = -change
    severity = finding.severity + change
    if not LEAST_SEVERITY <= severity <= 1.0:
        severity = finding.severity - change
    if not LEAST_SEVERITY <= severity <= 1.0:
        return finding
    return Finding(
        finding.name,
        finding.side,
        finding.lobe,
        round(severity, 3),
        finding.kind,
        finding.seed,
    )


def _next_disease(
    rng: random.Random,
    before: tuple[Finding, ...],
    index: int,
    prevalence: float,
    difficulty: float,
) -> tuple[Finding, ...]:
    if index and rng.random() >= RENEWAL_RATE:
        return tuple(_evolve(rng, finding) for finding in before)
    known = {finding.name: finding for finding in before}
    after = []
    for name in _draw_names(rng, prevalence, known if index else None):
        fresh = draw_finding(rng, name, difficulty)
        after.append(_evolve(rng, known[name]) if name in known else fresh)
    return tuple(after)


def _next_devices(
    rng: random.Random, before: tuple[Finding, ...], index: int
) -> tuple[Finding, ...]:
    if index and rng.random() >= DEVICE_RENEWAL_RATE:
        return before
    name = "Support Devices"
    known = {finding.kind: finding for finding in before}
    kinds: list[str] = []
    if rng.random() < DEVICE_RATE:
        kinds = rng.sample(KINDS[name], 2 if rng.random() < SECOND_DEVICE_RATE else 1)
    if "sternal_wires" in known and "sternal_wires" not in kinds:
        kinds.append("sternal_wires")  # nobody takes them out
    return tuple(
        known.get(kind) or _draw_finding(rng, name, kind, 0.5) for kind in kinds
    )


def _draw_hedges(rng: random.Random, findings: tuple[Finding, ...]) -> frozenset[str]:
    present = {finding.name for finding in findings}
    hedged = set()
    for name in KINDS:
        if name in present:
            rate = HEDGE_RATES.get(name, HEDGE_RATE)
            rate = 0.03 if name == "Support Devices" else rate
        else:
            rate = 2 * ABSENT_HEDGE_RATE if name in HEDGE_RATES else ABSENT_HEDGE_RATE
        if rng.random() < rate:
            hedged.add(name)
    return frozenset(hedged)


# --- Between two studies ---------------------------------------------------------


def progression(before: Study | None, finding: Finding) -> str:
    """How a finding of a study went since the study before.

    Returns:
      "first" (no study before), "new", "improving", "stable" or "worsening".
    """
    if before is None:
        return "first"
    past = {old.key: old for old in before.findings}.get(finding.key)
    if past is None:
        return "new"
    if finding.severity > past.severity:
        return "worsening"
    return "improving" if finding.severity < past.severity else "stable"


def resolved(before: Study | None, now: Study) -> tuple[Finding, ...]:
    """The findings of the study before that are gone."""
    if before is None:
        return ()
    keys = {finding.key for finding in now.findings}
    return tuple(old for old in before.findings if old.key not in keys)
