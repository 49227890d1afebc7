"""PadChest: studies of one to three films in 16-bit PNG, the table with all its columns.

Labels are what the hospital draws, by PadChest's names. Four of five patients of a split are
labelled by physicians, so that with 60 patients each label has films of theirs in each split
(in the real set a quarter is); some cells have stray blanks, empty items, `unchanged`, `nan`, or a film to exclude. The
values are of 12 or 10 bits, and archives are folders by number.
"""

import itertools
import random
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.hospital import layouts
from data_pipelines.hospital.course import draw_body, draw_finding, stream
from data_pipelines.hospital.render import render
from data_pipelines.hospital.writer import Settings
from data_pipelines.plan import split_of_patient

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
    "ViewPosition_DICOM,Projection,MethodProjection,Pediatric,Modality_DICOM,"
    "Manufacturer_DICOM,PhotometricInterpretation_DICOM,PixelRepresentation_DICOM,"
    "PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,"
    "ExposureInuAs_DICOM,ExposureTime,RelativeXRayExposure_DICOM,ReportID,Report,"
    "MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,labelCUIS,"
    "LocalizationsCUIS"
)
DRAWN: dict[str, tuple[str, str]] = {
    "cardiomegaly": ("Cardiomegaly", ""),
    "nodule": ("Lung Lesion", "nodule"),
    "pulmonary mass": ("Lung Lesion", "mass"),
    "interstitial pattern": ("Lung Opacity", "interstitial"),
    "infiltrates": ("Lung Opacity", "patchy"),
    "pulmonary edema": ("Edema", ""),
    "consolidation": ("Consolidation", ""),
    "pneumonia": ("Pneumonia", ""),
    "laminar atelectasis": ("Atelectasis", "linear"),
    "lobar atelectasis": ("Atelectasis", "lobar"),
    "pneumothorax": ("Pneumothorax", ""),
    "pleural effusion": ("Pleural Effusion", ""),
    "rib fracture": ("Fracture", "rib"),
    "pacemaker": ("Support Devices", "pacemaker"),
    "NSG tube": ("Support Devices", "ng_tube"),
}
SPLITS = ("train", "validate", "test")
VIEWS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("PA", "PA"), ("LATERAL", "L")),
    (("AP", "AP_horizontal"),),
    (("AP", "AP"),),
    (("PA", "PA"), ("LATERAL", "L"), ("PA", "COSTAL")),
)


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes a study; a row a film tells the cells of the table."""
    rng = stream(settings.seed, "padchest", number)
    body = draw_body(rng)
    split, turn = SPLITS[number % 3], number // 3
    patient = next(
        id
        for _ in itertools.count()
        if split_of_patient(id := str(rng.randrange(10**36, 10**37))) == split
    )
    choices = [*DRAWN, "normal"]
    physician = turn % 5 != 4
    first = choices[(turn - turn // 5 if physician else turn // 5) % len(choices)]
    names = {first}
    if first != "normal" and rng.random() < 0.4:
        names.add(rng.choice(list(DRAWN)))
    findings = tuple(
        draw_finding(rng, DRAWN[name][0], settings.difficulty, DRAWN[name][1])
        for name in sorted(names - {"normal"})
    )
    cell = _cell(rng, sorted(names), number, physician)
    study = str(rng.randrange(10**36, 10**37))
    year, home = rng.randrange(2009, 2018), str((0, 7, 54)[number % 3])
    (folder / home).mkdir(exist_ok=True)
    rows = []
    for view, projection in VIEWS[rng.randrange(len(VIEWS))]:
        seed, bits = rng.getrandbits(31), rng.choice((10, 12, 12))
        film = render(body, findings, view, settings.size, seed, settings.difficulty)
        stored_HxW = np.round(film.pixels_HxW * ((2**bits - 1) / 255)).astype(np.uint16)
        name = f"{study}_{rng.getrandbits(30):06x}.png"
        Image.fromarray(stored_HxW).save(folder / home / name)
        height, width = stored_HxW.shape
        rows.append(
            {
                "ImageID": name,
                "ImageDir": home,
                "StudyDate_DICOM": f"{year}0{rng.randrange(1, 10)}15",
                "StudyID": study,
                "PatientID": patient,
                "PatientBirth": f"{year - body.age}.0",
                "PatientSex_DICOM": body.sex,
                "ViewPosition_DICOM": "nan",
                "Projection": projection,
                "PhotometricInterpretation_DICOM": "MONOCHROME2",
                "BitsStored_DICOM": str(bits),
                "Rows_DICOM": str(height),
                "Columns_DICOM": str(width),
                "Report": " sin hallazg patolog ." if names == {"normal"} else "nan",
                "MethodLabel": "Physician" if physician else "RNN_model",
                "Labels": cell,
                "labelCUIS": "['C0034069' 'C0742362'\n 'C2115817']",
                "names": sorted(name.lower() for name in names),
                "split": split,
                "age": body.age,
            }
        )
    return {"films": rows}


def _cell(rng: random.Random, names: list[str], number: int, physician: bool) -> str:
    """The labels as the table has them, with its oddities."""
    odd = number % 60
    if odd == 42:
        return "['exclude']"
    if odd == 43:
        return "nan"
    if odd == 44:
        return "['']"
    items = list(names)
    if not physician and rng.random() < 0.5:
        items = [f" {name}" for name in items] + ["", items[0]]
    if odd % 20 == 19:
        items.insert(0, "unchanged")
    return repr(items)


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes the table; columns that nothing reads are `None` in it."""
    del settings
    columns = HEADER.split(",")
    lines = []
    for number, row in enumerate(rows.get("films", ())):
        line = {column: row.get(column, "None") for column in columns}
        lines.append(line | {"": str(number)})
    layouts.write_csv(folder / TABLE, columns, lines)
