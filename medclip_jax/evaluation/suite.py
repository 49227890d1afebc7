"""Runs the protocols: plans, embeds every film once for all of them, measures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.evaluation.features import Network
from medclip_jax.evaluation.protocol import Bench, Job
from medclip_jax.evaluation.protocols import PROTOCOLS, module_of
from medclip_jax.evaluation.report import Section
from medclip_jax.evaluation.rows import Row
from medclip_jax.evaluation.sets import Films


@dataclass
class Results:
    """All that was measured.

    Attributes:
      rows: the figures, in the order of the protocols.
      sections: parts of the report.
      skipped: what was not measured, to the reason.
      films: data set to how many of its films were embedded.
      seconds: job to its time, the common embedding under "embedding".
    """

    rows: list[Row] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    films: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    bench: Bench,
    networks: Mapping[str, Network],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Runs protocols on all data.

    Args:
      bench: the data, the method's abilities and the options.
      networks: "trained" and those it is held against.
      protocols: names of PROTOCOLS.
      say: told what is under way.

    Raises:
      UserError: nothing at all can be measured on these data.
    """
    results = Results()
    jobs: list[Job] = []
    owner: dict[int, str] = {}
    for name in protocols:
        module = module_of(name)
        if any(module is module_of(known) for known in owner.values()):
            continue  # planned with another name of the same module
        planned = []
        for job in module.plan(bench):
            if job.needs and not bench.abilities.reads_films:
                bench.skip(job.name, "this method reads no films")
            else:
                planned.append(job)
        owner |= {id(job): name for job in planned}
        jobs += planned
    results.skipped |= bench.skipped
    start = time.perf_counter()
    for films, positions, patches in gather(jobs):
        results.films[films.name] = len(positions)
        for network in networks.values():
            network.embed(films, positions, patches)
    results.seconds["embedding"] = time.perf_counter() - start
    for job in jobs:
        module = module_of(owner[id(job)])
        left_out = {n for n in PROTOCOLS if module_of(n) is module} - set(protocols)
        say(job.name)
        start = time.perf_counter()
        outcome = job.measure(networks)
        results.rows += [
            replace(
                row,
                definition=module.ABOUT.definition,
                data=job.data(),
                kind=job.needs[0].films.kind if job.needs else "",
            )
            for row in outcome.rows
            if row.protocol.split("/")[0] not in left_out
        ]
        name = owner[id(job)]
        results.sections += [replace(part, protocol=name) for part in outcome.sections]
        results.skipped |= outcome.skipped
        results.seconds[job.name] = time.perf_counter() - start
    if not results.rows:
        why = "\n".join(f"  {name}: {why}" for name, why in results.skipped.items())
        raise UserError(f"no protocol could be run on these data:\n{why}")
    return results


def gather(jobs: Sequence[Job]) -> list[tuple[Films, np.ndarray, np.ndarray]]:
    """The films that all jobs need together.

    Returns:
      For each data set: it, the positions of its films, and of those whose local
      features are needed, both ascending.
    """
    wanted: dict[str, tuple[Films, list, list]] = {}
    for need in (need for job in jobs for need in job.needs):
        _, every, local = wanted.setdefault(need.films.name, (need.films, [], []))
        every.append(need.positions)
        if need.patches:
            local.append(need.positions)
    empty = np.zeros(0, np.int64)
    return [
        (
            films,
            np.unique(np.concatenate(every)),
            np.unique(np.concatenate([empty, *local])),
        )
        for films, every, local in wanted.values()
    ]
