"""Chooses what a report says of a study, and says it, sentence by sentence."""

import random

from data_pipelines.findings import EVAL_FIVE, NEGATIVE, NOT_GIVEN, POSITIVE
from data_pipelines.hospital import wording
from data_pipelines.hospital.course import progression, resolved
from data_pipelines.hospital.grammar import Context, choose, expand, load
from data_pipelines.hospital.report_devices import DEVICES, phantom, tell_devices
from data_pipelines.hospital.state import Finding, Study

NEGATION_RATES: dict[str, float] = {
    "Pneumothorax": 0.75,
    "Pleural Effusion": 0.72,
    "Consolidation": 0.62,
    "Cardiomegaly": 0.66,
    "Edema": 0.40,
    "Enlarged Cardiomediastinum": 0.42,
    "Pneumonia": 0.25,
    "Lung Opacity": 0.12,
    "Fracture": 0.12,
    "Atelectasis": 0.06,
    "Lung Lesion": 0.08,
    "Pleural Other": 0.04,
    "Support Devices": 0.03,
}
"""How often a report says of an absent finding that it is absent."""

TOGETHER = (
    "Consolidation",
    "Pleural Effusion",
    "Pneumothorax",
    "Edema",
    "Pneumonia",
    "Lung Opacity",
    "Atelectasis",
    "Lung Lesion",
)
"""Findings that one sentence may deny together."""

OMITTED_RATE = 0.03
"""Of present findings outside the five: seen in the film, not told in the report."""


class Teller:
    """Chooses what a report says of a study, and says it."""

    def __init__(self, rng: random.Random, study: Study, before: Study | None):
        self.rng, self.study, self.before = rng, study, before
        self.present = {finding.name for finding in study.findings}
        self.taken = frozenset(self.present | study.hedged)
        flags = set()
        if not self.taken & set(wording.LUNG_BLOCKS):
            flags.add("clear")
        if not self.taken - {DEVICES}:
            flags.add("normal")
        self.flags = frozenset(flags)
        self.omitted = {
            name
            for name in sorted(self.present)
            if name not in EVAL_FIVE and rng.random() < OMITTED_RATE
        }
        self.gone = [old for old in resolved(before, study) if old.name != DEVICES]
        self.denied: set[str] = set()
        self.compares = before is not None and rng.random() < 0.9

    # --- Sections

    def findings(self) -> list[wording.Clause]:
        """The FINDINGS section: devices, lungs, pleura, heart, bones, what is absent."""
        self.denied.clear()
        clauses = self._devices()
        lungs: list[int] = []
        pleura: list[int] = []
        heart: list[int] = []
        rest: list[int] = []
        for index in self._told():
            name = self.study.findings[index].name
            place = rest
            if name in wording.LUNG_BLOCKS:
                place = lungs
            elif name.startswith("Pleural") or name == "Pneumothorax":
                place = pleura
            elif name in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
                place = heart
            place.append(index)
        blocks = [self._tell_group(group) for group in (lungs, pleura)]
        blocks += [self._tell_group(heart), self._tell_group(rest)]
        blocks[0] = self._neutral_lungs() + blocks[0] + self._absent_hedges()
        blocks[1] += self._resolutions(0.85) + self._negations()
        blocks[3] += self._neutral(0.45, "plain") + self._neutral(0.10, "other")
        blocks[3] += self._neutral(0.06, "trap")
        if self.rng.random() < 0.3:
            blocks = [blocks[2], blocks[0], blocks[1], blocks[3]]
        clauses += [clause for block in blocks for clause in block]
        if not clauses:
            clauses = [
                self._plain("normal" if "normal" in self.flags else "lungs_fine")
            ]
        return clauses

    def impression(self) -> list[wording.Clause]:
        """The IMPRESSION: the five always, the rest mostly, and what matters."""
        self.denied.clear()
        told = []
        for index in self._told():
            name = self.study.findings[index].name
            if name in EVAL_FIVE or self.rng.random() < 0.8:
                told.append(index)
        self.rng.shuffle(told)
        clauses = self._tell_group(told)
        clauses += self._resolutions(0.3)
        clauses += [c for c in self._absent_hedges() if self.rng.random() < 0.8]
        if "normal" in self.flags:
            clauses.append(self._plain("normal"))
        elif self.rng.random() < 0.25:
            clauses += self._negations(most=2)
        if self._unchanged() and self.rng.random() < 0.35:
            clauses.insert(0, self._plain("no_change"))
        if not clauses:
            clauses = self._negations(most=2) or [self._plain("lungs_fine")]
        return clauses

    # --- Present findings

    def _told(self) -> list[int]:
        return [
            index
            for index, finding in enumerate(self.study.findings)
            if finding.name != DEVICES and finding.name not in self.omitted
        ]

    def _context(self, finding: Finding, course: str) -> Context:
        context = wording.context_of(finding, course)
        context.taken, context.flags = self.taken, self.flags
        context.slots |= self._sentence_slots()
        return context

    def _sentence_slots(self) -> dict[str, str]:
        frontal_only = len(self.study.views) == 1
        view = (
            "[portable|AP|single|single portable|upright portable] "
            "[view|radiograph] of the chest [demonstrates|shows]"
            if frontal_only
            else "[PA and lateral|frontal and lateral|two] "
            "[views|radiographs] of the chest [demonstrate|show|reveal]"
        )
        tail = self.rng.choice(load("frames")["compare"]["tail"])
        compare = tail if self.before is not None else ""
        return {"view": view, "cmp": compare, "cmpo": f"[{compare}|]"}

    def _mode(self, finding: Finding) -> str:
        if finding.name in self.study.hedged:
            return "hedged"
        course = progression(self.before, finding)
        if course == "first" or not self.compares or self.rng.random() < 0.15:
            return "positive"
        return course

    def _tell_group(self, group: list[int]) -> list[wording.Clause]:
        clauses = []
        queue = list(group)
        while queue:
            index = queue.pop(0)
            mode = self._mode(self.study.findings[index])
            partner = queue[0] if queue else None
            if mode == "positive" and self.rng.random() < 0.22:
                if partner is not None and (
                    self._mode(self.study.findings[partner]) == "positive"
                ):
                    clauses.append(self._both(index, queue.pop(0)))
                    continue
                denied = self._deniable(TOGETHER)
                if denied:
                    clauses.append(self._but(index, self.rng.choice(denied)))
                    continue
            clauses.append(self._tell(index, mode))
        return clauses

    def _tell(self, index: int, mode: str) -> wording.Clause:
        return self.say(self.study.findings[index], mode, (index,))

    def say(
        self, finding: Finding, mode: str, indices: tuple[int, ...]
    ) -> wording.Clause:
        """A clause on one finding, never equal to an evaluation prompt.

        Args:
          finding: what to tell.
          mode: see `wording.compose`.
          indices: of the study's findings that the clause tells as present.
        """
        course = "first" if mode in ("positive", "hedged") else mode
        told: dict[str, int] = {}

        def make() -> str:
            context = self._context(finding, course)
            text, codes = wording.compose(self.rng, finding, mode, context)
            told.clear()
            told.update(codes)
            return text

        text = wording.finish(self.rng, make)
        return wording.Clause(text, told, indices)

    def _noun(self, index: int, suffix: str) -> tuple[dict[str, str], dict[str, int]]:
        """A noun phrase written out, so that two can stand in one sentence."""
        finding = self.study.findings[index]
        context = self._context(finding, "first")
        noun = wording.draw_noun(self.rng, finding.name, "positive", context)
        text = expand(self.rng, noun.text, context.slots)
        slots = wording.number_slots(noun.number, suffix) | {f"np{suffix}": text}
        return slots, {**dict(noun.also), finding.name: POSITIVE}

    def _both(self, first: int, second: int) -> wording.Clause:
        slots, codes = self._noun(first, "")
        more, also = self._noun(second, "2")
        frame = choose(self.rng, load("frames")["frames"]["both"], Context())
        slots |= more
        text = wording.finish(self.rng, lambda: expand(self.rng, frame.text, slots))
        return wording.Clause(text, codes | also, (first, second))

    def _but(self, index: int, denied: str) -> wording.Clause:
        self.denied.add(denied)
        slots, codes = self._noun(index, "")
        slots["bare2"] = wording.bare(self.rng, denied)
        frame = choose(self.rng, load("frames")["frames"]["but"], Context())
        text = wording.finish(self.rng, lambda: expand(self.rng, frame.text, slots))
        return wording.Clause(text, {**codes, denied: NEGATIVE}, (index,))

    # --- What is absent

    def _deniable(self, names) -> list[str]:
        """Absent findings that the rest of the report does not contradict."""
        airspace = {"Consolidation", "Pneumonia"}
        gone = {old.name for old in self.gone}
        out = []
        for name in names:
            if name in self.taken or name in gone or name in self.denied:
                continue
            if name in airspace and airspace & self.taken:
                continue
            if name == "Lung Opacity" and "clear" not in self.flags:
                continue
            out.append(name)
        return out

    def _negations(self, most: int = 99) -> list[wording.Clause]:
        rng = self.rng
        told = [
            name
            for name in self._deniable(NEGATION_RATES)
            if rng.random() < NEGATION_RATES[name]
        ]
        rng.shuffle(told)
        told = told[:most]
        self.denied.update(told)
        together = [name for name in told if name in TOGETHER]
        clauses = []
        if len(together) > 1 and rng.random() < 0.75:
            together = together[: rng.randint(2, 4)]
            told = [name for name in told if name not in together]
            clauses.append(self._deny_together(together))
        return clauses + [self._deny(name) for name in told]

    def _deny_together(self, names: list[str]) -> wording.Clause:
        def make() -> str:
            words = [wording.bare(self.rng, name) for name in names]
            comma = "," if len(words) > 2 else ""
            listed = ", ".join(words[:-1]) + f"{comma} or {words[-1]}"
            context = Context(taken=self.taken, flags=self.flags)
            frame = choose(self.rng, load("frames")["frames"]["negatives"], context)
            return expand(self.rng, frame.text, {"list": listed})

        text = wording.finish(self.rng, make)
        return wording.Clause(text, dict.fromkeys(names, NEGATIVE), ())

    def _deny(self, name: str) -> wording.Clause:
        told: dict[str, int] = {}

        def make() -> str:
            context = Context(taken=self.taken, flags=self.flags)
            if name == DEVICES:
                line = choose(self.rng, load("devices")["frames"]["negative"], context)
                word = ""
            else:
                group = wording.load_group(name)
                line = wording.draw_line(self.rng, group, "negative", context)
                word = wording.bare(self.rng, name)
            told.clear()
            told.update(line.also)
            return expand(self.rng, line.text, {"bare": word})

        text = wording.finish(self.rng, make)
        return wording.Clause(text, {**told, name: NEGATIVE}, ())

    def _resolutions(self, rate: float) -> list[wording.Clause]:
        """Findings of the study before that are gone, unless told as present."""
        clauses = []
        for old in self.gone:
            if old.name in self.taken or self.rng.random() >= rate:
                continue
            if old.name == "Lung Opacity" and "clear" not in self.flags:
                continue
            clauses.append(self.say(old, "resolved", ()))
        return clauses

    def _absent_hedges(self) -> list[wording.Clause]:
        """Findings that are not there but that the report does not exclude."""
        return [
            self.say(phantom(self.study, name), "hedged", ())
            for name in sorted(self.study.hedged - self.present - {DEVICES})
        ]

    # --- Devices and the rest

    def _devices(self) -> list[wording.Clause]:
        if DEVICES in self.omitted:
            return []
        return tell_devices(self.rng, self.study, self.before, self._sentence_slots())

    def _unchanged(self) -> bool:
        if self.before is None or self.gone:
            return False
        return all(
            progression(self.before, finding) == "stable"
            for finding in self.study.findings
        )

    def _plain(self, kind: str) -> wording.Clause:
        context = Context(taken=self.taken, flags=self.flags)
        line = choose(self.rng, load("neutral")[kind], context)
        slots = self._sentence_slots()
        text = wording.finish(self.rng, lambda: expand(self.rng, line.text, slots))
        codes = {"No Finding": NOT_GIVEN} if kind == "other" else {}
        return wording.Clause(text, codes, ())

    def _neutral(self, rate: float, kind: str) -> list[wording.Clause]:
        return [self._plain(kind)] if self.rng.random() < rate else []

    def _neutral_lungs(self) -> list[wording.Clause]:
        if "clear" in self.flags and self.rng.random() < 0.55:
            return [self._plain("lungs_clear")]
        return self._neutral(0.15, "lungs_fine")
