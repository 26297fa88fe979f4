"""Errors: their exit codes, and sections of the documentation that are there."""

from __future__ import annotations

import pickle
import re

import pytest

from mnist_ray.errors import (
    DivergedError,
    InputError,
    Interrupted,
    RetryableError,
    SetupError,
    TooManyBadImagesError,
    UserError,
    counted,
    first_line,
    outcome,
)  # fmt: skip
from tests.support.command import ROOT


def test_a_diverged_training_is_not_retryable() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("no number", see="runs.md#failures")))
    assert (str(error), error.see, error.exit_code) == ("no number", "runs.md#failures", 1)
    assert isinstance(error, UserError)
    assert not isinstance(error, RetryableError | InputError)


def test_what_the_environment_lacks_is_no_damaged_input_in_another_process_either() -> None:
    error = pickle.loads(pickle.dumps(SetupError("requires a token", see="clusters.md#tokens")))
    assert type(error) is SetupError
    assert not isinstance(error, ValueError | OSError)  # by which damage is known
    assert (str(error), error.see, error.exit_code) == ("requires a token", "clusters.md#tokens", 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one \n"), "one"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory"),
        (OSError("AWS Error ACCESS_DENIED"), "AWS Error ACCESS_DENIED"),
    ],
)
def test_the_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *#*$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_numbers_of_things() -> None:
    made = [counted(count, "image") for count in (0, 1, 2, 12_345)]
    assert made == ["0 images", "1 image", "2 images", "12,345 images"]
    assert [counted(count, "CPU") for count in (0.5, 1.0, 2.0)] == ["0.5 CPUs", "1 CPU", "2 CPUs"]


def test_anchors_are_those_of_github() -> None:
    assert anchors("# Workers and CPUs\n## `score`: what's new?\n```\n# comment\n```\n") == {
        "workers-and-cpus", "score-whats-new",
    }  # fmt: skip


def test_errors_name_sections_of_the_documentation() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "mnist_ray").rglob("*.py"))
    named = set(re.findall(r'\bsee(?:: str)? ?= ?"([^"]*)"', sources))
    assert len(named) > 3
    assert all(re.fullmatch(r"[a-z-]+\.md(#[a-z-]+)?", each) for each in named)
    if not (ROOT / "docs").is_dir():
        pytest.skip("docs/ does not exist yet")
    for page, _, anchor in (each.partition("#") for each in named):
        assert not anchor or anchor in anchors((ROOT / "docs" / page).read_text())
        assert (ROOT / "docs" / page).is_file()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TooManyBadImagesError("3 of 9"), 3, "3 of 9"),
        (Interrupted("SIGTERM"), 130, "SIGTERM"),
        (KeyError("x"), 1, "KeyError: 'x'"),
        (InputError("a\x1b[31m file\nof two lines"), 2, "a [31m file of two lines"),
    ],
)
def test_how_a_command_ends_is_one_line(error: BaseException, code: int, message: str) -> None:
    assert outcome(error) == (code, message)
