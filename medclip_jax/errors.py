"""The errors that a user can mend, the exit status of each, and which may pass."""

import re
from collections.abc import Iterator
from typing import Any, get_args

# How the libraries that read in C++ begin their messages: TensorStore by the code of
# a status (absl/status/status.h; UNKNOWN is an error of the system that has no code,
# as EIO), Riegeli by the call of the system that failed.
_PASSES = re.compile(
    r"\s*(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|"
    r"PERMISSION_DENIED|UNAUTHENTICATED|UNKNOWN)\b|"
    r"[a-z]+\(\) failed: (?!No such file)"
)
# What the clients of a bucket raise besides OSError.
_CLIENTS = ("aiohttp.", "gcsfs.", "google.auth.")


class UserError(ValueError):
    """Says what was expected, what was found, and how to mend it.

    Raised for what a user gave (a path, an option, a file) and for what the same
    command would meet again: damaged data, a full disk, a loss that is not finite. The
    command line prints its message alone and exits with `status`; any other exception
    is a fault of ours, is shown with its trace, and exits with 1.
    """

    status = 2


class TryAgain(UserError):
    """The same, of what may have passed by the next try: a network, another host."""

    status = 1


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def passing(error: BaseException) -> BaseException | None:
    """Why something could not be read, where that tells nothing of what is stored.

    Args:
      error: of a reader: Python's own, TensorStore's, ArrayRecord's, a bucket's.

    Returns:
      It or its cause: a network, a mount, a right or a limit of the system, which may
      be mended by the next try. None where what is stored is not there, or was read
      and is not as it was written.
    """
    for cause in causes(error):
        if isinstance(cause, FileNotFoundError):
            continue
        if isinstance(cause, OSError) or _PASSES.match(str(cause)):
            return cause
        if f"{type(cause).__module__}.".startswith(_CLIENTS):
            return cause
    return None


def check_choice(name: str, found: Any, valid: Any) -> None:
    """Checks a setting of which there are a few.

    Args:
      name: of the setting, as it is written.
      found: its value.
      valid: a `Literal` of the values that are right.

    Raises:
      UserError: it is none of them.
    """
    names = get_args(valid)
    if found not in names:
        raise UserError(f"{name} must be one of {', '.join(names)}; found {found!r}")
