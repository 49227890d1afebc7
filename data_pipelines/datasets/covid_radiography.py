"""COVID-19 Radiography Database (Kaggle, tawsifurrahman): four folders, four classes.

`--raw` is `COVID-19_Radiography_Dataset/` or the folder above it. The class is the folder:
`COVID`, `Lung_Opacity`, `Normal`, `Viral Pneumonia`, with the films in `images/` below, or
directly in it, as in the versions before the lung masks (`COVID-19/COVID-19 (1).png`,
`NORMAL/NORMAL (1).png`, no `Lung_Opacity`).

    task               labels
    covid_radiography  the four classes, of those that are there
    covid_normal       COVID against Normal; films of other classes are not in it

Normal gives the finding No Finding, Lung_Opacity gives Lung Opacity and Viral Pneumonia
Pneumonia. COVID gives none: it was told by a test, and the film may be clear.

There is no published split and none can be had again: MedCLIP drew 3,000 films of COVID and
as many Normal with lists that it does not give, others took files in the order of the
folder. Here each class is cut 70/10/20 by a hash of the names. The set tells no patients:
each film counts as one, and whether films of one patient are on both sides cannot be known.
Classes come from different hospitals, Normal in part from children and Lung_Opacity from
RSNA: a classifier may tell the hospital. The lung masks (256 px, of films of 299 px, made by
a network) outline no finding and are not stored; the spreadsheets hold nothing but origins.

Reference: Chowdhury et al. 2020, arXiv 2003.13145; Rahman et al. 2021, arXiv 2012.02238;
RyanWangZf/MedCLIP, medclip/dataset.py.
"""

from pathlib import Path
from typing import Any

from data_pipelines.annotations import Task
from data_pipelines.builder import StudyBuilder
from data_pipelines.findings import FINDINGS, POSITIVE
from data_pipelines.plan import UNLABELLED, FilmPlan, Scan, stratified_splits
from medclip_jax.errors import UserError

ROOT = "COVID-19_Radiography_Dataset"
FOLDERS: dict[str, str] = {
    "covid": "COVID",
    "covid-19": "COVID",
    "lung_opacity": "Lung_Opacity",
    "normal": "Normal",
    "viral pneumonia": "Viral Pneumonia",
}
"""A folder's name in lower case -> the class."""

FINDING_OF: dict[str, str] = {
    "Lung_Opacity": "Lung Opacity",
    "Normal": "No Finding",
    "Viral Pneumonia": "Pneumonia",
}
FILMS = (".png", ".jpg", ".jpeg")
LICENSE = "for research; each constituent set has its own licence"
CREDIT = "COVID-19 Radiography Database, Chowdhury et al. 2020"


class CovidRadiography(StudyBuilder):
    """TFDS builder for the COVID-19 Radiography Database."""

    DESCRIPTION = (
        "Chest radiographs of COVID-19, lung opacity, viral pneumonia, normal."
    )
    NOTICE = (
        "Made from the COVID-19 Radiography Database: for research; each constituent "
        "set has its own licence."
    )
    HOMEPAGE = (
        "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
    )
    CITATION = (
        "@article{chowdhury2020can, title={Can AI help in screening viral and COVID-19 "
        "pneumonia?}, author={Chowdhury, Muhammad E. H. and others}, journal={IEEE "
        "Access}, year={2020}}"
    )

    @staticmethod
    def scan(raw: Path, options: Any) -> Scan:
        """Reads the folders' file names.

        Raises:
          UserError: no folder for COVID or for Normal, two for one class, no film.
        """
        del options
        root = raw / ROOT if (raw / ROOT).is_dir() else raw
        made = Scan()
        films = {name: _films(root, folder) for name, folder in _folders(root).items()}
        if missing := sorted(set(FOLDERS.values()) - set(films)):
            made.notes.append(f"no folder {', '.join(missing)}: an older version")
        splits = stratified_splits({n: found for n, found in films.items()})
        made.tasks = {
            "covid_radiography": Task(
                "multiclass", tuple(films), about="the folder of the film"
            ),
            "covid_normal": Task(
                "binary", ("COVID",), about="COVID against Normal, no other class"
            ),
        }
        for name, found in films.items():
            for image_id, path in sorted(found.items()):
                made.films.append(
                    _film(image_id, path.relative_to(raw), name, splits[image_id])
                )
                row = {"image_id": image_id, "positive": [name]}
                made.annotate("classes", task="covid_radiography", **row)
                if name in ("COVID", "Normal"):
                    row["positive"] = ["COVID"] if name == "COVID" else []
                    made.annotate("classes", task="covid_normal", **row)
        return made


def _folders(root: Path) -> dict[str, Path]:
    """The folder of each class that is there, in the order of the names."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in root.iterdir() if p.is_dir()):
        name = FOLDERS.get(path.name.casefold())
        if name in found:
            raise UserError(
                f"{root}: expected one folder of the class {name}, found "
                f"{found[name].name} and {path.name}; keep the newer version"
            )
        if name:
            found[name] = path
    if not {"COVID", "Normal"} <= set(found):
        names = ", ".join(sorted(p.name for p in root.iterdir())[:20])
        raise UserError(
            f"expected the folders COVID, Lung_Opacity, Normal and Viral Pneumonia in "
            f"{root}, found {names or 'nothing'}; --raw is {ROOT}/ or the folder above"
        )
    return dict(sorted(found.items()))


def _films(root: Path, folder: Path) -> dict[str, Path]:
    """Image id, which is `folder/name`, to the file."""
    home = folder / "images" if (folder / "images").is_dir() else folder
    found = {
        f"{folder.name}/{path.name}": path
        for path in sorted(home.iterdir())
        if path.suffix.casefold() in FILMS and not path.name.startswith(".")
    }
    if not found:
        raise UserError(f"expected PNG films in {home}, found none; unpack it whole")
    return found


def _film(image_id: str, path: Path, name: str, split: str) -> FilmPlan:
    finding = FINDING_OF.get(name)
    labels = [
        POSITIVE if other == finding else code
        for other, code in zip(FINDINGS, UNLABELLED, strict=True)
    ]
    return FilmPlan(
        image_id=image_id,
        patient_id=image_id,
        study_id=image_id,
        split=split,
        path=path.as_posix(),
        labels=tuple(labels),
        label_source="label_map" if finding else "none",
        license=LICENSE,
        credit=CREDIT,
    )
