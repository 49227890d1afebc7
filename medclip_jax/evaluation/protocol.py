"""What a protocol is. Each file of `protocols.PROTOCOLS` has two names:

    ABOUT                what is measured, where that is defined, and its traps
    plan(bench) -> jobs  what there is to measure in these data, and what it needs

The suite embeds, once for each network, the films that all jobs need together; then
each job measures on host arrays. Networks are asked by name: "trained" is the one in
question; "untrained" is itself before its first step; "imagenet" its image tower with
ImageNet weights and "supervised" a classifier's, which read no text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.report import Section
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films, Sentences, Table

Networks = Mapping[str, Network]


@dataclass(frozen=True)
class About:
    """What stands beside each figure.

    Attributes:
      title: of the protocol's part of the report.
      definition: what is measured and how, in one to three sentences.
      source: paper section or official file.
      traps: what has made others' figures wrong, or not comparable.
    """

    title: str
    definition: str
    source: str
    traps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to measure; see the command line for what each means.

    Attributes:
      seeds: subsets of the training labels that a probe is fitted on, and clusterings.
      probe_films: the most training films of a probe and of fine-tuning.
      tune_steps: the most steps of one fine-tuning; 0 leaves fine-tuning out.
      tune_draws: subsets of the training labels that a network is fine-tuned on.
      queries: folder with ConVIRT's lists for retrieval, `image-retrieval/` and
        `text-retrieval/`.
    """

    split: str = "test"
    per_class: int = 200
    minimum: int = 10
    rule: str = "loose"
    uncertain: str = "disqualify"
    frontal: bool = True
    by_view: bool = False
    prompts_per_class: int = 10
    draws: int = 5
    max_films: int = 2000
    seeds: int = 5
    seed: int = 0
    show_text: bool = False
    probe_films: int = 10_000
    tune_steps: int = 100
    tune_draws: int = 1
    queries: Path | None = None


@dataclass(frozen=True)
class Abilities:
    """What the method in question can do.

    Attributes:
      reads_text: it has a text tower.
      reads_films: it has an image tower.
      pooling: how it makes one logit of a class's prompts, "mean" or "max".
      not_given: what a label that nobody gave counted as in training.
      zscore: whether class scores are standardised over the films judged (GLoRIA).
      local: whether it gives patches in the joint space.
    """

    reads_text: bool = True
    reads_films: bool = True
    pooling: str = "mean"
    not_given: str = "zero"
    zscore: bool = False
    local: bool = True


@dataclass
class Bench:
    """The data, the method's abilities and the options.

    Attributes:
      films: data sets with films.
      sentences: data set to the sentences of the split that is judged.
      reports: data set to what a whole report is compared by, in the way that the
        method was trained: sentences, or the report as one text.
      phrases, progression, sentence_pairs: side tables, one a data set that has it.
      options, abilities: as named.
      tune: trains a network further, see `fine_tuning.Tuning`; None where nobody can.
      skipped: what cannot be measured, to the reason.
    """

    films: Sequence[Films]
    sentences: Mapping[str, Sentences] = field(default_factory=dict)
    reports: Mapping[str, Sentences] = field(default_factory=dict)
    phrases: Sequence[Table] = ()
    progression: Sequence[Table] = ()
    sentence_pairs: Sequence[Table] = ()
    options: Options = field(default_factory=Options)
    abilities: Abilities = field(default_factory=Abilities)
    tune: Callable[..., Any] | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def untuned(self) -> str:
        """Why no network is fine-tuned; "" where networks are."""
        if not self.options.tune_steps:
            return "left out by --tune-steps 0"
        return "" if self.tune else "nothing here can train a network further"

    def skip(self, what: str, why: str) -> None:
        """Notes what is not measured; the report tells it."""
        self.skipped[what] = why

    def find(self, image_ids: Sequence[str]) -> dict[str, tuple[Films, int]]:
        """Films by id among all data sets: where annotations of others' films lead."""
        wanted, found = set(image_ids), {}
        for films in self.films:
            for position in np.flatnonzero(np.isin(films.ids, list(wanted))):
                found[str(films.ids[position])] = (films, int(position))
        return found


@dataclass(frozen=True)
class Need:
    """Films that a job needs embedded; `patches`: their local features too."""

    films: Films
    positions: np.ndarray
    patches: bool = False


@dataclass
class Outcome:
    """What a job gives: figures, parts of the report, and what it left out and why."""

    rows: list[Row] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One protocol on one data set or task.

    Attributes:
      name: "PROTOCOL on DATASET", for the progress line.
      measure: networks -> outcome; called once all needs are embedded.
      needs: the films.
      fingerprint: of the data, where that is not the films' alone (a side table's).
    """

    name: str
    measure: Callable[[Networks], Outcome]
    needs: Sequence[Need] = ()
    fingerprint: str = ""

    def data(self) -> str:
        """Fingerprints of all data that the job's figures depend on."""
        of = [self.fingerprint, *(need.films.fingerprint for need in self.needs)]
        return "+".join(dict.fromkeys(filter(None, of)))


def each(networks: Networks, of: Callable[[Network], Any], *, text: bool) -> dict:
    """Network name to `of(network)`; with `text`, only networks that read text."""
    return {
        name: of(network)
        for name, network in networks.items()
        if network.reads_text or not text
    }
