"""How well extracted labels agree with reference labels."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.findings import FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN

CODES = {"positive": POSITIVE, "negative": NEGATIVE, "uncertain": UNCERTAIN}


@dataclass(frozen=True)
class Score:
    """Agreement on one code of one finding.

    Attributes:
      precision, recall, f1: 0..1; NaN where nothing was there to count.
      support: how often the reference has the code.
    """

    precision: float
    recall: float
    f1: float
    support: int


def score_code(truth: np.ndarray, found: np.ndarray, code: int) -> Score:
    """Scores one code of one finding.

    Args:
      truth: int8 [N], reference codes.
      found: int8 [N], extracted codes.
      code: the code that counts as a hit.

    Returns:
      The score.
    """
    wanted, given = truth == code, found == code
    hits = int(np.sum(wanted & given))
    n_wanted, n_given = int(wanted.sum()), int(given.sum())
    return Score(
        precision=hits / n_given if n_given else float("nan"),
        recall=hits / n_wanted if n_wanted else float("nan"),
        f1=2 * hits / (n_wanted + n_given) if n_wanted + n_given else float("nan"),
        support=n_wanted,
    )


def score_labels(truth: np.ndarray, found: np.ndarray) -> dict[str, dict[str, Score]]:
    """Scores all findings.

    Args:
      truth: int8 [N, 14], reference codes.
      found: int8 [N, 14], extracted codes.

    Returns:
      Finding name -> code name ("positive", "negative", "uncertain") -> score.
    """
    return {
        name: {
            code: score_code(truth[:, index], found[:, index], value)
            for code, value in CODES.items()
        }
        for index, name in enumerate(FINDINGS)
    }


def macro_f1(scores: dict[str, dict[str, Score]], code: str) -> float:
    """Mean F1 of a code over the findings for which the reference has it."""
    values = [each[code].f1 for each in scores.values() if each[code].support]
    return float(np.mean(values)) if values else float("nan")


def format_scores(scores: dict[str, dict[str, Score]]) -> str:
    """Writes the scores as a table; figures only, no text of a report."""
    lines = [
        f"{'':<28}{'positive':^27}{'negative':^15}{'uncertain':^15}",
        f"{'finding':<28}{'prec':>6}{'rec':>6}" + f"{'F1':>7}{'n':>8}" * 3,
    ]
    for name, each in scores.items():
        positive = each["positive"]
        line = (
            f"{name:<28}{positive.precision:>6.3f}{positive.recall:>6.3f}"
            f"{positive.f1:>7.3f}{positive.support:>8}"
        )
        for code in ("negative", "uncertain"):
            line += f"{each[code].f1:>7.3f}{each[code].support:>8}"
        lines.append(line.replace("nan", "  -"))
    macro = {code: macro_f1(scores, code) for code in CODES}
    lines.append(
        f"{'macro F1':<28}{'':>12}{macro['positive']:>7.3f}{'':>9}"
        f"{macro['negative']:>7.3f}{'':>8}{macro['uncertain']:>7.3f}".replace(
            "nan", "  -"
        )
    )
    return "\n".join(lines)
