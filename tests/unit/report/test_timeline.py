"""The run over time, from the logs in its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.report.formatting import THIN_SPACE
from mnist_ray.report.timeline import MOST_ATTEMPTS, MOST_MARKS, MOST_WORDS, timeline
from mnist_ray.storage.location import Location
from tests.support.log_maker import log_run, write_events, write_history
from tests.support.report_maker import make_run, report


def drawn(folder: Path) -> dict[str, Any]:
    found = timeline(Location.parse(folder))
    assert found is not None
    return found


def test_each_attempt_has_its_phases_marks_crew_and_speeds(tmp_path: Path) -> None:
    log_run(tmp_path)
    first, second = drawn(tmp_path)["attempts"]
    assert (first["began"], first["seconds"]) == ("2026-03-02 09:14:06", 180), "Ray was up after 5 seconds, at second 4"
    assert first["end"] == "exit code 1: a node is gone"
    assert [each[:3] for each in first["phases"]] == [
        ("start", 0, 2.78), ("shard", 2.78, 3.33), ("train", 6.11, 93.89),
    ]  # fmt: skip
    assert [x for x, _ in first["marks"]["epoch"]] == [22.78, 39.44, 72.78, 89.44]
    assert first["marks"]["checkpoint"] == [(45.0, "checkpoint in epoch 3, after step 320")]
    assert first["marks"]["restart"] == [(55.56, "restart 1: training goes on after epoch 2")]
    assert first["marks"]["lost"] == [(51.67, "a train worker was lost: node 10.0.0.7 has ended (drained)")]
    assert first["crew"] == [(11.67, 40.0, "3 workers"), (58.89, 41.11, "2 workers")]
    assert [(each["phase"], each["words"]) for each in first["speeds"]] == [("train", "up to 1,000 images/s")]
    shapes = [({y for _, y in shape}, shape[0][0], shape[-1][0]) for shape in first["speeds"][0]["shapes"]]
    assert shapes == [({100, 0}, 11.67, 50.56), ({100, 40}, 58.89, 97.78)], "1,000 images a second, then 600"

    assert second["end"] is None
    assert [each[0] for each in second["phases"]] == ["start", "train", "score", "report"]
    assert [each[2] for each in second["crew"]] == ["3 workers", "2 actors"]
    assert [each["words"] for each in second["speeds"]] == ["up to 1,500 images/s", "up to 20,000 images/s"]
    (shape,) = second["speeds"][1]["shapes"]
    assert shape == [(62.0, 100.0), (62.0, 50.0), (72.0, 50.0), (72.0, 0.0), (92.0, 0.0), (92.0, 100.0)]
    assert [text for _, text in second["ticks"]] == ["0", "30 s", "1 min", "1 min 30 s"]


def test_a_moment_that_is_rounded_down_is_not_of_the_attempt_before(tmp_path: Path) -> None:
    write_events(tmp_path, [(0, "start", {}), (9, "end", {}), (99.04, "start", {}), (109.04, "end", {})])
    write_history(tmp_path, [(0, "start", {}), (99.0, "start", {}), (108, "score", {})])
    assert [round(each["seconds"], 2) for each in drawn(tmp_path)["attempts"]] == [9, 10.04]


def test_the_page_draws_it_and_says_it_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    log_run(run)
    page = report(run)
    images = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "timeline"]
    assert [str(each["aria-label"]).replace(THIN_SPACE, " ") for each in images] == [
        "3 min in all: start 5.0 s, shard 6.0 s, train 2 min 49 s, 4 epochs, 1 checkpoint, 1 loss, 1 restart",
        "1 min 40 s in all: start 5.0 s, train 56.0 s, score 35.0 s, report 4.0 s, 1 epoch",
    ]
    for words in (
        "2026-03-02 09:14:06 UTC, 3 min",
        "exit code 1: a node is gone",
        "A dashed line is the loss of a worker, or a restart.",
    ):
        assert words in page.text, words
    assert page.table("UTC", "Event")[:3] == [
        ["09:14:07", "start of mnist_ray 0.1.0 on node-1"],
        ["09:14:11", "Ray is connected (auto): 4 CPUs on 2 nodes"],
        ["09:14:11", "2 scoring actors"],
    ]
    places = [float(x) for x in re.findall(r' (?:x|x1|cx)="([\d.]+)%"', page.html)]
    assert places
    assert max(places) <= 100


def test_much_is_thinned(tmp_path: Path) -> None:
    epochs = [(second, "epoch", {"epoch": second}) for second in range(1, 1_501)]
    attempts = [(10_000 * number, "start", {}) for number in range(1, 8)]
    write_events(tmp_path, [(0, "start", {}), (0, "phase", {"phase": "train"}), *epochs, *attempts])
    write_history(tmp_path, [(second, "train", {"images": second % 7}) for second in range(1_500)])
    found = drawn(tmp_path)
    assert (len(found["attempts"]), found["earlier"]) == (MOST_ATTEMPTS, 8 - MOST_ATTEMPTS)
    assert (len(found["words"]), found["left_out"]) == (MOST_WORDS, 1_509 - MOST_WORDS)
    write_events(tmp_path, [(0, "start", {}), (0, "phase", {"phase": "train"}), *epochs])
    (only,) = drawn(tmp_path)["attempts"]
    assert 50 < len(only["marks"]["epoch"]) <= MOST_MARKS
    assert 10 < sum(map(len, only["speeds"][0]["shapes"])) <= 4 * 101


@pytest.mark.parametrize("content", [b"", b"null\n", b'{"time": "noon", "event": "start"}\n', b'{"event": "start"}\n'])
def test_logs_that_are_missing_or_damaged_are_left_out(tmp_path: Path, content: bytes) -> None:
    assert timeline(Location.parse(tmp_path)) is None
    log_run(tmp_path)
    events = tmp_path / "logs" / "events.jsonl"
    whole = len(drawn(tmp_path)["words"])
    events.write_bytes(content + events.read_bytes())
    assert len(drawn(tmp_path)["words"]) == whole
    events.write_bytes(content)
    assert timeline(Location.parse(tmp_path)) is None


def test_an_attempt_that_was_killed_ends_with_what_is_known(tmp_path: Path) -> None:
    write_events(tmp_path, [(0, "start", {}), (10, "phase", {"phase": "score"})])
    write_history(tmp_path, [(10, "score", {"images": 0}), (20, "score", {"images": 50})])
    (only,) = drawn(tmp_path)["attempts"]
    assert (only["seconds"], only["phases"][-1][0], only["end"]) == (20, "score", None)
