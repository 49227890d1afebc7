"""Shards that were damaged after they were written: real files, real bits."""

import os
import resource
import shutil

import numpy as np
import pytest
import simplejpeg

from data_pipelines import records
from medclip_jax.errors import TryAgain, UserError
from medclip_jax.inputs import catalog, evalset, reader
from medclip_jax.inputs.stores import BadRecords
from medclip_jax.inputs.tokens import Tokenizer

CONFIG = {
    "view": "pairs", "image_size": 32, "crop_from": 36, "text_length": 16,
    "min_patients": 1, "vocab_size": 200, "cache_bytes": 0, "max_bad_rate": 0.5,
}  # fmt: skip


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of the dataset that may be spoilt."""
    folder = tmp_path / "mimic_cxr"
    shutil.copytree(tiny_data / "mimic_cxr", folder)
    return folder


def shard(data, kind, split="train"):
    (file,) = (data / kind).glob(f"*-{split}.array_record*")
    return file


def flip(file, at, bit=2):
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def place_of(file, record):
    """Where a field's bytes stand in a file."""
    at = file.read_bytes().find(record)
    assert at > 0
    return at


@pytest.fixture
def inputs(data):
    """An input that reads nothing twice, and the dataset, both opened while whole."""
    dataset = records.open_dataset(data)
    tokenizer = reader.make_tokenizer([dataset], CONFIG)
    return dataset, tokenizer


def test_a_bit_in_a_film_turns_it_into_a_bad_record(data, inputs, caplog):
    dataset, tokenizer = inputs
    made = reader.TrainInput([dataset], CONFIG, tokenizer, 0, 8)
    expected = [made.batch(step) for step in range(5)]
    first = made.view.rows(np.arange(8), np.arange(8)).image_N[0]
    image = int(made.catalog.image_row_I[first])
    record = dataset.images[image]
    film = record["film"]
    # In the scan, where JPEG has no check: the decoder takes it for another film.
    at = place_of(shard(data, "images"), film) + len(film) // 2
    flip(shard(data, "images"), at)
    spoilt = shard(data, "images").read_bytes()[at - len(film) // 2 :][: len(film)]
    expected_size = simplejpeg.decode_jpeg(film, colorspace="GRAY").size
    assert simplejpeg.decode_jpeg(spoilt, colorspace="GRAY").size == expected_size

    seen = 0
    for step, good in enumerate(expected):
        batch = made.batch(step)
        zero = batch["image_weight_N"] == 0
        seen += zero.sum()
        films, was = batch["films"]["current_BxHxWx1"], good["films"]["current_BxHxWx1"]
        assert not films[zero].any()
        np.testing.assert_array_equal(films[~zero], was[~zero])
        ids = batch["texts"]["ids_BxT"]
        np.testing.assert_array_equal(ids, good["texts"]["ids_BxT"])
    assert seen
    assert made._films.bad_ids == [f"mimic_cxr/{record['image_id']}"]
    (line,) = [m for m in caplog.messages if record["image_id"] in m]
    assert "differs from its checksum" in line
    assert str(shard(data, "images")) in line
    assert "prepare --overwrite" in line


def test_a_bit_in_a_report_turns_it_into_a_bad_record(data, inputs, caplog):
    dataset, tokenizer = inputs
    config = {**CONFIG, "max_bad_rate": 0.05}  # one report, however often it is drawn
    made = reader.TrainInput([dataset], config, tokenizer, 0, 8)
    # Reports are compressed, so the first record's place is taken: after the header.
    flip(shard(data, "reports"), 400)
    study = dataset.table.to_pylist()
    damaged = next(row["study_id"] for row in study if row["report_row"] == 0)
    seen = 0
    for step in range(60):
        batch = made.batch(step)
        zero = batch["text_weight_M"] == 0
        seen += zero.sum()
        assert (batch["image_weight_N"][zero] == 0).all()  # a pair has no half
        # What is absent keeps its special tokens, and no word.
        assert (batch["texts"]["mask_BxT"][zero].sum(axis=1) == 2).all()
        assert (batch["texts"]["mask_BxT"][~zero].sum(axis=1) > 2).all()
    assert seen > 4
    lines = [m for m in caplog.messages if f"report mimic_cxr/{damaged} " in m]
    assert len(lines) == 1
    assert "differs from its checksum" in lines[0]
    # All reports are read at a start, for the order of a run depends on them.
    with pytest.raises(UserError, match="differs from its checksum.*again"):
        reader.TrainInput([dataset], CONFIG, tokenizer, 0, 8)


def test_the_rate_0_stops_at_the_first_bad_record():
    bad = BadRecords("film", 0.0)
    for index in range(1000, 2000):
        bad.count_good(index)
    with pytest.raises(UserError, match="1 of 1001 films.*a/7.*no JPEG.*Mend the data"):
        bad.note(7, "a/7", ValueError("no JPEG"))
    bad = BadRecords("film", 0.01)
    for index in [*range(4)] * 100:  # each counts once
        bad.note(index, f"a/{index}", ValueError("no JPEG"))
    with pytest.raises(UserError, match="5 of 5"):
        bad.note(5, "a/5", ValueError("no JPEG"))


@pytest.mark.parametrize(
    ("keep", "found"),
    [(0, "no index"), (0.5, "no index"), (65536, "no index"), (-100, "no index")],
)
@pytest.mark.parametrize("kind", ["images", "reports"])
def test_a_shard_cut_short_is_refused_at_the_start(data, kind, keep, found):
    file = shard(data, kind)
    size = file.stat().st_size
    os.truncate(file, int(size * keep) if 0 <= keep < 1 else keep % size)
    with pytest.raises(UserError, match=f"{found}.*copy {file} again"):
        records.open_dataset(data)


def test_a_shard_cut_short_while_it_is_read_stops_the_run(data, inputs):
    dataset, tokenizer = inputs
    made = reader.TrainInput([dataset], CONFIG, tokenizer, 0, 8)
    made.batch(0)
    file = shard(data, "images")
    whole = file.read_bytes()
    os.truncate(file, 100_000)
    with pytest.raises(UserError, match=f"cut short.*copy {file} again"):
        for step in range(8):
            made.batch(step)
    file.write_bytes(whole)
    made.batch(1)


def test_a_file_that_cannot_be_read_is_no_bad_record(data):
    class Gone:
        def __getitem__(self, row):
            raise RuntimeError("UNAVAILABLE: pread() failed: Input/output error")

    with pytest.raises(TryAgain, match="f2 cannot be read.*Input/output"):
        records.read("images", Gone(), 7, [("f1", 7), ("f2", 3)])


def test_too_many_open_files_are_not_called_damage(data):
    stored = records.Records("images", data / "images")
    file = str(shard(data, "images"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(TryAgain, match=f"{file} cannot be read.*Too many open"):
            records._count(file)
        with pytest.raises(TryAgain, match="cannot be read.*Too many open"):
            stored[0]
        with pytest.raises(TryAgain, match="cannot be read.*Too many open"):
            records.open_dataset(data)
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    records.open_dataset(data)


@pytest.mark.parametrize("name", ["fingerprint.json", "studies.parquet"])
def test_a_disk_that_fails_is_not_called_damage(data, name):
    """A file whose bytes give EIO."""
    (data / name).unlink()
    (data / name).symlink_to("/proc/self/mem")
    with pytest.raises(TryAgain, match=f"{name} cannot be read"):
        records.open_dataset(data)


def test_every_bit_of_a_shard_is_guarded(data):
    """Flips all over the file: each is refused, reported for its record, or in what
    ArrayRecord pads its file with; none gives other content."""
    file = shard(data, "images", "test")
    content = file.read_bytes()
    rows = range(len(records.Records("images", data / "images")))
    stored = records.Records("images", data / "images")
    expected = [stored[row]["film"] for row in rows]
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "reported": 0, "same": 0}
    index = len(content) - 65536  # which says where the records are
    for at in [*rng.integers(0, index, 60), *rng.integers(index, index + 110, 12)]:
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoilt)
        stored = records.Records("images", data / "images")
        try:
            stored.check_files()
        except UserError:
            outcomes["refused"] += 1
            continue
        reported = 0
        for row in rows:
            try:
                assert stored[row]["film"] == expected[row]
            except records.DamagedRecord:
                reported += 1
        outcomes["reported" if reported else "same"] += 1
    assert outcomes["reported"] > 20
    assert outcomes["refused"] > 8


def test_every_bit_of_the_study_table_is_guarded(data):
    """Labels are read from it. Without the checksums of its pages half of the bits that
    turn give another table without an error."""
    file = data / "studies.parquet"
    content = file.read_bytes()
    expected = records.open_dataset(data).table
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        try:
            assert records._read_table(data).equals(expected)
        except UserError as error:
            assert "studies.parquet" in str(error)
            refused += 1
    assert refused > 100


def test_evaluation_leaves_a_damaged_film_out(data, caplog):
    dataset = records.open_dataset(data)
    films = evalset.load_images(catalog.open_datasets(data), "test", 32)
    row = int(films._row_N[0])
    film = dataset.images[row]["film"]
    file = shard(data, "images", "test")
    flip(file, place_of(file, film) + len(film) // 2)
    _, weight = films.read(range(len(films)))
    assert weight.tolist() == [0] + [1] * (len(films) - 1)
    assert films.ids[0] in caplog.text


def test_an_absent_text_is_not_kept_by_the_token_cache():
    from medclip_jax.inputs.tokens import TokenCache

    tokenizer = Tokenizer.from_vocabulary(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lung"]
    )
    cache = TokenCache(tokenizer, 6, 1 << 20)
    for text, tokens in ((None, 2), ("lung", 3), (None, 3)):
        made = cache.encode(["key"], lambda key: text)  # noqa: B023
        assert made["mask_BxT"].sum() == tokens
