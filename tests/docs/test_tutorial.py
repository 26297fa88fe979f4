"""docs/tutorial.md and its pictures are what their code gives, with the run of MNIST that this session makes anyway.

What comes before the first computed number is compared exactly, and the nine images by their pixels. From there on,
numbers may differ by TOLERANCE, or by that share of themselves, as another CPU adds up in another order. Of what
depends on the machine, such as seconds, only the words are compared.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.docs.tour import IMAGES, PAGE, PICTURES, tidied, walk

COMPUTED = "## 4. Ask the untrained model"
TOLERANCE = 0.005
TOLERANCE_OF_SVG = 0.02
"""Of 166 units, three; a bar of 140 units is a probability of 1."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_OF_THE_MACHINE = re.compile(r"\d[\d,.]*(?= s\b| images/s| tasks| CPUs)")


def differences(shown: str, made: str, tolerance: float) -> list[tuple[str, str]]:
    """The lines that differ in their words, or in a number by more than the tolerance."""
    pairs = [*zip(shown.splitlines(), made.splitlines(), strict=False)]
    found = [(one, other) for one, other in pairs if not _agree(one, other, tolerance)]
    if shown.count("\n") != made.count("\n"):
        found.append((f"{shown.count(chr(10))} lines", f"{made.count(chr(10))} lines"))
    return found


def _agree(one: str, other: str, tolerance: float) -> bool:
    if not tolerance:
        return one == other
    words, numbers = zip(*(_taken_apart(_OF_THE_MACHINE.sub("n", line)) for line in (one, other)), strict=True)
    return words[0] == words[1] and all(abs(a - b) <= tolerance * max(1, abs(a)) for a, b in zip(*numbers, strict=True))


def _taken_apart(line: str) -> tuple[str, list[float]]:
    """A line without its numbers, and the numbers."""
    return " ".join(_NUMBER.sub("0", line).split()), [float(each.replace(",", "")) for each in _NUMBER.findall(line)]


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("loss 0.0769  9,774 of 10,000", "loss 0.0800  9,800 of 10,000", True),
        ("loss 0.0769", "loss 0.0869", False),
        ("9,774 of 10,000", "9,700 of 10,000", False),
        ("loss 0.0769", "accuracy 0.0769", False),
        ("loss 0.0769", "loss 0.0769 0.1", False),
        ("0.9 in 6.2 s (17,475 images/s)", "0.9 in 60 s (5 images/s)", True),
        ("0.172 -0.3", "0.172 0.3", False),
    ],
)
def test_what_counts_as_the_same(one: str, other: str, agree: bool) -> None:
    assert _agree(one, other, TOLERANCE) is agree
    assert _agree(one, one, 0)
    assert not _agree(one, other, 0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.timeout(500)
def test_the_page_and_its_pictures_are_what_its_code_gives(local_run: tuple[Path, str], tmp_path: Path) -> None:
    run, story = local_run
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mnist").symlink_to(run)
    commands: list[str] = []
    names: dict[str, Any] = {}

    def printed_by(command: str) -> str:
        commands.append(command)
        return tidied(story, run.parent)

    tolerance = 0.0
    for shown, made in walk(PAGE.text, tmp_path, printed_by, names):
        tolerance = TOLERANCE if COMPUTED in shown else tolerance
        assert differences(shown, made, tolerance) == [], "`make tour` writes the page again"
    assert commands == ["mnist-ray run"]
    assert 0.97 < names["result"].accuracy < 0.985

    assert {f"images/{name}" for name in PICTURES} == set(re.findall(r"!\[.+\]\((.+?)\)", PAGE.text))
    for name, make in PICTURES.items():
        kept, again = (IMAGES / name).read_bytes(), make(names)
        if name.endswith(".png"):
            np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (kept, again)))
        else:
            assert differences(kept.decode(), again.decode(), TOLERANCE_OF_SVG) == []
