"""How many bytes of images this process has read from its input, as they are stored: compressed ones count less.

Each format counts where the bytes come in; of arrays that are in memory, the rows that are taken.
"""

from __future__ import annotations

import threading

_lock, _read = threading.Lock(), 0


def count(num_bytes: int) -> None:
    """Count so many bytes more."""
    global _read
    with _lock:
        _read += num_bytes


def bytes_read() -> int:
    """Since the process began."""
    return _read
