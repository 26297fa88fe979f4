"""The digest of a user's module: what is another code, and what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mnist_ray.models.user_code import code_digest

MODEL = """
from own_layers import block
import own_package.inner

def classifier(image_shape, num_classes):
    return [block(), num_classes + 1]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules, which is the first that Python looks into."""
    (tmp_path / "own_package").mkdir()
    for name, text in {
        "own_classifier.py": MODEL,
        "own_layers.py": "def block():\n    return 1\n",
        "own_package/__init__.py": "SIZE = 3\n",
        "own_package/inner.py": "from . import deep\nfrom .deep import B\n",
        "own_package/deep.py": "B = 2\n",
        "own_notes.py": "A = 1\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("own_classifier.py", "+ 1", "+ 2"),
        ("own_layers.py", "return 1", "return 2"),
        ("own_package/__init__.py", "3", "4"),
        ("own_package/inner.py", "import B", "import B as C"),
        ("own_package/deep.py", "2", "3"),
    ],
)
def test_code_that_changes_a_result_changes_the_digest(file: str, old: str, new: str, home: Path) -> None:
    before = code_digest("own_classifier")
    (home / file).write_text((home / file).read_text().replace(old, new))
    assert code_digest("own_classifier") != before
    (home / file).write_text((home / file).read_text().replace(new, old))
    assert code_digest("own_classifier") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("own_classifier.py", "def", "# a comment\ndef"),
        ("own_classifier.py", "    return", '    """What it is."""\n    return'),
        ("own_classifier.py", "[block(), num_classes + 1]", "[\n        block(),\n        (num_classes+1),\n    ]"),
        ("own_notes.py", "1", "2"),  # which is not imported
    ],
)
def test_comments_docstrings_and_layout_do_not(file: str, old: str, new: str, home: Path) -> None:
    before = code_digest("own_classifier")
    (home / file).write_text((home / file).read_text().replace(old, new))
    assert code_digest("own_classifier") == before


def test_a_module_that_is_no_sound_python_has_a_digest(home: Path) -> None:
    (home / "own_layers.py").write_text("def block(:")
    assert code_digest("own_classifier")
    (home / "own_layers.py").write_bytes(b"\xff\0")
    assert code_digest("own_classifier")


def test_of_an_installed_package_only_its_own_modules_count() -> None:
    """Else every package that it imports would be read."""
    assert code_digest("cloup.constraints") == code_digest("cloup.constraints")
    assert code_digest("no_such_module") == ""
