"""The verb: determinism, resuming, refusals."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.hospital import benchmarks, simulate
from data_pipelines.hospital.writer import write_patient
from medclip_jax import cli
from medclip_jax.errors import UserError

SMALL = ["--patients", "10", "--chexpert-patients", "9", "--size", "64", "--seed", "2"]


def run(out: Path, *more: str) -> int:
    return simulate.main(["--out", str(out), *SMALL, *more])


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulate") / "raw"
    assert run(out, "--jobs", "1") == 0
    return out


def test_same_bytes_for_any_number_of_processes(whole, tmp_path):
    assert run(tmp_path / "raw", "--jobs", "3") == 0
    assert digest(tmp_path / "raw") == digest(whole)


def test_a_patient_is_the_same_in_a_larger_simulation(whole, tmp_path):
    options = ["--out", str(tmp_path / "raw"), "--patients", "3", "--jobs", "1"]
    options += ["--chexpert-patients", "2", "--size", "64", "--seed", "2"]
    assert simulate.main(options) == 0
    small, large = digest(tmp_path / "raw"), digest(whole)
    shared = [name for name in small if name.endswith((".jpg", ".txt"))]
    assert len(shared) > 8
    assert all(small[name] == large[name] for name in shared)


def test_sets_to_be_judged_on_are_added_to_a_complete_simulation(whole, tmp_path):
    grown, once = tmp_path / "grown", tmp_path / "once"
    shutil.copytree(whole, grown)
    films = {path: path.stat().st_mtime_ns for path in grown.rglob("*.jpg")}
    assert run(grown, "--benchmarks", "4", "--jobs", "1") == 0
    assert films == {path: path.stat().st_mtime_ns for path in films}
    assert run(once, "--benchmarks", "4") == 0
    assert digest(grown) == digest(once)
    before = digest(whole)
    assert all(
        digest(grown)[name] == made
        for name, made in before.items()
        if name not in ("simulation.json", "README.md")
    )
    assert (grown / "benchmarks" / benchmarks.LAYOUTS[0]).is_dir()
    with pytest.raises(UserError, match=r"different simulation \(benchmarks 4 there"):
        run(grown, "--benchmarks", "2")
    with pytest.raises(UserError, match=r"different simulation \(benchmarks.*quality"):
        run(grown, "--benchmarks", "9", "--quality", "90")


def test_complete_is_said_and_left_alone(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert run(whole) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_interrupted_runs_go_on(whole, tmp_path, monkeypatch, capsys):
    calls = 0

    def fails_later(*arguments):
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt
        return write_patient(*arguments)

    out = tmp_path / "raw"
    with monkeypatch.context() as patch:
        patch.setattr(simulate, "write_patient", fails_later)
        with pytest.raises(KeyboardInterrupt):
            run(out, "--jobs", "1")
    record = json.loads((out / "simulation.json").read_text())
    assert record["complete"] is False
    done = next((out / ".parts").glob("mimic_cxr-*.json")).stat().st_mtime_ns
    assert done
    assert run(out, "--jobs", "1") == 0
    assert "Continuing" in capsys.readouterr().out
    assert digest(out) == digest(whole)


@pytest.mark.slow
def test_killed_runs_go_on(whole, tmp_path):
    """SIGKILL to the whole group in the middle, then the same command again."""
    out = tmp_path / "raw"
    command = [sys.executable, "-m", "medclip_jax.cli", "simulate", "--out", str(out)]
    command += [*SMALL, "--jobs", "2"]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((out / ".parts").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads((out / "simulation.json").read_text())["complete"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert digest(out) == digest(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patients", "-1"], "--patients: expected 0 to"),
        (["--patients", "0", "--chexpert-patients", "0"], "at least one patient"),
        (["--size", "8"], "--size"),
        (["--prevalence", "1.5"], "--prevalence"),
        (["--difficulty", "nan"], "--difficulty"),
        (["--test-fraction", "0.9", "--validate-fraction", "0.2"], "sum below 1"),
        (["--quality", "0"], "--quality"),
        (["--jobs", "0"], "--jobs"),
        (["--chexpert-patients", "100000"], "--chexpert-patients"),
    ],
)
def test_bad_numbers(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        simulate.main(["--out", str(tmp_path / "raw"), *options])
    assert not (tmp_path / "raw").exists()


def test_folders_of_others_are_refused(whole, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="other files"):
        run(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="found the file"):
        run(foreign / "thesis.tex")
    (foreign / "simulation.json").write_text("[1]")
    with pytest.raises(UserError, match="record of a simulation"):
        run(foreign)
    arguments = ["simulate", "--out", str(whole), "--patients", "11", "--size", "64"]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "patients 10 there, 11 asked for" in message
    assert "seed 2 there, 0 asked for" in message


def test_a_full_disk_is_seen_before(tmp_path, monkeypatch):
    usage = simulate.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(simulate.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="free space"):
        run(tmp_path / "raw")


def test_summary(whole, tmp_path, capsys):
    options = ["--patients", "4", "--chexpert-patients", "0", "--size", "64"]
    assert simulate.main(["--out", str(tmp_path / "raw"), *options]) == 0
    out = capsys.readouterr().out
    assert "4 patients" in out and "films/s" in out and "Pleural Effusion" in out
    assert not (tmp_path / "raw" / "chexpert").exists()
