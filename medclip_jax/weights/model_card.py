"""The README.md of an exported model."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medclip_jax.weights import model_card_use

# Without a notice of its data a model must be treated as made from protected data.
UNKNOWN = (
    "The export did not see the data, so no notice of its terms could be copied. Treat "
    "the weights as made from protected health information until you know better."
)


def is_simulated(notices: Mapping[str, str], names: Sequence[str]) -> bool:
    """Whether the notice of every data set says that it is simulated."""
    return bool(names) and all(
        "simulated" in notices.get(name, "").lower() for name in names
    )


def model_card(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    notices: Mapping[str, str],
    release: str,
    metrics: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    verification: Sequence[str],
    remarks: Sequence[str],
) -> str:
    """Markdown with a header that the Hugging Face hub reads.

    Args:
      settings: medclip_jax.json of the export.
      config: the run's config as JSON data.
      data: {"fingerprint", "datasets": {name: fingerprint}} of the training data.
      notices: by data set, what who uses it is bound to.
      release: whether the files are for the public, and who said so.
      metrics: the last line of metrics.jsonl, or None.
      rows: of results.json.
      verification: lines, empty when it was not asked for.
      remarks: what does not fit a layout, one line each.

    Returns:
      The text.
    """
    names = sorted(data["datasets"])
    simulated, has_texts = is_simulated(notices, names), "text" in settings
    limits = LIMITS if "image" in settings else LIMITS_OF_TEXTS
    parts = [
        _header(simulated, settings["method"]),
        _title(settings),
        _warning(simulated, notices, names),
        model_card_use.section(settings),
        _data(data, notices, names),
        _results(metrics, rows, simulated),
        _bullets("Verification", verification, "Not asked for (`--verify`)."),
        _bullets("What does not fit, or differs", remarks, "Everything fits."),
        f"{limits}\n{OF_TEXTS}" if has_texts else limits,
        _licence(simulated, has_texts),
        f"## Release\n\n{release}",
        "## Config\n\n```json\n"
        + json.dumps(config, indent=1, sort_keys=True)
        + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


LIMITS = """\
## Intended use and limits

For research on learning from films and reports. Not a medical device: never for
diagnosis, triage or any decision about a patient. Scores are not probabilities and are
not calibrated. Films of another hospital, machine, age group or view than those of the
training data may be scored badly without any sign of it; subgroups were not audited."""
LIMITS_OF_TEXTS = """\
## Intended use and limits

For research on the language of reports. Not a medical device: never for diagnosis,
triage or any decision about a patient. Scores are not probabilities and are not
calibrated. Reports of another hospital may be read badly without any sign of it."""
OF_TEXTS = "The text encoder learned from reports and repeats their habits and errors."


def _header(simulated: bool, method: str) -> str:
    licence = "apache-2.0" if simulated else "other"
    return (
        "---\n"
        f"license: {licence}\n"
        "library_name: pytorch\n"
        f"tags: [radiology, chest-x-ray, contrastive, {method}]\n"
        "---"
    )


def _title(settings: Mapping[str, Any]) -> str:
    of = [settings[tower]["name"] for tower in ("image", "text") if tower in settings]
    towers = " + ".join(of)
    return f"# {settings['method']} ({towers}), step {settings['step']}"


def _warning(simulated: bool, notices: Mapping[str, str], names: Sequence[str]) -> str:
    if simulated:
        return (
            "> **Trained on simulated films and reports alone.** No patient is real, "
            "and nothing is learned about real films."
        )
    found = [notices[name] for name in names if notices.get(name)]
    lines = found if len(found) == len(names) else [*found, UNKNOWN]
    return "\n".join(f"> **Notice.** {line}" for line in dict.fromkeys(lines))


def _data(data: Mapping[str, Any], notices: Mapping[str, str], names) -> str:
    lines = [
        f"| {name} | `{data['datasets'][name]}` | {notices.get(name, '') or '-'} |"
        for name in names
    ]
    return (
        "## Training data\n\n"
        f"Fingerprint of the whole input: `{data['fingerprint']}`.\n\n"
        "| data set | fingerprint | notice |\n|---|---|---|\n" + "\n".join(lines)
    )


def _results(
    metrics: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
    simulated: bool,
) -> str:
    out = ["## Results"]
    if rows:
        if simulated:
            out.append("Measured on simulated films.")
        table = [
            "| protocol | data set | metric | value | chance | untrained | n |",
            "|---|---|---|---|---|---|---|",
        ]
        table += [
            "| "
            + " | ".join(
                _figure(row.get(key))
                for key in (
                    "protocol",
                    "dataset",
                    "metric",
                    "value",
                    "chance",
                    "untrained",
                    "n",
                )
            )
            + " |"
            for row in rows
        ]
        out.append("\n".join(table))
    if metrics:
        values = [
            f"{name} {_figure(value)}"
            for name, value in sorted(metrics.items())
            if isinstance(value, int | float)
        ]
        out.append("Last logged step of training: " + ", ".join(values) + ".")
    if len(out) == 1:
        out.append("None were given to the export.")
    return "\n\n".join(out)


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bullets(title: str, lines: Sequence[str], otherwise: str) -> str:
    body = "\n".join(f"- {line}" for line in lines) if lines else otherwise
    return f"## {title}\n\n{body}"


def _licence(simulated: bool, has_texts: bool) -> str:
    if simulated:
        text = (
            "The code is Apache-2.0. The weights come from simulated data and may be "
            "used under the same licence."
        )
    else:
        text = (
            "The code is Apache-2.0. The weights carry the terms of the data that they "
            "were trained on (see the notices above), and of any published weights "
            "that training started from; this project grants no right to them."
        )
        if has_texts:
            text += (
                " The tokenizer's vocabulary may hold words of the reports it was "
                "trained on."
            )
    return f"## Licence\n\n{text}"
