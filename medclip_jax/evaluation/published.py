"""What papers publish, to stand beside our figures: measured on other data than these.

The figures are the papers' own, on licensed films that are not shipped here and whose
lists were often never published; they show where the field stands. `of` is a
protocol's name with its suffix; `kind` the data set's adapter, "" for any.
"""

from dataclasses import dataclass

from medclip_jax.evaluation.rows import Row

MEDCLIP = "Wang et al. (MedCLIP, EMNLP 2022)"
CONVIRT = "Zhang et al. (ConVIRT, MLHC 2022)"
GLORIA = "Huang et al. (GLoRIA, ICCV 2021)"
BIOVIL = "Boecking et al. (BioViL, ECCV 2022), model card"
BIOVIL_T = "Bannur et al. (BioViL-T, CVPR 2023)"


@dataclass(frozen=True)
class Figure:
    """One published figure."""

    of: str
    kind: str
    metric: str
    system: str
    value: float
    source: str


def beside(row: Row) -> list[Figure]:
    """The published figures of the same question."""
    return [
        figure
        for figure in FIGURES
        if (figure.of, figure.metric) == (row.protocol, row.metric)
        and figure.kind in ("", row.kind)
    ]


def _figures(of: str, kind: str, metric: str, source: str, **systems: float):
    return [
        Figure(of, kind, metric, name.replace("_", " "), value, source)
        for name, value in systems.items()
    ]


def _series(of: str, kind: str, metrics: str, source: str, **systems: str):
    """One row of a table a system: values in the order of the metrics."""
    return [
        Figure(of, kind, metric, name.replace("_", " "), float(value), source)
        for name, values in systems.items()
        for metric, value in zip(metrics.split(), values.split(), strict=True)
    ]


FIGURES: list[Figure] = [
    *_figures("zero_shot_five", "chexpert", "accuracy", f"{MEDCLIP}, table 1",
              CLIP=0.2016, ConVIRT=0.4188, GLoRIA=0.4328, MedCLIP_ResNet=0.5476,
              MedCLIP_ViT=0.5942),
    *_figures("zero_shot_five", "mimic_cxr", "accuracy", f"{MEDCLIP}, table 1",
              CLIP=0.1918, ConVIRT=0.4018, GLoRIA=0.3306, MedCLIP_ResNet=0.5022,
              MedCLIP_ViT=0.5006),
    *_series("retrieval_image_to_text", "",
             "precision_at_1 precision_at_2 precision_at_5 precision_at_10",
             f"{MEDCLIP}, table 4, CheXpert-5x200 with sentences of MIMIC-CXR",
             CLIP="0.21 0.20 0.20 0.19", ConVIRT="0.20 0.20 0.20 0.21",
             GLoRIA="0.47 0.47 0.46 0.46", MedCLIP="0.45 0.49 0.48 0.50"),
    *_series("grounding", "", "cnr miou", f"{BIOVIL_T}, model card, MS-CXR",
             BioViL="1.07 0.229", BioViL_L="1.21 0.202", BioViL_T="1.33 0.240"),
    *_figures("grounding", "", "cnr", f"{BIOVIL}, MS-CXR", ConVIRT=0.818, GLoRIA=0.930),
    *_series("temporal_sentence_similarity", "", "accuracy auroc",
             f"{BIOVIL_T}, model card, MS-CXR-T",
             PubMedBERT="0.6039 0.542", CXR_BERT_general="0.6260 0.601",
             CXR_BERT_specialized="0.7812 0.837", BioViL_T="0.8777 0.933"),
    *_series("radnli", "", "accuracy auroc", f"{BIOVIL_T}, model card, two classes",
             PubMedBERT="0.8138 0.727", CXR_BERT_general="0.8759 0.902",
             CXR_BERT_specialized="0.8966 0.932", BioViL_T="0.9052 0.947"),
]  # fmt: skip
