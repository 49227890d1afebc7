"""`export --public`: asked on a terminal, refused without one, and what the card says."""

import json
import os
import pty
import subprocess
import sys

import pytest

from data_pipelines.records import Dataset
from medclip_jax import export, export_release, initial_weights
from medclip_jax.errors import UserError
from medclip_jax.runtime import workdir as workdir_lib
from medclip_jax.weights import medclip
from tests.exported import make_config, make_run, run_export

MIMIC = (
    "Made from MIMIC-CXR (PhysioNet Credentialed Health Data License): share neither "
    "the data nor what can give it back with anyone without a licence."
)
SIMULATED = "Simulated films and reports: no patient is real."


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on simulated data."""
    folder = tmp_path_factory.mktemp("release") / "train"
    folder.mkdir()
    make_run(folder, make_config())
    return folder


def say(workdir, notices, **more):
    """Has the run's data.json name these notices."""
    data = {
        "fingerprint": "f00d",
        "datasets": dict.fromkeys(notices, "beef"),
        "notices": notices,
        **more,
    }
    workdir_lib.write_json(workdir / workdir_lib.DATA, data)


@pytest.fixture
def credentialed(trained):
    say(trained, {"hospital": SIMULATED, "mimic_cxr": MIMIC})
    return trained


@pytest.fixture
def simulated(trained):
    say(trained, {"hospital": SIMULATED})
    return trained


def card_of(out):
    return (out / "README.md").read_text()


def on_a_terminal(workdir, out, answer):
    """Exports in a process whose standard input is a terminal, and types an answer."""
    ours, theirs = pty.openpty()
    argv = ["--workdir", str(workdir), "--out", str(out), "--step=latest", "--public"]
    child = subprocess.Popen(
        [sys.executable, "-m", "medclip_jax.export", *argv],
        stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    said = child.stderr.read()
    child.stderr.close()
    status = child.wait()
    os.close(ours)
    return status, said


@pytest.mark.slow
def test_the_word_typed_on_a_terminal(credentialed, tmp_path):
    status, said = on_a_terminal(credentialed, tmp_path / "out", "publish\n")
    assert status == 0, said
    assert f"mimic_cxr: {MIMIC}" in said and "Type publish" in said
    card = card_of(tmp_path / "out")
    assert "confirmed, by typing `publish`" in card.replace("\n", " ")
    assert f"**Notice.** {MIMIC}" in card and "license: other" in card
    settings = json.loads((tmp_path / "out" / export.MARKER).read_text())
    assert settings["notices"] == {"hospital": SIMULATED, "mimic_cxr": MIMIC}


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["yes\n", "\x04"])  # the last: end of input
def test_another_word_typed_on_a_terminal(credentialed, tmp_path, answer):
    status, said = on_a_terminal(credentialed, tmp_path / "out", answer)
    assert status == 2
    assert "not confirmed, and nothing was written" in said
    assert not (tmp_path / "out").exists()


def test_without_a_terminal(credentialed, capsys):
    out = credentialed.parent / "export"
    with pytest.raises(UserError, match="no terminal to confirm on") as error:
        run_export(credentialed, "--public")
    assert MIMIC in str(error.value) and "--public confirmed" in str(error.value)
    assert not out.exists()
    run_export(credentialed, "--public", "confirmed")
    card = card_of(out)
    assert "by `--public confirmed`" in card and "MIMIC-CXR" in card
    with pytest.raises(SystemExit):
        run_export(credentialed, "--public", "yes")
    assert "invalid choice" in capsys.readouterr().err


def test_simulated_data_are_not_asked_about(simulated, tmp_path):
    _, out = run_export(simulated, "--public")
    assert export_release.PUBLIC_SIMULATED in card_of(out)
    assert "license: apache-2.0" in card_of(out)
    _, out = run_export(simulated)
    assert export_release.PRIVATE_SIMULATED in card_of(out)


def test_without_public_the_card_says_not_to_share(credentialed):
    _, out = run_export(credentialed)
    assert "Not released: exported without `--public`" in card_of(out)


def test_data_without_a_notice_are_asked_about(trained):
    say(trained, {"hospital": SIMULATED, "own": ""})
    with pytest.raises(UserError, match="own: no notice is known"):
        run_export(trained, "--public")


def test_other_data_of_the_same_name_hide_no_notice(credentialed):
    """`--data` with simulated films, prepared under the name of the real ones."""
    run = export.run_lib.open_run(credentialed, "latest")
    given = [Dataset("mimic_cxr", "", (), (), None, "other", SIMULATED)]
    _, notices = export_release.provenance(run, given)
    assert notices["mimic_cxr"] == MIMIC
    say(credentialed, {"mimic_cxr": ""})
    assert export_release.provenance(run, given)[1]["mimic_cxr"] == ""
    same = [Dataset("mimic_cxr", "", (), (), None, "beef", MIMIC)]
    assert export_release.provenance(run, same)[1]["mimic_cxr"] == MIMIC


# --- weights that come from other weights ----------------------------------------------


def test_the_terms_of_a_run_go_with_its_weights(credentialed, trained, tmp_path):
    config = make_config()
    config.init_from = str(credentialed)
    origin = initial_weights.origin(config)
    assert origin["mimic_cxr (init_from)"] == {"fingerprint": "beef", "notice": MIMIC}
    # And from there on to a third run, which saw simulated data alone.
    say(trained, {"hospital": SIMULATED}, started_from=origin)
    assert initial_weights.origin(config)["mimic_cxr (init_from)"]["notice"] == MIMIC
    with pytest.raises(UserError, match="Credentialed"):
        run_export(trained, "--public")
    _, out = run_export(trained)
    assert "license: other" in card_of(out) and MIMIC in card_of(out)


def test_published_weights_are_asked_about():
    config = make_config()
    assert initial_weights.origin(config) == {}
    config.model.text.pretrained = "emilyalsentzer/Bio_ClinicalBERT"
    (name,) = origin = initial_weights.origin(config)
    assert "Bio_ClinicalBERT" in name and "terms" in origin[name]["notice"]
    notices = {"published weights": medclip.NOTICE}
    with pytest.raises(UserError, match="data-use agreements"):
        export_release.decide("ask", notices)
