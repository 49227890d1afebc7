"""All methods at one budget on the simulated hospital: the table of RESULTS.md.

    python benchmarks/methods.py --out runs/methods

Makes the hospital, its shards, one run a method and seed, and their evaluation. Towers
are of one size, every run makes the same number of updates on as many films (or
reports, where there are no films) at the method's own recipe, and all are judged by the
same protocols on the same unseen patients. What is there already is not made again, so
the same command goes on after a stop; --rows and --seeds choose. The table is written
after every run to OUT/table.md and between the marks of --results.

A figure is the mean over seeds. Its interval has two parts, added in squares: the
interval over patients (a bootstrap within each run; the seeds share the patients, so
it does not shrink with their number) and the error of the mean over seeds.
"""

import argparse
import ast
import dataclasses
import json
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.hospital import benchmarks, simulate
from medclip_jax.inputs.tokens import train_wordpiece

STEPS, BATCH, SIDE = 800, 32, 96
SETS = ("ms_cxr", "ms_cxr_t", "radnli")
"""Annotated sets beside the hospital's own films."""
PATIENTS_OF_SETS = 300
PROTOCOLS = (
    "zero_shot_five", "linear_probe", "retrieval_exact", "grounding",
    "temporal_image_classification", "temporal_sentence_similarity", "radnli",
)  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MARKS = ("<!-- methods: begin -->", "<!-- methods: end -->")

RESNET = {"image.stage_sizes": "(1,1,1)", "image.width": 16}
"""Three stages: 6 x 6 places of a film of 96 pixels."""
REPORTS = {"text": "report", "text_length": 64}
"""Pairs are of whole reports: single sentences mostly say that nothing is found, and
nothing is learnt from them within this budget."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
      configs: one after the other, each from the one before; steps are shared out.
      model, data: settings beyond the config's.
      learning_rate: None is the config's.
      general_words: the vocabulary is of general English, not of the reports.
      films: whether it sees films.
    """

    configs: tuple[str, ...]
    model: dict = dataclasses.field(default_factory=lambda: RESNET)
    data: dict = dataclasses.field(default_factory=dict)
    learning_rate: float | None = 1e-3
    general_words: bool = False


CXR_BERT = ("cxr_bert:demo", "cxr_bert:demo_matching")
RECIPES = {
    "MedCLIP": Recipe(("medclip:demo",), learning_rate=None),
    "ConVIRT": Recipe(("convirt:demo",), data=REPORTS),
    "CLIP": Recipe(("clip:demo",), data=REPORTS),
    "SigLIP": Recipe(("siglip:demo",), data=REPORTS),
    "SimCLR": Recipe(("simclr:demo",)),
    "MoCo v2": Recipe(("moco:demo",)),
    "GLoRIA": Recipe(("gloria:demo",), data=REPORTS),
    "CXR-BERT": Recipe(CXR_BERT),
    "CXR-BERT, general words": Recipe(CXR_BERT, general_words=True),
    "BioViL": Recipe(("biovil:demo",)),
    "BioViL-L": Recipe(("biovil:demo_local",)),
    "BioViL-T": Recipe(("biovil_t:demo",)),
    "MGCA": Recipe(("mgca:demo",)),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of the table, as `results.json` names it."""

    title: str
    protocol: str
    metric: str
    chance: float | None = None


COLUMNS = (
    Column("zero-shot, AUROC", "zero_shot_five", "auroc", 0.5),
    Column("probe 1 %", "linear_probe", "auroc_1%", 0.5),
    Column("probe 10 %", "linear_probe", "auroc_10%", 0.5),
    Column("probe 100 %", "linear_probe", "auroc_100%", 0.5),
    Column("own report, R@10", "retrieval_exact/image_to_text", "recall_at_10"),
    Column("grounding, signed CNR", "grounding", "signed_cnr", 0.0),
    Column("progression", "temporal_image_classification", "macro_accuracy", 1 / 3),
    Column("sentence pairs", "temporal_sentence_similarity", "auroc", 0.5),
    Column("negation", "radnli", "auroc", 0.5),
)
GROUNDING, PROGRESSION, NEGATION = COLUMNS[5], COLUMNS[6], COLUMNS[8]

SINGLE_FILM = ("ConVIRT", "CLIP", "SigLIP", "GLoRIA", "BioViL", "BioViL-L", "MGCA")
GLOBAL_ONLY = ("ConVIRT", "CLIP", "SigLIP", "BioViL")
DIRECTIONS = (
    (PROGRESSION, "BioViL-T", SINGLE_FILM),
    (PROGRESSION, "Med-ST", SINGLE_FILM),
    (GROUNDING, "GLoRIA", GLOBAL_ONLY),
    (GROUNDING, "BioViL-L", GLOBAL_ONLY),
    (GROUNDING, "MGCA", GLOBAL_ONLY),
    (NEGATION, "CXR-BERT", ("CXR-BERT, general words",)),
)
"""What the papers claim: of a figure the first is above each of the others."""

PUBLISHED = {
    "MedCLIP": "zero-shot accuracy, CheXpert 5x200: 0.594; ConVIRT 0.419, GLoRIA 0.433, "
    "CLIP 0.202 (table 1)",
    "ConVIRT": "CheXpert probe AUROC at 1, 10, 100 %: 0.859, 0.868, 0.873; SimCLR 0.774 "
    "and MoCo v2 0.813 at 1 % (tables 1, 3)",
    "SimCLR": "CheXpert probe at 1 %: 0.774 (ConVIRT, table 3)",
    "MoCo v2": "CheXpert probe at 1 %: 0.813 (ConVIRT, table 3)",
    "GLoRIA": "zero-shot accuracy, CheXpert 5x200: 0.61; CNR on MS-CXR 0.930 against "
    "ConVIRT's 0.818 (BioViL)",
    "CXR-BERT": "RadNLI by transfer 0.652; PubMedBERT 0.577, ClinicalBERT 0.477 "
    "(BioViL, table 2)",
    "CXR-BERT, general words": "PubMedBERT: RadNLI AUROC of two classes 0.727 against "
    "0.932 (BioViL-T's model card)",
    "BioViL": "CNR on MS-CXR 1.027; RSNA zero-shot AUROC 0.831",
    "BioViL-L": "CNR on MS-CXR 1.142 against BioViL's 1.027",
    "BioViL-T": "progression 0.602 (mean of five) against BioViL's 0.578; CNR 1.33; "
    "sentence pairs AUROC 0.933, RadNLI 0.947",
    "MGCA": "CheXpert probe AUROC at 1, 10, 100 %: 0.888, 0.891, 0.897 (ViT-B)",
    "Med-ST": "progression 0.611 (accuracy, mean of five) against BioViL-T's 0.602 and "
    "BioViL's 0.578",
}


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = out.add_argument
    add("--out", required=True, type=Path, help="folder for data, runs and the table")
    add("--rows", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="ROW",
        help=f"(default all: {', '.join(RECIPES)})")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default 0 1 2)")
    add("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"),
        help="file whose marked part is replaced (default benchmarks/RESULTS.md)")  # fmt: skip
    return out


def verb(log: Path, *words: object) -> None:
    """Runs `medclip-jax`; what it says goes to a file.

    Raises:
      SystemExit: it failed.
    """
    command = [sys.executable, "-m", "medclip_jax.cli", *map(str, words)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        made = subprocess.run(command, stdout=file, stderr=file, check=False)
        if made.returncode:
            sys.exit(f"failed: {' '.join(map(str, words))}\nsee {log}")


def make_data(out: Path) -> Path:
    """Simulates and prepares what is not there yet.

    Returns:
      The folder of prepared sets.
    """
    raw, shards = out / "raw", out / "shards"
    done = shards / "done"
    if done.is_file():
        return shards
    words = ("simulate", "--out", raw, "--patients", 2400, "--chexpert-patients", 0,
             "--test-fraction", 0.3, "--validate-fraction", 0.05, "--size", 128)  # fmt: skip
    verb(out / "data.log", *words)
    asked = simulate.parser().parse_args(list(map(str, words[1:])))
    settings = dataclasses.replace(
        simulate.read_settings(asked), benchmarks=PATIENTS_OF_SETS
    )
    for name in SETS:
        folder = raw / benchmarks.FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        benchmarks.module(name).write_tables(folder, settings, raw)
    sources = {"mimic_cxr": raw / "mimic-cxr"}
    sources |= {name: raw / benchmarks.FOLDER / name for name in SETS}
    for name, source in sources.items():
        verb(out / "data.log", "prepare", "--dataset", name, "--raw", source,
             "--out", shards)  # fmt: skip
    done.touch()
    return shards


def general_words(folder: Path) -> Path:
    """A vocabulary of the size of the reports' own, of English that is not medical: what
    Python's standard library says about itself.

    Returns:
      The tokenizer's folder.
    """
    if not (folder / "vocab.txt").is_file():
        texts = [
            text
            for module in pkgutil.iter_modules()
            if module.name in sys.stdlib_module_names
            for text in _docstrings(module)
        ]
        names = [str(number) for number in range(len(texts))]
        train_wordpiece(texts, names, 2048, 3).save(folder)
    return folder


def _docstrings(module: pkgutil.ModuleInfo) -> Iterator[str]:
    spec = module.module_finder.find_spec(module.name)  # type: ignore[call-arg]
    path = Path(spec.origin) if spec and spec.origin else Path()
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def measure(out: Path, shards: Path, name: str, seed: int) -> bool:
    """Trains and judges one row with one seed, where that is not done yet.

    Returns:
      Whether there was something to do.
    """
    recipe = RECIPES[name]
    run = _folder(out, name, seed)
    if (run / "seconds.json").is_file():
        return False
    start, settings = time.perf_counter(), _settings(recipe, seed, out)
    last = ""
    for number, config in enumerate(recipe.configs):
        workdir = run / f"train_{number}"
        more = [f"--config.train.steps={STEPS // len(recipe.configs)}"]
        if last:
            more.append(f"--config.init_from={last}")
            more.append(f"--config.model.text.tokenizer={last}/tokenizer")
        verb(run / "log.txt", "train", "--config", config, "--workdir", workdir,
             "--data", shards, *settings, *more)  # fmt: skip
        last = str(workdir)
    trained = time.perf_counter()
    verb(run / "log.txt", "evaluate", "--workdir", last, "--data", shards,
         "--step", "latest", "--protocols", ",".join(PROTOCOLS), "--tune-steps", 0,
         "--seeds", 3, "--max-films", 1000, "--features", "none",
         "--out", run / "report")  # fmt: skip
    seconds = {"train": trained - start, "evaluate": time.perf_counter() - trained}
    (run / "seconds.json").write_text(json.dumps(seconds) + "\n")
    return True


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}"


def _settings(recipe: Recipe, seed: int, out: Path) -> list[str]:
    settings: dict[str, object] = {
        "seed": seed,
        "train.batch_size": BATCH,
        "train.eval_every_steps": 0,
        "checkpoint.best_metric": "loss",
        "checkpoint.every_steps": STEPS,
        "data.image_size": SIDE,
        "data.crop_from": SIDE + 8,
        **{f"model.{key}": value for key, value in recipe.model.items()},
        **{f"data.{key}": value for key, value in recipe.data.items()},
    }
    if recipe.learning_rate is not None:
        settings["optimizer.learning_rate"] = recipe.learning_rate
    if recipe.general_words:
        settings["model.text.tokenizer"] = general_words(out / "general_words")
    return [f"--config.{key}={value}" for key, value in settings.items()]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over seeds and its half interval."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"


def figure(out: Path, name: str, column: Column, seeds: Sequence[int]) -> Figure | str:
    """What the runs that are there give; else why there is nothing, or ""."""
    values, halves, why = [], [], ""
    for seed in seeds:
        run = _folder(out, name, seed)
        if not (run / "seconds.json").is_file():
            continue
        found = json.loads((run / "report" / "results.json").read_text())
        asked = (column.protocol, column.metric)
        rows = [r for r in found["rows"] if (r["protocol"], r["metric"]) == asked]
        if not rows:
            family = column.protocol.split("/")[0]
            reasons = [w for of, w in found["skipped"].items() if of.startswith(family)]
            why = reasons[0] if reasons else f"no row {asked}"
            continue
        values.append(rows[0]["value"])
        halves.append((rows[0]["high"] - rows[0]["low"]) / 2)
    if not values:
        return why
    over_seeds = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5 if values[1:] else 0
    half = float(np.hypot(np.mean(halves), over_seeds))
    return Figure(float(np.mean(values)), half, len(values))


def table(out: Path, seeds: Sequence[int]) -> str:
    """All that is measured so far, in Markdown."""
    figures = {
        (name, column): figure(out, name, column, seeds)
        for name in RECIPES
        for column in COLUMNS
    }
    heads = ["method", *(column.title for column in COLUMNS), "seeds", "minutes a run"]
    lines = _head(heads)
    for name in RECIPES:
        of = [figures[name, column] for column in COLUMNS]
        count = max((f.seeds for f in of if isinstance(f, Figure)), default=0)
        if count:
            cells = [str(f) if isinstance(f, Figure) else "" for f in of]
            minutes = np.mean(list(_minutes(out, name, seeds)))
            lines.append(_line([name, *cells, str(count), f"{minutes:.1f}"]))
    chances = ["" if c.chance is None else f"{c.chance:.3f}" for c in COLUMNS]
    lines += [_line(["chance", *chances, "", ""]), "", "Not served:", ""]
    for name in RECIPES:
        reasons = {
            column.protocol.split("/")[0]: of
            for column in COLUMNS
            if isinstance(of := figures[name, column], str) and of
        }
        if reasons:
            told = "; ".join(f"{what}: {why}" for what, why in reasons.items())
            lines.append(f"- {name}: {told}.")
    return "\n".join([*lines, "", *directions(figures), "", *published(figures)]) + "\n"


def directions(figures: dict) -> list[str]:
    """The claims of `DIRECTIONS` beside what came out."""
    lines = _head(["claim", "figure", "ours", "the best of the others", "comes out"])
    for column, name, others in DIRECTIONS:
        ours = figures.get((name, column))
        told = {other: figures.get((other, column)) for other in others}
        told = {o: f for o, f in told.items() if isinstance(f, Figure)}
        if not isinstance(ours, Figure) or not told:
            continue
        best = max(told, key=lambda other: told[other].mean)
        gap = ours.mean - told[best].mean
        beyond = abs(gap) > ours.half + told[best].half
        verdict = "yes" if gap > 0 else "no"
        if not beyond:
            verdict = "within the intervals"
        whom = others[0] if len(others) == 1 else "the others"
        lines.append(
            _line([f"{name} above {whom}", column.title, str(ours),
                   f"{best} {told[best]}", verdict])
        )  # fmt: skip
    return lines


def published(figures: dict) -> list[str]:
    """What the papers report on real data with large towers."""
    lines = _head(["method", "as published"])
    rows = {name for (name, _), of in figures.items() if isinstance(of, Figure)}
    return lines + [_line([n, told]) for n, told in PUBLISHED.items() if n in rows]


def _minutes(out: Path, name: str, seeds: Sequence[int]) -> Iterator[float]:
    for seed in seeds:
        file = _folder(out, name, seed) / "seconds.json"
        if file.is_file():
            yield sum(json.loads(file.read_text()).values()) / 60


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def write(path: Path, text: str) -> None:
    """Replaces what stands between the marks of a file.

    Raises:
      SystemExit: the marks are not there.
    """
    whole = path.read_text()
    if not all(mark in whole for mark in MARKS):
        sys.exit(f"{path}: expected the marks {' and '.join(MARKS)}, found none")
    before, rest = whole.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}")


def main() -> None:
    args = parser().parse_args()
    shards = make_data(args.out)
    for seed in args.seeds:
        for name in args.rows:
            start = time.perf_counter()
            if measure(args.out, shards, name, seed):
                took = time.perf_counter() - start
                print(f"{name}, seed {seed}: {took:.0f} s", flush=True)
            text = table(args.out, args.seeds)
            (args.out / "table.md").write_text(text)
            write(args.results, text)
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
