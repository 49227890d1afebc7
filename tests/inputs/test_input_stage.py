"""`train --stage`: each host's films and all reports on its own disk, and no more."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from readers import CONFIGS, equal, make

from data_pipelines import records
from medclip_jax import storage
from medclip_jax.errors import TryAgain, UserError
from medclip_jax.inputs import catalog, reader, stage

FIRST, LAST = 3, 9


@pytest.fixture(scope="module")
def source(tiny_data):
    return catalog.training_datasets(tiny_data)


@pytest.fixture(scope="module")
def words(source):
    return reader.make_tokenizer(source, {"min_patients": 1, "vocab_size": 150})


def silent(_line, _transient):
    pass


def staged(datasets, inputs, folder, process=(0, 1), first=FIRST, last=LAST):
    """Both steps of staging, as `train` takes them."""
    datasets = stage.reports(datasets, folder, process)
    wanted_I = inputs.films_of(first, last)
    rows = stage.rows_of(inputs.catalog, wanted_I, len(datasets))
    return stage.films(datasets, rows, folder, process, silent)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def files(folder):
    """Path to what would tell that a file was made again."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_films_of_a_process_are_those_that_it_reads(source, words, name, count):
    for index in range(count):
        inputs = make(words, CONFIGS[name], parts=((index,), count), data=source)
        read = set()
        films = inputs._films
        inputs._films = SimpleNamespace(film=lambda i: read.add(i) or films.film(i))  # noqa: B023
        for step in range(FIRST, LAST):
            inputs.batch(step)
        assert read and set(np.flatnonzero(inputs.films_of(FIRST, LAST))) == read


@pytest.mark.parametrize("name", ["pairs by study", "decoupled", "official"])
def test_staged_batches_are_the_batches(source, words, name, tmp_path):
    whole = make(words, CONFIGS[name], data=source)
    for index in range(2):
        part = make(words, CONFIGS[name], parts=((index,), 2), data=source)
        part.read_from(staged(source, part, tmp_path, (index, 2)))
        other = make(words, CONFIGS[name], parts=((index,), 2), data=source)
        for step in range(FIRST, LAST):
            assert equal(part.batch(step), other.batch(step))
    assert part.fingerprint == whole.fingerprint


def test_a_host_gets_its_part_and_no_more(source, words, tmp_path):
    held = []
    for index in range(4):
        # One step of two rows each: no host can need much.
        inputs = make(words, parts=((index,), 4), data=source)
        (dataset,) = staged(source, inputs, tmp_path, (index, 4), 0, 1)
        rows = [
            row
            for path in (tmp_path.rglob(f"{index}_of_4/images/*.staged.json"))
            for row in json.loads(path.read_text())["rows"]
        ]
        assert len(rows) == 2
        held += rows
        for row in rows:
            assert_same(dataset.images[row], source[0].images[row])
        lacking = next(r for r in range(len(source[0].images)) if r not in rows)
        with pytest.raises(LookupError, match=f"film {lacking} of mimic_cxr"):
            dataset.images[lacking]
        assert len(dataset.images) == len(source[0].images)
        assert_same(dataset.reports[5], source[0].reports[5])
        assert str(tmp_path) in dataset.reports.files[0][0]
    assert len(set(held)) == 8


def test_a_second_start_copies_nothing(source, words, tmp_path):
    inputs = make(words, data=source)
    staged(source, inputs, tmp_path)
    before = files(tmp_path)
    assert len(before) > 8
    staged(source, inputs, tmp_path)
    staged(source, inputs, tmp_path, first=LAST - 2)  # goes on later: needs less
    assert files(tmp_path) == before
    lines = []
    datasets = stage.reports(source, tmp_path, (0, 1))
    rows = stage.rows_of(inputs.catalog, inputs.films_of(FIRST, LAST), 1)
    stage.films(datasets, rows, tmp_path, (0, 1), lambda *line: lines.append(line))
    assert len(lines) == 1 and "0 of them copied now" in lines[0][0]


def test_what_is_wanted_besides_is_copied(source, words, tmp_path):
    few = make(words, data=source, batch=2)
    staged(source, few, tmp_path, first=0, last=1)
    more = make(words, data=source)
    more.read_from(staged(source, more, tmp_path, first=0, last=9))
    other = make(words, data=source)
    assert all(equal(more.batch(step), other.batch(step)) for step in range(9))


@pytest.mark.parametrize("damage", ["cut", "bit", "description", "gone"])
@pytest.mark.parametrize("kind", ["images", "reports"])
def test_a_damaged_copy_is_made_again_and_only_that(
    source, words, tmp_path, kind, damage
):
    inputs = make(words, data=source)
    staged(source, inputs, tmp_path)
    before = files(tmp_path)
    (victim,) = (p for p in before if p.match(f"{kind}/*train*-00001"))
    content = victim.read_bytes()
    description = victim.with_name(victim.name + ".staged.json")
    if damage == "cut":
        os.truncate(victim, 1000)
    elif damage == "bit":
        victim.write_bytes(content[:-500] + bytes([content[-500] ^ 1]) + content[-499:])
    elif damage == "description":
        description.write_text("{")
    else:
        victim.unlink()
    part = make(words, data=source)
    part.read_from(staged(source, part, tmp_path))
    after = files(tmp_path)
    assert {p for p in after if after[p] != before[p]} == {victim, description}
    other = make(words, data=source)
    assert all(equal(part.batch(s), other.batch(s)) for s in range(FIRST, LAST))


def test_a_file_of_others_is_not_written_over(source, words, tmp_path):
    inputs = make(words, data=source)
    staged(source, inputs, tmp_path)
    (image,) = tmp_path.rglob("images/*train*-00001")
    image.with_name(image.name + ".staged.json").unlink()
    image.write_text("mine")
    with pytest.raises(UserError, match="--stage did not make it"):
        staged(source, inputs, tmp_path)
    assert image.read_text() == "mine"


def test_files_besides_are_left_alone(source, words, tmp_path):
    inputs = make(words, data=source)
    staged(source, inputs, tmp_path)
    (image,) = tmp_path.rglob("images/*train*-00001")
    mine = [tmp_path / "mine", image.parent / "mine"]
    for path in mine:
        path.write_text("mine")
    os.truncate(image, 10)
    staged(source, inputs, tmp_path)
    assert [path.read_text() for path in mine] == ["mine", "mine"]


@pytest.mark.parametrize("what", ["films", "reports"])
def test_space_is_asked_for_before_anything_is_written(
    source, words, tmp_path, monkeypatch, what
):
    inputs = make(words, data=source)
    if what == "films":
        stage.reports(source, tmp_path, (0, 1))
    before = files(tmp_path)
    monkeypatch.setattr(
        stage.shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000)
    )
    with pytest.raises(
        UserError, match=f"{what} takes about 0.00 GB, 0.00 GB are free"
    ):
        staged(source, inputs, tmp_path)
    assert files(tmp_path) == before


def test_a_disk_that_fills_up_names_the_mend(source, words, tmp_path):
    """A file system of 64 kB, which the copies of the films fill."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        inputs = make(words, data=source)
        rows = stage.rows_of(inputs.catalog, inputs.films_of(FIRST, LAST), 1)
        with pytest.raises(UserError, match="--stage .*takes about"):
            stage.films(source, rows, small, (0, 1), silent)
        real, stage._require_space = stage._require_space, lambda *_: None
        try:
            with pytest.raises(UserError, match="name another folder. Make room"):
                stage.films(source, rows, small, (0, 1), silent)
            with pytest.raises(UserError, match="No space left.*Make room there"):
                stage.reports(source, small, (0, 1))
        finally:
            stage._require_space = real
    finally:
        subprocess.run(["umount", small], check=True)


def test_shards_of_another_build_are_refused(source, words, tmp_path):
    inputs = make(words, data=source)
    table = source[0].table
    turned = [list(reversed(ids)) for ids in table["image_ids"].to_pylist()]
    place = table.schema.get_field_index("image_ids")
    changed = table.set_column(place, "image_ids", records.pa.array(turned))
    other = [dataclasses.replace(source[0], table=changed)]
    with pytest.raises(UserError, match="two builds"):
        staged(other, inputs, tmp_path)


@pytest.fixture
def spoilt(tiny_data, tmp_path):
    """Data sets on a copy of the shards, and the shard of the films to spoil."""
    copy = tmp_path / "shards"
    shutil.copytree(tiny_data, copy)
    (shard,) = copy.rglob("images/*train*")
    return catalog.training_datasets(copy), shard


@pytest.mark.parametrize("few", [True, False])
def test_a_damaged_film_is_the_same_bad_record(spoilt, words, tmp_path, few):
    datasets, shard = spoilt
    config = {**CONFIGS["pairs"], "max_bad_rate": 0.9}
    direct = make(words, config, data=datasets)
    image = np.flatnonzero(direct.films_of(FIRST, LAST))[2]
    film = datasets[0].images[int(direct.catalog.image_row_I[image])]["film"]
    content = shard.read_bytes()
    at = content.find(film) + len(film) // 2
    assert at > len(film) // 2
    end = at + 1 if few else len(content) - (1 << 17)
    shard.write_bytes(
        content[:at] + bytes(b ^ 1 for b in content[at:end]) + content[end:]
    )

    staging = make(words, config, data=datasets)
    staging.read_from(staged(datasets, staging, tmp_path / "stage"))
    for step in range(FIRST, LAST):
        assert equal(staging.batch(step), direct.batch(step))
    bad = staging._films.bad_ids
    assert bad == direct._films.bad_ids
    assert len(bad) == 1 if few else len(bad) > 4

    strict = make(words, {**config, "max_bad_rate": 0.0}, data=datasets)
    strict.read_from(staged(datasets, strict, tmp_path / "stage"))
    with pytest.raises(UserError, match=f"differs from its checksum; copy {shard}"):
        for step in range(FIRST, LAST):
            strict.batch(step)

    shard.write_bytes(content)  # mended: the next start copies it
    staging = make(words, config, data=datasets)
    staging.read_from(staged(datasets, staging, tmp_path / "stage"))
    for step in range(FIRST, LAST):
        staging.batch(step)
    assert not staging._films.bad_ids


def test_a_host_all_of_whose_films_are_damaged(spoilt, words, tmp_path):
    datasets, shard = spoilt
    rows = np.arange(2)
    content = shard.read_bytes()
    for row in rows:
        film = datasets[0].images[int(row)]["film"]
        content = content.replace(film, film[:-20] + bytes(20))
    shard.write_bytes(content)
    (dataset,) = stage.films(datasets, [rows], tmp_path / "stage", (0, 1), silent)
    for row in rows:
        with pytest.raises(records.DamagedRecord):
            dataset.images[row]


def test_a_shard_that_cannot_be_read_now_is_worth_another_try(spoilt, words, tmp_path):
    datasets, shard = spoilt
    inputs = make(words, data=datasets)
    closed = records.Records("images", shard.parent)
    datasets = [dataclasses.replace(datasets[0], images=closed)]
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(TryAgain, match=f"{shard} cannot be read.*Too many levels"):
        staged(datasets, inputs, tmp_path / "stage")


def test_reports_that_cannot_be_copied_now_are_worth_another_try(tiny_data, tmp_path):
    """A file whose bytes give EIO."""
    copy = tmp_path / "shards"
    shutil.copytree(tiny_data, copy)
    datasets = catalog.training_datasets(copy)
    (shard,) = copy.rglob("reports/*train*")
    shard.unlink()
    shard.symlink_to("/proc/self/mem")
    with pytest.raises(TryAgain, match="could not be made.*Errno 5"):
        stage.reports(datasets, tmp_path / "stage", (0, 1))


def test_from_a_bucket(bucket, tiny_data, source, words, tmp_path):
    remote = storage.path(f"{bucket}/{tmp_path.name}")
    storage.upload(tiny_data, remote)
    datasets = catalog.training_datasets(remote)
    inputs = make(words, data=datasets)
    inputs.read_from(staged(datasets, inputs, tmp_path))
    storage.remove(remote)  # nothing is read there any more
    other = make(words, data=source)
    assert all(equal(inputs.batch(s), other.batch(s)) for s in range(FIRST, LAST))


CHILD = """
import sys, time
from medclip_jax.inputs import catalog, stage
datasets = catalog.training_datasets(sys.argv[1])
digest = stage._digest
def slow(path):  # so that a kill meets every stage of a file
    print(path, flush=True)
    time.sleep(0.05)
    return digest(path)
stage._digest = slow
datasets = stage.reports(datasets, stage.Path(sys.argv[2]), (0, 1))
rows = [range(len(d.images)) for d in datasets]
stage.films(datasets, rows, stage.Path(sys.argv[2]), (0, 1), lambda *_: None)
"""


def test_killed_at_any_file_it_goes_on(tiny_data, source, tmp_path):
    argv = [sys.executable, "-c", CHILD, str(tiny_data), str(tmp_path)]
    for lines in (1, 3, 7):  # of at most 5 reports' and 3 films' files
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            assert child.stdout.readline()
        time.sleep(0.02 * (lines % 3))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
    whole = {p for p in tmp_path.rglob("*") if p.is_file() and stage._held(p)}
    before = {p: state for p, state in files(tmp_path).items() if p in whole}
    assert before
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = files(tmp_path)
    assert {p: after[p] for p in before} == before
    rows = [np.arange(len(source[0].images))]
    (dataset,) = stage.films(source, rows, tmp_path, (0, 1), silent)
    for row in rows[0]:
        assert dataset.images[row]["film"] == source[0].images[row]["film"]
