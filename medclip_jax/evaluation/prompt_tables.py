"""MedCLIP's prompt vocabulary, field by field; misspellings are the published ones.

Every table lists its fields in the order in which a prompt names them. The published
spelling ("apperance", "presistent", "uppper"), the subtype that stands twice and the
empty RSNA prompt are kept: figures made with other words are not comparable.

Reference: RyanWangZf/MedCLIP, medclip/constants.py and medclip/prompts.py, whose
five-class vocabulary comes from GLoRIA (Huang et al., ICCV 2021).
"""

Fields = tuple[tuple[str, ...], ...]

_ATELECTASIS_LOCATIONS = (
    "at the mid lung zone",
    "at the upper lung zone",
    "at the right lung zone",
    "at the left lung zone",
    "at the lung bases",
    "at the right lung base",
    "at the left lung base",
    "at the bilateral lung bases",
    "at the left lower lobe",
    "at the right lower lobe",
)

ATELECTASIS: Fields = (
    ("", "mild", "minimal"),
    (
        "subsegmental atelectasis",
        "linear atelectasis",
        "trace atelectasis",
        "bibasilar atelectasis",
        "retrocardiac atelectasis",
        "bandlike atelectasis",
        "residual atelectasis",
    ),
    _ATELECTASIS_LOCATIONS,
)

CARDIOMEGALY: Fields = (
    ("",),
    (
        "cardiac silhouette size is upper limits of normal",
        "cardiomegaly which is unchanged",
        "mildly prominent cardiac silhouette",
        "portable view of the chest demonstrates stable cardiomegaly",
        "portable view of the chest demonstrates mild cardiomegaly",
        "persistent severe cardiomegaly",
        "heart size is borderline enlarged",
        "cardiomegaly unchanged",
        "heart size is at the upper limits of normal",
        "redemonstration of cardiomegaly",
        (
            "ap erect chest radiograph demonstrates the heart size is the upper limits of "
            "normal"
        ),
        "cardiac silhouette size is mildly enlarged",
        (
            "mildly enlarged cardiac silhouette, likely left ventricular enlargement. "
            "other chambers are less prominent"
        ),
        "heart size remains at mildly enlarged",
        "persistent cardiomegaly with prominent upper lobe vessels",
    ),
    ("",),
)

CONSOLIDATION: Fields = (
    ("", "increased", "improved", "apperance of"),
    (
        "bilateral consolidation",
        "reticular consolidation",
        "retrocardiac consolidation",
        "patchy consolidation",
        "airspace consolidation",
        "partial consolidation",
    ),
    (
        "at the lower lung zone",
        "at the upper lung zone",
        "at the left lower lobe",
        "at the right lower lobe",
        "at the left upper lobe",
        "at the right uppper lobe",
        "at the right lung base",
        "at the left lung base",
    ),
)

EDEMA: Fields = (
    ("", "mild", "improvement in", "presistent", "moderate", "decreased"),
    (
        "pulmonary edema",
        "trace interstitial edema",
        "pulmonary interstitial edema",
    ),
    ("",),
)

# The one table of the five whose location stands before its subtype.
PLEURAL_EFFUSION: Fields = (
    ("", "small", "stable", "large", "decreased", "increased"),
    ("left", "right", "tiny"),
    (
        "bilateral pleural effusion",
        "subpulmonic pleural effusion",
        "bilateral pleural effusion",
    ),
)

COVID: Fields = (
    ("patchy", "confluent"),
    ("ground glass",),
    ("opacity", "consolidation"),
    ("in peripheral", "in mid", "in lower"),
)

# RSNA's pneumonia prompts never say "pneumonia", and one of them is empty.
RSNA_PNEUMONIA: Fields = (
    ("round", "early", "focal", "multifocal", "small", ""),
    ("bacterial", "viral", "mycoplasma", ""),
    (
        *_ATELECTASIS_LOCATIONS,
        "at the left middle lobe",
        "at the right middle lobe",
        "",
    ),
)

PROMPT_FIELDS: dict[str, Fields] = {
    "Atelectasis": ATELECTASIS,
    "Cardiomegaly": CARDIOMEGALY,
    "Consolidation": CONSOLIDATION,
    "Edema": EDEMA,
    "Pleural Effusion": PLEURAL_EFFUSION,
    "COVID": COVID,
    "RSNA Pneumonia": RSNA_PNEUMONIA,
}

# MedCLIP publishes no prompts for the other nine findings. These are this project's
# own: noun phrases put into the same sentence frames for every finding.
FINDING_NOUNS: dict[str, tuple[str, ...]] = {
    "No Finding": ("no acute abnormality", "a normal heart and clear lungs"),
    "Enlarged Cardiomediastinum": (
        "an enlarged cardiomediastinum",
        "a widened mediastinum",
    ),
    "Lung Lesion": ("a lung nodule", "a lung mass"),
    "Lung Opacity": ("a lung opacity", "lung opacities"),
    "Pneumonia": ("pneumonia", "an infectious pneumonia"),
    "Pneumothorax": ("a pneumothorax", "an apical pneumothorax"),
    "Pleural Other": ("pleural thickening", "a pleural plaque"),
    "Fracture": ("a rib fracture", "a clavicle fracture"),
    "Support Devices": (
        "a tube, line or pacemaker",
        "an endotracheal tube or central venous catheter",
    ),
}
FINDING_FRAMES: tuple[str, ...] = (
    "this chest film shows {}",
    "chest film of a patient with {}",
    "the appearance of this chest film goes with {}",
)
