"""Small datasets in memory, with known content, for the tests of the inputs."""

import numpy as np
import pyarrow as pa
import simplejpeg

from data_pipelines import records

SENTENCES = (
    "the heart is enlarged",
    "there is no pneumothorax",
    "small left pleural effusion",
    "the lungs are clear",
    "right basilar atelectasis",
)


def film_bytes(value: int, height: int = 48, width: int = 40) -> bytes:
    """A film with a gradient and a brightness of its own."""
    rows, columns = np.mgrid[:height, :width]
    pixels = ((rows * 3 + columns * 2 + value * 7) % 256).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels[..., None], quality=95, colorspace="GRAY")


def _codes(rng: np.random.Generator) -> np.ndarray:
    return rng.choice(np.array([1, 0, -1, -2], np.int8), size=14)


def image_record(name: str, study: int, number: int, split: str, view: str, labels):
    return {
        "dataset": name,
        "image_id": f"i{study}-{number}",
        "patient_id": f"p{study // 2}",
        "study_id": f"s{study}",
        "split": split,
        "view": view,
        "film": film_bytes(study * 5 + number),
        "labels": labels,
    }


def report_record(name: str, study: int, split: str, n: int, sections, labels):
    return {
        "dataset": name,
        "patient_id": f"p{study // 2}",
        "study_id": f"s{study}",
        "split": split,
        "sentences": [
            f"{SENTENCES[(study + k) % len(SENTENCES)]} number {study} {k}"
            for k in range(n)
        ],
        "sentence_sections": sections,
        "sentence_labels": labels,
        "labels": labels.max(axis=0) if n else np.full(14, -2, np.int8),
    }


def make_dataset(
    name: str = "toy",
    n_paired: int = 12,
    n_images: int = 6,
    n_texts: int = 5,
    split: str = "train",
    seed: int = 0,
    sections=("findings", "impression", "history"),
) -> records.Dataset:
    """Paired studies (2 images, 3 sentences), studies of 1 image, of 2 sentences."""
    rng = np.random.default_rng(seed)
    images, reports, table = [], [], []
    for study in range(n_paired + n_images + n_texts):
        has_images = study < n_paired + n_images
        has_report = study < n_paired or not has_images
        k = (2 if study < n_paired else 1) if has_images else 0
        views = ["PA", "LATERAL"][:k]
        mine = [
            image_record(name, study, j, split, views[j], _codes(rng)) for j in range(k)
        ]
        n = (3 if has_images else 2) if has_report else 0
        report = None
        if has_report:
            labels = np.stack([_codes(rng) for _ in range(n)])
            where = [sections[j % len(sections)] for j in range(n)]
            report = report_record(name, study, split, n, where, labels)
        table.append(
            {
                "dataset": name,
                "patient_id": f"p{study // 2}",
                "study_id": f"s{study}",
                "split": split,
                "time": study,
                "study_index": study % 2,
                "image_rows": list(range(len(images), len(images) + k)),
                "image_ids": [image["image_id"] for image in mine],
                "image_views": views,
                "image_labels": np.array([i["labels"] for i in mine]).ravel().tolist(),
                "report_row": len(reports) if report else -1,
                "n_sentences": n,
                "sentence_labels": report["sentence_labels"].ravel().tolist()
                if report
                else [],
                "report_labels": report["labels"].tolist() if report else [],
            }
        )
        images += mine
        reports += [report] if report else []
    return records.Dataset(
        name=name,
        path=f"/nowhere/{name}",
        images=images,
        reports=reports,
        table=pa.Table.from_pylist(table, schema=records.TABLE_SCHEMA),
        fingerprint=f"fingerprint of {name} {seed} {n_paired}",
    )
