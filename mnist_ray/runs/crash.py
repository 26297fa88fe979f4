"""The last resort: an error that nobody foresaw becomes one line for the user, and its traceback a file."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mnist_ray.errors import UnexpectedError, UserError, last_line

if TYPE_CHECKING:
    from mnist_ray.storage.location import Location

LOG = "error.log"


@contextmanager
def explaining(folder: Location) -> Iterator[None]:
    """Raise errors out of the block as `explained` has them. The log of an earlier attempt is removed."""
    (folder / LOG).delete()
    try:
        yield
    except Exception as error:
        if (known := explained(error, folder)) is error:
            raise
        raise known from error


def explained(error: BaseException, folder: Location | None = None) -> UserError:
    """The error itself where a user can act on it; else one with its last line, and the place of the full log.

    The log is written to `folder`, or to the temporary folder if there is none or if that fails.
    """
    if isinstance(error, UserError) and (error.is_logged or not isinstance(error, UnexpectedError)):
        return error
    message = str(error) if isinstance(error, UnexpectedError) else f"unexpected {last_line(error)}"
    log = _write_log("".join(traceback.format_exception(error)), folder)
    known = UnexpectedError(f"{message}; the full log is {log}" if log else message, see="runs.md#failures")
    known.is_logged = True
    return known


def _write_log(text: str, folder: Location | None) -> str | None:
    """Where the log is; None if it can be written nowhere."""
    data = text.encode(errors="backslashreplace")
    if folder is not None:
        with suppress(Exception):  # the storage may be what has failed
            (folder / LOG).write_bytes(data)
            return str(folder / LOG)
    with suppress(OSError):
        descriptor, path = tempfile.mkstemp(prefix="mnist-ray-", suffix=".log")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        return path
    return None
