"""Fixtures of the runs that are disturbed, and of disks that are small."""

import subprocess

import pytest

from tests.test_train import cache, start, whole  # noqa: F401


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of its own, of some size, and can make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    class Disk:
        path = folder

        def make(self, size):
            done = mount("-o", f"size={size}")
            if done.returncode:
                pytest.skip(f"a small disk needs the right to mount: {done.stderr}")

        def grow(self, size):
            assert mount("-o", f"remount,size={size}").returncode == 0

        def fill(self):
            with (folder / "filler").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass

    yield Disk()
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
