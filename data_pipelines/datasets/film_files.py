"""Where the films of a release lie, and boxes drawn on them."""

import os
from collections.abc import Sequence
from pathlib import Path

TOLERANCE = 1.0
"""Pixels by which a box may reach over the edge: releases round to whole pixels."""


def find_films(raw: Path, suffix: str, folder: str = "") -> dict[str, str]:
    """The films below a folder, by one walk.

    A folder directly in the raw folder may be a link, as for `plan.safe_path`; links
    further down are not followed. Hidden files (macOS leaves `._NAME` beside each) are
    passed over. Of two files of one name the first by its path is taken.

    Args:
      raw: the raw folder.
      suffix: of the files wanted, with its dot, in lower case.
      folder: below `raw`, where to look.

    Returns:
      File name without suffix -> path relative to `raw`, with "/".
    """
    found: dict[str, str] = {}
    start = raw / folder
    places = [start]
    if not folder and start.is_dir():
        places += [p for p in sorted(start.iterdir()) if p.is_symlink() and p.is_dir()]
    for place in places:
        for home, folders, files in os.walk(place):
            folders.sort()
            below = Path(home).relative_to(raw).as_posix()
            for name in sorted(files):
                stem, end = os.path.splitext(name)
                if end.lower() == suffix and not name.startswith("."):
                    path = name if below == "." else f"{below}/{name}"
                    found[stem] = min(found.get(stem, path), path)
    return found


def box_of(
    cells: Sequence[str], width: int, height: int, corners: bool = False
) -> tuple[float, float, float, float]:
    """Reads a box.

    Args:
      cells: x, y, width, height; or x_min, y_min, x_max, y_max.
      width, height: of the film, pixels; 0 where they are not known.
      corners: which of the two the cells are.

    Returns:
      (x, y, width, height) in pixels of the film; what reaches over its edge by
      TOLERANCE or less is cut off.

    Raises:
      ValueError: says what was expected and what was found.
    """
    try:
        x, y, w, h = (float(cell) for cell in cells)
    except ValueError:
        raise ValueError(
            f"expected four numbers, found {' '.join(cells)[:60]!r}"
        ) from None
    right, bottom = (w, h) if corners else (x + w, y + h)
    if not (right > x and bottom > y):  # not for NaN either
        raise ValueError(f"expected a box with an area, found {' '.join(cells)[:60]}")
    most_x, most_y = width or float("inf"), height or float("inf")
    inside = x >= -TOLERANCE and y >= -TOLERANCE
    if not (inside and right <= most_x + TOLERANCE and bottom <= most_y + TOLERANCE):
        raise ValueError(
            f"expected a box within {width} x {height} pixels, found x {x:g} to "
            f"{right:g}, y {y:g} to {bottom:g}"
        )
    x, y = max(x, 0.0), max(y, 0.0)
    return x, y, min(right, most_x) - x, min(bottom, most_y) - y
