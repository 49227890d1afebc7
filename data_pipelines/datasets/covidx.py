"""COVIDx, versions 1 to 9 and CXR-2 to CXR-4: films of patients with COVID-19.

`--raw` holds `train/` and `test/` with the films and the lists `train_COVIDx9A.txt` and
`test_COVIDx9A.txt` (any version; also in `labels/`), or `train.txt`, `val.txt` and
`test.txt`, which go by the version name "plain". Lists of one version are read; where
there are several, `--covidx-version` tells which. Lists of severity (`Sev`) are not read.

A line has no header and is `patient file class [source]`, parted by spaces. Patients
("COVID 214") and files may hold spaces, and many lines have no source: the class is found
from the right, and the file is the shortest end of what stands before it that is there,
whatever the case of its letters. The source `rnsa` is `rsna`.

    task            versions                    labels
    covidx          1 to 5, and A versions      normal, pneumonia, COVID-19
    covidx_binary   6, B versions, CXR-4        COVID-19: `positive`, else `negative`

normal gives the finding No Finding, pneumonia gives Pneumonia. COVID-19 gives none: it was
told by a test of the patient, and the film may be clear. `negative` holds both others.

The test list is the published one. Up to version 9 there is no validation list: a tenth of
the patients of the train list is taken, by a hash of their ids. MGCA takes a fifth of the
rows, so that films of a patient stand on both sides. A patient of two lists stays in that of
test (or validation), and its other films are left out. Many films are RSNA's and so NIH's:
a network pretrained on those has seen them.

Reference: Wang, Lin and Wong 2020, arXiv 2003.09871; lindawangg/COVID-Net, docs/COVIDx.md
and labels/.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import rejected
from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.findings import FINDINGS, POSITIVE
from data_pipelines.plan import UNLABELLED, FilmPlan, Scan, carve_validate
from data_pipelines.tables import split_of
from medclip_jax.errors import UserError

TERNARY = ("normal", "pneumonia", "COVID-19")
BINARY = ("negative", "positive")
FINDING_OF: dict[str, str] = {"normal": "No Finding", "pneumonia": "Pneumonia"}
SOURCES = (
    "cohen",
    "fig1",
    "actmed",
    "sirm",
    "rsna",
    "ricord",
    "stonybrook",
    "bimcv",
)
TASKS: dict[str, Task] = {
    "covidx": Task("multiclass", TERNARY, about="COVIDx, class of a list's line"),
    "covidx_binary": Task(
        "binary", ("COVID-19",), about="COVIDx, positive against negative"
    ),
}
PLAIN = "plain"
LICENSE = "for research; each constituent set has its own licence"
_LIST = re.compile(r"(train|val|test)(?:_COVIDx_?([\w-]*))?\.txt")
_WANTED = {name.casefold(): name for name in (*TERNARY, *BINARY)}


@dataclasses.dataclass(frozen=True)
class _Line:
    where: str  # list and line number
    patient: str
    file: str  # relative to the raw folder
    name: str  # the class
    source: str
    split: str


class Covidx(StudyBuilder):
    """TFDS builder for COVIDx."""

    DESCRIPTION = "Chest radiographs with COVID-19, other pneumonia, or neither."
    NOTICE = "Made from COVIDx: for research; each constituent set has its own licence."
    HOMEPAGE = "https://github.com/lindawangg/COVID-Net/blob/master/docs/COVIDx.md"
    CITATION = (
        "@article{wang2020covidnet, title={COVID-Net: a tailored deep convolutional "
        "neural network design for detection of COVID-19 cases from chest X-ray "
        "images}, author={Wang, Linda and Lin, Zhong Qiu and Wong, Alexander}, "
        "journal={Scientific Reports}, year={2020}}"
    )

    @staticmethod
    def add_arguments(parser) -> None:
        parser.add_argument(
            "--covidx-version",
            default="",
            metavar="V",
            help='which lists: "9A" of train_COVIDx9A.txt, "_CXR-3A" without its '
            f'underscore, "{PLAIN}" of train.txt (default: those that are there)',
        )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the lists of one version.

        Raises:
          UserError: no list, lists of several versions, classes of two vocabularies.
        """
        made = Scan()
        lists = find_lists(raw, options.covidx_version)
        files = _files(raw, [split for split in lists])
        lines = [
            line
            for split, path in lists.items()
            for line in _lines(made, path, split, files)
        ]
        binary = [line for line in lines if line.name in BINARY]
        if binary and len(binary) < len(lines):
            other = next(line for line in lines if line.name in TERNARY)
            raise UserError(
                f"{raw}: expected lists of one version, found the class {other.name} "
                f"({other.where}) and the class {binary[0].name} ({binary[0].where}); "
                "keep the lists of one version apart from the others"
            )
        task = "covidx_binary" if binary else "covidx"
        made.tasks[task] = TASKS[task]
        if "val" not in lists:
            made.notes.append(
                "no val list: a tenth of the train list's patients is validation"
            )
        for line in _apart(made, lines, carve="val" not in lists):
            _film(made, line, task)
        return made


def find_lists(raw: Path, version: str = "") -> dict[str, Path]:
    """The lists of one version by their split: "train", "val", "test".

    Raises:
      UserError: there are none, or those of several versions.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted([*raw.glob("*.txt"), *raw.glob("labels/*.txt")]):
        match = _LIST.fullmatch(path.name)
        if match and match.group(2) != "Sev":
            of = PLAIN if match.group(2) is None else match.group(2) or "1"
            found.setdefault(of, {}).setdefault(match.group(1), []).append(path)
    names = ", ".join(
        str(p.relative_to(raw))
        for of in found.values()
        for ps in of.values()
        for p in ps
    )
    if version and version not in found:
        raise UserError(
            f"--covidx-version: expected one of {', '.join(found) or '(none)'}, found "
            f"{version!r}; the lists in {raw} are {names or '(none)'}"
        )
    if not found:
        raise UserError(
            f"expected lists such as train_COVIDx9A.txt and test_COVIDx9A.txt in {raw}, "
            "found none; they are in labels/ of lindawangg/COVID-Net"
        )
    if not version and len(found) > 1:
        raise UserError(
            f"{raw}: expected the lists of one version, found {names}; choose with "
            f"--covidx-version {'|'.join(found)}"
        )
    lists = found[version or next(iter(found))]
    for split, paths in lists.items():
        if len(paths) > 1:
            both = " and ".join(str(path.relative_to(raw)) for path in paths)
            raise UserError(
                f"{raw}: expected one {split} list, found {both}; remove one of them"
            )
    if "train" not in lists or "test" not in lists:
        raise UserError(
            f"{raw}: expected a train and a test list of one version, found {names}"
        )
    return {split: paths[0] for split, paths in lists.items()}


def _files(raw: Path, splits: list[str]) -> dict[str, dict[str, str]]:
    """Folder -> file names as they are, by their names in lower case."""
    made: dict[str, dict[str, str]] = {}
    for split in splits:
        folder = raw / split
        if not folder.is_dir():
            raise UserError(
                f"expected the folder {folder} with the films of the {split} list, "
                "found none; --raw is the folder above train/ and test/"
            )
        made[split] = {p.name.casefold(): p.name for p in sorted(folder.iterdir())}
    return made


def _lines(
    made: Scan, path: Path, split: str, files: dict[str, dict[str, str]]
) -> Iterator[_Line]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, byte {error.start}: expected UTF-8 text, found another encoding; "
            "download the list again"
        ) from None
    for number, text in enumerate(lines, 1):
        where = f"{path.name}, line {number}"
        words = text.split()
        if not words:
            continue
        at = next((k for k in (1, 2) if words[-k].casefold() in _WANTED), 0)
        before = words[:-at] if at else []
        if len(before) < 2:
            detail = f"{where}: expected `patient file class [source]`, the class one "
            detail += f"of {', '.join(_WANTED.values())}; found {len(words)} words"
            made.reject(rejected.BAD_VALUE, words[0], "", detail)
            continue
        name = _WANTED[words[-at].casefold()]
        ends = range(len(before) - 1, 0, -1)
        paths = [(" ".join(before[:k]), " ".join(before[k:])) for k in ends]
        patient, file = next(
            ((p, f) for p, f in paths if f.casefold() in files[split]), paths[0]
        )
        if "/" in file or "\\" in file:
            detail = f"{where}: expected a file's name, found a path"
            made.reject(rejected.OUTSIDE, file, file, detail)
            continue
        file = files[split].get(file.casefold(), file)
        source = words[-1].casefold() if at == 2 else ""
        source = "rsna" if source == "rnsa" else source
        if source and source not in SOURCES:
            detail = f"{where}: expected one of {', '.join(SOURCES)}, found {source!r}"
            made.warn("unknown source", f"{split}/{file}", "", detail)
        to = split_of(split)
        assert to is not None
        yield _Line(where, patient, f"{split}/{file}", name, source, to)


def _apart(made: Scan, lines: list[_Line], carve: bool) -> Iterator[_Line]:
    """The lines to keep, each patient in one split: test before validate before train."""
    home: dict[str, str] = {}
    for split in ("test", "validate", "train"):
        for line in lines:
            if line.split == split:
                home.setdefault(line.patient, split)
    for line in lines:
        split = home[line.patient]
        if split != line.split:
            detail = f"{line.where}: patient {line.patient} is in the {split} list too"
            made.reject(rejected.TWO_SPLITS, line.file, line.file, detail)
        elif carve and split == "train":
            yield dataclasses.replace(line, split=carve_validate(line.patient))
        else:
            yield line


def _film(made: Scan, line: _Line, task: str) -> None:
    finding = FINDING_OF.get(line.name)
    labels = [
        POSITIVE if name == finding else code
        for name, code in zip(FINDINGS, UNLABELLED, strict=True)
    ]
    positive = [line.name]
    if task == "covidx_binary":
        positive = ["COVID-19"] if line.name == "positive" else []
    made.annotate("classes", task=task, image_id=line.file, positive=positive)
    made.films.append(
        FilmPlan(
            image_id=line.file,
            patient_id=line.patient,
            study_id=line.file,
            split=line.split,
            path=line.file,
            labels=tuple(labels),
            label_source="label_map" if finding else "none",
            license=LICENSE,
            credit=f"COVIDx: {line.source}" if line.source else "COVIDx",
        )
    )
