"""Every link and anchor of the documentation leads somewhere, also those in the error messages."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import FILES, NAMES, README, ROOT, Page

PAGES = {file: Page(file) for file in FILES}

FROM_THE_CODE = (
    "clusters.md#ways-to-start", "runs.md", "runs.md#workers-and-cpus", "runs.md#failures", "storage.md",
    "predictions.md#quarantine",
)  # fmt: skip
"""What errors point to."""


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(file: object) -> None:
    page, broken = PAGES[file], []
    for link in page.links:
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.file.parent / path).resolve() if path else page.file
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in PAGES.get(target, Page(target)).anchors):
            broken.append(link)
    assert not broken


def test_anchors_are_those_of_github() -> None:
    page = Page(README)
    page.__dict__["text"] = (
        "# A `--flag`, and more!\n## Twice\n## Twice\n```\n# not a heading\n```\n### [Link](x.md) é_1\n"
    )
    assert page.anchors == {"a---flag-and-more", "twice", "twice-1", "link-é_1"}


@pytest.mark.parametrize("target", FROM_THE_CODE)
def test_what_errors_point_to_is_there(target: str) -> None:
    path, _, anchor = target.partition("#")
    page = PAGES[ROOT / "docs" / path]
    assert not anchor or anchor in page.anchors


def test_every_reference_in_the_code_leads_to_a_page_and_a_heading() -> None:
    broken = []
    for file in (ROOT / "mnist_ray").rglob("*.py"):
        for see in re.findall(r'\bsee="([^"]*)"', file.read_text()):
            path, _, anchor = see.removeprefix("docs/").partition("#")
            page = PAGES.get(ROOT / "docs" / path)
            if page is None or (anchor and anchor not in page.anchors):
                broken.append((str(file.relative_to(ROOT)), see))
    assert not broken


def test_every_page_is_reached_from_the_readme_or_the_index() -> None:
    linked = {(page.file.parent / link.split("#")[0]).resolve() for page in PAGES.values() for link in page.links}
    entries = (README, ROOT / "docs" / "index.md")
    assert [file for file in FILES if file not in linked and file not in entries] == []
