"""What is said to the user when something is wrong: one line each, with the exit code that a scheduler should see.

0 done · 1 failed, a retry may help · 2 wrong usage, configuration or input · 3 too many bad images · 130 interrupted.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can act on. The message is one line: what is wrong, where, and what to do.

    `see` is the README heading that tells the rest.
    """

    exit_code = 1

    def __init__(self, message: str, *, see: str | None = None) -> None:
        # Both go to Exception's args, so that the error survives the pickling on its way out of a Ray worker.
        super().__init__(message, see)
        self.message, self.see = message, see

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.see)

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[UserError], message: str, see: str | None) -> UserError:
    return kind(message, see=see)


class InputError(UserError, ValueError):
    """Wrong usage, configuration or input: the same command cannot succeed."""

    exit_code = 2


class RetryableError(UserError, RuntimeError):
    """The world was in the way (a full disk, a lost node, a busy cluster): the same command may succeed later."""

    exit_code = 1


class DivergedError(RetryableError):
    """The training has left the finite numbers: the same steps again would lead there again."""


class TooManyBadImagesError(UserError, ValueError):
    """More images were quarantined than `--max-bad` allows."""

    exit_code = 3


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: what is committed stays, and the same command goes on from there.

    Like KeyboardInterrupt it is no Exception: nobody who handles errors may take it for one.
    """

    exit_code = 130


def one_line(error: BaseException) -> str:
    """The kind and the first line of what a library says."""
    text = str(error).strip().split("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
