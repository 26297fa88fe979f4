"""The repository as a whole."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.command import ROOT


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is for each site to say, in its own configuration."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = ["pyth" + "onhosted", "py" + "pi", "npm" + "js", "deb" + "ian", "conda" + "-forge", "ana" + "conda"]
    pattern = rf"({'|'.join(names)})\.(org|com)"
    command = ["git", "grep", "-nIiE", "--untracked", pattern]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")
    assert re.search(pattern, "https://files." + names[0] + ".org/packages")
