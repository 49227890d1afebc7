"""Metrics on disk, NaN, signals and hangs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from medclip_jax.errors import UserError
from medclip_jax.runtime import metrics, throughput, workdir
from medclip_jax.runtime.preemption import Preempted, Preemption


def test_a_partial_line_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = metrics.JsonLines(path)
    lines.write(1, {"b": 0.5, "loss": 2.0, "a": 1.0})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert metrics.read_lines(path) == [{"step": 1, "loss": 2.0, "a": 1.0, "b": 0.5}]
    lines = metrics.JsonLines(path)
    lines.write(2, {"loss": 1.0})
    lines.close()
    text = path.read_text()
    assert text.startswith('{"step": 1, "loss": 2.0, "a": 1.0, "b": 0.5}\n')
    assert [line["step"] for line in metrics.read_lines(path)] == [1, 2]


def test_nan_names_step_metric_and_rows():
    metrics.check_finite(3, {"loss": 1.0}, {})
    with pytest.raises(metrics.NonFiniteMetric) as error:
        metrics.check_finite(
            3, {"loss": float("nan"), "scale": 1.0}, {"films": ["f7", "f9"]}
        )
    message = str(error.value)
    assert "Step 3: loss is nan" in message
    assert "f7, f9" in message
    assert "scale" not in message
    assert error.value.status == 2  # the same command would meet it again


def test_progress_is_one_line_a_logged_step(capsys):
    progress = metrics.Progress(100, sys.stderr)
    times = {"pairs_per_second": 12.5, "input_wait_percent": 3.0, "eta_seconds": 3700}
    progress.update(5, {"loss": 1.25, "zero_shot/accuracy": 0.5}, times)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    for part in ("step 5/100", "loss 1.2500", "12.5 pairs/s", "3 %", "1h01m", "0.500"):
        assert part in shown


def test_clock():
    clock = metrics.Clock(32, 10, flops_per_step=1e9, peak_flops=1e12)
    assert clock.lap(0) == {}
    for _ in range(2):
        time.sleep(0.02)
        clock.count(0.01)
    times = clock.lap(4)
    assert 0.02 <= times["step_seconds"] < 0.2
    assert times["pairs_per_second"] == pytest.approx(32 / times["step_seconds"])
    assert times["mfu_percent"] == pytest.approx(0.1 / times["step_seconds"])
    assert times["eta_seconds"] == pytest.approx(6 * times["step_seconds"])
    assert times["input_wait_seconds"] == pytest.approx(0.01)


def test_peak_says_where_it_is_from():
    class Chip:
        device_kind, platform = "TPU v5 lite", "tpu"

    found = throughput.peak([Chip(), Chip()])
    assert found.flops == 2 * 197e12
    assert "TPU v5 lite" in found.source
    import jax

    assert "measured" in throughput.peak(jax.devices()).source


def test_a_signal_is_noticed_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        preemption.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.agreed_at(7)
        assert preemption.signal_name == "SIGTERM"
        with pytest.raises(Preempted):
            preemption.check()
    assert signal.getsignal(signal.SIGTERM) is before


HANG = """
import sys, time
from medclip_jax.runtime.watchdog import Watchdog
def stuck():
    {stuck}
with Watchdog({seconds}) as watchdog:
    time.sleep(0.6)  # nothing is watched before the first beat
    for _ in range(4):
        watchdog.beat("training at step 7")
        time.sleep(0.2)
    {then}
print("ended")
"""


def run_hang(seconds, stuck="time.sleep(60)", then="stuck()"):
    code = HANG.format(seconds=seconds, stuck=stuck, then=then)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_watchdog_ends_a_hang_with_all_stacks():
    done = run_hang(0.5)
    assert done.returncode == 1
    assert "training at step 7" in done.stderr
    assert "in stuck" in done.stderr
    assert "ended" not in done.stdout


def test_watchdog_lets_a_run_go_on():
    done = run_hang(0.5, then="watchdog.pause(); time.sleep(1)")
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_watchdog_ends_a_hang_that_holds_the_lock():
    # A PyDLL call keeps the interpreter lock while it sleeps.
    stuck = "import ctypes; ctypes.PyDLL(None).sleep(60)"
    done = run_hang(0.6, stuck=stuck)
    assert done.returncode == 1
    assert "in stuck" in done.stderr


def test_other_data_is_refused(tmp_path):
    data = {"fingerprint": "x", "datasets": {"mimic": "1", "nih": "2"}}
    workdir.check_data(tmp_path, data)
    workdir.write_json(tmp_path / workdir.DATA, data)
    workdir.check_data(tmp_path, data)
    other = {"fingerprint": "y", "datasets": {"mimic": "1", "nih": "3"}}
    with pytest.raises(UserError, match="nih: 2 -> 3") as error:
        workdir.check_data(tmp_path, other)
    assert "mimic:" not in str(error.value)
