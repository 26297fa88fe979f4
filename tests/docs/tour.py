"""`make tour` writes the outputs and the pictures of docs/tutorial.md: it runs what the page says, in its order.

The page itself is the source. A `console` block is what the Python block above it has printed, or those lines of the
last command that a comment `<!-- from … to … -->` names. Everything else is text.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT, Page
from tests.docs.pictures import bars, curves, nine

PAGE = Page(ROOT / "docs" / "tutorial.md")
IMAGES = ROOT / "docs" / "images"

PICTURES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "tutorial-nine.png": lambda names: nine(names["train"].images[:9]),
    "tutorial-untrained.svg": lambda names: bars(names["untrained"], right=7, of="the untrained model"),
    "tutorial-epochs.svg": lambda names: curves(names["result"].epochs, names["result"].after),
    "tutorial-trained.svg": lambda names: bars(names["probabilities"][0], right=7, of="the trained model"),
}
"""Each picture of the page, made of the names that its Python has defined."""

_BLOCK = re.compile(
    r"(?:<!-- from (?P<first>.+) to (?P<last>.+) -->\n)?^```(?P<info>.*)\n(?P<text>[\s\S]*?)^```$", re.M
)
_IN_BETWEEN = re.compile(r".* \.\.\.( \(.*\))?|(sharding|epoch \d+/\d+|scoring)  [\d,]+/[\d,]+  .*")
"""What is printed only where a step takes long."""


def walk(page: str, folder: Path, run: Callable[[str], str], names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Run the page's blocks in a folder. Yields, of each piece of the page, (as it is, as it should be).

    run: gives what a command prints. names: are filled with what the Python of the page defines.
    """
    place, printed, story = 0, "", ""
    for block in _BLOCK.finditer(page):
        yield page[place : block.start()], page[place : block.start()]
        place, text = block.end(), block["text"]
        if block["info"] == "python":
            printed = _python(text, folder, names)
        elif not block["info"]:
            story = run(text.strip())
        else:
            text = _lines(story, block["first"], block["last"]) if block["first"] else printed
        yield block[0], page[block.start() : block.start("text")] + text + page[block.end("text") : block.end()]
    yield page[place:], page[place:]


def _python(code: str, folder: Path, names: dict[str, Any]) -> str:
    """What the code prints; lines without anything at their end, paths without the folder."""
    with chdir(folder), redirect_stdout(io.StringIO()) as out:
        exec(compile(code, PAGE.file.name, "exec"), names)
    return tidied(out.getvalue(), folder)


def tidied(printed: str, folder: Path) -> str:
    lines = [line.rstrip() for line in printed.replace(f"{folder}/", "").splitlines()]
    return "".join(f"{line}\n" for line in lines if not _IN_BETWEEN.fullmatch(line))


def _lines(story: str, first: str, last: str) -> str:
    """From the line that begins with `first` to the one that begins with `last`."""
    lines = story.splitlines()
    begin, end = (next(n for n, line in enumerate(lines) if line.strip().startswith(word)) for word in (first, last))
    return "".join(f"{line}\n" for line in lines[begin : end + 1])


def main() -> None:
    """Run the page, a whole run included, and write it again."""
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()

        def run(command: str) -> str:
            words = [str(Path(sys.executable).parent / "mnist-ray"), *command.split()[1:]]
            env = {name: value for name, value in os.environ.items() if not name.startswith("MNIST_RAY_")}
            done = subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True)
            return tidied(done.stdout, folder)

        text = "".join(after for _, after in walk(PAGE.text, folder, run, names))
    PAGE.file.write_text(text)
    for name, make in PICTURES.items():
        (IMAGES / name).write_bytes(make(names))


if __name__ == "__main__":
    main()
