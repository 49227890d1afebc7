"""Tokenizers: a Hugging Face folder or name, or WordPiece trained on the corpus.

Bio_ClinicalBERT has no tokenizer settings in its repository, so Hugging Face's
default applies to it: lower-casing ON with a CASED vocabulary. That is what MedCLIP
was trained with, and what loading it here does.
"""

import hashlib
import logging
import threading
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.errors import UserError
from medclip_jax.inputs import wordpiece

_log = logging.getLogger(__name__)
_TEXT_KEYS = ("ids_BxT", "mask_BxT", "word_ids_BxT")


class Tokenizer:
    """Texts to fixed-length arrays.

    Args:
      fast: a fast (`tokenizers`-backed) Hugging Face tokenizer with a padding token.

    Raises:
      UserError: the tokenizer is not a fast one, or cannot pad.
    """

    def __init__(self, fast: Any):
        if not fast.is_fast:
            raise UserError(
                "expected a fast tokenizer (one with a tokenizer.json), found "
                f"{type(fast).__name__}: word boundaries come from the fast ones only"
            )
        if fast.pad_token_id is None:
            raise UserError(f"the tokenizer {type(fast).__name__} has no padding token")
        self._fast = fast
        # The backend keeps truncation and padding as state; set them anew each time.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, name: str | Path, lower_case: bool | None = None) -> "Tokenizer":
        """Opens a saved tokenizer.

        Args:
          name: a folder (ours, any Hugging Face one, or a bare vocab.txt), or a name
            on the hub.
          lower_case: overrides what the tokenizer's own settings say.

        Raises:
          UserError: there is no such tokenizer.
        """
        from transformers import AutoTokenizer, BertTokenizer

        options: dict[str, Any] = (
            {} if lower_case is None else {"do_lower_case": lower_case}
        )
        folder = Path(name)
        bare = (folder / "vocab.txt").is_file() and not any(
            (folder / file).is_file()
            for file in ("tokenizer.json", "tokenizer_config.json", "config.json")
        )
        try:
            if bare:
                vocab = _read_vocab(folder / "vocab.txt")
                return cls(BertTokenizer(vocab=vocab, **options))
            return cls(AutoTokenizer.from_pretrained(str(name), **options))
        except UserError:
            raise
        except (OSError, ValueError, KeyError) as error:
            where = "in the folder" if folder.is_dir() else "on disk or on the hub, of"
            raise UserError(
                f"expected a Hugging Face tokenizer {where} {name}, could not open "
                f"one: {str(error).splitlines()[0]}"
            ) from error

    @classmethod
    def from_vocabulary(cls, vocabulary: Sequence[str]) -> "Tokenizer":
        """A lower-casing BERT WordPiece tokenizer of these entries, in id order."""
        from transformers import BertTokenizer

        ids = {piece: number for number, piece in enumerate(vocabulary)}
        return cls(BertTokenizer(vocab=ids, do_lower_case=True))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._fast)

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return int(self._fast.pad_token_id)

    @property
    def mask_id(self) -> int:
        """Id of the token that hides another.

        Raises:
          UserError: there is none.
        """
        if self._fast.mask_token_id is None:
            raise UserError(
                "words are to be hidden, but the tokenizer has no mask token; name "
                "another with config.model.text.tokenizer"
            )
        return int(self._fast.mask_token_id)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides which ids a text gets."""
        return hashlib.sha256(
            self._fast.backend_tokenizer.to_str().encode()
        ).hexdigest()

    def encode(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """Tokenises texts to a fixed length.

        Args:
          texts: any strings; an empty one gets the special tokens alone.
          length: T; longer texts are cut, shorter ones padded.

        Returns:
          ids_BxT int32; mask_BxT int32, 1 for a token; word_ids_BxT int32, the
          number of the word that a piece belongs to, -1 for special and padding.
        """
        shape = (len(texts), length)
        ids = np.full(shape, self._fast.pad_token_id, np.int32)
        mask = np.zeros(shape, np.int32)
        word_ids = np.full(shape, -1, np.int32)
        if len(texts):
            with self._lock:
                encoded = self._fast(
                    list(texts), truncation=True, max_length=length, verbose=False
                )
            for row, pieces in enumerate(encoded["input_ids"]):
                ids[row, : len(pieces)] = pieces
                mask[row, : len(pieces)] = 1
                words = [-1 if w is None else w for w in encoded.word_ids(row)]
                word_ids[row, : len(words)] = words
        return dict(zip(_TEXT_KEYS, (ids, mask, word_ids)))

    def words(self, text: str) -> list[str]:
        """The words of a text, as `encode` numbers them."""
        with self._lock:
            encoded = self._fast(text, truncation=False, verbose=False)
        pieces = self._fast.convert_ids_to_tokens(encoded["input_ids"])
        words: dict[int, str] = {}
        for piece, number in zip(pieces, encoded.word_ids()):
            if number is not None:
                words[number] = words.get(number, "") + piece.removeprefix("##")
        return [words[number] for number in sorted(words)]

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `AutoTokenizer.from_pretrained` opens.

        A WordPiece vocabulary is also written as vocab.txt, for older readers.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._fast.save_pretrained(str(folder))
        if type(self._fast.backend_tokenizer.model).__name__ == "WordPiece":
            by_id = sorted(self._fast.get_vocab().items(), key=lambda item: item[1])
            text = "".join(piece + "\n" for piece, _ in by_id)
            (folder / "vocab.txt").write_text(text, encoding="utf-8")


def _read_vocab(path: Path) -> dict[str, int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.rstrip("\n"): number for number, line in enumerate(lines)}


def train_wordpiece(
    texts: Iterable[str], patients: Iterable[str], vocab_size: int, min_patients: int
) -> Tokenizer:
    """Trains a lower-casing WordPiece tokenizer; equal inputs give equal ids.

    Args:
      texts: reports or sentences.
      patients: the patient of each text.
      vocab_size: the most entries.
      min_patients: words of fewer patients take no part (see `wordpiece`).

    Raises:
      UserError: no word is left.
    """
    words = wordpiece.count_words(texts, patients, min_patients)
    if not words:
        raise UserError(
            "no word to train a tokenizer on: expected texts with words that at least "
            f"config.data.min_patients = {min_patients} patients share; lower it, or "
            "name a tokenizer with config.model.text.tokenizer"
        )
    vocabulary = wordpiece.learn_vocabulary(words, vocab_size)
    _log.info(
        "WordPiece: %d entries from %d words of at least %d patients",
        len(vocabulary),
        len(words),
        min_patients,
    )
    return Tokenizer.from_vocabulary(vocabulary)


class TokenCache:
    """Token arrays by text key, so that a text is read and tokenised once.

    Holds unpadded arrays up to a number of bytes; what comes later is made again
    each time. Safe to use from several threads.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, limit_bytes: int):
        self._tokenizer = tokenizer
        self._length = length
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._pieces: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()
        self._absent = self._unpadded([""])[0]

    def encode(self, keys: Sequence[Hashable | None], read: Any) -> dict:
        """Token arrays of texts.

        Args:
          keys: identifies each text; None is an absent text.
          read: called with a key that is not held, gives its text; None where there
            is none to be had, which makes it an absent one.

        Returns:
          As `Tokenizer.encode`; an absent text is the empty one: its special tokens
          keep a softmax over tokens from being empty.
        """
        wanted = dict.fromkeys(key for key in keys if key is not None)
        held = {key: self._pieces.get(key) for key in wanted}
        found = {key: pieces for key, pieces in held.items() if pieces is not None}
        missing = [key for key in wanted if key not in found]
        if missing:
            texts = [read(key) for key in missing]
            made = self._unpadded([text or "" for text in texts])
            for key, text, pieces in zip(missing, texts, made):
                found[key] = pieces
                if text is not None:
                    self._keep(key, pieces)
        return self._assemble([self._absent if k is None else found[k] for k in keys])

    def _unpadded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each text int32 [2, tokens]: ids and word ids."""
        made = self._tokenizer.encode(texts, self._length)
        both = np.stack([made["ids_BxT"], made["word_ids_BxT"]], axis=1)
        lengths = made["mask_BxT"].sum(axis=1)
        return [row[:, :n].copy() for row, n in zip(both, lengths)]

    def _keep(self, key: Hashable, pieces: np.ndarray) -> None:
        with self._lock:
            size = pieces.nbytes + 200  # the objects around it
            if key not in self._pieces and self._bytes + size <= self._limit_bytes:
                self._pieces[key] = pieces
                self._bytes += size

    def _assemble(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        shape = (len(rows), self._length)
        ids = np.full(shape, self._tokenizer.pad_id, np.int32)
        mask = np.zeros(shape, np.int32)
        word_ids = np.full(shape, -1, np.int32)
        for row, pieces in enumerate(rows):
            n = pieces.shape[1]
            ids[row, :n], word_ids[row, :n] = pieces
            mask[row, :n] = 1
        return dict(zip(_TEXT_KEYS, (ids, mask, word_ids)))
