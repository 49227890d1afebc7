"""Speed, looks and difficulty of the simulated films.

Run:
    python benchmarks/hospital_films.py                      # films per second and core
    python benchmarks/hospital_films.py --sheet sheet.png    # all findings, with titles
    python benchmarks/hospital_films.py --sheet s.png --views LATERAL --severity 0.4
    python benchmarks/hospital_films.py --probe 1500         # is brightness enough?

The probe asks how well the mean brightness of a 16x16 grid tells which one of the five
evaluation findings a film shows (logistic regression; chance is 0.2). It should stay
low: the signs of a finding are shape and texture, not exposure.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from data_pipelines.findings import EVAL_FIVE
from data_pipelines.hospital.course import PLACES
from data_pipelines.hospital.render import render
from data_pipelines.hospital.state import KINDS, Body, Finding

FREE_RATE = 0.12
"""How often each finding outside the five is present too."""


def random_body(rng: np.random.Generator) -> Body:
    """A body with every measure drawn evenly from its range."""
    sex = "MF"[int(rng.integers(2))]
    values = (float(v) for v in rng.random(5))
    return Body(sex, int(rng.integers(18, 90)), int(rng.integers(2**31)), *values)


def random_finding(rng: np.random.Generator, name: str, kind: str = "") -> Finding:
    """A finding with place, kind and severity drawn from what the hospital allows."""
    kind = kind or str(rng.choice(KINDS[name]))
    sides, lobes = PLACES[name, kind]
    side, lobe = str(rng.choice(list(sides))), str(rng.choice(list(lobes)))
    severity = float(rng.uniform(0.25, 1.0))
    return Finding(name, side, lobe, severity, kind, int(rng.integers(2**31)))


def random_case(rng: np.random.Generator, name: str) -> tuple[Finding, ...]:
    """One of the five findings, and each finding outside them now and then."""
    findings = [random_finding(rng, name)]
    for other in KINDS:
        if other not in EVAL_FIVE and rng.random() < FREE_RATE:
            findings.append(random_finding(rng, other))
    return tuple(findings)


def cases(count: int, size: int, difficulty: float, seed: int):
    """Frontal films of one of the five each: (list of uint8 HxW, int labels [count])."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(EVAL_FIVE), count)
    films = []
    for label in labels:
        body, findings = random_body(rng), random_case(rng, EVAL_FIVE[label])
        view = "PA" if rng.random() < 0.55 else "AP"
        film = render(body, findings, view, size, int(rng.integers(2**31)), difficulty)
        films.append(film.pixels_HxW)
    return films, labels


def rate(size: int, count: int) -> float:
    """Films per second of processor time, over both views and mixed findings."""
    rng = np.random.default_rng(0)
    jobs = []
    for index in range(count + 2):
        name = EVAL_FIVE[index % len(EVAL_FIVE)]
        view = ("PA", "AP", "LATERAL", "PA")[index % 4]
        jobs.append((random_body(rng), random_case(rng, name), view, size, index))
    for job in jobs[:2]:
        render(*job)
    start = time.process_time()
    for job in jobs[2:]:
        render(*job)
    return count / (time.process_time() - start)


def shrink(film: np.ndarray, cells: int) -> np.ndarray:
    """Mean brightness of cells x cells equal parts, float [cells, cells]."""
    rows = np.linspace(0, film.shape[0], cells + 1).astype(int)
    cols = np.linspace(0, film.shape[1], cells + 1).astype(int)
    sums = np.add.reduceat(film.astype(np.float64), rows[:-1], 0)
    sums = np.add.reduceat(sums, cols[:-1], 1)
    return sums / (np.diff(rows)[:, None] * np.diff(cols)[None])


def probe(count: int, size: int, difficulty: float) -> float:
    """Accuracy of a logistic regression on 16x16 brightness, one fifth held out."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    films, labels = cases(count, size, difficulty, seed=1)
    x = np.stack([shrink(film, 16).ravel() for film in films])
    held = count // 5
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=[1e-4, 1e-3, 1e-2], cv=3, max_iter=300),
    )
    model.fit(x[held:], labels[held:])
    return float(model.score(x[:held], labels[:held]))


def sheet(path: Path, view: str, size: int, severity: float, difficulty: float) -> None:
    """A contact sheet: each kind of each finding, the same film without it beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [(name, kind) for name in KINDS for kind in KINDS[name]]
    columns = 8
    lines = -(-2 * len(kinds) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(columns * 3, lines * 3.2))
    for axis in axes.flat:
        axis.axis("off")
    for index, (name, kind) in enumerate(kinds):
        rng = np.random.default_rng(index)
        body, finding = random_body(rng), random_finding(rng, name, kind)
        place = (name, finding.side, finding.lobe)
        finding = Finding(*place, severity, kind, finding.seed)
        title = f"{name}: {kind}, {finding.side} {finding.lobe}"
        pair = [("without", ()), (title, (finding,))]
        for column, (title, found) in enumerate(pair):
            axis = axes.flat[2 * index + column]
            film = render(body, found, view, size, index, difficulty)
            axis.imshow(film.pixels_HxW, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=size / 2.6)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--count", type=int, default=24, help="films to time")
    parser.add_argument("--sheet", help="write a contact sheet to this PNG")
    parser.add_argument("--views", nargs="*", default=["PA"])
    parser.add_argument("--severity", type=float, default=0.6)
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--probe", type=int, default=0, help="films for the probe")
    args = parser.parse_args(argv)
    for view in args.views if args.sheet else ():
        path = Path(args.sheet)
        if len(args.views) > 1:
            path = path.with_name(f"{path.stem}-{view}{path.suffix}")
        sheet(path, view, args.sizes[-1], args.severity, args.difficulty)
    if args.probe:
        accuracy = probe(args.probe, args.sizes[0], args.difficulty)
        print(f"16x16 brightness: accuracy {accuracy:.3f} (chance 0.200)")
    if not args.sheet and not args.probe:
        for size in args.sizes:
            print(f"{size} px: {rate(size, args.count):.1f} films/s/core")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
