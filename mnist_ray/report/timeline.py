"""The run over time, attempt by attempt: its phases, epochs and checkpoints, who was at work, and how fast.

From `logs/events.jsonl` and `logs/progress.jsonl`. All places are in percent of an attempt's time, so that the drawing
fits any width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from mnist_ray.errors import counted
from mnist_ray.report.formatting import format_count, format_number, format_percent, format_seconds
from mnist_ray.runs.events import EventRecord, events_of
from mnist_ray.runs.history import Moment, history_of
from mnist_ray.runs.pace import duration
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import parse_lines

MOST_ATTEMPTS = 5
"""That are drawn, the newest."""
MOST_MARKS = 100
"""Of a kind in an attempt."""
MOST_WORDS = 200
"""Events that are listed, the newest."""
_MOST_STEPS = 100  # of the speed, in an attempt: with more, single units of work would show
_TWO_NAMES = 70  # percent of a phone's width that two names take
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 604800, 2592000)
_MARKS = ("epoch", "checkpoint", "lost", "restart")
_PHASES = {"start": "start", "shard": "shard", "train": "train", "score": "score", "done": "report"}

Event = dict[str, Any]


@dataclass(frozen=True)
class _Span:
    """A time, in seconds since 1970."""

    began: float
    ended: float

    def x(self, time: float) -> float:
        """The place of a moment, in percent."""
        seconds = (self.ended - self.began) or 1.0
        return round(100 * min(max((time - self.began) / seconds, 0), 1), 2)

    def bar(self, began: float, ended: float) -> tuple[float, float]:
        """(place, width) in percent."""
        return self.x(began), round(self.x(ended) - self.x(began), 2)

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def timeline(folder: Location) -> dict[str, Any] | None:
    """What the template draws of the run or the output in a folder. None where it keeps no events."""
    events = [
        {**each, "at": at} for each in _lines(events_of(folder), EventRecord) if (at := _seconds(each)) is not None
    ]
    moments = _lines(history_of(folder), Moment)
    starts = [number for number, each in enumerate(events) if each["event"] == "start"]
    if not starts:
        return None
    borders = [*(round(events[number]["at"], 1) for number in starts), math.inf]  # to a tenth, as moments are
    attempts = []
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
        mine = [each for each in moments if borders[number] <= each["time"] < borders[number + 1]]
        attempts.append(_attempt(events[start:stop], mine))
    return {
        "attempts": attempts[-MOST_ATTEMPTS:],
        "earlier": max(0, len(attempts) - MOST_ATTEMPTS),
        "words": _listed(events[-MOST_WORDS:]),
        "left_out": max(0, len(events) - MOST_WORDS),
    }


def _lines(file: Location, kind: type) -> list[dict[str, Any]]:
    return parse_lines(file.read_if_there() or b"", kind)


def _seconds(event: Event) -> float | None:
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except ValueError:
        return None


def _listed(events: Sequence[Event]) -> list[tuple[str, str]]:
    """(time, event) for people, with the date where there are several."""
    times = [datetime.fromtimestamp(each["at"], UTC) for each in events]
    form = "%H:%M:%S" if len({time.date() for time in times}) == 1 else "%Y-%m-%d %H:%M:%S"
    return [(time.strftime(form), _words(each)) for time, each in zip(times, events, strict=True)]


def _attempt(events: list[Event], moments: list[dict[str, Any]]) -> dict[str, Any]:
    last = events[-1]
    times = [each["at"] for each in events] + [each["time"] for each in moments]
    times += [each["at"] - (each.get("seconds") or 0) for each in events if each["event"] == "ray"]
    span = _Span(min(times), max(times))
    phases = list(_phases(events, span))
    marks = {name: [each for each in events if each["event"] == name] for name in _MARKS}
    return {
        "began": datetime.fromtimestamp(span.began, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": span.seconds,
        "end": _end(last),
        "phases": [(name, *span.bar(began, ended), format_seconds(ended - began)) for name, began, ended in phases],
        "marks": {
            name: [(span.x(each["at"]), _words(each)) for each in _some(held)] for name, held in marks.items()
        },
        "crew": [(*span.bar(began, ended), words) for began, ended, words in _crew(events, phases)],
        "speeds": _speeds(moments, span, phases),
        "ticks": [(span.x(span.began + tick), duration(tick) if tick else "0") for tick in _ticks(span.seconds)],
        "summary": _summary(span, phases, {name: len(held) for name, held in marks.items()}),
    }  # fmt: skip


def _end(last: Event) -> str | None:
    """How an attempt ended; None where it ended well, or is this one."""
    if last["event"] != "end":
        return None
    code = last.get("exit_code") or 0
    return f"exit code {code}: {last.get('message')}" if code else None


Phase = tuple[str, float, float]
"""(name, when it began, when it ended)"""


def _phases(events: Sequence[Event], span: _Span) -> Iterator[Phase]:
    begun = [("start", span.began), *((each.get("phase"), each["at"]) for each in events if each["event"] == "phase")]
    for (phase, began), (following, ended) in pairwise([*begun, (None, span.ended)]):
        if phase in _PHASES and not (phase == following == "start"):
            yield _PHASES[phase], (span.began if phase == "start" else began), ended


def _crew(events: Sequence[Event], phases: Sequence[Phase]) -> Iterator[tuple[float, float, str]]:
    """Who was at work from when to when: train workers from when they are connected until one is lost, and scoring
    actors."""
    for name, began, ended in phases:
        if name == "train":
            kinds = ("workers", "lost", "restart")
            changes = [(each["at"], each.get("workers") or 0) for each in events if each["event"] in kinds]
        elif name == "score":
            changes = [(each["at"], each.get("actors") or 0) for each in events if each["event"] == "actors"]
        else:
            continue
        kind = "worker" if name == "train" else "actor"
        for (at, count), (until, _) in pairwise([*changes, (ended, 0)]):
            if count and until > began and at < ended:
                yield max(at, began), min(until, ended), counted(count, kind)


def _speeds(moments: Sequence[dict[str, Any]], span: _Span, phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """The images a second in training and in scoring: shapes of (place, height) in percent of the attempt and of the
    highest, and where that is named: of two phases too close for two names, of the longer one."""
    speeds = [_speed(moments, span, phase) for phase in phases if phase[0] in ("train", "score")]
    drawn = sorted((each for each in speeds if each["shapes"]), key=lambda each: float(each["x"]))
    if len(drawn) > 1 and drawn[-1]["end"] - drawn[0]["x"] < _TWO_NAMES:
        min(drawn, key=lambda each: float(each["end"] - each["x"]))["words"] = ""
    return drawn


def _speed(moments: Sequence[dict[str, Any]], span: _Span, phase: Phase) -> dict[str, Any]:
    steps = list(_steps(moments, phase, span.seconds / _MOST_STEPS))
    highest = max((rate for _, _, rate in steps), default=0.0)
    shapes: list[list[tuple[float, float]]] = []
    last: float | None = None
    for began, ended, rate in steps:
        if began != last:
            shapes.append([(span.x(began), 100.0)])
        height = round(100 - 100 * rate / (highest or 1), 1)
        shapes[-1] += [(span.x(began), height), (span.x(ended), height)]
        last = ended
    shapes = [[*shape, (shape[-1][0], 100.0)] for shape in shapes]
    x, end = (shapes[0][0][0], shapes[-1][-1][0]) if shapes else (0.0, 0.0)
    return {"phase": phase[0], "x": x, "end": end, "shapes": shapes, "words": f"up to {highest:,.0f} images/s"}


def _steps(moments: Sequence[dict[str, Any]], phase: Phase, shortest: float) -> Iterator[tuple[float, float, float]]:
    """(from when, to when, images a second). Another process begins to count at 0, and there the steps break off."""
    name, began, ended = phase
    before: dict[str, Any] | None = None
    for each in moments:
        if each["phase"] != name or not began - 1 <= each["time"] <= ended + 1:
            continue
        if before is None or each["images"] < before["images"]:
            before = each
        elif (seconds := each["time"] - before["time"]) >= max(shortest, 0.1):
            yield before["time"], each["time"], (each["images"] - before["images"]) / seconds
            before = each


def _some(held: Sequence[Any]) -> Sequence[Any]:
    return held[:: -(-len(held) // MOST_MARKS) or 1]


def _ticks(seconds: float) -> Iterator[int]:
    step = next((each for each in _TICKS if seconds / each <= 5), _TICKS[-1] * max(1, int(seconds / _TICKS[-1] / 5)))
    yield from range(0, int(seconds) + 1, step)


def _summary(span: _Span, phases: Sequence[Phase], counts: dict[str, int]) -> str:
    parts = [f"{name} {format_seconds(ended - began)}" for name, began, ended in phases]
    names = {"lost": ("loss", "losses")}
    parts += [f"{count:,} {names.get(name, (name, f'{name}s'))[count > 1]}" for name, count in counts.items() if count]
    return f"{format_seconds(span.seconds)} in all: {', '.join(parts)}"


def _words(event: Event) -> str:
    """An event for people."""
    match event["event"]:
        case "start":
            return f"start of mnist_ray {event.get('version')} on {event.get('host')}"
        case "ray":
            nodes = event.get("nodes") or 1
            where = f"{counted(event['cpus'], 'CPU')} on {counted(nodes, 'node')}" if event.get("cpus") else ""
            return f"Ray is connected ({event.get('address')}): {where}"
        case "phase":
            return {"done": "all is computed"}.get(event.get("phase") or "", f"{event.get('phase')} begins")
        case "workers":
            return f"{format_count(event.get('workers'))} train workers are connected"
        case "epoch":
            figures = f"loss {format_number(event.get('loss'))}, accuracy {format_percent(event.get('accuracy'))}"
            return f"epoch {event.get('epoch')}: {figures}"
        case "checkpoint":
            return f"checkpoint in epoch {(event.get('epochs') or 0) + 1}, after step {format_count(event.get('step'))}"
        case "lost":
            return f"a train worker was lost: {event.get('message')}"
        case "restart":
            return f"restart {event.get('restarts')}: training goes on after epoch {event.get('epochs')}"
        case "actors":
            return f"{format_count(event.get('actors'))} scoring actors"
        case "end":
            return _end(event) or "end"
        case other:
            return str(other)
