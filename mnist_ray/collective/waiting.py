"""How a rank waits for its neighbours, and finds out in time which rank is missing."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from enum import Enum, auto

from .neighbour import Neighbour, Note, RingError, probe_seconds

_SEARCH_SECONDS = 2.0  # that ranks further away may take to report which one is missing


class _Phase(Enum):
    """The phases of a wait, one after the other, each with a deadline; `Wait._end_phase` decides what follows."""

    WAITING = auto()
    """For bytes, until the timeout is nearly over or a neighbour asks whether this rank is there."""
    ASKING = auto()
    """The neighbours that this rank waits for have been asked whether they are there."""
    SEARCHING = auto()
    """All have answered that they wait, too. A rank further away is missing or busy; its own neighbours report it."""


class Wait:
    """One wait for bytes to move, with notes to the neighbours when none does.

    A rank that this one waits for is in the same call (or behind it) and asleep in a wait of its own, or busy outside
    the ring, where a thread answers for it (`Presence`). A rank that is asked asks in turn the neighbours that it waits
    for. In this way the rank that keeps all others waiting is found by its own neighbours. One that is busy is waited
    for anew; the neighbours pass on that it is.
    """

    def __init__(
        self, neighbours: Sequence[Neighbour], call: int, *, receiving: bool, sending: bool, patience: float
    ) -> None:
        """neighbours: [before, after]. call: the number of the call that waits. patience: seconds for busy ranks."""
        self._before, self._after = neighbours
        self._call, self._is_sending = call, sending
        self._patience, self._began = patience, time.monotonic()
        self._busy: int | None = None  # a rank that is, as the neighbours have answered since they were asked
        self._questions = dict[Neighbour, int]()  # asked of this rank, and not yet answered with a rank that is busy
        self._poll = select.poll()
        self._poll.register(self._before.data, select.POLLIN if receiving else 0)
        self._poll.register(self._after.data, select.POLLOUT if sending else 0)
        self._by_notes = {neighbour.notes.fileno(): neighbour for neighbour in neighbours}
        for descriptor in self._by_notes:
            self._poll.register(descriptor, select.POLLIN)
        waited_for = ((self._before, receiving), (self._after, sending))
        self._waited_for = {neighbour for neighbour, is_waited_for in waited_for if is_waited_for}
        self._silent = set(self._waited_for)  # those that have not answered

    def until_bytes_move(self, timeout: float) -> None:
        """Sleep until a byte can be received or sent.

        Raises RingError where a rank is missing after `timeout` seconds, has left, or has reported a failure.
        """
        self._timeout = timeout
        self._begin()
        while True:
            left = max(self._deadline - time.monotonic(), 0.0)
            ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            for descriptor in ready & self._by_notes.keys():
                self._read_note(descriptor)
            if self._can_move(ready):
                return
            if not left:
                self._end_phase()

    def _can_move(self, ready: set[int]) -> bool:
        is_next_ready = self._after.data.fileno() in ready
        if self._before.data.fileno() in ready or (self._is_sending and is_next_ready):
            return True
        if is_next_ready:  # nothing is to be sent, so it can be ready only because it has been closed
            raise self._after.why_gone(None, self._timeout)
        return False

    def _read_note(self, descriptor: int) -> None:
        neighbour = self._by_notes[descriptor]
        try:
            note = neighbour.read_note()
        except EOFError:  # it has left, in order perhaps: what it sent before may be all that is needed
            self._poll.unregister(descriptor)
            return
        if note is not None:
            self._handle(neighbour, note)

    def _handle(self, neighbour: Neighbour, note: Note) -> None:
        if note.is_question:
            neighbour.answer(note.call)
            self._questions[neighbour] = note.call
            # A question about an earlier call is stale; a rank may be one call ahead of this one.
            if self._phase is _Phase.WAITING and note.call >= self._call:
                self._deadline = 0.0  # ask our own neighbours at once
        elif note.is_answer and note.call == self._call:
            self._silent.discard(neighbour)
            if note.is_busy:
                self._pass_on_that_busy(note.rank)

    def _pass_on_that_busy(self, rank: int) -> None:
        self._busy = rank
        for neighbour, call in self._questions.items():
            neighbour.answer_busy(call, rank)
        self._questions.clear()
        if self._phase is _Phase.SEARCHING:
            self._wait_for_busy()

    def _wait_for_busy(self) -> None:
        """Begin to wait anew. Raises RingError where a rank has been busy for too long."""
        if time.monotonic() - self._began > self._patience:
            raise RingError(f"rank {self._busy} has been busy outside the ring for {self._patience:g} s", self._busy)
        self._begin()

    def _begin(self) -> None:
        self._silent, self._busy = set(self._waited_for), None
        self._enter(_Phase.WAITING, self._timeout - probe_seconds(self._timeout))

    def _enter(self, phase: _Phase, seconds: float) -> None:
        self._phase, self._deadline = phase, time.monotonic() + seconds

    def _end_phase(self) -> None:
        """The phase's time is over: go to the next one, or raise RingError."""
        if self._phase is _Phase.WAITING:
            for neighbour in self._silent:
                neighbour.ask(self._call)
            self._enter(_Phase.ASKING, probe_seconds(self._timeout))
        elif self._phase is _Phase.ASKING and self._silent:
            ranks = sorted({neighbour.rank for neighbour in self._silent})
            names = " and ".join(f"rank {rank}" for rank in ranks)
            raise RingError(f"{names} did not answer for {self._timeout:g} s: stopped or cut off", ranks[0])
        elif self._phase is _Phase.ASKING and self._busy is not None:
            self._wait_for_busy()
        elif self._phase is _Phase.ASKING:  # they have asked in turn, so the rank that finds the missing one reports it
            self._enter(_Phase.SEARCHING, _SEARCH_SECONDS)
        else:
            raise RingError(f"nothing moved for {self._timeout:g} s, although the neighbours answer")
