"""A mapping file from a source's own words to the 14 findings.

`label_map.csv` has the columns value, finding, code:

    value,finding,code
    Pneumonia,Pneumonia,1          a cell `Pneumonia/Viral/COVID-19` matches too
    Effusion,Pleural Effusion,1
    Hernia,,                       known, but none of the 14
    *,Pleural Effusion,0           what a non-empty cell means if it does not say

- A cell of the `findings` column may hold several values, separated by `;` or `|`.
- A value that is a path (`A/B/C`) is matched by its longest known prefix, at `/`.
- Letter case and outer blanks do not matter; a value may have several lines.
- `code` is 1, 0 or -1 (uncertain). Where values of one cell disagree on a finding, 1
  wins over -1, and -1 over 0. A line `*` counts only where no value speaks.
- An empty cell gives no labels at all.
"""

import re
from importlib import resources
from pathlib import Path

from data_pipelines.findings import (
    FINDINGS,
    NEGATIVE,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from data_pipelines.tables import read_rows
from medclip_jax.errors import UserError

SHIPPED = "data_pipelines.datasets"
_STRENGTH = {NOT_GIVEN: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}
_CODES = {"1": POSITIVE, "0": NEGATIVE, "-1": UNCERTAIN}


class LabelMap:
    """The lines of one mapping file."""

    def __init__(self, rows: list[dict[str, str]], name: str):
        self.codes: dict[str, dict[int, int]] = {}
        for number, row in enumerate(rows, start=2):
            value, finding, code = (
                row.get(k, "") for k in ("value", "finding", "code")
            )
            if not value:
                raise UserError(f"{name}, line {number}: the value is empty")
            known = self.codes.setdefault(value.casefold(), {})
            if not finding and not code:
                continue
            if finding not in FINDINGS or code not in _CODES:
                raise UserError(
                    f"{name}, line {number}: expected one of the 14 findings and a "
                    f"code of 1, 0 or -1, found {finding!r} and {code!r}; the "
                    f"findings are {', '.join(FINDINGS)}"
                )
            known[FINDINGS.index(finding)] = _CODES[code]
        self.default = self.codes.pop("*", {})

    def labels(self, cell: str) -> tuple[tuple[int, ...] | None, list[str]]:
        """The labels that a cell gives.

        Args:
          cell: the `findings` cell of a row.

        Returns:
          14 codes, or None for an empty cell or one without any known value; and
          the values that the map does not know.
        """
        values = [v.strip() for v in re.split(r"[;|]", cell) if v.strip()]
        found = [self._lookup(value) for value in values]
        unknown = [v for v, codes in zip(values, found) if codes is None]
        if all(codes is None for codes in found):
            return None, unknown
        made = [NOT_GIVEN] * len(FINDINGS)
        for codes in found:
            for at, code in (codes or {}).items():
                if _STRENGTH[code] > _STRENGTH[made[at]]:
                    made[at] = code
        if not unknown:  # an unknown value might mean just that finding
            for at, code in self.default.items():
                if made[at] == NOT_GIVEN:
                    made[at] = code
        return tuple(made), unknown

    def _lookup(self, value: str) -> dict[int, int] | None:
        steps = [step.strip() for step in value.casefold().split("/")]
        for length in range(len(steps), 0, -1):
            codes = self.codes.get("/".join(steps[:length]))
            if codes is not None:
                return codes
        return None


def shipped_maps() -> list[str]:
    """The names of the maps that come with the program."""
    folder = resources.files(SHIPPED) / "label_maps"
    return sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".csv"))


def find_label_map(choice: str, raw: Path) -> Path | None:
    """The mapping file to use.

    Args:
      choice: a path, the name of a shipped map, "none", or "" for `label_map.csv`
        in the raw folder if there is one.
      raw: the raw folder.

    Raises:
      UserError: the chosen file does not exist.
    """
    if choice == "none":
        return None
    if not choice:
        inside = raw / "label_map.csv"
        return inside if inside.is_file() else None
    if choice in shipped_maps():
        return Path(str(resources.files(SHIPPED) / "label_maps" / f"{choice}.csv"))
    if not Path(choice).is_file():
        raise UserError(
            f"--label-map: expected a CSV file or one of {', '.join(shipped_maps())}, "
            f"found neither at {choice!r}"
        )
    return Path(choice)


def read_label_map(path: Path) -> LabelMap:
    """Reads a mapping file.

    Raises:
      UserError: missing columns, an unknown finding or code.
    """
    rows = read_rows(path)
    missing = {"value", "finding", "code"} - set(rows[0] if rows else {})
    if missing:
        raise UserError(
            f"{path}: expected the columns value, finding, code and at least one "
            f"line; missing {', '.join(sorted(missing))}"
        )
    return LabelMap(rows, str(path))
