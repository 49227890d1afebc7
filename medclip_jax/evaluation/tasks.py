"""What a data set is asked, in words or by a probe: its tasks, and the units judged.

A source's own tasks (`Films.tasks`) are asked as they are. A set that has none, such as
CheXpert or MIMIC-CXR, is asked for the five CheXpert competition findings: an uncertain
label leaves that finding of that film out (U-Ignore of the CheXpert paper, arXiv
1901.07031, section 3.1), and one that nobody gave counts as negative where the film has
any label at all, as in CheXpert's own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.annotations import Task
from data_pipelines.findings import (
    EVAL_FIVE,
    NEGATIVE,
    NOT_GIVEN,
    POSITIVE,
    UNCERTAIN,
)
from medclip_jax.evaluation import five_class
from medclip_jax.evaluation.protocol import Bench, Options
from medclip_jax.evaluation.sets import Films, Judged

FIVE = "five_findings"
# A unit has the strongest code of its films.
_STRONGER = (NOT_GIVEN, NEGATIVE, UNCERTAIN, POSITIVE)


@dataclass(frozen=True)
class Question:
    """One task of one data set.

    Attributes:
      films: the data set.
      name: of the task.
      task: its labels and unit.
      judged: what the source says.
      alone: whether the set has no other task of this kind.
    """

    films: Films
    name: str
    task: Task
    judged: Judged
    alone: bool = True

    @property
    def told(self) -> str:
        """The data set's name, with the task's where that is needed."""
        return self.films.name if self.alone else f"{self.films.name} ({self.name})"


@dataclass(frozen=True)
class Asked:
    """The units of one question that are judged: U films, studies or patients.

    Attributes:
      positions: int [K], the films, ascending.
      owner: int [K], the unit of each film, 0 .. U - 1.
      codes_UxC: int8, label codes.
      patients, ids: U strings each.
      left_out: films of the split that a limit left out.
    """

    positions: np.ndarray
    owner: np.ndarray
    codes_UxC: np.ndarray
    patients: np.ndarray
    ids: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def pool(self, values_KxC: np.ndarray) -> np.ndarray:
        """The mean over the films of each unit, float [U, ...]."""
        shape = (len(self), *values_KxC.shape[1:])
        sums = np.zeros(shape, np.float64)
        np.add.at(sums, self.owner, values_KxC)
        films = np.bincount(self.owner, minlength=len(self))
        return sums / films.reshape(-1, *[1] * (values_KxC.ndim - 1))

    def only(self, kept_U: np.ndarray) -> "Asked":
        """Some of the units, by a bool [U]."""
        films = kept_U[self.owner]
        number = np.cumsum(kept_U) - 1
        return Asked(
            self.positions[films],
            number[self.owner[films]],
            self.codes_UxC[kept_U],
            self.patients[kept_U],
            self.ids[kept_U],
            self.left_out,
        )

    @property
    def film_codes(self) -> np.ndarray:
        """int8 [K, C], of each film the codes of its unit."""
        return self.codes_UxC[self.owner]

    @property
    def classes(self) -> np.ndarray:
        """int [U], the one positive label of a multi-class task."""
        return (self.codes_UxC == POSITIVE).argmax(axis=1)


def questions(bench: Bench, *kinds: str) -> list[Question]:
    """The questions of these kinds that the data sets can be asked, in their order."""
    found = []
    for films in bench.films:
        tasks: Mapping[str, Task] = {
            name: task for name, task in films.tasks.items() if name in films.classes
        }
        judged = dict(films.classes)
        if not tasks and (films.labels_Nx14 != NOT_GIVEN).any():
            tasks, judged = {FIVE: _five(films)}, {FIVE: _five_judged(films)}
        of_kind = {name: task for name, task in tasks.items() if task.kind in kinds}
        alone = len(of_kind) == 1
        found += [
            Question(films, name, task, judged[name], alone)
            for name, task in of_kind.items()
        ]
    return found


def _five(films: Films) -> Task:
    unit = "study" if films.kind == "chexpert" else "image"
    about = "the five findings of the CheXpert competition"
    return Task("multilabel", EVAL_FIVE, unit, about)  # type: ignore[arg-type]


def _five_judged(films: Films) -> Judged:
    labelled = np.flatnonzero((films.labels_Nx14 != NOT_GIVEN).any(axis=1))
    codes = films.labels_Nx14[labelled][:, five_class.FIVE_COLUMNS]
    return Judged(labelled, np.where(codes == NOT_GIVEN, NEGATIVE, codes))


def ask(
    question: Question, split: str, options: Options, limit: int | None = None
) -> Asked:
    """The units of a split.

    Lateral films are left out when `options.frontal` says so, unless no film of the
    set is frontal (bones). A limit on films draws whole patients by the seed.

    Args:
      question: what is asked.
      split: "train", "validate" or "test".
      options: views and seed.
      limit: the most films; by default all.
    """
    films = question.films
    usable, _ = question.judged.of(films.where(split))
    frontal = five_class.frontal(films.views[usable])
    if options.frontal and frontal.any():
        usable = usable[frontal]
    kept = _limited(films, usable, limit, options.seed)
    _, codes = question.judged.of(kept)
    names = {
        "image": films.ids,
        "study": films.studies,
        "patient": films.patients,
    }[question.task.unit][kept]
    ids, first, owner = np.unique(names, return_index=True, return_inverse=True)
    strength = np.zeros((len(ids), codes.shape[1]), np.int8)
    order = np.array([_STRONGER.index(code) for code in sorted(_STRONGER)], np.int8)
    np.maximum.at(strength, owner, order[codes.astype(int) - min(_STRONGER)])
    return Asked(
        kept,
        owner,
        np.asarray(_STRONGER, np.int8)[strength],
        films.patients[kept][first],
        ids,
        len(usable) - len(kept),
    )


def _limited(films: Films, usable: np.ndarray, limit: int | None, seed: int):
    if limit is None or len(usable) <= limit:
        return usable
    patients, owner = np.unique(films.patients[usable], return_inverse=True)
    order = np.random.default_rng([seed, 31]).permutation(len(patients))
    films_of = np.bincount(owner)[order]
    taken = order[np.cumsum(films_of) <= limit]
    return usable[np.isin(owner, taken)]


def unit_note(question: Question) -> str:
    """How the films of a unit become one, for a row's note."""
    unit = question.task.unit
    return "" if unit == "image" else f"scores averaged over the films of a {unit}"


def no_films(question: Question, split: str) -> str:
    """Why a question cannot be asked of a split."""
    held = sorted(set(question.films.splits.tolist()))
    return f"no film of the split {split} was judged for it; splits: {', '.join(held)}"
