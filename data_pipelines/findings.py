"""The 14 findings, their codes, and the other closed vocabularies of the records.

The order is that of the CheXpert labeler's output, which MedCLIP uses for its label
vectors (RyanWangZf/MedCLIP, medclip/constants.py). CheXpert's and MIMIC-CXR's own
CSV files have other orders: always select their columns by name.
"""

FINDINGS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
NO_FINDING = FINDINGS.index("No Finding")
SUPPORT_DEVICES = FINDINGS.index("Support Devices")

EVAL_FIVE: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
)
"""The five classes of the CheXpert competition and of CheXpert-5x200."""

POSITIVE, NEGATIVE, UNCERTAIN, NOT_GIVEN = 1, 0, -1, -2
"""Codes of a label. What -1 and -2 mean to a loss is an option of the reader."""

SPLITS: tuple[str, ...] = ("train", "validate", "test")
VIEWS: tuple[str, ...] = ("AP", "PA", "LATERAL", "OTHER", "UNKNOWN")
FRONTAL_VIEWS: tuple[str, ...] = ("AP", "PA")
