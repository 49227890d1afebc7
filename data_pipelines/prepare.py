"""`medclip-jax prepare`: raw films and reports in, ArrayRecord shards and table out.

scan the raw tables -> reports (sentences, labels) -> films (labels, 8-bit JPEG)
-> a pass over the finished shards: study table, fingerprint, join checks
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from data_pipelines import annotations, hold_out, records, staging, summary
from data_pipelines.datasets import BUILDERS
from data_pipelines.plan import UNLABELLED, Scan, settle
from data_pipelines.rejected import Rejection, describe_rejections, write_rejections
from data_pipelines.study_table import TableMaker
from medclip_jax import cli, storage
from medclip_jax.errors import UserError

RUNNERS = ("DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")

SIMULATED = "Simulated films and reports: no patient is real."

EXAMPLES = """examples:
  medclip-jax prepare --dataset mimic_cxr --raw mimic-cxr-jpg/2.1.0 --out shards
  medclip-jax prepare --dataset chexpert --raw CheXpert-v1.0-small --out shards
  medclip-jax prepare --dataset csv --raw my_films --out shards --name my_films
  medclip-jax prepare --dataset csv --raw nih --label-map nih_cxr14 --out shards
  medclip-jax prepare --dataset mimic_cxr --raw /data/mimic --out /data/shards \\
      --beam-runner FlinkRunner --beam-options=--flink_master=host:8081

`--raw` for mimic_cxr and chexpert is the dataset's own root, in the published layout;
reports are looked for beside the study folders, in mimic-cxr-reports/ and in the study
folders. Started again after an interruption, it goes on where it was. Workers of
another machine must see --raw and --out under the same paths.
"""


def builder_of(dataset: str) -> Any:
    """The builder class of a dataset's name."""
    module, name = BUILDERS[dataset].split(":")
    return getattr(importlib.import_module(module), name)


def make_parser() -> argparse.ArgumentParser:
    csv_columns = importlib.import_module("data_pipelines.datasets.csv_folder").__doc__
    parser = argparse.ArgumentParser(
        prog="medclip-jax prepare",
        description="Turn raw films and reports into ArrayRecord shards, a study "
        "table, a fingerprint and a list of what was left out.",
        epilog=f"{EXAMPLES}\n--dataset csv: {csv_columns}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=sorted(BUILDERS))
    add(
        "--raw",
        required=True,
        type=storage.local_argument,
        metavar="DIR",
        help="the raw data",
    )
    add(
        "--out",
        required=True,
        type=storage.local_argument,
        metavar="DIR",
        help="shards go to DIR/NAME",
    )
    add("--name", help="name of the prepared dataset (default: that of --dataset)")
    add(
        "--size",
        type=int,
        default=512,
        metavar="PX",
        help="stored short side; films are never enlarged (default: %(default)s)",
    )
    add(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="worker processes of the DirectRunner (default: %(default)s, all cores)",
    )
    add(
        "--max-rejected-percent",
        type=float,
        default=1.0,
        metavar="P",
        help="give up when more than this is rejected (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace a finished dataset")
    add("--beam-runner", choices=RUNNERS, default="DirectRunner")
    add(
        "--beam-options",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed to Beam as it is, for example --beam-options=--region=x; may be "
        "repeated",
    )
    hold_out.add_argument(parser)
    for dataset in BUILDERS:
        builder_of(dataset).add_arguments(parser.add_argument_group(dataset))
    return parser


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    name = check_options(options)
    target = options.out.absolute() / name
    work = staging.work_folder(options.out.absolute(), name)
    arguments = identity(options, name)
    if not options.overwrite:
        about = staging.finished(target, arguments)
        if about is not None:
            records.open_dataset(target)
            print(f"{target} is finished already: {about['fingerprint']}")
            return 0
    elif target.exists() and not (target / staging.ABOUT).is_file():
        staging.finished(target, arguments)  # refuses a folder that is no dataset
    with staging.locked(work):
        went_on = staging.begin(work, arguments, fresh=options.overwrite)
        if went_on:
            print(f"going on with the unfinished work in {work}")
        prepare(options, name, arguments, work, target)
    return 0


def check_options(options: argparse.Namespace) -> str:
    """Checks the options against each other and gives the dataset's name.

    Raises:
      UserError: names the option, and what it should be.
    """
    if not options.raw.is_dir():
        raise UserError(f"--raw: expected a folder, found none at {options.raw}")
    if not 32 <= options.size <= 8192:
        raise UserError(f"--size: expected 32 to 8192 pixels, found {options.size}")
    if options.jobs < 1:
        raise UserError(f"--jobs: expected 1 or more, found {options.jobs}")
    if not 0 <= options.max_rejected_percent <= 100:
        raise UserError(
            "--max-rejected-percent: expected 0 to 100, found "
            f"{options.max_rejected_percent}"
        )
    name = options.name or options.dataset
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            "--name: expected letters, digits and _ . - (it names a folder), found "
            f"{name!r}"
        )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {options.out}: {error.strerror}") from None
    options.raw = options.raw.resolve()
    return name


def identity(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """The arguments that decide what is written; not how fast or by whom."""
    how = {"jobs", "max_rejected_percent", "overwrite", "beam_runner", "beam_options"}
    made = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in sorted(vars(options).items())
        if key not in how | {"out"}
    }
    made["name"] = name
    if getattr(options, "label_map", "") and Path(options.label_map).is_file():
        content = Path(options.label_map).read_bytes()
        made["label_map"] = hashlib.sha256(content).hexdigest()[:16]
    made["hold_out"] = hold_out.identity(options.hold_out)
    return made


def prepare(
    options: argparse.Namespace,
    name: str,
    arguments: dict[str, Any],
    work: Path,
    target: Path,
) -> None:
    """Builds one dataset in `work` and publishes it at `target`."""
    from data_pipelines import builder

    start = time.perf_counter()
    builder_class = builder_of(options.dataset)
    print(f"prepare {options.dataset}: {options.raw} -> {target}")
    scan = builder_class.scan(options.raw, options)
    hold_out.apply(scan, options.hold_out, builder_class)
    scan = settle(scan)
    if is_simulated(options.raw):
        builder_class = builder.simulated(builder_class, SIMULATED)
        relicense(scan)
    for note in scan.notes:
        print(f"  note: {note}")
    print(f"  {len(scan.films):,} films and {len(scan.reports):,} reports to convert")
    for table, rows in scan.annotations.items():
        print(f"  {len(rows):,} rows of {table}")
    planned = scan.total - len(scan.rejected)
    check_rejected(scan, scan.rejected, planned, options, target)
    if not planned:
        raise UserError(f"{options.raw} holds nothing to prepare")
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()

    def make(kind: str, items: list, root: Path | None) -> list:
        jobs = builder.write_plan(
            kind, items, work, root or options.raw, name, options.size
        )
        return builder.build(
            builder_class, jobs, work, final / kind, *beam_of(options, len(jobs))
        )

    done = make("reports", scan.reports, scan.reports_root)
    label_from_reports(scan, done)
    done += make("images", scan.films, scan.films_root)
    rejected = scan.rejected + [r for part in done for r in part.rejected]
    warned = scan.warnings + [w for part in done for w in part.warnings]
    kept = sum(part.records for part in done)
    if not scan.films and not scan.reports:  # annotations of another dataset's films
        kept = planned
    check_rejected(scan, rejected, kept, options, target)
    write_rejections(final / "rejected.csv", rejected)
    write_rejections(final / "warnings.csv", warned)
    maker = read_back(final)
    annotated = annotations.write(final, side_tables(scan, done), scan.tasks)
    seconds = time.perf_counter() - start
    more = {
        "rejected": len(rejected),
        "seconds": round(seconds, 1),
        "notice": builder_class.NOTICE,
        "for_pretraining": builder_class.FOR_PRETRAINING,
    }
    about = finish(final, name, arguments, maker, annotated, more)
    staging.publish(final, target, work)
    if about["images"] or about["reports"]:
        print(f"\n{summary.describe(about['counts'])}\n")
    if rejected:
        print(f"rejected (see {target / 'rejected.csv'}):")
        print(describe_rejections(rejected))
    if warned:
        print(f"kept, but odd (see {target / 'warnings.csv'}):")
        print(summary.describe_warnings(warned))
    rate = about["images"] / seconds
    print(
        f"{target}: {about['images']:,} films, {about['reports']:,} reports, "
        f"{len(rejected):,} rejected, {seconds:.1f} s, {rate:,.0f} films/s, "
        f"fingerprint {about['fingerprint']}"
    )


def side_tables(scan: Scan, done: list) -> dict[str, list[dict]]:
    """The annotations of what was kept, and the hashes of the films."""
    hashes = {image: found for part in done for image, found in part.hashes.items()}
    tables = dict(scan.annotations)
    for name in ("classes", "boxes"):  # of the dataset's own films
        rows = [row for row in tables.get(name, ()) if row["image_id"] in hashes]
        tables[name] = rows
    tables["hashes"] = [
        {"image_id": image, "hash": bytes.fromhex(found)}
        for image, found in hashes.items()
    ]
    return tables


def is_simulated(raw: Path) -> bool:
    """Whether the raw folder was written by `medclip-jax simulate`."""
    folders = (raw, *raw.parents[:2])
    return any((folder / "simulation.json").is_file() for folder in folders)


def relicense(scan: Scan) -> None:
    """Simulated records must not bear the licence of the data whose layout they have."""

    def relicensed(item):
        return dataclasses.replace(
            item, license="simulated", credit="medclip-jax simulate"
        )

    scan.films = [relicensed(film) for film in scan.films]
    scan.reports = [relicensed(report) for report in scan.reports]


def beam_of(options: argparse.Namespace, n_jobs: int) -> tuple[Any, Any]:
    """The Beam runner and its options."""
    from data_pipelines.builder import import_beam

    import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    if options.beam_runner != "DirectRunner":
        return options.beam_runner, PipelineOptions(options.beam_options)
    # By name, DirectRunner may hand over to a runner that it downloads.
    workers = max(1, min(options.jobs, n_jobs))
    mode = "in_memory" if workers == 1 else "multi_processing"
    flags = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
    return FnApiRunner(), PipelineOptions([*flags, *options.beam_options])


def label_from_reports(scan: Scan, done: list) -> None:
    """Gives films without labels of their own those of their study's report."""
    of_study = {study: labels for part in done for study, labels in part.labels.items()}
    for at, film in enumerate(scan.films):
        if film.labels is None:
            labels = of_study.get(film.study_id)
            scan.films[at] = dataclasses.replace(
                film,
                labels=tuple(labels) if labels else UNLABELLED,
                label_source="report" if labels else "none",
            )


def check_rejected(
    scan: Scan,
    rejected: list[Rejection],
    kept: int,
    options: argparse.Namespace,
    target: Path,
) -> None:
    """Stops the build when too much was rejected, after writing down what.

    Raises:
      UserError: says how much, of what, and what to look at.
    """
    percent = 100 * len(rejected) / max(1, scan.total)
    if percent <= options.max_rejected_percent and kept:
        return
    listing = target / "rejected.csv"
    if (target / staging.ABOUT).exists():  # a finished dataset is not touched
        listing = target.with_name(f"{target.name}.rejected.csv")
    listing.parent.mkdir(parents=True, exist_ok=True)
    write_rejections(listing, rejected)
    limit = f"more than --max-rejected-percent {options.max_rejected_percent:g}"
    raise UserError(
        f"{len(rejected):,} of {scan.total:,} records are rejected ({percent:.1f} %), "
        f"{limit if kept else 'and nothing is left'}:\n"
        f"{describe_rejections(rejected)}\n"
        f"All are listed in {listing}. Mend the raw data, or start again with a "
        "higher --max-rejected-percent; what is converted already is kept"
    )


def read_back(final: Path) -> TableMaker:
    """The pass over the finished shards."""
    maker = TableMaker()
    for kind, add in (("images", maker.add_image), ("reports", maker.add_report)):
        if not (final / kind).is_dir():
            continue
        stored = records.Records(kind, final / kind)
        rows = tqdm(
            range(len(stored)), desc=f"  table: {kind}", unit=" records", mininterval=1
        )
        for row in rows:
            add(row, stored[row])
    return maker


def finish(
    final: Path,
    name: str,
    arguments: dict[str, Any],
    maker: TableMaker,
    annotated: str,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Writes table and fingerprint, and opens the dataset as a reader would."""
    table = maker.table()
    pq.write_table(
        table,
        final / "studies.parquet",
        compression="zstd",
        write_page_checksum=True,  # labels are read from here: no bit may turn unseen
    )
    about = {
        "name": name,
        "fingerprint": maker.fingerprint(annotated),
        "schema_version": records.SCHEMA_VERSION,
        "images": len(maker.digests["images"]),
        "reports": len(maker.digests["reports"]),
        "studies": table.num_rows,
        **more,
        "arguments": arguments,
        "counts": summary.counts(maker),
    }
    path = final / staging.ABOUT
    path.write_text(json.dumps(about, indent=1) + "\n")
    staging.sync(path)
    dataset = records.open_dataset(final)
    rng = np.random.default_rng(0)
    if table.num_rows:
        records.check_joins(dataset, rng.integers(0, table.num_rows, 64))
    return about


if __name__ == "__main__":
    sys.exit(cli.run(main))
