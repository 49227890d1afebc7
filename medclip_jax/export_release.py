"""Which data a run's weights come from, and the question before they are published."""

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from data_pipelines.records import Dataset
from medclip_jax import run as run_lib
from medclip_jax.errors import UserError
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.weights import model_card

ASK, CONFIRMED = "ask", "confirmed"
WORD = "publish"


def provenance(
    run: run_lib.Run, datasets: Sequence[Dataset]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The data that a run's weights come from, and their notices.

    Args:
      run: what is exported.
      datasets: of `--data`, for a run that kept no notice of its data.

    Returns:
      data.json, to whose "datasets" those are added that the weights it started from
      came from; and data set to notice, "" where none is known.
    """
    data = workdir_lib.read_json(run.workdir / workdir_lib.DATA)
    data = {**data, "datasets": dict(data["datasets"])}
    notices = {name: data.get("notices", {}).get(name, "") for name in data["datasets"]}
    for dataset in datasets:
        # Other data of the same name may be bound to other terms.
        if data["datasets"].get(dataset.name) == dataset.fingerprint:
            notices[dataset.name] = notices[dataset.name] or dataset.notice
    for name, of in data.get("started_from", {}).items():
        data["datasets"][name] = of["fingerprint"]
        notices[name] = of["notice"]
    return data, notices


def decide(
    public: str | None,
    notices: Mapping[str, str],
    stdin: TextIO | None = None,
) -> str:
    """Whether the files may be said to be for the public.

    Args:
      public: `--public`: None, "ask" or "confirmed".
      notices: by data set, as of `provenance`.
      stdin: where an answer is typed.

    Returns:
      What the model card says of it.

    Raises:
      UserError: the data are not simulated, and nobody confirmed that their terms
        allow it.
    """
    stdin = stdin or sys.stdin
    simulated = model_card.is_simulated(notices, list(notices))
    if public is None:
        return PRIVATE_SIMULATED if simulated else PRIVATE
    if simulated:
        return PUBLIC_SIMULATED
    terms = "\n".join(f"  {name}: {notices[name] or UNKNOWN}" for name in notices)
    if public == CONFIRMED:
        how = "by `--public confirmed`"
    elif stdin.isatty():
        _ask(terms, stdin)
        how = f"by typing `{WORD}` at the question"
    else:
        raise UserError(
            f"--public: {CLAIM}, and there is no terminal to confirm on that these "
            f"terms allow it:\n{terms}\nRead them; where they do, give --public "
            f"{CONFIRMED}. Nothing was written."
        )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return PUBLIC_CONFIRMED.format(today=today, how=how)


def _ask(terms: str, stdin: TextIO) -> None:
    print(
        f"{CLAIM}. The terms:\n{terms}\n"
        f"Do they allow you to give these weights to anyone? Type {WORD} if they do: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    answer = stdin.readline().strip()
    if answer != WORD:
        raise UserError(
            f"--public: expected {WORD}, found {answer!r}: not confirmed, and nothing "
            "was written. Without --public the files say that they are not to be shared"
        )


CLAIM = "The weights come from data of real patients, or data that nothing is known of"
UNKNOWN = "no notice is known; it may be protected health information"
PRIVATE = (
    "Not released: exported without `--public`. Do not share these files before "
    "somebody made sure that the notices above allow it; `medclip-jax export --public` "
    "asks for that."
)
PRIVATE_SIMULATED = (
    "Exported without `--public`. The data are simulated: no terms of theirs stand "
    "against sharing these files."
)
PUBLIC_SIMULATED = (
    "Exported for the public (`--public`). The data are simulated: there were no terms "
    "to confirm."
)
PUBLIC_CONFIRMED = (
    "Exported for the public (`--public`) on {today}. Whoever exported it confirmed, "
    "{how}, that the terms of the data above allow it. That is their statement; the "
    "program cannot check it."
)
