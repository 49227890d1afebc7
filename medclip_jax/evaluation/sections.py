"""Parts of the report that no protocol makes: the training run, and the limits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from medclip_jax.evaluation import plots
from medclip_jax.evaluation.report import Picture, Section
from medclip_jax.evaluation.rows import Row


def training(metrics_file: Path) -> Section | None:
    """The training curves; None when nothing was logged.

    Args:
      metrics_file: metrics.jsonl of the workdir; a torn last line is left out.
    """
    lines = read_metrics(metrics_file)
    if not any("loss" in line for line in lines):
        return None
    steps = len({line["step"] for line in lines})
    picture = Picture(
        plots.training_curves(lines), f"From {steps} logged steps.", wide=True
    )
    return Section("Training", "The run that made this checkpoint.", [picture])


def read_metrics(metrics_file: Path) -> list[Mapping[str, float]]:
    """Lines of metrics.jsonl that are whole and name a step; [] without a file."""
    if not metrics_file.is_file():
        return []
    lines: list[Mapping[str, float]] = []
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(parsed, dict) and "step" in parsed:
            lines.append(parsed)
    return lines


def limits(
    rows: Sequence[Row], simulated: bool, prompt_overlap: int, checked: int, same: bool
) -> list[str]:
    """What the reader must not conclude.

    Args:
      rows: the figures.
      simulated: whether films are simulated.
      prompt_overlap: training sentences that equal an evaluation prompt.
      checked: training sentences looked at.
      same: whether the data are those that the checkpoint was trained on.
    """
    said = []
    if simulated:
        said.append(
            "The films are simulated. Figures on real films are other figures, and "
            "usually much lower."
        )
    said.append(
        "The intervals hold the chance of which patients were in the split. They do "
        "not hold that of another training run with another seed."
    )
    said.append(
        "The labels say what the report or the label file says, so a figure measures "
        "agreement with those, errors included."
    )
    if any(row.protocol.startswith("zero_shot_five") for row in rows):
        said.append(
            "The five-class films are balanced and hold exactly one of the five "
            "findings. In a hospital findings are rarer and come together."
        )
    if not checked:
        said.append(
            "No training sentence was at hand, so whether training saw an evaluation "
            "prompt was not checked."
        )
    elif prompt_overlap:
        said.append(
            f"{prompt_overlap} of {checked} distinct training sentences equal an "
            "evaluation prompt: the zero-shot figures are of a network that was told "
            "the answer."
        )
    else:
        said.append(
            f"None of {checked} distinct training sentences equals an evaluation "
            "prompt after normalisation."
        )
    if not same:
        said.append(
            "The data are not those of the training run (another fingerprint), so "
            "whether their patients were outside training was not checked."
        )
    said.append("This model is for research. It is no medical device.")
    return said
