"""Checkpoints that were damaged after they were saved: real files, real bits."""

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from medclip_jax.errors import TryAgain, UserError, passing
from medclip_jax.runtime import checksum
from medclip_jax.runtime.checkpoint import Checkpoints

META = {"pending": {"loss": 0.1}}


def make_state(seed=0):
    key = jax.random.key(seed)
    return {
        "variables": {
            "params": {
                "kernel": jax.random.normal(key, (64, 48)),
                "half": jax.random.normal(key, (33,)).astype(jnp.bfloat16),
            },
            "zeros": jnp.zeros((100, 10)),
        },
        "step": jnp.int32(3),
    }


def target_of(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def equal(a, b):
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return jax.tree.all(same)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, "loss", keep_latest=3) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, make_state(), META, {"loss": 0.5})
    return folder


def restore(folder, step=4):
    with Checkpoints(folder, "loss", read_only=True) as checkpoints:
        return checkpoints.restore(step, target_of(make_state()))


def data_file(folder, step=4):
    """The file that holds the arrays: the largest."""
    files = (folder / str(step) / "state").rglob("d/*")
    return max(files, key=lambda file: file.stat().st_size)


def flip(file, at, bit=3):
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def test_a_bit_that_turned_in_the_arrays_is_found(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    flip(data_file(folder), 5000)
    expected = f"step 4 is damaged.*kernel.*delete {folder}/4 to go on from step 2"
    with pytest.raises(UserError, match=expected):
        restore(folder)
    variables = target_of(make_state()["variables"])
    with Checkpoints(folder, "loss", read_only=True) as checkpoints:
        with pytest.raises(UserError, match=expected):
            checkpoints.restore_variables(4, variables)
        found = checkpoints.restore_variables(2, variables)
        assert equal(found, make_state()["variables"])
        assert equal(checkpoints.restore(2, target_of(make_state()))[0], make_state())
    shutil.rmtree(folder / "2")
    with pytest.raises(UserError, match=f"delete {folder}/4 to go on from the begin"):
        restore(folder)


def test_whatever_is_damaged_is_named_or_changes_nothing(saved, tmp_path):
    """Every file cut, removed, and with bits that turned; some bits say nothing."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    rng = np.random.default_rng(0)
    refused = {}
    for file in sorted(p for p in (folder / "4").rglob("*") if p.is_file()):
        name = str(file.relative_to(folder / "4"))
        if name.startswith("metrics/"):
            continue  # they rank, and nothing else: see below
        content = file.read_bytes()
        flips = [bytearray(content) for _ in range(5)]
        for flipped in flips:
            flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        for spoilt in (content[: len(content) // 2], None, *flips):
            file.unlink()
            if spoilt is not None:
                file.write_bytes(spoilt)
            try:
                state, meta = restore(folder)
                assert meta == META and equal(state, make_state()), name
            except UserError as error:
                assert f"delete {folder}/4 to go on from step 2" in str(error), name
                refused[name] = refused.get(name, 0) + 1
            file.write_bytes(content)
    assert equal(restore(folder)[0], make_state())  # all is mended
    assert refused["meta/metadata"] == 7
    assert refused["state/manifest.ocdbt"] == 7
    assert refused["state/_METADATA"] >= 2
    name = str(data_file(folder).relative_to(folder / "4"))
    assert refused[name] >= 5


@pytest.mark.parametrize("name", ["state/_METADATA", "meta/metadata"])
def test_what_cannot_be_read_is_not_called_damaged(saved, tmp_path, name):
    """A file whose bytes give EIO, as those of a disk or mount that fails."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    file = folder / "4" / name
    file.unlink()
    file.symlink_to("/proc/self/mem")
    with pytest.raises(
        TryAgain, match="step 4.* could not be read now.*Errno 5"
    ) as error:
        restore(folder)
    assert "delete" not in str(error.value)


def test_a_link_that_tensorstore_cannot_follow_is_not_called_damaged(saved, tmp_path):
    """An error of the system without a code of its own, in the thread that reads."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    file = data_file(folder)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(TryAgain, match="UNKNOWN.*Too many levels"):
        restore(folder)


@pytest.mark.parametrize("spare", [0, 3])
def test_too_many_open_files_are_not_called_damage(saved, spare):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    with Checkpoints(saved, "loss", read_only=True) as checkpoints:
        target = target_of(make_state())
        checkpoints.restore(2, target)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many"):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(spare):
                os.close(taken.pop())
            with pytest.raises(TryAgain, match="Too many open files"):
                checkpoints.restore(4, target)
        finally:
            for number in taken:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        checkpoints.restore(4, target)


def of_module(name):
    return type("Refused", (Exception,), {"__module__": name})("401")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (PermissionError("no"), True),
        (OSError(116, "Stale file handle"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ValueError("UNAVAILABLE: CURL error[6] Could not resolve hostname"), True),
        (ValueError("PERMISSION_DENIED: 403"), True),
        (ValueError("UNAUTHENTICATED: 401"), True),
        (ValueError("ABORTED: All 32 retry attempts failed"), True),
        (RuntimeError("open() failed: Too many open files; opening a"), True),
        (of_module("google.auth.exceptions"), True),
        (of_module("google.protobuf.message"), False),
        (RuntimeError("open() failed: No such file or directory; opening a"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
        (ValueError("DATA_LOSS: a"), False),
        (ValueError("NOT_FOUND: a"), False),
        (ValueError("OUT_OF_RANGE: a"), False),
        (ValueError("FAILED_PRECONDITION: a: UNAVAILABLE"), False),
        (KeyError("UNKNOWN_FIELD"), False),
        (ValueError("Error decoding a: ZSTD_decompressStream() failed: Data"), False),
        (ValueError("ZSTD_decompressStream() failed: Data corruption"), False),
    ],
)
def test_which_errors_may_pass(error, passes):
    outer = Exception("while reading")
    outer.__cause__ = error
    assert passing(error) is passing(outer) is (error if passes else None)


HOST = """
import sys
sys.path[:0] = [sys.argv[1]]
import jax
jax.distributed.initialize("localhost:" + sys.argv[3], 1, 0)
from medclip_jax.errors import TryAgain, UserError
import test_damaged_checkpoint as tests
try:
    tests.restore(sys.argv[2])
except UserError as error:
    print(error.status, error)
"""


def test_damage_is_no_lost_host_where_there_are_several(saved, tmp_path):
    """TensorStore says FAILED_PRECONDITION, as XLA does where a host is gone."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    (folder / "4" / "state" / "_sharding").write_text('{"a')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", HOST, here, str(folder), str(port)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("2 the checkpoint of step 4 is damaged")
    assert "FAILED_PRECONDITION" in done.stdout


def test_a_checkpoint_of_an_older_version_is_not_called_damaged(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    file = folder / "4" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text())["meta"]))
    with pytest.raises(UserError, match="step 4 .*by an older version") as error:
        restore(folder)
    assert "delete" not in str(error.value)


def test_damaged_metrics_are_named(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    file = folder / "4" / "metrics" / "metrics"
    file.write_text('{"loss": 0.')
    with pytest.raises(UserError, match=f"{file}, .* is damaged.*delete that file"):
        restore(folder)
    file.unlink()
    with Checkpoints(folder, "loss", read_only=True) as checkpoints:
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 4


def test_a_step_is_ranked_after_it_was_saved(tmp_path):
    with Checkpoints(tmp_path, "accuracy", keep_latest=1) as checkpoints:
        checkpoints.save(1, make_state(), META, {})
        checkpoints.wait()
        checkpoints.add_metrics(1, {"loss": 1.0})
        checkpoints.reload()
        assert checkpoints.best_step() is None
        checkpoints.add_metrics(1, {"loss": 1.0, "accuracy": 0.9})
        checkpoints.reload()
        for step, accuracy in ((2, 0.5), (3, 0.6), (4, None)):
            measured = {} if accuracy is None else {"accuracy": accuracy}
            checkpoints.save(step, make_state(), META, measured)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4]
        assert checkpoints.best_step() == 1
        state, meta = checkpoints.restore(1, target_of(make_state()))
        assert meta == META and equal(state, make_state())


def test_the_marker_of_a_save_that_did_not_end(saved, tmp_path):
    """On a disk the marker is the folder's name: Orbax renames it when all is there."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    with Checkpoints(folder, "loss", read_only=True) as checkpoints:
        assert checkpoints.steps() == [2]
        with pytest.raises(UserError, match=r"No complete checkpoint of step 4.*\[2\]"):
            checkpoints.restore(4, target_of(make_state()))


# --- checksums ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "int8", "uint32", "bool", "float16"]
)
def test_every_bit_and_every_place_counts(dtype):
    rng = np.random.default_rng(0)
    plain = np.asarray(jnp.asarray(rng.integers(0, 2, (6, 10)), dtype))
    sums = {checksum.of({"a": jnp.asarray(plain)})["a"]}
    bits = 1 if dtype == "bool" else 8 * plain.itemsize
    for bit in range(bits):
        changed = plain.copy()
        raw = changed.reshape(-1).view(np.uint8)
        raw[7 * plain.itemsize + bit // 8] ^= 1 << (bit % 8)
        try:
            sums |= set(checksum.of({"a": jnp.asarray(changed)}).values())
        except checksum.NonFinite:
            bits -= 1
    swapped = plain.copy()
    swapped[0, 0], swapped[5, 9] = 1, 0
    twin = plain.copy()
    twin[0, 0], twin[5, 9] = 0, 1
    for array in (swapped, twin, plain.T):
        sums |= set(checksum.of({"a": jnp.asarray(array)}).values())
    # One of the two swapped may be the plain one.
    assert len(sums) >= 1 + bits + 2
    with pytest.raises(checksum.NonFinite, match="deep/a"):
        checksum.of({"deep": {"a": jnp.array([1.0, jnp.nan])}, "b": jnp.ones(2)})
    with pytest.raises(checksum.NonFinite, match="a"):
        checksum.of({"a": jnp.array([[jnp.inf]], jnp.bfloat16)})


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from medclip_jax.runtime import checksum
assert jax.device_count() == 8
array = jax.random.normal(jax.random.key(0), (16, 24))
sums = set()
for shape, spec in (((8,), P("a")), ((4, 2), P("a", "b")), ((2, 4), P(None, "b")),
                    ((8,), P())):
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)],
                         axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    sums.add(checksum.of({"x": placed})["x"])
print(sums)
"""


@pytest.mark.parametrize("bit", [0, 20, 29, 30, 31])
def test_two_turned_bits_do_not_cancel(bit):
    """As of a memory whose line is stuck; a sum of products loses the high bits."""
    rng = np.random.RandomState(bit)
    words = np.float32(rng.randn(512, 8)).view(np.uint32)
    plain = checksum.of({"a": jnp.asarray(words)})
    for _ in range(50):
        changed = words.copy()
        changed.ravel()[rng.choice(words.size, 2, replace=False)] ^= np.uint32(1 << bit)
        assert checksum.of({"a": jnp.asarray(changed)}) != plain
    assert checksum.of({"a": jnp.asarray(words ^ np.uint32(1 << bit))}) != plain


def test_the_sum_is_the_same_on_every_mesh():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    array = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(array, NamedSharding(mesh, P("a")))
    assert done.stdout.strip() == f"{{{checksum.of({'x': placed})['x']}}}"


# --- what may pass ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        TimeoutError("read timed out"),
        ConnectionResetError("by peer"),
        ValueError("UNAVAILABLE: CURL error Couldn't connect to server"),
        ValueError("RESOURCE_EXHAUSTED: Error opening file: Too many open files"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_read_that_failed_for_now_deletes_nothing(saved, monkeypatch, error):
    """A good checkpoint behind a mount, a network or a right that fails."""

    def fails(*_, **__):
        raise RuntimeError("while reading an array") from error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fails)
    with pytest.raises(TryAgain, match="step 4 in .* could not be read now") as found:
        restore(saved)
    assert "delete" not in str(found.value)
