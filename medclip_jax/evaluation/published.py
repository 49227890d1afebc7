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


def _probes(of: str, kind: str, source: str, **systems: str) -> list[Figure]:
    """AUROC in per cent at 1, 10 and 100 % of the labels, by where it starts."""
    return [
        Figure(of, kind, f"auroc_{share}%", name, float(value) / 100, source)
        for name, values in systems.items()
        for share, value in zip((1, 10, 100), values.split(), strict=True)
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
    *_series("retrieval_image_to_image/8x200", "chexpert",
             "precision_at_5 precision_at_10 precision_at_50",
             f"{CONVIRT}, table 2, its lists of films", ImageNet="0.148 0.144 0.150",
             Contrastive_Binary="0.388 0.366 0.297", ConVIRT="0.450 0.429 0.357",
             ConVIRT_supervised_on_CheXpert="0.568 0.563 0.489"),
    *_series("retrieval_text_to_image/8x200", "chexpert",
             "precision_at_5 precision_at_10 precision_at_50",
             f"{CONVIRT}, table 2, its lists of films and texts",
             Contrastive_Binary="0.155 0.145 0.137", ConVIRT="0.600 0.575 0.488"),
    *_series("grounding", "", "cnr miou", f"{BIOVIL_T}, model card, MS-CXR",
             BioViL="1.07 0.229", BioViL_L="1.21 0.202", BioViL_T="1.33 0.240"),
    *_figures("grounding", "", "cnr", f"{BIOVIL}, MS-CXR", ConVIRT=0.818, GLoRIA=0.930),
    *_series("temporal_sentence_similarity", "", "accuracy auroc",
             f"{BIOVIL_T}, model card, MS-CXR-T",
             PubMedBERT="0.6039 0.542", CXR_BERT_general="0.6260 0.601",
             CXR_BERT_specialized="0.7812 0.837", BioViL_T="0.8777 0.933"),
    *_probes("linear_probe", "rsna", f"{CONVIRT}, table 1, linear",
             random="55.0 67.3 72.3", ImageNet="82.8 85.4 86.9", ConVIRT="90.7 91.7 92.1"),
    *_probes("linear_probe", "chexpert", f"{CONVIRT}, table 1, linear",
             random="58.2 63.7 66.2", ImageNet="75.7 79.7 81.0", ConVIRT="85.9 86.8 87.3"),
    *_probes("linear_probe", "mura", f"{CONVIRT}, table 1, linear",
             random="50.9 56.8 62.0", ImageNet="63.8 74.1 79.0", ConVIRT="81.2 85.1 87.6"),
    *_probes("linear_probe", "rsna", f"{GLORIA}, as quoted by later papers",
             GLoRIA="86.1 88.0 88.6"),
    *_probes("linear_probe", "chexpert", f"{GLORIA}, as quoted by later papers",
             GLoRIA="86.6 87.8 88.1"),
    *_probes("linear_probe", "rsna", f"{BIOVIL}",
             BioViL="88.1 88.4 89.1"),
    *_series("linear_probe", "covidx", "accuracy_10% accuracy_100%",
             f"{CONVIRT}, table 1, linear", random="0.692 0.735",
             ImageNet="0.837 0.886", ConVIRT="0.859 0.917"),
    *_probes("fine_tuning", "rsna", f"{CONVIRT}, table 1, fine-tuned",
             random="71.9 82.2 88.5", ImageNet="83.1 87.3 90.8", ConVIRT="88.8 91.5 92.7"),
    *_probes("fine_tuning", "chexpert", f"{CONVIRT}, table 1, fine-tuned",
             random="70.4 81.1 85.8", ImageNet="80.1 84.8 87.6", ConVIRT="87.0 88.1 88.1"),
    *_probes("fine_tuning", "mura", f"{CONVIRT}, table 1, fine-tuned",
             random="56.8 61.6 79.1", ImageNet="72.1 81.8 87.0", ConVIRT="81.3 86.5 89.0"),
    *_series("fine_tuning", "covidx", "accuracy_10% accuracy_100%",
             f"{CONVIRT}, table 1, fine-tuned", random="0.754 0.877",
             ImageNet="0.844 0.903", ConVIRT="0.903 0.924"),
    *_series("zero_shot_binary", "rsna", "auroc accuracy f1", "RSNA, BioViL and "
             "BioViL-T papers, as quoted by later papers",
             BioViL="0.831 0.732 0.665", BioViL_T="0.871 0.805 0.706"),
    *_figures("zero_shot_binary", "covid_radiography", "accuracy",
              f"{MEDCLIP}, table 1", CLIP=0.5069, ConVIRT=0.5184, GLoRIA=0.7090,
              MedCLIP_ViT=0.8013),
    *_figures("segmentation/tuned", "siim", "dice_all",
              f"{GLORIA}, as quoted by later papers, U-Net",
              random=0.543, ImageNet=0.635, ConVIRT=0.599, GLoRIA=0.634),
    *_series("radnli", "", "accuracy auroc", f"{BIOVIL_T}, model card, two classes",
             PubMedBERT="0.8138 0.727", CXR_BERT_general="0.8759 0.902",
             CXR_BERT_specialized="0.8966 0.932", BioViL_T="0.9052 0.947"),
]  # fmt: skip
