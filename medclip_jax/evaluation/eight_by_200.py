"""The 8x200 sets for retrieval: by ConVIRT's rule, or read from its published lists.

By the rule a film is a candidate or a query of a category when that is its one positive
label and none of the other thirteen is positive or uncertain. ConVIRT takes 200
candidates a category and 10 queries that an expert chose; here queries are drawn, and
no patient stands on both sides (in the published lists, seven do).

Reference: Zhang et al. (ConVIRT, MLHC 2022), section 4.2 and appendices C and D;
yuhaozhang/convirt, image-retrieval/ and text-retrieval/.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from data_pipelines.findings import FINDINGS, POSITIVE, UNCERTAIN
from medclip_jax.errors import UserError
from medclip_jax.evaluation import five_class, prompts
from medclip_jax.evaluation.protocol import Options
from medclip_jax.evaluation.sets import Films

EIGHT: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Fracture",
    "No Finding",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
QUERIES, TEXTS = 10, 5
"""Image queries and text queries of each category."""
_NAMED = 5


class NotItsQuestion(UserError):
    """The set's films are of other classes altogether; the report need not tell."""


@dataclass(frozen=True)
class Set:
    """Attributes:
    candidates, queries: int [C] and [Q], positions of films.
    candidate_classes, query_classes: int, in the order of EIGHT.
    """

    candidates: np.ndarray
    candidate_classes: np.ndarray
    queries: np.ndarray
    query_classes: np.ndarray

    @property
    def films(self) -> np.ndarray:
        """Positions of all of its films, ascending."""
        return np.unique(np.concatenate([self.candidates, self.queries]))


@dataclass(frozen=True)
class TextQueries:
    """Attributes:
    texts: the queries.
    classes: int [Q], in the order of EIGHT.
    protected: whether they are from a list that is not ours to show.
    """

    texts: list[str]
    classes: np.ndarray
    protected: bool = False


def class_of(labels_Nx14: np.ndarray) -> np.ndarray:
    """int [N], the category of films that have exactly one label, else -1."""
    labels_Nx14 = np.asarray(labels_Nx14).reshape(-1, len(FINDINGS))
    told = (labels_Nx14 == POSITIVE) | (labels_Nx14 == UNCERTAIN)
    columns = [FINDINGS.index(name) for name in EIGHT]
    alone = (labels_Nx14 == POSITIVE)[:, columns]
    admitted = (told.sum(axis=1) == 1) & alone.any(axis=1)
    return np.where(admitted, alone.argmax(axis=1), -1)


def draw(films: Films, options: Options) -> Set:
    """The set of a split by the rule, drawn by id and seed.

    Queries are at most a fifth of the rarest category; candidates are of all categories
    as many, at most `options.per_class`, and of none of the queries' patients.

    Raises:
      NotItsQuestion: films of fewer than two categories.
      UserError: a category has fewer than `options.minimum` films.
    """
    split = films.where(options.split)
    classes = class_of(films.labels_Nx14[split])
    if options.frontal:
        classes = np.where(five_class.frontal(films.views[split]), classes, -1)
    counts = [int((classes == c).sum()) for c in range(len(EIGHT))]
    if sum(count > 0 for count in counts) < 2:
        raise NotItsQuestion(f"{films.name} has no two of the eight categories")
    if min(counts) < options.minimum:
        found = ", ".join(f"{name} {count}" for name, count in zip(EIGHT, counts))
        raise UserError(
            f"the 8x200 set needs at least {options.minimum} films a category with no "
            f"other label in the split {options.split!r}; found {found}. Evaluate on a "
            "larger split, or lower the minimum"
        )
    by_id = np.argsort(films.ids[split], kind="stable")
    rng = np.random.default_rng([options.seed, 8])
    order = rng.permutation(by_id)
    wanted = min(QUERIES, max(1, min(counts) // 5))
    queries = [order[classes[order] == c][:wanted] for c in range(len(EIGHT))]
    asking = set(films.patients[split][np.concatenate(queries)])
    free = np.array([p not in asking for p in films.patients[split]])
    members = [order[(classes[order] == c) & free[order]] for c in range(len(EIGHT))]
    size = min(options.per_class, *map(len, members))
    if not size:
        raise UserError(
            "the 8x200 set: the patients of the queries have all films of a category; "
            "evaluate on a larger split"
        )
    candidates = np.sort(np.concatenate([of[:size] for of in members]))
    asked = np.concatenate(queries)
    return Set(split[candidates], classes[candidates], split[asked], classes[asked])


def published_images(folder: Path, films: Films) -> Set:
    """ConVIRT's lists of image queries and candidates, joined to these films.

    Raises:
      UserError: a list is missing or odd, or films of it are not among these.
    """
    candidates, classes = _candidates(folder / "image-retrieval" / "candidate.csv")
    path = folder / "image-retrieval" / "query.csv"
    rows = list(_rows(path, ("Variable", "Path")))
    asked = np.array([_category(path, number, row) for number, row in rows])
    paths = [row["Path"] for _, row in rows]
    places = join(films, [*candidates, *paths], path.parent)
    return Set(places[: len(classes)], classes, places[len(classes) :], asked)


def published_texts(folder: Path, films: Films) -> tuple[Set, TextQueries]:
    """ConVIRT's text queries, and their candidates among these films.

    Raises:
      UserError: as `published_images`.
    """
    candidates, classes = _candidates(folder / "text-retrieval" / "candidate.csv")
    path = folder / "text-retrieval" / "query.csv"
    rows = list(_rows(path, ("Variable", "Text")))
    asked = np.array([_category(path, number, row) for number, row in rows])
    places = join(films, candidates, path.parent)
    nothing = np.zeros(0, np.int64)
    texts = TextQueries([row["Text"] for _, row in rows], asked, protected=True)
    return Set(places, classes, nothing, nothing), texts


def prompt_queries(seed: int) -> TextQueries:
    """Five prompts a category, drawn by the seed, where there are no written queries."""
    told = {name: list(dict.fromkeys(prompts.finding_prompts(name))) for name in EIGHT}
    picked = prompts.draw_prompts(told, TEXTS, seed)
    texts = [told[name][i] for name in EIGHT for i in picked[name]]
    counts = [len(picked[name]) for name in EIGHT]
    return TextQueries(texts, np.repeat(np.arange(len(EIGHT)), counts))


def film_key(path: str) -> str:
    """ "patientN/studyK/viewJ_frontal" of a path or an id, whatever its root and end."""
    return "/".join(PurePosixPath(path.strip()).with_suffix("").parts[-3:])


def join(films: Films, paths: Sequence[str], where: Path) -> np.ndarray:
    """Positions of the films that a list names.

    Raises:
      UserError: films are missing; their number and the first of them.
    """
    place = {film_key(str(image_id)): at for at, image_id in enumerate(films.ids)}
    missing = [path for path in paths if film_key(path) not in place]
    if missing:
        named = ", ".join(film_key(path) for path in missing[:_NAMED])
        raise UserError(
            f"{where}: {len(missing)} of {len(paths)} films are not in {films.name}: "
            f"{named}{', ...' if len(missing) > _NAMED else ''}. They lie in CheXpert's "
            "train folder: prepare the whole of it"
        )
    return np.array([place[film_key(path)] for path in paths], np.int64)


def _candidates(path: Path) -> tuple[list[str], np.ndarray]:
    """Paths and classes: the one label that is 1."""
    paths, classes = [], []
    for number, row in _rows(path, ("Path", *EIGHT)):
        cells = [name for name in FINDINGS if row.get(name, "").strip() in ("1", "1.0")]
        if len(cells) != 1 or cells[0] not in EIGHT:
            raise UserError(
                f"{path}, row {number}: expected one of {', '.join(EIGHT)} at 1 and no "
                f"other label, found {', '.join(cells) or 'none'}; copy the list again"
            )
        paths.append(row["Path"])
        classes.append(EIGHT.index(cells[0]))
    return paths, np.array(classes)


def _category(path: Path, number: int, row: dict[str, str]) -> int:
    name = row["Variable"].strip()
    if name not in EIGHT:
        raise UserError(
            f"{path}, row {number}, column Variable: expected one of "
            f"{', '.join(EIGHT)}, found {name[:40]!r}"
        )
    return EIGHT.index(name)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Row numbers, the header being 1, and rows.

    Raises:
      UserError: no such file, a missing column, a short row, or no row at all.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: expected ConVIRT's list, found no such file; clone "
            "github.com/yuhaozhang/convirt and name its folder"
        )
    count = 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}: expected the columns {', '.join(columns)}; missing "
                f"{', '.join(missing)}"
            )
        for count, row in enumerate(reader, 2):
            if any(row[name] is None for name in columns):
                raise UserError(f"{path}, row {count}: fewer cells than columns")
            yield count, row
    if count == 1:
        raise UserError(f"{path}: expected rows below the header, found none")
