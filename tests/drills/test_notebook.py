"""A run and a scoring in a real notebook: each line once, bars that become lines, the result at the end.

Needs the Python package index: a notebook's kernel is not among what is locked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import BIN, environment, metrics_of
from tests.support.data_makers import write_mnist

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

EXECUTE = """
import json, sys, nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])]
NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=400, kernel_name="python3", allow_errors=True).execute()
print(json.dumps([cell.outputs for cell in cells]))
"""

CELLS = [
    "import mnist_ray",
    "result = mnist_ray.run(data='little.npz', storage='.', name='run', epochs=2, num_workers=1, num_shards=2)",
    "result.accuracy",
    "mnist_ray.score('little.npz', model='run', output='scored')",
    "mnist_ray.run(epochs=0)",
]


def executed(folder: Path) -> list[list[dict[str, Any]]]:
    """What each cell shows, in a notebook of this folder."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    install = [BIN / "uv", "pip", "install", "--quiet", "--python", python, "nbclient", "ipykernel"]
    subprocess.run(install, env=environment(folder), check=True)
    (place,) = (folder / "venv").glob("lib/python*/site-packages")
    (place / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    write_mnist(folder / "little.npz", 2000, 500)
    command = [python, "-c", EXECUTE, json.dumps(CELLS)]
    done = subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def lines(shown: list[dict[str, Any]]) -> list[str]:
    """All lines of a cell, in their order; what is displayed as HTML is displayed as the same text, too."""
    found = []
    for each in shown:
        assert each.get("name") != "stderr", each
        text = each["text"] if each["output_type"] == "stream" else each["data"]["text/plain"]
        if each["output_type"] == "display_data":
            assert each["data"]["text/html"] == f'<pre style="margin: 0">{text}</pre>'
        found += text.splitlines()
    return found


def beginnings(shown: list[dict[str, Any]]) -> list[str]:
    """The first word of each line but those of waits, which depend on the machine."""
    return [words[0] for line in lines(shown) if (words := line.split()) and "..." not in line]


def test_what_the_cells_show(tmp_path: Path) -> None:
    imported, run, accuracy, scored, refused = executed(tmp_path)
    assert imported == []
    assert beginnings(run) == [
        "run", "x_train", "x_test", "local", "sharding", "untrained,", "logits", "probabilities", "before", "epoch",
        "epoch", "scoring", "before", "after", "train", "seconds", "metrics", "report", "model", "scores",
    ]  # fmt: skip
    epochs = r"epoch \d/2  loss \d\.\d{4}  accuracy \d\.\d{4}  [\d,]+ images/s"
    assert sum(re.fullmatch(epochs, line) is not None for line in lines(run)) == 2
    assert not re.search(r"[\r\x1b]", "\n".join(lines(run) + lines(scored)))
    metrics = metrics_of(tmp_path / "run")
    assert lines(accuracy) == [repr(metrics["after"]["accuracy"])]
    assert beginnings(scored) == [
        "local",
        "scoring",
        "after",
        "predictions",
        "report",
        f"ScoreResult(output='{tmp_path}/scored',",
    ]
    (error,) = refused
    assert (error["ename"], error["evalue"]) == ("InputError", "--epochs must be at least 1, not 0")
