"""Open-i's MeSH headings, which people chose by hand from each report, as labels.

    No Finding        normal
    Cardiomegaly      Cardiomegaly
    Pleural Effusion  Pleural Effusion
    Atelectasis       Pulmonary Atelectasis
    Edema             Pulmonary Edema
    Pneumonia         Pneumonia
    Pneumothorax      Pneumothorax
    Consolidation     Consolidation
    Lung Lesion       Nodule or Mass, of the lung
    Lung Opacity      Opacity of the lung, Infiltrate, Airspace Disease
    Pleural Other     Thickening, of the pleura
    Fracture          Fractures, Bone
    Support Devices   Medical Device, Implanted Medical Device; Catheters, Indwelling;
                      Tube, Inserted

A heading has qualifiers behind `/`: `Opacity/lung/base/left`. `borderline` makes it uncertain.
Other headings are abnormal, but none of these. Reports that were not indexed, or only for
their technical quality, are not judged.

Reference: Demner-Fushman et al. 2016, JAMIA 23(2):304-310.
"""

from collections.abc import Sequence

HEADINGS: dict[str, tuple[str, str]] = {
    "normal": ("No Finding", ""),
    "cardiomegaly": ("Cardiomegaly", ""),
    "pleural effusion": ("Pleural Effusion", ""),
    "pulmonary atelectasis": ("Atelectasis", ""),
    "pulmonary edema": ("Edema", ""),
    "pneumonia": ("Pneumonia", ""),
    "pneumothorax": ("Pneumothorax", ""),
    "consolidation": ("Consolidation", ""),
    "nodule": ("Lung Lesion", "lung"),
    "mass": ("Lung Lesion", "lung"),
    "opacity": ("Lung Opacity", "lung"),
    "infiltrate": ("Lung Opacity", ""),
    "airspace disease": ("Lung Opacity", ""),
    "thickening": ("Pleural Other", "pleura"),
    "fractures, bone": ("Fracture", ""),
    "medical device": ("Support Devices", ""),
    "implanted medical device": ("Support Devices", ""),
    "catheters, indwelling": ("Support Devices", ""),
    "tube, inserted": ("Support Devices", ""),
}
"""MeSH heading in lower case -> label, and the qualifier that it needs."""

LABELS = tuple(dict.fromkeys(label for label, _ in HEADINGS.values()))
NOT_FINDINGS = ("no indexing", "technical quality of image unsatisfactory")


def mesh_labels(terms: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The task's labels of a report's MeSH headings.

    Args:
      terms: `Heading/qualifier/...`; letter case does not matter.

    Returns:
      Positive and uncertain labels; None for a report that was not indexed.
    """
    found: dict[str, bool] = {}
    judged = False
    for term in terms:
        heading, *qualifiers = (part.strip().casefold() for part in term.split("/"))
        judged = judged or bool(heading) and heading not in NOT_FINDINGS
        label, place = HEADINGS.get(heading, ("", ""))
        if label and (not place or place in qualifiers):
            sure = "borderline" not in qualifiers
            found[label] = found.get(label, False) or sure
    if not judged:
        return None
    positive = [label for label in LABELS if found.get(label)]
    return positive, [label for label in LABELS if found.get(label) is False]
