import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from transformers import AutoTokenizer

from medclip_jax.errors import UserError
from medclip_jax.inputs import tokens, wordpiece

SENTENCES = (
    "there is no pleural effusion",
    "small left effusions",
    "basilar atelectasis",
    "the lungs are clear opacities opacity",
    "heart enlarged right pneumothorax lung",
)
WORDS = " ".join(SENTENCES).split()


def corpus(n=400, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 8)).capitalize() + "." for _ in range(n)]
    return texts, [f"p{k % 40}" for k in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_wordpiece(*corpus(), vocab_size=120, min_patients=3)


def test_encode_pads_cuts_and_numbers_words(tokenizer):
    texts = ["No effusions.", "", "the the the the the the", "Zebra lungs"]
    out = tokenizer.encode(texts, 6)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        name: ((4, 6), np.int32) for name in ("ids_BxT", "mask_BxT", "word_ids_BxT")
    }
    ids, mask, words = out["ids_BxT"], out["mask_BxT"], out["word_ids_BxT"]
    np.testing.assert_array_equal(mask[1], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ids[1], [2, 3, 0, 0, 0, 0])  # [CLS] [SEP] [PAD]
    np.testing.assert_array_equal(mask[2], np.ones(6))
    assert ids[2, 5] == 3  # cut, the end mark kept
    np.testing.assert_array_equal(words[2], [-1, 0, 1, 2, 3, -1])
    assert (words[mask == 0] == -1).all() and (ids[mask == 0] == 0).all()
    row = words[0][words[0] >= 0]
    assert row.max() == 2 and (np.diff(row) >= 0).all()  # no, effusions, "."
    assert ids[3, 1] == 1  # z is in no word: [UNK]


def test_upper_and_lower_case_are_one(tokenizer):
    upper, lower = tokenizer.encode(["LUNGS Clear", "lungs clear"], 8)["ids_BxT"]
    np.testing.assert_array_equal(upper, lower)


def test_frequent_words_become_one_piece(tokenizer):
    ids = tokenizer.encode(["pneumothorax atelectasis"], 8)["ids_BxT"][0]
    assert (ids != 0).sum() == 4


def test_empty_batch(tokenizer):
    assert tokenizer.encode([], 5)["ids_BxT"].shape == (0, 5)


def test_saved_folder_opens_in_transformers_and_here(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    texts, _ = corpus(20, seed=3)
    ours = tokenizer.encode(texts, 24)
    theirs = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding="max_length", max_length=24, truncation=True
    )
    np.testing.assert_array_equal(ours["ids_BxT"], theirs["input_ids"])
    np.testing.assert_array_equal(ours["mask_BxT"], theirs["attention_mask"])
    again = tokens.Tokenizer.load(tmp_path)
    np.testing.assert_array_equal(again.encode(texts, 24)["ids_BxT"], ours["ids_BxT"])
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab_size == tokenizer.vocab_size <= 120


@pytest.mark.parametrize("with_config", [True, False])
def test_a_bare_vocabulary_is_lower_cased(tokenizer, tmp_path, with_config):
    """As Bio_ClinicalBERT's repository is: vocab.txt, and no tokenizer settings."""
    tokenizer.save(tmp_path / "full")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "vocab.txt").write_text((tmp_path / "full" / "vocab.txt").read_text())
    if with_config:
        (bare / "config.json").write_text('{"model_type": "bert"}')
    loaded = tokens.Tokenizer.load(bare)
    text = ["Lungs CLEAR"]
    np.testing.assert_array_equal(
        loaded.encode(text, 8)["ids_BxT"], tokenizer.encode(text, 8)["ids_BxT"]
    )
    cased = tokens.Tokenizer.load(bare, lower_case=False).encode(text, 8)["ids_BxT"]
    assert (cased == 1).any()  # capitals are not in the vocabulary


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match="could not open"):
        tokens.Tokenizer.load(tmp_path)


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="expected a fast tokenizer"):
        tokens.Tokenizer(Slow())


# -- training a vocabulary -----------------------------------------------------------


def test_words_of_few_patients_leave_no_trace():
    texts, patients = corpus()
    texts += ["Zyqwx Zyqwx Zyqwx has opacity"] * 50 + ["vjk opacity"] * 3
    patients += ["p1"] * 25 + ["p2"] * 25 + ["p1", "p2", "p3"]
    counts = wordpiece.count_words(texts, patients, 3)
    assert "zyqwx" not in counts and counts["vjk"] == 3
    vocabulary = wordpiece.learn_vocabulary(counts, 200)
    assert not any(letter in "".join(vocabulary[5:]) for letter in "zqw")
    assert "v" in vocabulary
    tokenizer = tokens.train_wordpiece(texts, patients, 200, 3)
    assert tokenizer.encode(["zyqwx"], 4)["ids_BxT"][0].tolist() == [2, 1, 3, 0]


def test_merges_follow_the_counts():
    """By hand: "ab" occurs 9 times, then "ab"+"c" 5 times; "xy" 2 times, "q" once."""
    words = {"abc": 5, "ab": 4, "xy": 2, "zq": 1}
    vocabulary = wordpiece.learn_vocabulary(words, 100)
    alphabet = ["##b", "##c", "##q", "##y", "a", "x", "z"]
    assert vocabulary[5:12] == alphabet
    assert vocabulary[12:] == ["ab", "abc", "xy"]  # "zq" once: no merge
    assert wordpiece.learn_vocabulary(words, 13)[-1] == "ab"


def test_overlapping_repeats_merge_from_the_left():
    vocabulary = wordpiece.learn_vocabulary({"aaaa": 3}, 100)
    assert vocabulary[5:] == ["##a", "a", "##aa", "##aaa", "aaaa"]


def test_learned_pieces_are_those_of_a_plain_recount():
    """The incremental counts against counting all pairs anew at each merge."""
    rng = np.random.default_rng(2)
    words = {
        "".join(rng.choice(list("abcd"), rng.integers(1, 7))): int(rng.integers(1, 9))
        for _ in range(60)
    }
    assert wordpiece.learn_vocabulary(words, 60) == slow_vocabulary(words, 60)


def slow_vocabulary(words, size):
    spelled = {w: [w[0], *("##" + c for c in w[1:])] for w in words}
    vocabulary = [*wordpiece.SPECIAL_TOKENS]
    vocabulary += sorted({piece for pieces in spelled.values() for piece in pieces})
    while len(vocabulary) < size:
        pairs = {}
        for word, pieces in spelled.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] = pairs.get(pair, 0) + words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merged = best[0] + best[1][2:]
        if merged not in vocabulary:
            vocabulary.append(merged)
        for pieces in spelled.values():
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = [merged]
                at += 1
    return vocabulary


def test_every_process_learns_the_same_vocabulary():
    code = (
        "import hashlib, json, sys\n"
        "from medclip_jax.inputs import wordpiece\n"
        "words = wordpiece.count_words(*json.load(sys.stdin), 3)\n"
        "entries = wordpiece.learn_vocabulary(words, 90)\n"
        "print(hashlib.sha256(repr(entries).encode()).hexdigest())"
    )
    counted = wordpiece.count_words(*corpus(seed=5), 3)
    ours = hashlib.sha256(repr(wordpiece.learn_vocabulary(counted, 90)).encode())
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(corpus(seed=5)),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == ours.hexdigest()


def test_no_word_left_is_a_user_error():
    with pytest.raises(UserError, match="min_patients = 9"):
        tokens.train_wordpiece(["a b"], ["p"], 50, 9)


# -- the cache -----------------------------------------------------------------------


def test_cache_reads_each_text_once_and_equals_encode(tokenizer):
    texts, _ = corpus(30, seed=9)
    reads = []

    def read(key):
        reads.append(key)
        return texts[key]

    cache = tokens.TokenCache(tokenizer, 12, 1 << 20)
    keys = [3, 7, 3, 29]
    for _ in range(2):
        out = cache.encode(keys, read)
        expected = tokenizer.encode([texts[key] for key in keys], 12)
        for name, array in expected.items():
            np.testing.assert_array_equal(out[name], array)
            assert out[name].dtype == np.int32
    assert sorted(reads) == [3, 7, 29]


def test_cache_over_its_limit_still_gives_the_texts(tokenizer):
    texts, _ = corpus(30, seed=9)
    cache = tokens.TokenCache(tokenizer, 12, 1000)
    for _ in range(2):
        out = cache.encode(list(range(30)), texts.__getitem__)
        np.testing.assert_array_equal(
            out["ids_BxT"], tokenizer.encode(texts, 12)["ids_BxT"]
        )
    assert 0 < len(cache._pieces) < 6 and cache._bytes <= 1000


def test_absent_texts_are_empty_texts(tokenizer):
    cache = tokens.TokenCache(tokenizer, 8, 1000)
    out = cache.encode([None, "a", None], lambda key: "lungs clear")
    empty = tokenizer.encode([""], 8)
    for name in empty:
        np.testing.assert_array_equal(out[name][[0, 2]], np.repeat(empty[name], 2, 0))


def test_threads_may_encode_at_different_lengths(tokenizer):
    texts, _ = corpus(40, seed=4)
    expected = {n: tokenizer.encode(texts, n)["ids_BxT"] for n in (4, 9, 30)}
    wrong = []

    def work(length):
        for _ in range(20):
            if (tokenizer.encode(texts, length)["ids_BxT"] != expected[length]).any():
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Ids that Bio_ClinicalBERT's own tokenizer gives; its vocabulary is not shipped here.
CLINICAL = {
    "lungs remain severely hyperinflated with upper lobe emphysema": (
        "101 8682 3118 8669 177 24312 1394 2087 6951 1114 3105 25163 9712 22192 2217 "
        "1918 102"
    ),
    " pulmonary edema ": "101 26600 5048 14494 102",
    "small left bilateral pleural effusion": (
        "101 1353 1286 20557 185 1513 12602 174 3101 17268 102"
    ),
    "   ": "101 102",
    "Cardiomegaly is Stable": "101 3621 2660 3263 6997 1183 1110 6111 102",
}


def test_bio_clinical_bert_ids():
    folder = os.environ.get("BIO_CLINICAL_BERT", "")
    if not os.path.isfile(os.path.join(folder, "vocab.txt")):
        pytest.skip("BIO_CLINICAL_BERT names no folder with the model's vocab.txt")
    out = tokens.Tokenizer.load(folder).encode(list(CLINICAL), 20)
    for row, expected in enumerate(CLINICAL.values()):
        got = out["ids_BxT"][row][out["mask_BxT"][row] == 1]
        assert got.tolist() == [int(token) for token in expected.split()]
