"""What a page shows of an output, compared with what was printed."""

from __future__ import annotations

import re


def assert_shown(shown: str, printed: str) -> None:
    """Each line that is shown was printed, in this order; numbers, spaces and the folder before storage/ may differ."""
    lines = [_shape(line) for line in printed.splitlines()]
    for line in (_shape(line) for line in shown.splitlines() if line.strip() not in ("", "...")):
        assert line in lines, (line, printed)
        lines = lines[lines.index(line) + 1 :]


def _shape(line: str) -> str:
    bare = re.sub(r"/\S*/(?=storage/)", "", line)
    return " ".join(re.sub(r"-?\d[\d,]*(\.\d+)?", "0", bare).split())
