"""A WordPiece vocabulary from a corpus: deterministic, and blind to rare words.

The trainer of the `tokenizers` package gives other vocabularies in other processes
(it walks hash maps); the one here breaks every tie by the text of the pieces.

A word that fewer than `min_patients` patients have in their reports takes no part:
names, numbers and misspellings of a few people cannot become entries of a vocabulary
that is saved and shared.

Reference: Sennrich et al., arXiv 1508.07909, algorithm 1, on pieces in WordPiece's
"##" spelling.
"""

import collections
import heapq
import itertools
from collections.abc import Iterable, Mapping

from tokenizers import normalizers, pre_tokenizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Pair = tuple[str, str]


def count_words(
    texts: Iterable[str], patients: Iterable[str], min_patients: int
) -> dict[str, int]:
    """Counts lower-cased words that enough patients share.

    Args:
      texts: reports or sentences.
      patients: the patient of each text.
      min_patients: words in the texts of fewer patients are dropped.

    Returns:
      Word to number of occurrences.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    seen: dict[str, set[str]] = collections.defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += 1
            if len(seen[word]) < min_patients:
                seen[word].add(patient)
    return {word: n for word, n in counts.items() if len(seen[word]) >= min_patients}


def learn_vocabulary(words: Mapping[str, int], vocab_size: int) -> list[str]:
    """Merges the most frequent pairs of pieces until the vocabulary is full.

    Args:
      words: word to number of occurrences.
      vocab_size: the most entries, special tokens included.

    Returns:
      The entries by id; special tokens first, [PAD] is 0. Fewer than `vocab_size`
      when no pair is left that occurs twice.
    """
    spelled = [_spell(word) for word in sorted(words)]
    counts = [words[word] for word in sorted(words)]
    alphabet = sorted({piece for pieces in spelled for piece in pieces})
    vocabulary = [*SPECIAL_TOKENS, *alphabet]
    known = set(vocabulary)
    pairs, where = _count_pairs(spelled, counts)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while heap and len(vocabulary) < vocab_size:
        negative, pair = heapq.heappop(heap)
        if pairs.get(pair, 0) != -negative:  # an entry from before a merge
            continue
        if -negative < 2:
            break
        merged = _join(*pair)
        if merged not in known:
            known.add(merged)
            vocabulary.append(merged)
        changed = _merge(pair, merged, spelled, counts, pairs, where)
        for other in changed:
            if pairs.get(other, 0) > 0:
                heapq.heappush(heap, (-pairs[other], other))
    return vocabulary[: max(vocab_size, len(SPECIAL_TOKENS))]


def _spell(word: str) -> list[str]:
    return [word[0], *("##" + letter for letter in word[1:])]


def _join(left: str, right: str) -> str:
    return left + right[2:]


def _count_pairs(
    spelled: list[list[str]], counts: list[int]
) -> tuple[dict[Pair, int], dict[Pair, set[int]]]:
    pairs: dict[Pair, int] = collections.defaultdict(int)
    where: dict[Pair, set[int]] = collections.defaultdict(set)
    for index, pieces in enumerate(spelled):
        for pair in itertools.pairwise(pieces):
            pairs[pair] += counts[index]
            where[pair].add(index)
    return pairs, where


def _merge(
    pair: Pair,
    merged: str,
    spelled: list[list[str]],
    counts: list[int],
    pairs: dict[Pair, int],
    where: dict[Pair, set[int]],
) -> set[Pair]:
    """Merges a pair in every word that has it; returns the pairs whose count moved."""
    changed: set[Pair] = set()
    for index in where.pop(pair):
        old = spelled[index]
        for other in itertools.pairwise(old):
            pairs[other] -= counts[index]
            changed.add(other)
            if other != pair:
                where[other].discard(index)
        new: list[str] = []
        at = 0
        while at < len(old):
            if tuple(old[at : at + 2]) == pair:
                new.append(merged)
                at += 2
            else:
                new.append(old[at])
                at += 1
        spelled[index] = new
        for other in itertools.pairwise(new):
            pairs[other] += counts[index]
            where[other].add(index)
            changed.add(other)
    pairs.pop(pair, None)
    changed.discard(pair)
    return changed
