"""The command line as a user meets it: exit code and the full output, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import called as call
from tests.support.command import one_line
from tests.support.output_maker import make_output


@pytest.mark.parametrize(
    "name", ["", "run", "shard", "train", "score", "report", "verify", "status", "submit", "doctor"]
)
def test_help_everywhere_without_heavy_imports(name: str) -> None:
    code = (
        "import sys; from mnist_ray.cli import cli\n"
        f"try: cli({[name, '--help'] if name else ['--help']!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'ray', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "2"], "No such option '--epoch'. (Did you mean one of: '--epochs', "),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--dropout", "1"], "--dropout must be less than 1, not 1.0"),
        (["--learning-rate", "nan"], "--learning-rate must be more than 0, not nan"),
        (["--learning-rate", "inf"], "--learning-rate must be finite, not inf"),
        (["--num-workers", "4:2"], "--num-workers needs 1 <= MIN <= MAX, not '4:2'"),
        (["--num-workers", "two"], "--num-workers must be N or MIN:MAX, not 'two'"),
        (["--name", "../up"], "--name must be letters, digits, '-', '_' and '.', not '../up'"),
        (["--precision", "float16"], "'float16' is not one of 'float64', 'float32', 'bfloat16'."),
        (["surplus"], "Got unexpected extra argument (surplus)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "run", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("mnist-ray: ")
    assert err.count("\n") == 1


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "rum")
    assert (code, err.count("\n")) == (2, 1)
    assert "No such command 'rum'" in err


def test_submit_takes_our_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "submit", "--", "rm", "-rf", "/")[::2] == (
        2, "mnist-ray: submit takes a command of mnist-ray after --, not 'rm'\n",
    )  # fmt: skip


def test_verify_tells_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_output(tmp_path / "out")
    code, out, err = call(capsys, "verify", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "18 images = 15 scored + 3 quarantined in 3 parts, each once" in out
    part = tmp_path / "out" / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for _ in ("changed", "missing"):
        code, out, err = call(capsys, "verify", tmp_path / "out")
        assert (code, out) == (1, "")
        assert part.name in one_line(err)
        part.unlink(missing_ok=True)
