"""What the simulated hospital's patients have: the state that film and report tell.

A patient has a body, which never changes, and 1 to 6 studies. A study has findings
out of the 14, each with a side, a lobe, a severity, a kind and a seed. A finding
that stays over several studies keeps its seed, side, lobe and kind; its severity
goes up, down or stays. `course.py` draws them.
"""

from dataclasses import asdict, dataclass

from data_pipelines.findings import FINDINGS

SIDES = ("left", "right", "bilateral", "midline")
LOBES = ("upper", "middle", "lower", "none")

KINDS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("wide_mediastinum",),
    "Cardiomegaly": ("global",),
    "Lung Lesion": ("nodule", "mass"),
    "Lung Opacity": ("patchy", "interstitial"),
    "Edema": ("interstitial", "alveolar"),
    "Consolidation": ("lobar", "patchy"),
    "Pneumonia": ("bronchopneumonia", "round"),
    "Atelectasis": ("linear", "lobar", "subsegmental"),
    "Pneumothorax": ("apical", "tension"),
    "Pleural Effusion": ("free", "subpulmonic"),
    "Pleural Other": ("thickening", "plaque"),
    "Fracture": ("rib", "clavicle"),
    "Support Devices": (
        "ett",
        "picc",
        "central_line",
        "pacemaker",
        "chest_tube",
        "ng_tube",
        "sternal_wires",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One finding that is present in a study.

    Attributes:
      name: one of FINDINGS[1:].
      side: one of SIDES; "midline" for heart, mediastinum and central devices.
      lobe: one of LOBES; for pleura and ribs the height; "none" where it has none.
      severity: 0.25 (small, yet visible) to 1 (massive).
      kind: one of KINDS[name].
      seed: decides where exactly and which shape; constant over a patient's course.
    """

    name: str
    side: str
    lobe: str
    severity: float
    kind: str
    seed: int

    def __post_init__(self):
        if self.kind not in KINDS.get(self.name, ()):
            raise ValueError(
                f"expected a kind of {self.name!r} out of {KINDS.get(self.name)}, "
                f"found {self.kind!r}"
            )
        if self.side not in SIDES or self.lobe not in LOBES:
            raise ValueError(
                f"expected a side out of {SIDES} and a lobe out of {LOBES}, found "
                f"{self.side!r} and {self.lobe!r}"
            )
        if not 0.0 <= self.severity <= 1.0:
            raise ValueError(f"expected a severity in 0..1, found {self.severity}")

    @property
    def key(self) -> tuple[str, int]:
        """Names the same finding in all studies of a patient."""
        return self.name, self.seed


@dataclass(frozen=True)
class Body:
    """A patient's body: constant, and drawn apart from every finding.

    Attributes:
      sex: "M" or "F".
      age: years, 18 to 90.
      seed: decides the details of the anatomy.
      width, height, fat, heart, kyphosis: 0..1, from least to most of a healthy range.
    """

    sex: str
    age: int
    seed: int
    width: float
    height: float
    fat: float
    heart: float
    kyphosis: float


@dataclass(frozen=True)
class Study:
    """One visit: the films that were made and what is truly in them.

    Attributes:
      patient_id, study_id: without the letters of the layouts.
      index: 0 for the patient's first study.
      time: seconds since 1970-01-01, in a fictitious year.
      findings: what is present; Support Devices may occur more than once.
      views: for instance ("PA", "LATERAL") or ("AP",).
      hedged: names of findings that the report tells with uncertainty, present or not.
    """

    patient_id: str
    study_id: str
    index: int
    time: int
    findings: tuple[Finding, ...]
    views: tuple[str, ...]
    hedged: frozenset[str]

    def truth(self) -> dict[str, int]:
        """1 or 0 for each of the 14: what is in the film, whatever the report says."""
        present = {finding.name for finding in self.findings}
        vector = {name: int(name in present) for name in FINDINGS[1:]}
        sick = any(v for n, v in vector.items() if n != "Support Devices")
        return {"No Finding": int(not sick), **vector}

    def to_json(self) -> dict:
        """A form that `json.dumps` takes; keys in a fixed order."""
        return {**asdict(self), "hedged": sorted(self.hedged)}


@dataclass(frozen=True)
class Patient:
    """Patient `number` of a simulation: a body and the studies in time order."""

    number: int
    patient_id: str
    body: Body
    studies: tuple[Study, ...]
