"""Workdirs, reports and shards on an object store (gs://), beside local ones.

A local path is a `pathlib.Path` and is treated as ever. A `gs://` path is an
`etils.epath.Path`, which has the same methods; gcsfs talks to the bucket. What an
object store lacks is met here alone: there are no folders to make, no renames (but an
object appears whole or not at all), and no appending.

Only gs:// is taken: Orbax, which writes the checkpoints, has a driver for that one and
takes an s3:// path for a relative local one (`_use_gcs_driver` in its
`_src/serialization/tensorstore_utils.py`). Other stores are mounted.
"""

import argparse
import contextlib
import errno
import importlib.util
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from medclip_jax.errors import TryAgain, UserError

GS = "gs://"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INSTALL = "pip install gcsfs 'etils[epath]'"
# How long the first look at a bucket may take. gcsfs tries for over a minute, as it
# should in a run of days, but not before a wrong name or a missing network is told.
_LOOK_SECONDS = 15


def path(text: str | os.PathLike[str]) -> Path:
    """A path, local or on a bucket.

    Args:
      text: a local path, `gs://BUCKET/...`, or a path already.

    Returns:
      What has the methods of `pathlib.Path`; mypy is told that it is one.

    Raises:
      UserError: another store, a bucket's name that is not there, or gcsfs is not
        installed.
    """
    given = os.fspath(text)
    if not given.startswith(GS):
        scheme, found, _ = given.partition(":/")
        if found and scheme.isalnum():  # pathlib makes s3:/ of s3://
            raise UserError(
                f"{given}: expected a local path or {GS}BUCKET/FOLDER; mount other "
                "stores (for instance with mountpoint-s3) and name the mount"
            )
        return Path(given)
    if not given.removeprefix(GS).split("/")[0]:
        raise UserError(f"{given}: expected {GS}BUCKET/FOLDER, found no bucket")
    return cast(Path, _epath(given))


def argument(text: str) -> Path:
    """`path` as the type of an option: argparse shows the message of this error."""
    try:
        return path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_argument(text: str) -> Path:
    """The type of an option that names what must lie on a disk or a mount."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a path on a disk; copy it (gcloud storage cp -r) or "
            "mount it"
        )
    return Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on an object store."""
    return os.fspath(path).startswith(GS)


def check(path: Path) -> None:
    """Asks for a remote folder's bucket; for a local path nothing is to be done.

    Raises:
      UserError: there is no such bucket, or it refuses.
      TryAgain: it is not to be reached.
    """
    if not is_remote(path):
        return
    bucket = GS + os.fspath(path).removeprefix(GS).split("/")[0]
    with _mending(bucket):
        found = _look(bucket)
    if not found:
        raise UserError(
            f"{path}: there is no bucket {bucket}, or this account may not list it; "
            "make it (gcloud storage buckets create), or correct the name"
        )


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; a bucket needs none.

    Raises:
      UserError: it cannot be made.
    """
    if is_remote(path):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears whole, or not at all: readers see the old or the new.

    Locally it is written beside and renamed. For a bucket it is written to the local
    temporary folder and put as one object, whose checksum gcsfs compares.
    """
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as file:
            yield cast(IO[bytes], file)
            file.flush()
            _upload(Path(file.name), path)
        return
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with naming_full_disk(path), part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming_full_disk(path: Path, what: str = "") -> Iterator[None]:
    """Says where there was no room for what is written inside, and how to go on.

    Args:
      path: what is written.
      what: how much that takes, or what else is to be known; a sentence.

    Raises:
      UserError: the disk is full, or the quota or largest size of a file is reached.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_full(error):
            raise
        raise UserError(
            f"{path} could not be written: {_reason(error)}{_free(path)}. "
            f"{what + '. ' if what else ''}Make room there, then start the same "
            "command again"
        ) from error


def _is_full(error: BaseException) -> bool:
    # Libraries in C++ and Rust tell the reason in words alone, those of the C library.
    number = getattr(error, "errno", None)
    return number in _FULL or any(os.strerror(code) in str(error) for code in _FULL)


def _reason(error: BaseException) -> str:
    reasons = [os.strerror(code) for code in _FULL]
    return next((reason for reason in reasons if reason in str(error)), str(error))


def _free(path: Path) -> str:
    if is_remote(path):
        return ""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free)"


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file at once."""
    with writing(path) as file:
        file.write(text.encode())


def size(path: Path) -> int:
    """Bytes of a file."""
    found: Any = path.stat()
    return int(found.length if is_remote(path) else found.st_size)


def upload(source: Path, target: Path, first: str = "") -> None:
    """Copies a local file, or a folder with all that is in it, to a bucket.

    Args:
      source: local.
      target: the object, or the folder.
      first: name of a file in the folder that goes before the others.
    """
    if source.is_dir():
        for child in sorted(source.iterdir(), key=lambda child: child.name != first):
            upload(child, target / child.name)
    else:
        _upload(source, target)


def download(source: Path, target: Path) -> None:
    """Copies a file, or a folder with all that is in it, to a local path."""
    with naming_full_disk(target), _mending(source):
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            for child in source.iterdir():
                download(child, target / child.name)
        else:
            with source.open("rb") as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Path]:
    """The folder itself, or a local copy of a remote one for as long as it is needed."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        download(folder, Path(copy) / folder.name)
        yield Path(copy) / folder.name


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it, where there is one."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        with _mending(folder):
            cast(Any, folder).rmtree()


def _epath(text: str) -> Any:
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(f"{text}: {GS} paths need gcsfs: {_INSTALL}")
    # Where TensorFlow happens to be installed etils would use it: one way for all.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec

    # It prints a trace of what it raises too.
    if logging.getLogger("gcsfs").level == logging.NOTSET:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # A listing that was kept would hide what TensorStore and other hosts write.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    from etils import epath

    return epath.Path(text)


def _look(bucket: str) -> bool:
    """Whether there is a bucket, with the tries that a quarter of a minute allows."""
    _epath(bucket)
    import fsspec

    tries = _Tries()
    logger = logging.getLogger("gcsfs")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(tries)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        # The file system that etils takes, which is kept.
        system: Any = fsspec.filesystem("gs", finalize_on_close=True)
        exists = system._exists  # what fsspec has the sync form of, without a limit
        return fsspec.asyn.sync(system.loop, exists, bucket, timeout=_LOOK_SECONDS)
    except TimeoutError as error:
        raise TryAgain(
            f"{bucket}: no answer within {_LOOK_SECONDS} seconds"
            f"{tries.reason and f' ({tries.reason})'}. Is there a network here, and a "
            "way to storage.googleapis.com (through a proxy: HTTPS_PROXY)?"
        ) from error
    finally:
        logger.removeHandler(tries)
        logger.propagate = propagate
        logger.setLevel(level)


class _Tries(logging.Handler):
    """Keeps why gcsfs tried again: it raises the reason of the last try alone."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        _, found, reason = record.getMessage().partition("exception: ")
        self.reason = reason if found else self.reason


def _upload(source: Path, target: Path) -> None:
    from etils import epath

    with _mending(target):
        epath.Path(source).copy(target, overwrite=True)


@contextlib.contextmanager
def _mending(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says what to look at where a bucket refuses; the libraries' errors are of many
    kinds (google.auth, aiohttp, gcsfs), and none names the mend."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        if not is_remote(path) or _is_full(error):
            raise  # of a disk
        from gcsfs.retry import is_retriable

        passes = is_retriable(error) or isinstance(
            error, (TimeoutError, ConnectionError)
        )
        kind = TryAgain if passes else UserError
        raise kind(
            f"{path} cannot be read or written ({type(error).__name__}: {error}). Is "
            "the account known here (gcloud auth application-default login, or the "
            "machine's service account), and may it read, write, list and delete "
            "objects there and see the bucket (roles storage.objectUser and "
            "storage.legacyBucketReader)?"
        ) from error
