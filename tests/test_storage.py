"""Paths on an object store beside local ones, and files that appear at once."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import prepare
from medclip_jax import compare, evaluate, import_weights, storage, train
from medclip_jax.errors import UserError
from medclip_jax.runtime import metrics
from medclip_jax.runtime import workdir as workdir_lib


def test_a_local_path_is_a_local_path():
    for text in ("runs/a", "/mnt/bucket/a", "a:b/c", "runs/a:/b"):
        assert storage.path(text) == Path(text)
        assert type(storage.path(text)) is type(Path())
        assert not storage.is_remote(storage.path(text))


@pytest.mark.parametrize(
    "text", ["s3://bucket/a", "hf://a/b", "gs:/bucket/a", "memory://a"]
)
def test_other_stores_are_refused(text, capsys):
    with pytest.raises(UserError, match="mount other stores"):
        storage.path(text)
    with pytest.raises(SystemExit):
        compare.main([text, "b"])
    assert "mount other stores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (prepare.main, "--out"),
        (train.main, "--stage"),
        (import_weights.main, "--weights"),
        (evaluate.main, "--imagenet"),
    ],
)
def test_what_must_be_local_is_refused_on_a_bucket(main, option, capsys):
    with pytest.raises(SystemExit):
        main([option, "gs://bucket/a"])
    assert "expected a path on a disk; copy it" in capsys.readouterr().err


def test_gs_without_a_bucket_or_without_gcsfs(monkeypatch):
    with pytest.raises(UserError, match="found no bucket"):
        storage.path("gs://")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "gcsfs" else real(name, *more),
    )
    with pytest.raises(UserError, match="pip install gcsfs 'etils"):
        storage.path("gs://bucket/a")


def test_a_local_path_loads_neither_etils_nor_fsspec():
    code = (
        "import sys\n"
        "from medclip_jax import storage\n"
        "storage.check(storage.path('runs/a'))\n"
        "print([m for m in ('etils', 'fsspec', 'gcsfs', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    """An empty folder, on the disk and on a bucket."""
    if request.param == "local":
        return tmp_path / "folder"
    bucket = request.getfixturevalue("bucket")
    return storage.path(f"{bucket}/{tmp_path.name}")


def names(folder):
    return sorted(child.name for child in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(folder):
    storage.make_folder(folder)
    file = folder / "a.json"
    with pytest.raises(RuntimeError), storage.writing(file) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert not file.exists()
    storage.write_text(file, "old")
    with pytest.raises(RuntimeError), storage.writing(file) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert file.read_text() == "old"
    with storage.writing(file) as stream:
        stream.write(b"new")
        stream.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert names(folder) == ["a.json"]


def test_large_objects_come_back_bit_by_bit(bucket, tmp_path):
    """More than the 5 MiB that gcsfs sends in one request."""
    content = np.random.default_rng(0).bytes(12 << 20)
    (tmp_path / "a").write_bytes(content)
    remote = storage.path(f"{bucket}/{tmp_path.name}/large")
    storage.upload(tmp_path / "a", remote)
    storage.download(remote, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_folders_go_up_and_down_and_away(bucket, tmp_path):
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "top.txt").write_text("top")
    (source / "deep" / "deeper" / "low.txt").write_text("low")
    remote = storage.path(f"{bucket}/{tmp_path.name}/folder")
    storage.remove(remote)  # nothing is there: nothing is to be done
    storage.upload(source, remote)
    with storage.local(remote) as copy:
        assert (copy / "top.txt").read_text() == "top"
        assert (copy / "deep" / "deeper" / "low.txt").read_text() == "low"
    assert not copy.exists()
    with storage.local(source) as same:
        assert same is source
    storage.remove(remote)
    assert not remote.exists()
    storage.remove(source)
    assert not source.exists()


def test_the_first_file_goes_first(bucket, tmp_path, monkeypatch):
    for name in ("a", "marker", "z"):
        (tmp_path / name).write_text(name)
    sent = []
    monkeypatch.setattr(storage, "_upload", lambda source, _: sent.append(source.name))
    storage.upload(tmp_path, storage.path(f"{bucket}/x"), first="marker")
    assert sent[0] == "marker"
    assert sorted(sent) == ["a", "marker", "z"]


def test_a_bucket_that_is_not_there(bucket):
    wrong = storage.path("gs://no-such-bucket/runs/a")
    with pytest.raises(UserError, match="there is no bucket gs://no-such-bucket"):
        storage.check(wrong)
    with pytest.raises(UserError, match="is no workdir of"):
        workdir_lib.read_json(storage.path(f"{bucket}/nowhere/config.json"))


def test_no_network_is_told_soon_and_in_a_line():
    """A port where nobody listens; gcsfs would try for a minute, twice."""
    code = (
        "import logging, time\n"
        "from medclip_jax import cli, storage, train_options\n"
        "train_options.set_up_logging()\n"
        "storage._epath('gs://bucket')\n"
        "import fsspec; fsspec.filesystem('gs', finalize_on_close=True)\n"
        "storage._LOOK_SECONDS, started = 3, time.monotonic()\n"
        "look = lambda _: storage.check(storage.path('gs://bucket/a'))\n"
        "status = cli.run(look)\n"
        "print(status, time.monotonic() - started)\n"
        "logging.getLogger('gcsfs').error('for its own level')\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"http://localhost:{free.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "STORAGE_EMULATOR_HOST": url,
                 "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
        )  # fmt: skip
    status, seconds = done.stdout.split()
    assert status == "1"  # it may be there at the next try
    assert float(seconds) < 6
    (line,) = done.stderr.splitlines()
    assert "gs://bucket: no answer within 3 seconds (Cannot connect to host" in line


@pytest.mark.parametrize(("code", "status"), [(503, 1), (403, 2), (400, 2)])
def test_only_what_may_pass_is_worth_another_try(code, status):
    from gcsfs.retry import validate_response

    content = b'{"error": {"code": %d}}' % code
    refused = pytest.raises(UserError, match="gs://b/a cannot be read")
    with refused as error, storage._mending("gs://b/a"):
        validate_response(code, content, "gs://b/a")
    assert error.value.status == status


def test_a_bucket_that_refuses_names_the_mend():
    """A server that answers 403 to everything, as a bucket of others does."""
    code = (
        "import http.server, os, threading\n"
        "class No(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(403); self.send_header('Content-Length', '0')\n"
        "        self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        "server = http.server.HTTPServer(('localhost', 0), No)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "os.environ['STORAGE_EMULATOR_HOST'] = f'http://localhost:{server.server_port}'\n"
        "os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'\n"
        "from medclip_jax import storage\n"
        "from medclip_jax.errors import UserError\n"
        "try: storage.check(storage.path('gs://others/a'))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "gs://others" in done.stdout, done.stderr
    assert "storage.objectUser" in done.stdout


# --- metrics -------------------------------------------------------------------------


def write_steps(workdir, steps):
    with metrics.Writer(workdir) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / step}, {"step_seconds": 0.5})


def test_metrics_go_on_where_they_ended(folder):
    storage.make_folder(folder)
    write_steps(folder, (1, 2))
    write_steps(folder, (3,))
    lines = metrics.read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] == pytest.approx(1 / 3)
    assert names(folder / "tensorboard")


def test_metrics_reach_a_bucket_when_flushed_and_when_time_is_up(
    bucket, tmp_path, monkeypatch
):
    workdir = storage.path(f"{bucket}/{tmp_path.name}")
    file = workdir / "metrics.jsonl"
    writer = metrics.Writer(workdir)
    spool = Path(writer._spool.name)
    writer.write(1, {"loss": 1.0}, {})
    assert not file.exists()
    writer.flush()
    assert [line["step"] for line in metrics.read_lines(file)] == [1]
    assert (workdir / "tensorboard").exists()
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0)
    writer.write(2, {"loss": 1.0}, {})
    assert [line["step"] for line in metrics.read_lines(file)] == [1, 2]
    writer.close()
    assert not spool.exists()


def test_an_error_leaves_the_metrics_behind(bucket, tmp_path):
    workdir = storage.path(f"{bucket}/{tmp_path.name}")
    with pytest.raises(RuntimeError), metrics.Writer(workdir) as writer:
        writer.write(1, {"loss": 1.0}, {})
        raise RuntimeError
    assert len(metrics.read_lines(workdir / "metrics.jsonl")) == 1


def test_other_processes_write_nothing(bucket, tmp_path):
    workdir = storage.path(f"{bucket}/{tmp_path.name}")
    with metrics.Writer(workdir, active=False) as writer:
        writer.write(1, {"loss": 1.0}, {})
        writer.flush()
    assert not workdir.exists()
    assert os.environ["EPATH_USE_TF"] == "false"
