"""The table that a build ends with."""

import collections
from collections.abc import Sequence
from typing import Any

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    POSITIVE,
    SPLITS,
    UNCERTAIN,
    VIEWS,
)
from data_pipelines.rejected import Rejection
from data_pipelines.study_table import TableMaker


def counts(maker: TableMaker) -> dict[str, Any]:
    """Everything the summary shows that the shards hold, as plain JSON."""
    labels = {
        kind: {
            name: [
                maker.label_counts[kind, at, code]
                for code in (POSITIVE, NEGATIVE, UNCERTAIN)
            ]
            for at, name in enumerate(FINDINGS)
        }
        for kind in ("images", "reports")
    }
    of_split = {}
    for split, (patients, studies, reports) in maker.patients().items():
        of_split[split] = {
            "films": maker.images_of_split[split],
            "reports": reports,
            "studies": studies,
            "patients": patients,
        }
    return {
        "splits": of_split,
        "views": {view: maker.views[view] for view in VIEWS if maker.views[view]},
        "label_sources": dict(sorted(maker.label_sources.items())),
        "labels": labels,
    }


def describe(counted: dict[str, Any]) -> str:
    """The summary as text: splits, views, labels."""
    lines = [f"  {'':<10}{'films':>9}{'reports':>9}{'studies':>9}{'patients':>9}"]
    total: collections.Counter = collections.Counter()
    for split in SPLITS:
        row = counted["splits"][split]
        total.update(row)
        lines.append(_row(split, row))
    lines.append(_row("all", total))
    views = ", ".join(f"{view} {n:,}" for view, n in counted["views"].items())
    sources = ", ".join(f"{s} {n:,}" for s, n in counted["label_sources"].items())
    if views:
        lines += ["", f"  views: {views}", f"  film labels from: {sources}"]
    lines += ["", f"  {'':<28}{'films':^27}{'reports':^27}"]
    heads = f"{'positive':>9}{'negative':>9}{'unsure':>9}"
    lines.append(f"  {'':<28}{heads}{heads}")
    for name in FINDINGS:
        numbers = counted["labels"]["images"][name] + counted["labels"]["reports"][name]
        lines.append(f"  {name:<28}" + "".join(f"{n:>9,}" for n in numbers))
    return "\n".join(lines)


def _row(name: str, row: Any) -> str:
    cells = (row[k] for k in ("films", "reports", "studies", "patients"))
    return f"  {name:<10}" + "".join(f"{n:>9,}" for n in cells)


def describe_warnings(warnings: Sequence[Rejection]) -> str:
    """One line for each kind of warning."""
    by_reason = collections.Counter(w.reason for w in warnings)
    return "\n".join(f"  {n:>7,} x {reason}" for reason, n in by_reason.most_common())
