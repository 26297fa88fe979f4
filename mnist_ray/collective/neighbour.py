"""A rank's neighbour in the ring: the two connections to it, and the notes that are exchanged on the second one.

A note asks whether a rank is there, answers that it is (in a call, or busy outside one), or reports why the ring has
failed.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import NamedTuple

Address = tuple[str, int]

MAGIC = b"npring1\n"

_PROBE_SECONDS = 5.0  # a thread that answers may have to wait for a core, and for the interpreter's lock
_NOTE = struct.Struct("<ciQ242s")  # kind, rank at fault (-1: none), call, text
_ASK, _PRESENT, _BUSY, _FAILED = b"?", b"!", b"~", b"x"


class RingError(RuntimeError):
    """The ring is broken. The message says what happened; `rank` is the rank at fault, if there is one."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message, rank)  # both are args, so that the error survives pickling
        self.message, self.rank = message, rank

    def __str__(self) -> str:
        return self.message


class Note(NamedTuple):
    """A note from a neighbour: a question or an answer about the call with this number."""

    kind: bytes
    call: int
    rank: int
    """The rank that is busy."""

    @property
    def is_question(self) -> bool:
        return self.kind == _ASK

    @property
    def is_answer(self) -> bool:
        return self.kind in (_PRESENT, _BUSY)

    @property
    def is_busy(self) -> bool:
        """Whether a rank will come to the call, but does other work before."""
        return self.kind == _BUSY


@dataclass(eq=False)
class Neighbour:
    """The rank before or after this one (in a ring of two, both are the same rank) and the connections to it."""

    rank: int
    data: socket.socket
    notes: socket.socket

    def ask(self, call: int) -> None:
        """Ask whether it is in this call, or behind it."""
        self._write_note(_ASK, call)

    def answer(self, call: int) -> None:
        self._write_note(_PRESENT, call)

    def answer_busy(self, call: int, rank: int) -> None:
        """Answer that `rank` lives and does other work before it comes to this call."""
        self._write_note(_BUSY, call, rank)

    def report(self, error: RingError, call: int) -> None:
        """Let it know why the ring has failed."""
        self._write_note(_FAILED, call, -1 if error.rank is None else error.rank, error.message)

    def _write_note(self, kind: bytes, call: int, rank: int = -1, text: str = "") -> None:
        with contextlib.suppress(OSError):  # a neighbour that is gone is noticed where its bytes are missing
            self.notes.send(_NOTE.pack(kind, rank, call, text.encode()))

    def read_note(self) -> Note | None:
        """The next note; None where no whole one has arrived.

        Raises RingError where the note reports that the ring has failed, and EOFError where the connection has ended.
        """
        try:
            if 0 < len(self.notes.recv(_NOTE.size, socket.MSG_PEEK)) < _NOTE.size:
                return None
            data = self.notes.recv(_NOTE.size)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        kind, rank, call, text = _NOTE.unpack(data)
        if kind == _FAILED:
            raise RingError(text.rstrip(b"\0").decode(errors="replace"), rank if rank >= 0 else None)
        return Note(kind, call, rank)

    def why_gone(self, error: OSError | None, timeout: float) -> RingError:
        """Why its data connection ended in the middle of a call: its own report, if one arrives soon (`timeout`: that
        of the ring), else `error` (None: it closed the connection)."""
        deadline = time.monotonic() + probe_seconds(timeout)
        poll = select.poll()
        poll.register(self.notes, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                if poll.poll(left * 1000):
                    self.read_note()
        except EOFError:
            pass
        except RingError as report:
            return report
        why = error.strerror if error else "it closed its connection"
        return RingError(f"rank {self.rank} is gone: {why}", self.rank)

    def close(self) -> None:
        self.data.close()
        self.notes.close()


def probe_seconds(timeout: float) -> float:
    """How long a neighbour may take to send a note, in a ring whose waits last at most `timeout` seconds."""
    return min(_PROBE_SECONDS, timeout / 4)
