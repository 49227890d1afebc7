"""Open-i in the NLM's layout: XML reports, PNG films, and DICOM files that tell views.

A patient is one report, as there. Its findings and impression are those of the simulated
hospital; MeSH headings are of what the patient has, so they are right where the report
hedges. Some words are `XXXX`. Some reports have no film, some no text, every third DICOM file
has no view, and the first report's films are named with its number twice.
"""

import random
import re
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from data_pipelines.hospital.course import draw_patient, stream
from data_pipelines.hospital.dicom_files import dicom
from data_pipelines.hospital.render import render
from data_pipelines.hospital.reports_text import write_report
from data_pipelines.hospital.state import Finding
from data_pipelines.hospital.writer import Settings

MESH: dict[str, str] = {
    "Enlarged Cardiomediastinum": "Mediastinum/enlarged",
    "Cardiomegaly": "Cardiomegaly/{grade}",
    "nodule": "Nodule/lung/{lobe} lobe/{side}",
    "mass": "Mass/lung/{lobe} lobe/{side}",
    "Lung Opacity": "Opacity/lung/{side}",
    "Edema": "Pulmonary Edema/{grade}",
    "Consolidation": "Consolidation/lung/{side}",
    "Pneumonia": "Pneumonia/{side}",
    "Atelectasis": "Pulmonary Atelectasis/base/{side}",
    "Pneumothorax": "Pneumothorax/{side}",
    "Pleural Effusion": "Pleural Effusion/{side}/{grade}",
    "thickening": "Thickening/pleura/{side}",
    "plaque": "Calcinosis/pleura/{side}",
    "Fracture": "Fractures, Bone/{side}",
    "picc": "Catheters, Indwelling/{side}",
    "central_line": "Catheters, Indwelling/{side}",
    "ett": "Tube, Inserted/trachea",
    "ng_tube": "Tube, Inserted",
    "chest_tube": "Tube, Inserted/thorax/{side}",
    "pacemaker": "Implanted Medical Device/{side}",
    "sternal_wires": "Medical Device",
}
"""A finding's name, or its kind where that has a heading of its own."""

HARMLESS = ("there", "is", "are", "the", "of", "seen", "this")  # words that may be XXXX
POSITIONS = {
    "PA": ("PA", "PA", ""),
    "AP": ("AP", ""),
    "LATERAL": ("LL", "RL", "LATERAL", ""),
}
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
 <meta type="rr"/>
 <uId id="CXR{uid}"/>
 <licenseType>open-access</licenseType>
 <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
  <Article PubModel="Electronic">
   <ArticleTitle>Indiana University Chest X-ray Collection</ArticleTitle>
   <Abstract>
{sections}   </Abstract>
  </Article>
 </MedlineCitation>
 <MeSH>
{mesh} </MeSH>
{images}</eCitation>
"""


def write_patient(folder: Path, settings: Settings, number: int) -> dict:
    """Writes one report and its films; the row tells what it holds."""
    rng = stream(settings.seed, "openi", number)
    patient = draw_patient(
        settings.seed,
        number,
        dataset="openi",
        prevalence=settings.prevalence,
        difficulty=settings.difficulty,
    )
    study, body, uid = patient.studies[0], patient.body, number + 1
    report = write_report(settings.seed, body, study, None, "openi")
    told: dict[str, list[str]] = {"findings": [], "impression": []}
    for sentence in report.sentences:
        name = "impression" if sentence.section == "impression" else "findings"
        told[name].append(sentence.text)
    texts = {name: _hide(rng, " ".join(told[name])) for name in told}
    if number % 20 == 13:
        texts = dict.fromkeys(texts, "")
    texts |= {"comparison": rng.choice(("None.", "", "XXXX, XXXX.")), "indication": ""}
    if rng.random() < 0.9:
        texts["indication"] = f"XXXX-year-old {'woman' if body.sex == 'F' else 'man'}."
    films = []
    for at, view in enumerate(() if number % 20 == 7 else study.views):
        stem = f"{uid}_IM-{number:04d}-{1 + at}001"
        image = f"CXR{uid}_{stem}" if uid == 1 else f"CXR{stem}"
        seed = rng.getrandbits(31)
        pixels = render(
            body, study.findings, view, settings.size, seed, settings.difficulty
        ).pixels_HxW
        position = rng.choice(POSITIONS[view])
        home = folder / "NLMCXR_dcm" / str(uid)
        home.mkdir(parents=True, exist_ok=True)
        head = {"ViewPosition": position, "PatientSex": body.sex}
        data = dicom(pixels, image, bits=12, inverted=rng.random() < 0.5, **head)
        (home / f"{stem}.dcm").write_bytes(data)
        (folder / "NLMCXR_png").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "NLMCXR_png" / f"{image}.png")
        films.append({"image": image, "view": view, "position": position})
    terms = sorted({_mesh(finding) for finding in study.findings}) or ["normal"]
    if number % 20 == 17:
        terms = ["No Indexing"]
    path = folder / "ecgen-radiology" / f"{uid}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_xml(uid, texts, terms, [f["image"] for f in films]), "utf-8")
    row = {"study": f"CXR{uid}", "films": films, "terms": terms, "texts": texts}
    return {"reports": [{**row, "truth": study.truth(), "sex": body.sex}]}


def write_tables(folder: Path, settings: Settings, rows: dict) -> None:
    """Writes nothing: the layout has no table."""


def _hide(rng: random.Random, text: str) -> str:
    """Puts XXXX for all that was de-identified and for some words that was not so."""
    words = [
        "XXXX" if w.casefold() in HARMLESS and rng.random() < 0.1 else w
        for w in text.split(" ")
    ]
    return re.sub("_{3,}", "XXXX", " ".join(words))


def _mesh(finding: Finding) -> str:
    grade = "severe" if finding.severity > 0.7 else "mild"
    if finding.severity < 0.35:
        grade = "borderline" if finding.name == "Cardiomegaly" else "small"
    term = MESH.get(finding.kind) or MESH[finding.name]
    return term.format(side=finding.side, lobe=finding.lobe, grade=grade)


def _xml(uid: int, texts: dict[str, str], terms: list[str], images: list[str]) -> str:
    sections = "".join(
        f'    <AbstractText Label="{name.upper()}">{escape(texts[name])}</AbstractText>\n'
        for name in ("comparison", "indication", "findings", "impression")
    )
    return XML.format(
        uid=uid,
        sections=sections,
        mesh="".join(f"  <major>{term}\n</major>\n" for term in terms),
        images="".join(
            f' <parentImage id="{image}"><figureId>F{at}</figureId><caption>Xray Chest'
            f"</caption><panel><url>/hadoop/storage/{image}.jpg</url></panel>"
            "</parentImage>\n"
            for at, image in enumerate(images, 1)
        ),
    )
