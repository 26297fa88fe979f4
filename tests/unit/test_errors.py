"""Errors point to headings that are there."""

from __future__ import annotations

import re

from tests.support.command import ROOT


def test_errors_name_headings_of_the_readme() -> None:
    headings = set(re.findall(r"^## (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE))
    sources = "".join(path.read_text() for path in (ROOT / "mnist_ray").rglob("*.py"))
    named = set(re.findall(r'see="([^"]*)"', sources))
    assert named
    assert named <= headings
