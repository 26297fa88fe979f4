"""What answers for a rank between two calls of the ring, while its main thread does other work."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Sequence

from .neighbour import Neighbour, RingError

_LOOK_SECONDS = 0.5  # between two looks at whether the ring has been closed
_PAUSE_SECONDS = 0.02  # while the main thread is in a call, and reads the notes itself


class Presence:
    """A thread that answers the neighbours' questions with "busy" while the main thread is outside a call.

    A process that is stopped or cut off does not answer; neither does one whose interpreter hangs.

    Attributes:
        in_call: a lock that the main thread holds while it is in a call.
    """

    def __init__(self, rank: int, neighbours: Sequence[Neighbour], on_failure: Callable[[RingError], object]) -> None:
        """on_failure: called with what a neighbour reports."""
        self.in_call = threading.Lock()
        self._rank, self._on_failure = rank, on_failure
        self._neighbours = list(neighbours)
        self._is_stopped = threading.Event()
        if neighbours:
            threading.Thread(target=self._answer, daemon=True, name="ring").start()

    def stop(self) -> None:
        self._is_stopped.set()

    def _answer(self) -> None:
        while self._neighbours and not self._is_stopped.is_set():
            poll = select.poll()
            for neighbour in self._neighbours:
                if (descriptor := neighbour.notes.fileno()) >= 0:
                    poll.register(descriptor, select.POLLIN)
            if not poll.poll(_LOOK_SECONDS * 1000):
                continue
            if self.in_call.acquire(blocking=False):
                try:
                    self._read_notes()
                except RingError as error:
                    self._on_failure(error)
                finally:
                    self.in_call.release()
            self._is_stopped.wait(_PAUSE_SECONDS)

    def _read_notes(self) -> None:
        for neighbour in list(self._neighbours):
            try:
                while (note := neighbour.read_note()) is not None:
                    if note.is_question:
                        neighbour.answer_busy(note.call, self._rank)
            except EOFError:  # it has left, perhaps in order; the next call finds out
                self._neighbours.remove(neighbour)
