"""Commands, options, files and messages that the documentation names are those of the code."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from mnist_ray.cli import cli
from tests.docs.pages import FILES, NAMES, README, ROOT, Page

DOCS = ROOT / "docs"
PAGES = {file: Page(file) for file in FILES}
every_page = pytest.mark.parametrize("page", PAGES.values(), ids=NAMES)

PYTHON_BLOCKS = {
    README: 1,
    DOCS / "data.md": 1,
    DOCS / "models.md": 1,
    DOCS / "data-parallel.md": 2,
    DOCS / "python.md": 6,
    DOCS / "tutorial.md": 9,
}
"""All of them are run: in test_tour.py, test_data_parallel.py, test_python.py or test_tutorial.py."""


def options_of(command: str) -> set[str]:
    params = [param for param in cli.commands[command].params if isinstance(param, click.Option)]
    return {name for param in params for name in [*param.opts, *param.secondary_opts] if name.startswith("--")}


EVERY_OPTION = {option for command in cli.commands for option in options_of(command)} | {"--help", "--version"}


def parsed(words: list[str]) -> click.Context:
    """The command's context, with its options read, but not run. Raises click's error where one does not exist."""
    context = cli.commands[words[0]].make_context(words[0], words[1:], parent=click.Context(cli))
    if words[0] == "submit" and not context.params["follow"]:
        parsed([*context.params["arguments"]])
    return context


@every_page
def test_every_command_of_ours_parses_and_every_target_of_make_exists(page: Page) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in page.commands:
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "mnist-ray" and words[1] != "--help":
            parsed(words[1:])
        elif words[0] == "make":
            assert set(words[1:]) <= {*targets}, line
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), line


@every_page
def test_every_command_option_and_file_between_backticks_exists(page: Page) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert page.options <= EVERY_OPTION
    for code in page.code:
        words = code.split()
        if words[0] == "mnist-ray" and words[1:] and words[1].isalpha() and words[1].islower():
            assert words[1] in cli.commands, code
            assert {word for word in words if word.startswith("--") and word != "--"} <= EVERY_OPTION, code
        elif words[0] == "make":
            assert all(word in targets for word in words[1:] if "=" not in word), code
        elif found := re.search(r"\btests\.[\w.]+", code):
            assert (ROOT / f"{found[0].replace('.', '/')}.py").exists() or (ROOT / found[0].replace(".", "/")).is_dir()
        elif re.match(r"(mnist_ray|tests|deploy|jobs|docs)/[\w/.-]*$", code):
            assert (ROOT / code).exists(), code


def test_the_commands_page_has_every_command_and_every_option() -> None:
    page = PAGES[DOCS / "cli.md"]
    assert {f"mnist-ray {name}" for name in cli.commands} == {
        " ".join(code.split()[:2])
        for code in page.section("Commands").text and _first_cells(page)
        if "mnist-ray" in code
    }
    both = page.section("Options of run, shard and train").options
    assert both == options_of("run") | options_of("shard") | options_of("train")
    assert page.section("Options of score").options == options_of("score")


def _first_cells(page: Page) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", page.text[: page.text.index("\n## ")], re.MULTILINE)


def test_the_environment_variables_are_options() -> None:
    known = {
        f"MNIST_RAY_{command.upper()}_{option[2:].replace('-', '_').upper()}"
        for command in cli.commands
        for option in options_of(command)
    }
    named = {name for page in PAGES.values() for name in re.findall(r"\bMNIST_RAY_[A-Z]+_[A-Z_]+(?==)", page.text)}
    assert named
    assert named <= known


def test_the_sample_of_a_config_file_is_read(tmp_path: Path) -> None:
    (block,) = [block for block in PAGES[DOCS / "cli.md"].blocks if block.info == "toml"]
    (tmp_path / "job.toml").write_text(block.text)
    run = parsed(["run", "--config", str(tmp_path / "job.toml")])
    assert (run.params["max_bad"], run.params["epochs"], run.params["batch_size"]) == (0.05, 3, 128)
    score = parsed(["score", "in", "--model", "m", "--output", "o", "--config", str(tmp_path / "job.toml")])
    assert (score.params["max_bad"], score.params["top_k"]) == (0.05, 3)


def test_every_python_block_is_one_that_a_test_runs() -> None:
    blocks = {file: [block for block in page.blocks if block.is_python] for file, page in PAGES.items()}
    assert {file: len(found) for file, found in blocks.items() if found} == PYTHON_BLOCKS
    assert blocks[README][0].text == blocks[DOCS / "models.md"][0].text  # which only test_tour.py runs


def test_the_readme_is_short_and_its_tree_exists() -> None:
    assert len(README.read_bytes()) <= 8_000
    tree = next(block for block in PAGES[README].section("The tree").blocks)
    lines = tree.text.splitlines()
    assert len(lines) <= 12
    for line in lines:
        for path in re.split(r",? +", line.split("  ")[0]):
            assert (ROOT / path).exists(), path


def test_the_figures_of_the_readme_are_on_the_results_page() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([^|]*\d[^|]*) \|", PAGES[README].section("Results").text, re.MULTILINE)
    assert len(rows) >= 4
    assert _numbers(" ".join(rows)) <= _numbers(PAGES[DOCS / "results.md"].text)


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_the_packages_of_the_architecture_page_are_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    table = PAGES[DOCS / "architecture.md"].section("The packages").text
    cells = [cell for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) if "collective" not in cell]
    shown = [name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)]
    for layer in map(set, (layer.split(" | ") for layer in reversed(layers))):
        assert {*shown[: len(layer)]} == layer
        del shown[: len(layer)]
    assert not shown


def _messages() -> str:
    """Every piece of text in the package but docstrings, one a line; what a message fills in is a NUL."""
    texts = []
    for file in (ROOT / "mnist_ray").rglob("*.py"):
        nodes = [*ast.walk(ast.parse(file.read_text()))]
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_message_of_the_errors_page_is_in_the_code() -> None:
    cells = re.findall(r"^\| (`[^|]+) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    phrases = [phrase for cell in cells for phrase in re.findall(r"`([^`]+)`", cell)]
    assert len(phrases) > 40
    messages = _messages()
    gone = []
    for phrase in phrases:
        pieces = re.split(r" ?(?:…|\bN\b|\bHOST:PORT\b) ?", phrase)
        pattern = r"[^\n]{0,80}".join(map(re.escape, pieces))
        if not re.search(pattern, messages):
            gone.append(phrase)
    assert not gone


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_what_the_code_imports(tmp_path: Path) -> None:
    for name in ("tensorflow", "keras", "ray", "numpy", "pyarrow"):
        (tmp_path / "shadow" / name).mkdir(parents=True)
        (tmp_path / "shadow" / name / "__init__.py").write_text("raise AssertionError('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={"PYTHONPATH": str(tmp_path / "shadow"), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        html = (tmp_path / "site" / f"{page.stem}.html").read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', html)
    reference = (tmp_path / "site" / "api.html").read_text()
    assert 'id="mnist_ray.collective' in reference
    assert (tmp_path / "site" / "source" / "mnist_ray" / "pipeline.py.txt").exists()
