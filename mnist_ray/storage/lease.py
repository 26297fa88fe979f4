"""A lease on a folder, for storage without locks: one process holds it, and only while it does may that process write.

The lease is a small file that its holder renews every few seconds. Nobody compares the clocks of two hosts: whoever
wants the lease watches the file, and takes it over once it has not changed for `TAKEOVER_SECONDS` of the watcher's own
clock. A holder that has not renewed for `DOUBTFUL_SECONDS` of its own clock (it was stopped, or the store was away)
renews before it writes another byte, and finds out there whether another process has taken over.

On S3, the lease is acquired and renewed by conditional writes (If-None-Match, If-Match), so of two processes only one
succeeds. Elsewhere it is written, and read again after a pause: a network filesystem without locks offers no more.

Other processes that write for the holder have a `Guard`: before each write, it compares the lease's token with theirs.
"""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from mnist_ray.errors import LeaseLostError, UserError
from mnist_ray.storage import fence
from mnist_ray.storage.disk import ChangedMeanwhileError
from mnist_ray.storage.location import Location, io_errors
from mnist_ray.storage.records import Count, Line, Rule, parse_record
from mnist_ray.storage.s3 import S3

RENEW_SECONDS = 4.0
DOUBTFUL_SECONDS = 12.0
TAKEOVER_SECONDS = 20.0
"""More than DOUBTFUL_SECONDS by the time that a write may take, and that two clocks may drift apart meanwhile."""

_WATCH_SECONDS = 1.0
_SETTLE_SECONDS = 2.0  # until all that acquire it at the same moment have written, where writes are unconditional


@dataclass(frozen=True)
class Holder:
    """The content of a lease's file."""

    token: Line
    """Random: of one process that acquired the lease, once."""
    count: Count
    """Of renewals: so each one changes the content."""
    is_released: bool
    host: Line
    process: Annotated[Line, Rule("must end in a process id", lambda text: text.rpartition("/")[2].isdecimal())]
    """Identifies the process on its host: boot, pid namespace and pid. Containers may share a host's name."""

    @classmethod
    def new(cls) -> Holder:
        return cls(secrets.token_hex(16), 0, False, platform.node(), _process(os.getpid()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """None where this is not the content of a lease: it may then be taken over like an old one."""
        try:
            return parse_record(data, cls, "the lease", "")
        except ValueError:
            return None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_dead(self) -> bool:
        """Whether it was a process that this one can see, and that no longer exists."""
        boot_and_namespace, _, pid = self.process.rpartition("/")
        here = _process(os.getpid()).rpartition("/")[0]
        return bool(here) and boot_and_namespace == here and not Path(f"/proc/{pid}").exists()

    def __str__(self) -> str:
        return f"process {self.process.rpartition('/')[2]} on {self.host}"


def _process(pid: int) -> str:
    """Empty before the last slash where the system does not tell: then nobody counts as dead."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{pid}"
    except OSError:
        return f"/{pid}"


class Lease:
    """A lease that this process holds. `acquire` makes one; `release` it in the end."""

    def __init__(self, file: _File, holder: Holder, renewed: float) -> None:
        self.holder, self._file, self._renewed = holder, file, renewed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.lost: LeaseLostError | None = None
        self._main_knows = False
        fence.add(self.check)
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError unless this process holds the lease now. Called before every write."""
        if self.lost is None and time.monotonic() - self._renewed > DOUBTFUL_SECONDS:
            with suppress(LeaseLostError):
                self.renew()
        if self.lost is not None:
            self._main_knows |= threading.current_thread() is threading.main_thread()
            raise self.lost

    def renew(self) -> None:
        """Raises LeaseLostError, or another UserError where the storage fails."""
        with self._lock:
            if self.lost is not None or self._stop.is_set():
                return
            began, renewed = time.monotonic(), replace(self.holder, count=self.holder.count + 1)
            try:
                self._file.write(renewed, over=self.holder.to_bytes())
            except ChangedMeanwhileError:
                self.lost = _lost(self._file.folder)
                raise self.lost from None
            self.holder, self._renewed = renewed, began

    def release(self) -> None:
        """Let the next process have the lease at once. Storage that fails meanwhile makes it wait instead."""
        self._stop.set()
        self._thread.join()
        fence.remove(self.check)
        with self._lock, suppress(UserError, ChangedMeanwhileError):
            if self.lost is None:
                self._file.write(replace(self.holder, is_released=True), over=self.holder.to_bytes())

    @property
    def guard(self) -> Guard:
        return Guard(self._file.folder, self.holder.token)

    def _keep_renewing(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with suppress(UserError):  # storage may work again at the next renewal
                self.renew()
            if self.lost is not None:
                if not self._main_knows:
                    _interrupt_main_thread()  # it may be waiting for workers that still write
                return


def _interrupt_main_thread() -> None:
    """As Ctrl-C does, which also ends a wait in C. Nothing happens where the process ignores Ctrl-C."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@dataclass(frozen=True)
class Guard:
    """What a process has that writes for the holder of a lease. A holder that stands still cannot stop it."""

    folder: Location
    token: str

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Let this process write while the lease is the holder's, and no longer."""
        with fence.checked_by(self.check):
            yield

    def check(self) -> None:
        """Raises LeaseLostError where the holder has lost the lease, UserError where that cannot be found out."""
        _, holder = _File(self.folder).read()
        if holder is None or holder.is_released or holder.token != self.token:
            raise _lost(self.folder)


def _lost(folder: Location) -> LeaseLostError:
    return LeaseLostError(
        f"another mnist-ray has taken over {folder}, as this one was not heard of for {TAKEOVER_SECONDS:g} s; this one"
        " has stopped writing",
        see="runs.md",
    )


class HeldError(Exception):
    """Another process holds the lease, and lives."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self.holder = holder


def acquire(folder: Location, *, wait_seconds: float, give_up: Callable[[], bool] = lambda: False) -> Lease:
    """The lease on a folder. Raises HeldError where its living holder does not release it within `wait_seconds`.

    give_up: asked about every second; True ends the waiting.
    """
    file = _File(folder)
    deadline = time.monotonic() + wait_seconds
    seen: bytes | None = None
    unchanged_since, is_alive = time.monotonic(), False
    while True:
        data, holder = file.read()
        now = time.monotonic()
        if data != seen:
            is_alive = seen is not None
            seen, unchanged_since = data, now
        if holder is None or holder.is_released or holder.is_dead or now - unchanged_since > TAKEOVER_SECONDS:
            mine = Holder.new()
            with suppress(ChangedMeanwhileError):  # another process was faster: watch that one
                file.write(mine, over=data)
                if file.confirm(mine):
                    return Lease(file, mine, now)
            continue
        if give_up() or (is_alive and now > deadline):
            raise HeldError(holder)
        time.sleep(_WATCH_SECONDS)


def age(folder: Location) -> float | None:
    """Seconds since a lease on S3 was renewed, by the store's own clock; infinite once it is released.

    None where there is no lease, or the storage is not S3. Raises UserError.
    """
    file = _File(folder)
    _, holder = file.read()
    return math.inf if holder and holder.is_released else file.age()


class _File:
    """Where a lease is written: conditionally on S3, elsewhere as well as can be."""

    def __init__(self, folder: Location) -> None:
        self.folder, self._location = folder, folder / ".lease"
        self._s3 = folder.filesystem if isinstance(folder.filesystem, S3) else None
        self._etag: str | None = None  # of what was read or written last

    def read(self) -> tuple[bytes, Holder | None]:
        """The content, b"" where there is no file, and the holder that it names. Raises UserError."""
        with io_errors(self._location, "read the lease"):
            if self._s3 is not None:
                data, self._etag = self._s3.read_with_etag(self._location.path)
            else:
                try:
                    data = self._location.read_bytes()
                except FileNotFoundError:
                    data = b""
        return data, Holder.from_bytes(data) if data else None

    def write(self, new: Holder, *, over: bytes) -> None:
        """Replace the content `over`. Raises ChangedMeanwhileError where the content is another, UserError."""
        data = new.to_bytes()
        if self._s3 is None:
            if self.read()[0] != over:
                raise ChangedMeanwhileError
            with fence.exempt():
                self._location.write_bytes(data)
            return
        with io_errors(self._location, "write the lease"):
            try:
                self._etag = self._s3.write_if_unchanged(self._location.path, data, self._etag)
            except ChangedMeanwhileError:
                # Where the answer to a write is lost, the client repeats it, and meets its own first success.
                if self.read()[0] != data:
                    raise

    def confirm(self, mine: Holder) -> bool:
        """Whether what was written has prevailed over what others wrote at the same moment."""
        if self._s3 is None or not self._refuses_to_create_it_again(mine):
            time.sleep(_SETTLE_SECONDS)
        return self.read()[0] == mine.to_bytes()  # on S3, too: some stores let two create it at the same moment

    def age(self) -> float | None:
        with io_errors(self._location, "read the lease"):
            return None if self._s3 is None else self._s3.age(self._location.path)

    def _refuses_to_create_it_again(self, mine: Holder) -> bool:
        """Whether this store heeds conditions at all. Some S3 stores ignore them."""
        assert self._s3 is not None
        with io_errors(self._location, "write the lease"):
            try:
                self._etag = self._s3.write_if_unchanged(self._location.path, mine.to_bytes(), None)
            except ChangedMeanwhileError:
                return True
        return False
