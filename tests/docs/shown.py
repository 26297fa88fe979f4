"""What a page shows of an output, compared with what was printed."""

from __future__ import annotations

import re


def assert_shown(shown: str, printed: str) -> None:
    """Each line that is shown was printed, in this order; numbers, spaces and the folder before storage/ may differ.

    What a task of Ray's prints comes from another thread, and may stand in front of a line.
    """
    lines = [_shape(line) for line in printed.splitlines()]
    for line in (_shape(line) for line in shown.splitlines() if line.strip() not in ("", "...")):
        places = [number for number, each in enumerate(lines) if each.endswith(line)]
        assert places, (line, printed)
        lines = lines[places[0] + 1 :]


def _shape(line: str) -> str:
    bare = re.sub(r"/\S*/(?=storage/)", "", line)
    return " ".join(re.sub(r"-?\d[\d,]*(\.\d+)?", "0", bare).split())
