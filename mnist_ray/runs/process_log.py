"""`logs/workers/NAME.log` in the folder of a run or an output: what a worker's process printed, and its tracebacks.

Ray sends what a worker prints to files on its node, which are gone with the cluster. So each worker copies the end of
its own to storage while it works. A process that is killed has copied what it printed until seconds before.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mnist_ray.runs.log import DriverLog, heading
from mnist_ray.runs.progress import owner
from mnist_ray.storage.location import Location

MOST_BYTES = 100_000
"""Of one worker's log. The oldest lines go first."""

MOST_WORKERS = 32
"""That keep a log. The others write one only where they fail."""

_MARKS = (b":job_id:", b":actor_name:", b":task_name:")  # Ray's own, of whom the next lines are


def worker_log(folder: Location, name: str) -> Location:
    return folder / "logs" / "workers" / f"{name}.log"


def worker_logs(folder: Location) -> list[Location]:
    """Those that a folder keeps."""
    return [file for file in (folder / "logs" / "workers").list() if file.name.endswith(".log")]


class ProcessLog(DriverLog):
    """The log of this process, after those of the processes before it of the same name. It begins with the first line
    that there is."""

    def __init__(self, file: Location, *, most: int = MOST_BYTES, interval: float | None = None) -> None:
        self._title: str | None = heading("worker", owner())
        self._copying = threading.RLock()  # an actor's threads flush as well
        self._outputs = [path.open("rb") for path in dict.fromkeys(map(_file_behind, (1, 2))) if path]
        super().__init__(file, most=most, interval=interval)

    def failed(self) -> None:
        """Add the traceback of the error that is being handled, and write it now."""
        with self._copying:
            self._copy()
            self._add(traceback.format_exc().rstrip("\n"))
        super().flush()

    def flush(self) -> None:
        self._copy()
        super().flush()

    def close(self) -> None:
        super().close()
        for opened in self._outputs:
            opened.close()

    def _add(self, text: str) -> None:
        if self._title:
            self.add(self._title)
            self._title = None
        self.add(text)

    def _copy(self) -> None:
        """Take in what was printed since the last time."""
        with self._copying, suppress(OSError):
            for opened in self._outputs:
                lines = [line for line in _new_lines(opened, self._most) if not line.startswith(_MARKS)]
                if lines:
                    self._add(b"".join(lines).decode(errors="replace").rstrip("\n"))


def _file_behind(descriptor: int) -> Path | None:
    """The file that Ray sends a worker's output to; None where there is none, as with RAY_ROTATION_MAX_BYTES."""
    with suppress(OSError):  # no /proc
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.startswith("worker-") and path.is_file():
            return path
    return None


def _new_lines(opened: IO[bytes], most: int) -> list[bytes]:
    """The whole lines that are new, without the beginning of more bytes than are kept."""
    left = os.fstat(opened.fileno()).st_size - opened.tell()
    if left > most:
        opened.seek(left - most, os.SEEK_CUR)
    lines = opened.read(most).splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        opened.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines


@contextmanager
def logging_to(folder: Location, name: str, *, number: int) -> Iterator[None]:
    """Keep the log of this process for the time of the block, and the traceback of what is raised in it.

    number: of this worker among its equals.
    """
    log = ProcessLog(worker_log(folder, name)) if number < MOST_WORKERS else None
    try:
        yield
    except Exception:
        (log or ProcessLog(worker_log(folder, name))).failed()
        raise
    finally:
        if log:
            log.close()
