"""The errors that a user can act on: one line each, with the exit code that a scheduler sees.

    Exception
    └── UserError                  1  base class: what is wrong, where, and what to do
        ├── InputError             2  wrong usage, configuration or input; also a ValueError
        ├── SetupError             2  an address, a token, a path's rights or a package, which somebody must put right
        ├── RetryableError         1  a full disk, a lost node, a busy cluster; also a RuntimeError
        │   ├── LeaseLostError     1  another driver has taken the folder over
        │   ├── NoSpaceError       1  a full disk or quota
        │   └── UnexpectedError    1  whatever nobody foresaw; a log has the traceback
        ├── DivergedError          1  the loss is no longer finite; also a RuntimeError
        └── TooManyBadImagesError  3  more images quarantined than --max-bad allows; also a ValueError
    BaseException
    └── Interrupted              130  Ctrl-C or SIGTERM

Exit codes: 0 done · 1 failed, a retry may help · 2 wrong usage, configuration or input · 3 too many bad images ·
130 interrupted.
"""

from __future__ import annotations

import re


def require(is_met: bool, message: str) -> None:
    """Raise AssertionError unless a condition holds on which results depend.

    A failure is a mistake of ours. An `assert` statement would be skipped by `python -O`: it only narrows types.
    """
    if not is_met:
        raise AssertionError(message)


class UserError(Exception):
    """An error that the user can act on. The message is one line: what is wrong, where, and what to do.

    `see` is a section of the documentation that explains more, such as "runs.md#failures", relative to docs/.
    """

    exit_code = 1
    is_logged = False
    """Whether its traceback is in a file that the message names."""

    def __init__(self, message: str, *, see: str | None = None) -> None:
        # Both are in Exception's args, so that the error survives pickling on its way out of a Ray worker.
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


class SetupError(UserError):
    """The environment is not set up for the command: an address, a token, the rights of a storage, a package.

    Once somebody has put that right, the same command can succeed, so it leaves no mark in a run's folder. It is no
    InputError, nor a ValueError: who writes a damaged file again must not do so because it may not be read.
    """

    exit_code = 2


def users_code_failed(message: str, error: Exception) -> UserError:
    """A SetupError where the error is that of a missing package, else an InputError."""
    kind = SetupError if isinstance(error, ImportError) else InputError
    return kind(f"{message} ({one_line(error)})")


class RetryableError(UserError, RuntimeError):
    """A cause outside the command (a full disk, a lost node, a busy cluster): the same command may succeed later."""


class NoSpaceError(RetryableError):
    """A disk or a quota is full. Nothing gets better by itself within a minute: somebody must make room."""


class LeaseLostError(RetryableError):
    """Another driver has taken over the folder that this one was writing to."""


class UnexpectedError(RetryableError):
    """An error that nobody foresaw: a bug, or a library's. `runs/crash.py` makes it of any other error."""


class DivergedError(UserError, RuntimeError):
    """The loss is no longer finite. The same steps would diverge again, so the workers are not restarted."""


class TooManyBadImagesError(UserError, ValueError):
    """More images were quarantined than `--max-bad` allows."""

    exit_code = 3


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. What is committed stays, and the same command continues from there.

    A BaseException, like KeyboardInterrupt: a handler of errors must not catch it by accident.
    """

    exit_code = 130
    signal = 0
    """Which it was, where that is known."""


def outcome(error: BaseException) -> tuple[int, str]:
    """The exit code of an error that ends a command, and what the command says of it, as one line."""
    message = str(error) if isinstance(error, UserError | Interrupted) else last_line(error)
    return getattr(error, "exit_code", 1), _CONTROL.sub(" ", message)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the number of an OSError; its type where it has none."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0]


def counted(count: float, noun: str) -> str:
    """ "1 image", "2,000 images", "0.5 CPUs"."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun}{'s' * (count != 1)}"


def printable(text: str) -> str:
    """A text for a terminal: the names of files may have line breaks and the codes that move its cursor."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(error: BaseException) -> str:
    """The type and the first line of a library's error, cut at 300 characters."""
    text = str(error).strip().split("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_TRACEBACK = re.compile(r'^.*\n  File "[^\n]*\n(?: [^\n]*\n)*(?=\S)', re.DOTALL)
"""A text up to the last line of its traceback, which is the first that is not indented."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def last_line(error: BaseException) -> str:
    """The type of an error and the last line of its text, cut at 300 characters.

    Of an error that Ray has brought from another process, those of what was raised there.
    """
    kind, text = type(error).__name__, _COLOUR.sub("", str(error)).strip()
    if type(error).__module__.startswith("ray."):
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception) and not type(cause).__module__.startswith("ray."):
            return last_line(cause)
        raised, found = _TRACEBACK.subn("", text)
        if found:
            name, _, text = raised.partition(": ")
            kind = name.rpartition(".")[2]
        else:
            text = text.partition("\n")[0]  # a lost process: the first line says most
    last = text.rpartition("\n")[2].strip()
    return (f"{kind}: {last}" if last else kind)[:300]
