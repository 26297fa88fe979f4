"""Logs of a run or an output, made up: events and the history of its progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGAN = datetime(2026, 3, 2, 9, 14, 7, tzinfo=UTC).timestamp()

Told = tuple[float, str, dict[str, Any]]
"""(second, event or phase, its fields)"""


def write_events(folder: Path, events: Sequence[Told]) -> None:
    """Events at seconds after BEGAN."""
    lines = []
    for second, event, fields in events:
        time = datetime.fromtimestamp(BEGAN + second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines.append({"time": time, "event": event, **fields})
    _write(folder, "events.jsonl", lines)


def write_history(folder: Path, moments: Sequence[Told]) -> None:
    """Moments of the progress at seconds after BEGAN."""
    _write(folder, "progress.jsonl", [{"time": BEGAN + at, "phase": phase, **fields} for at, phase, fields in moments])


def _write(folder: Path, name: str, lines: Sequence[dict[str, Any]]) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / name).write_text("".join(f"{json.dumps(each)}\n" for each in lines))


def log_run(folder: Path) -> None:
    """A run of two attempts: the first loses a worker, then its head; the second ends it."""
    start = {"version": "0.1.0", "host": "node-1", "pid": 7, "job": None}
    ray = {"address": "auto", "cpus": 4.0, "nodes": 2, "seconds": 5.0}
    epochs = [(40, 1), (70, 2), (130, 3), (160, 4), (190, 5)]
    first: list[Told] = [
        (0, "start", start), (4, "ray", ray), (4, "actors", {"actors": 2}), (4, "phase", {"phase": "shard"}),
        (10, "phase", {"phase": "train"}), (20, "workers", {"workers": 3}),
        *((at, "epoch", {"epoch": epoch, "loss": 0.3 / epoch, "accuracy": 0.9}) for at, epoch in epochs[:2]),
        (80, "checkpoint", {"epochs": 2, "step": 320}), (92, "lost", {"message": "node 10.0.0.7 has ended (drained)"}),
        (99, "restart", {"restarts": 1, "epochs": 2}),
        (105, "workers", {"workers": 2}),
        *((at, "epoch", {"epoch": epoch, "loss": 0.3 / epoch, "accuracy": 0.9}) for at, epoch in epochs[2:4]),
        (179, "end", {"exit_code": 1, "message": "a node is gone"}),
    ]  # fmt: skip
    second: list[Told] = [
        (999, "start", start), (1_004, "ray", ray), (1_004, "phase", {"phase": "train"}),
        (1_020, "workers", {"workers": 3}), (1_050, "epoch", {"epoch": 5, "loss": 0.06, "accuracy": 0.98}),
        (1_060, "phase", {"phase": "score"}), (1_060, "actors", {"actors": 2}), (1_095, "phase", {"phase": "done"}),
        (1_099, "end", {"exit_code": 0}),
    ]  # fmt: skip
    write_events(folder, [*first, *second])
    write_history(folder, [
        *((at, "train", {"images": (at - 20) * 1_000}) for at in range(20, 100, 10)),
        *((at, "train", {"images": (at - 105) * 600}) for at in range(105, 180, 5)),
        *((at, "train", {"images": (at - 1_020) * 1_500}) for at in range(1_020, 1_060, 4)),
        (1_061, "score", {"images": 0}), (1_071, "score", {"images": 100_000}), (1_091, "score", {"images": 500_000}),
    ])  # fmt: skip
