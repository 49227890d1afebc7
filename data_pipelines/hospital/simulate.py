"""`medclip-jax simulate`: writes a simulated hospital in the layouts of real data."""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from data_pipelines.findings import FINDINGS
from data_pipelines.hospital import benchmarks, tables
from data_pipelines.hospital.benchmarks import DERIVED, LAYOUTS
from data_pipelines.hospital.course import MAX_PATIENTS
from data_pipelines.hospital.simulation_folder import (
    PARTS,
    check_space,
    open_folder,
    write_record,
    write_whole,
)
from data_pipelines.hospital.writer import TABLES, Settings, write_patient
from medclip_jax.errors import UserError

HOSPITAL = ("mimic_cxr", "chexpert")
PATIENTS_A_PART = 8

_EXAMPLES = """examples:
  medclip-jax simulate --out runs/raw --patients 2000 --seed 0 --size 256
  medclip-jax simulate --out runs/small --patients 20 --size 128 --chexpert-patients 0

The same command continues an interrupted simulation; with --benchmarks it adds those
sets to a complete one. The result is the same for any number of jobs. Then:
  medclip-jax prepare --dataset mimic_cxr --raw runs/raw/mimic-cxr --out runs/shards
  medclip-jax prepare --dataset chexpert --raw runs/raw/chexpert --out runs/shards
"""


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    out = argparse.ArgumentParser(
        "medclip-jax simulate",
        description="Writes a simulated hospital: chest films, reports, labels and the "
        "truth of each film, in the on-disk layouts of MIMIC-CXR-JPG and CheXpert.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    add = out.add_argument
    add("--patients", type=int, default=1000, help="with reports (default 1000)")
    add(
        "--chexpert-patients",
        type=int,
        default=None,
        metavar="M",
        help="further patients, images and labels without reports "
        "(default: half of --patients)",
    )
    add("--seed", type=int, default=0, help="of everything (default 0)")
    add("--size", type=int, default=256, help="short side, pixels (default 256)")
    add(
        "--prevalence",
        type=float,
        default=0.8,
        help="share of studies with a finding other than devices (default 0.8)",
    )
    add(
        "--difficulty",
        type=float,
        default=0.5,
        help="0 clear films and severe findings, 1 the reverse (default 0.5)",
    )
    add("--test-fraction", type=float, default=0.25, help="of patients (default 0.25)")
    add(
        "--validate-fraction",
        type=float,
        default=0.05,
        help="of patients (default 0.05)",
    )
    add(
        "--benchmarks",
        type=int,
        default=0,
        metavar="N",
        help="also the sets that models are judged on, each with N patients, in their "
        f"own layouts: {', '.join((*LAYOUTS, *DERIVED))} (default 0: none)",
    )
    add("--quality", type=int, default=95, help="of the JPEGs (default 95)")
    add("--jobs", type=int, default=None, help="processes (default: one a core)")
    return out


def read_settings(options: argparse.Namespace) -> Settings:
    """Checks the numbers.

    Raises:
      UserError: for the first option out of its range.
    """
    others = options.chexpert_patients
    if others is None:
        options.chexpert_patients = others = options.patients // 2
    ranges = {
        "patients": (0, MAX_PATIENTS),
        "chexpert_patients": (0, 99_999),
        "seed": (0, 2**63 - 1),
        "size": (64, 4096),
        "prevalence": (0.0, 1.0),
        "difficulty": (0.0, 1.0),
        "test_fraction": (0.0, 1.0),
        "validate_fraction": (0.0, 1.0),
        "quality": (1, 100),
        "benchmarks": (0, 99_999),
    }
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option}: expected {low} to {high}, found {value}.")
    if not options.patients + others:
        raise UserError(
            "expected at least one patient, found --patients 0 and "
            "--chexpert-patients 0; give a number to one of them."
        )
    if options.test_fraction + options.validate_fraction >= 1:
        raise UserError(
            "--test-fraction and --validate-fraction: expected a sum below 1, found "
            f"{options.test_fraction + options.validate_fraction:g}; leave some "
            "patients to train."
        )
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: expected 1 or more, found {options.jobs}.")
    return Settings(**{f.name: getattr(options, f.name) for f in fields(Settings)})


def main(argv: list[str] | None = None) -> int:
    """Runs the verb; 0 when the simulation is complete."""
    options = parser().parse_args(argv)
    settings = read_settings(options)
    root = Path(options.out)
    state = open_folder(root, settings)
    if state == "complete":
        print(f"{root} already holds this simulation, complete; nothing to do.")
        return 0
    check_space(root, settings)
    start = time.monotonic()
    jobs = options.jobs or len(os.sched_getaffinity(0))
    datasets = LAYOUTS if state == "grows" else (*HOSPITAL, *LAYOUTS)
    films = write_parts(root, settings, jobs, datasets)
    print("Writing the tables ...", flush=True)
    if state != "grows":
        counts = tables.write_tables(root, read_parts(root, settings, HOSPITAL))
        print_counts(root, counts)
    write_benchmarks(root, settings)
    tables.write_readmes(root, settings)
    write_record(root, settings, complete=True)
    shutil.rmtree(root / PARTS)
    print_end(root, films, time.monotonic() - start, jobs)
    return 0


# --- Parts -----------------------------------------------------------------------


def part_list(
    settings: Settings, datasets: Sequence[str]
) -> list[tuple[str, int, int]]:
    """(dataset, first patient, last patient + 1) of every part, in order."""
    totals = {
        "mimic_cxr": settings.patients,
        "chexpert": settings.chexpert_patients,
        **dict.fromkeys(LAYOUTS, settings.benchmarks),
    }
    return [
        (dataset, first, min(first + PATIENTS_A_PART, total))
        for dataset, total in totals.items()
        if dataset in datasets
        for first in range(0, total, PATIENTS_A_PART)
    ]


def part_path(root: Path, part: tuple[str, int, int]) -> Path:
    return root / PARTS / f"{part[0]}-{part[1]:07d}.json"


def write_part(root: Path, settings: Settings, part: tuple[str, int, int]) -> int:
    """Writes the patients of a part, then their rows; the number of films."""
    dataset, first, last = part
    if dataset in LAYOUTS:
        return write_benchmark_part(root, settings, part)
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    for number in range(first, last):
        for name, more in write_patient(root, settings, dataset, number).items():
            rows[name] += more
    films = sum(len(study["images"]) for study in rows["studies"])
    write_whole(part_path(root, part), json.dumps(rows))
    return films


def write_benchmark_part(
    root: Path, settings: Settings, part: tuple[str, int, int]
) -> int:
    """The same for a set of `benchmarks/`."""
    name, first, last = part
    folder = root / benchmarks.FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    layout = benchmarks.module(name)
    rows: dict[str, list[dict]] = {}
    for number in range(first, last):
        for table, more in layout.write_patient(folder, settings, number).items():
            rows.setdefault(table, []).extend(more)
    write_whole(part_path(root, part), json.dumps(rows))
    return last - first


def write_benchmarks(root: Path, settings: Settings) -> None:
    """Writes the tables of the sets of `benchmarks/`."""
    if not settings.benchmarks:
        return
    for name in LAYOUTS:
        rows: dict[str, list[dict]] = {}
        for part in read_parts(root, settings, (name,)):
            for table, more in part.items():
                rows.setdefault(table, []).extend(more)
        folder = root / benchmarks.FOLDER / name
        benchmarks.module(name).write_tables(folder, settings, rows)
    for name in DERIVED if settings.patients else ():
        folder = root / benchmarks.FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        benchmarks.module(name).write_tables(folder, settings, root)


def write_parts(
    root: Path, settings: Settings, jobs: int, datasets: Sequence[str]
) -> int:
    """Writes every part that is not there yet; the number of films written."""
    (root / PARTS).mkdir(exist_ok=True)
    parts = part_list(settings, datasets)
    todo = [part for part in parts if not part_path(root, part).exists()]
    if len(todo) < len(parts):
        print(f"Continuing: {len(parts) - len(todo)} of {len(parts)} parts are there.")
    films = 0
    total = sum(last - first for _, first, last in parts)
    done = total - sum(last - first for _, first, last in todo)
    with tqdm(total=total, initial=done, unit="patient", smoothing=0.05) as bar:
        for part, more in _run(root, settings, todo, jobs):
            films += more
            bar.update(part[2] - part[1])
            bar.set_postfix(films=films, refresh=False)
    return films


def _run(root, settings, todo, jobs) -> Iterator[tuple[tuple[str, int, int], int]]:
    if jobs == 1 or len(todo) < 2:
        for part in todo:
            yield part, write_part(root, settings, part)
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), mp_context=spawn)
    try:
        futures = {pool.submit(write_part, root, settings, part): part for part in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the simulation was killed, most likely for want of memory; "
            f"run the same command with fewer --jobs than {jobs} to continue."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_parts(
    root: Path, settings: Settings, datasets: Sequence[str]
) -> Iterator[dict[str, list[dict]]]:
    """The rows of each part of some datasets, in the order of the patients."""
    for part in part_list(settings, datasets):
        yield json.loads(part_path(root, part).read_text("utf-8"))


def print_counts(root: Path, counts: Counter) -> None:
    """What the hospital holds, and how often each finding occurs."""
    print(f"\nSimulated hospital in {root}")
    print(
        f"  {counts['patients']} patients, {counts['studies']} studies, "
        f"{counts['films']} films, {counts['reports']} reports, "
        f"{counts['sentences']} sentences\n"
    )
    print(
        f"  {'finding':<28}{'in film':>9}{'positive':>10}{'hedged':>8}{'negative':>10}"
    )
    for name in FINDINGS:
        told = [counts["told", name, code] for code in (1, -1, 0)]
        print(
            f"  {name:<28}{counts['truth', name]:>9}{told[0]:>10}{told[1]:>8}{told[2]:>10}"
        )
    print(f"\n  one of the five evaluation findings alone: {counts['alone']} studies")


def print_end(root: Path, films: int, seconds: float, jobs: int) -> None:
    """The rate, and what to do next."""
    rate = films / max(seconds, 1e-9)
    print(f"\n  {seconds:.0f} s, {rate:.1f} films/s in {jobs} processes")
    print("\nEverything above is simulated. Next: medclip-jax prepare, on")
    for layout in ("mimic-cxr", "chexpert"):
        if (root / layout).exists():
            print(f"  --dataset {layout.replace('-', '_')} --raw {root / layout}")
    for name in (*LAYOUTS, *DERIVED):
        folder = root / benchmarks.FOLDER / name
        if folder.exists():
            adapter = getattr(benchmarks.module(name), "DATASET", name)
            more = f" --name {name}" if adapter != name else ""
            print(f"  --dataset {adapter} --raw {folder}{more}")


if __name__ == "__main__":
    from medclip_jax.cli import run

    raise SystemExit(run(main))
