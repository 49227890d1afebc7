"""Views: pure functions on integer arrays that say which image stands beside which
text. All random choices come from `draw`, keyed by the seed and the global position.

`pairs`: an image with a sentence (or the whole report) of its own study.

`with_prior`: the same, and beside the image one of the patient's study before, where
there is one (BioViL-T, arXiv 2301.04558, section 3).

`reports`: texts alone, whole reports. `sections`: two sections of a report, of those
that have both (CXR-BERT, arXiv 2204.09817, section 2.1).

`unpaired`, sampling "decoupled" (the paper, section 3.2): n paired studies, m images
alone, h texts alone; the image set of n + m and the text set of n + h are drawn
independently, which makes (n + m) x (n + h) usable pairs. A text is one sentence of a
report with its own labels.

`unpaired`, sampling "official" (RyanWangZf/MedCLIP, medclip/dataset.py): each image
brings one text. It is a random sentence of the image's own report, or, where there is
none, a sentence of the prompt table that shares a positive finding with the image. So
texts are not sampled independently of images and no text-only stream exists. Three
points of that code are not followed: for an image without any positive label it took
the first character of a sentence (an indexing slip), here it is the sentence; a
sentence is never without labels here, so its rule "not in the table: No Finding"
holds for sentences about which nothing is given; and its table had no two equal
sentences, while a frequent sentence is drawn more often here.
"""

from typing import NamedTuple

import numpy as np

from medclip_jax.inputs import draw

NO_FINDING = 0
NOT_GIVEN = -2


class Streams(NamedTuple):
    """What `unpaired` draws from: indices of images and of sentences."""

    paired_images: np.ndarray
    image_only: np.ndarray
    paired_texts: np.ndarray
    text_only: np.ndarray
    unlabelled_images: int
    unlabelled_texts: int


def joined_studies(
    image_study_I: np.ndarray,
    study_report_Q: np.ndarray,
    report_count_R: np.ndarray,
    study_share_Q: np.ndarray,
    paired_fraction: float,
) -> np.ndarray:
    """Which studies have an image and a text that may be used as a pair.

    Args:
      image_study_I: study of each image.
      study_report_Q: report of each study, -1 none.
      report_count_R: sentences of each report.
      study_share_Q: hash of the patient in [0, 1).
      paired_fraction: patients whose hash is not below lose the join; their images
        and texts then are image-only and text-only.

    Returns:
      bool [Q].
    """
    has_image_Q = np.zeros(len(study_report_Q), bool)
    has_image_Q[image_study_I] = True
    has_text_Q = study_report_Q >= 0
    has_text_Q[has_text_Q] = report_count_R[study_report_Q[has_text_Q]] > 0
    return has_image_Q & has_text_Q & (study_share_Q < paired_fraction)


def pairs_by_image(
    image_study_I: np.ndarray, study_report_Q: np.ndarray, joined_Q: np.ndarray
) -> np.ndarray:
    """One row for each image whose study has a text.

    Returns:
      int64 [P, 2]: index of the image, index of the report.
    """
    images = np.flatnonzero(joined_Q[image_study_I])
    return np.stack([images, study_report_Q[image_study_I[images]]], axis=1)


def pairs_by_study(
    image_study_I: np.ndarray, study_report_Q: np.ndarray, joined_Q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One row for each study that has an image and a text.

    Returns:
      rows, int64 [P, 3]: first place and number of the study's images in `order`,
      index of the report; order, int64: indices of images, study by study.
    """
    order = np.argsort(image_study_I, kind="stable")
    studies = np.flatnonzero(joined_Q)
    sorted_studies = image_study_I[order]
    first = np.searchsorted(sorted_studies, studies, side="left")
    last = np.searchsorted(sorted_studies, studies, side="right")
    return np.stack([first, last - first, study_report_Q[studies]], axis=1), order


def prior_images(
    image_study_I: np.ndarray,
    study_dataset_Q: np.ndarray,
    study_patient_Q: np.ndarray,
    study_index_Q: np.ndarray,
) -> np.ndarray:
    """The film before: of the patient's latest earlier study that has images, the first.

    Returns:
      int64 [I], index of an image; -1 where there is none.
    """
    n_studies, n_images = len(study_index_Q), len(image_study_I)
    first_Q = np.full(n_studies, -1)
    first_Q[image_study_I[::-1]] = np.arange(n_images)[::-1]
    _, patient_Q = np.unique(
        [f"{of}/{who}" for of, who in zip(study_dataset_Q, study_patient_Q)],
        return_inverse=True,
    )
    studies = np.flatnonzero(first_Q >= 0)
    studies = studies[np.lexsort((study_index_Q[studies], patient_Q[studies]))]
    prior_Q = np.full(n_studies, -1)
    before, after = studies[:-1], studies[1:]
    same = patient_Q[before] == patient_Q[after]
    prior_Q[after[same]] = first_Q[before[same]]
    return prior_Q[image_study_I]


def unpaired_streams(
    image_study_I: np.ndarray,
    image_labels_Ix14: np.ndarray,
    sentence_study_S: np.ndarray,
    sentence_labels_Sx14: np.ndarray,
    joined_Q: np.ndarray,
) -> Streams:
    """Splits images and sentences into paired and alone.

    An image or a sentence about which nothing is given (all codes -2) has no place
    in a target made of labels; it is left out and counted.
    """
    image_known_I = (image_labels_Ix14 != NOT_GIVEN).any(axis=1)
    text_known_S = (sentence_labels_Sx14 != NOT_GIVEN).any(axis=1)
    image_joined_I = joined_Q[image_study_I]
    text_joined_S = joined_Q[sentence_study_S]
    return Streams(
        paired_images=np.flatnonzero(image_known_I & image_joined_I),
        image_only=np.flatnonzero(image_known_I & ~image_joined_I),
        paired_texts=np.flatnonzero(text_known_S & text_joined_S),
        text_only=np.flatnonzero(text_known_S & ~text_joined_S),
        unlabelled_images=int((~image_known_I).sum()),
        unlabelled_texts=int((~text_known_S).sum()),
    )


def prompt_table(
    sentence_labels_Sx14: np.ndarray, per_class: int, seed: int, epoch: int
) -> np.ndarray:
    """The sentences that stand in for a missing report, for one pass over the data.

    For each finding, `per_class` of the sentences that are positive for it (all, if
    fewer), without duplicates; drawn anew each epoch.

    Returns:
      Sorted indices of sentences.

    Reference: RyanWangZf/MedCLIP, medclip/dataset.py (`_build_prompt_sentence`).
    """
    chosen = []
    for finding in range(sentence_labels_Sx14.shape[1]):
        rows = np.flatnonzero(sentence_labels_Sx14[:, finding] == 1)
        if len(rows) > per_class:
            order = np.argsort(draw.bits(seed, f"prompts:{finding}:{epoch}", rows))
            rows = rows[order[:per_class]]
        chosen.append(rows)
    return np.unique(np.concatenate(chosen))


def prompt_for_image(
    image_labels_14: np.ndarray,
    table_labels_Px14: np.ndarray,
    random_bits: np.uint64,
) -> int:
    """A row of the prompt table for an image without a report.

    Args:
      image_labels_14: raw codes; only 1 counts (uncertain is zero).
      table_labels_Px14: raw codes of the table's sentences.
      random_bits: 64 random bits.

    Returns:
      A row among those that share a positive finding with the image, No Finding left
      aside; where there is none, a row positive for No Finding; where there is none
      either, -1 (the text then is masked).

    Reference: RyanWangZf/MedCLIP, medclip/dataset.py (`sample_sent_prompts`).
    """
    positive = np.flatnonzero(image_labels_14[1:] == 1) + 1
    shares = (table_labels_Px14[:, positive] == 1).any(axis=1)
    if not shares.any():
        shares = table_labels_Px14[:, NO_FINDING] == 1
    rows = np.flatnonzero(shares)
    if not len(rows):
        return -1
    return int(rows[(int(random_bits) >> 32) * len(rows) >> 32])


def no_finding_where_unknown(labels_Mx14: np.ndarray) -> np.ndarray:
    """Gives texts about which nothing is known the one-hot of No Finding.

    Reference: RyanWangZf/MedCLIP, medclip/dataset.py (`__getitem__`, a sentence that
    is not in the table).
    """
    unknown = (labels_Mx14 == NOT_GIVEN).all(axis=1)
    one_hot = np.zeros(labels_Mx14.shape[1], labels_Mx14.dtype)
    one_hot[NO_FINDING] = 1
    return np.where(unknown[:, None], one_hot, labels_Mx14)
