"""The pages of the documentation, and what can be checked in them: headings, links, commands, samples."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FILES = (README, ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NAMES = tuple(str(file.relative_to(ROOT)) for file in FILES)

_FENCE = re.compile(r"^```(.*)\n([\s\S]*?)^```$", re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"([A-Z_]+=\S* )*(make|mnist-ray|python|bash|source|ray|eval) ?")
_FOREIGN = re.compile(r"([A-Z_]+=\S* )*(ray|docker|kubectl|mkdocs|pytest|pip) ")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the text after its first fence, and its lines."""

    info: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.info.split(" ")[0] == "python"


@dataclass(frozen=True)
class Page:
    file: Path

    @cached_property
    def text(self) -> str:
        return self.file.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        return [Block(info, text) for info, text in _FENCE.findall(self.text)]

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return _FENCE.sub("", self.text)

    def section(self, heading: str) -> Page:
        """From a heading to the next of its level or above, as a page of its own."""
        marks, start = next((m[1], m.start()) for m in _HEADING.finditer(self.text) if m[2] == heading)
        ends = [m.start() for m in _HEADING.finditer(self.text, start + 1) if len(m[1]) <= len(marks)]
        part = Page(self.file)
        part.__dict__["text"] = self.text[start : ends[0] if ends else None]
        return part

    @cached_property
    def anchors(self) -> set[str]:
        """GitHub's of the headings: lower case, punctuation dropped, spaces to dashes, repeats numbered."""
        seen, anchors = Counter[str](), set()
        for _, heading in _HEADING.findall(self.prose):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
            seen[anchor] += 1
        return anchors

    @cached_property
    def links(self) -> list[str]:
        return _LINK.findall(_CODE.sub("", self.prose))

    @cached_property
    def code(self) -> list[str]:
        """What stands between single backticks."""
        return _CODE.findall(self.prose)

    @cached_property
    def commands(self) -> list[str]:
        """The lines of plain blocks that begin with a command; other blocks have a word after the fence."""
        lines = [line for block in self.blocks if not block.info for line in block.text.splitlines()]
        return [line for line in lines if _COMMAND.match(line)]

    @cached_property
    def options(self) -> set[str]:
        """Those of mnist-ray that stand between backticks, alone or with a command of ours."""
        ours = [code for code in self.code if not _FOREIGN.match(code)]
        return {option for code in ours for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
