"""RadNLI and MedNLI: pairs of sentences, does the first entail the second?

`--raw` is the folder of the release, or one above it. JSON lines, one pair each:

    radnli   radnli_dev_v1.jsonl, radnli_test_v1.jsonl; keys pair_id, gold_label,
             sentence1 (premise), sentence2 (hypothesis). Sentences of MIMIC-CXR; each
             two stand there in both orders, and the order matters
    mednli   mli_train_v1.jsonl, mli_dev_v1.jsonl, mli_test_v1.jsonl; pairID instead of
             pair_id, hypotheses begin with a space, parses are not read. From MIMIC-III

Both become the side table `sentence_pairs`, dev as "validate". Labels are entailment,
neutral and contradiction. A line that cannot be read is rejected by its number; its
text is not shown.

Reference: https://physionet.org/content/radnli-report-inference/1.0.0/ (Miura et al.,
NAACL 2021, arXiv 2010.10042); https://physionet.org/content/mednli/1.0.0/ (Romanov and
Shivade, EMNLP 2018, arXiv 1808.06752).
"""

import json
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines import rejected
from data_pipelines.builder import StudyBuilder
from data_pipelines.datasets.ms_cxr import find_file
from data_pipelines.plan import Scan
from medclip_jax.errors import UserError

LABELS = ("entailment", "neutral", "contradiction")


class _SentencePairs(StudyBuilder):
    """What the two have in common."""

    FILES: ClassVar[dict[str, str]]  # split -> file
    ID: ClassVar[str]

    @classmethod
    def scan(cls, raw: Path, options: Any) -> Scan:
        """Reads the files of all splits.

        Raises:
          UserError: none of them is there.
        """
        del options
        made = Scan()
        seen: set[str] = set()
        found = 0
        for split, name in cls.FILES.items():
            path = find_file(raw, name)
            if path is None:
                made.notes.append(f"no {name}")
                continue
            found += 1
            # Bytes: text would also be cut at line breaks inside of a sentence.
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    pair = _read(line, cls.ID)
                    if pair["pair_id"] in seen:
                        raise ValueError(f"{cls.ID} {pair['pair_id'][:40]!r} again")
                except ValueError as error:
                    detail = f"line {number}: {error}"
                    made.reject(rejected.BAD_VALUE, f"{split} {number}", name, detail)
                    continue
                seen.add(pair["pair_id"])
                made.annotate("sentence_pairs", subset="", split=split, **pair)
        if not found:
            raise UserError(
                f"expected {', '.join(cls.FILES.values())} in {raw} or a folder below "
                "it, found none"
            )
        return made


class RadNli(_SentencePairs):
    """TFDS builder for RadNLI."""

    name = "radnli"
    DESCRIPTION = "Pairs of sentences of chest radiograph reports and what follows."
    NOTICE = (
        "Made from sentences of MIMIC-CXR (PhysioNet Credentialed Health Data "
        "License): do not share them with anyone without a licence."
    )
    HOMEPAGE = "https://physionet.org/content/radnli-report-inference/"
    CITATION = (
        "@inproceedings{miura2021improving, title={Improving factual completeness and "
        "consistency of image-to-text radiology report generation}, author={Miura, "
        "Yasuhide and others}, booktitle={NAACL}, year={2021}}"
    )
    ID = "pair_id"
    FILES: ClassVar[dict[str, str]] = {
        "validate": "radnli_dev_v1.jsonl",
        "test": "radnli_test_v1.jsonl",
    }


class MedNli(_SentencePairs):
    """TFDS builder for MedNLI."""

    name = "mednli"
    DESCRIPTION = "Pairs of sentences, the first of a clinical note, and what follows."
    NOTICE = (
        "Made from sentences of MIMIC-III (PhysioNet Credentialed Health Data "
        "License): do not share them with anyone without a licence."
    )
    HOMEPAGE = "https://physionet.org/content/mednli/"
    CITATION = (
        "@inproceedings{romanov2018lessons, title={Lessons from natural language "
        "inference in the clinical domain}, author={Romanov, Alexey and Shivade, "
        "Chaitanya}, booktitle={EMNLP}, year={2018}}"
    )
    ID = "pairID"
    FILES: ClassVar[dict[str, str]] = {
        "train": "mli_train_v1.jsonl",
        "validate": "mli_dev_v1.jsonl",
        "test": "mli_test_v1.jsonl",
    }


def _read(line: bytes, id_key: str) -> dict[str, str]:
    """One pair.

    Raises:
      ValueError: says what the line lacks, never its text.
    """
    try:
        made = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError as error:
        place = getattr(error, "colno", 0)
        raise ValueError(f"not JSON, at letter {place}") from None
    if not isinstance(made, dict):
        raise ValueError("expected an object {...}")  # noqa: TRY004
    for key in (id_key, "gold_label", "sentence1", "sentence2"):
        if not str(made.get(key) or "").strip():
            raise ValueError(f"{key} is missing or blank")
    if made["gold_label"] not in LABELS:
        raise ValueError(f"gold_label is {str(made['gold_label'])[:20]!r}")
    return {
        "pair_id": str(made[id_key]).strip(),
        "sentence1": str(made["sentence1"]).strip(),
        "sentence2": str(made["sentence2"]).strip(),
        "label": made["gold_label"],
    }
