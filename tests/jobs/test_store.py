"""The whole job in an object store, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from mnist_ray.cli import cli
from mnist_ray.errors import RetryableError
from mnist_ray.predictions import parts
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.storage.location import Location
from tests.support.command import environment, mnist_ray
from tests.support.output_maker import make_output
from tests.support.s3_server import ROOT, begun

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("here")]


@pytest.mark.drill
def test_the_command_replaces_an_output_in_the_store(stored_run: tuple[Location, str], tmp_path: Path) -> None:
    run, _ = stored_run
    output = Location.parse(f"{ROOT}/scored/out")
    make_output(str(output))
    command = ("score", f"{ROOT}/little.npz", "--model", str(run), "--output", str(output), "--overwrite")
    done = mnist_ray(*command, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    replaced = f"{output} holds another job's predictions; {ROOT}/scored/.out.new will replace it when it is complete"
    assert replaced in done.stdout
    assert verify(output).images == 500
    assert [place.name for place in output.parent.list()] == ["out"]


def all_files(folder: Location) -> list[str]:
    selected = folder.filesystem.get_file_info(pa.fs.FileSelector(folder.path, recursive=True))
    return sorted(info.path.removeprefix(f"{folder.path}/") for info in selected if info.is_file)


def test_a_run_lies_whole_in_the_store(stored_run: tuple[Location, str], client: Any) -> None:
    run, said = stored_run
    verified = verify(run)
    assert (verified.images, verified.scored, verified.quarantined) == (500, 500, 0)
    status = CliRunner().invoke(cli, ["status", str(run)])
    assert status.exit_code == 0
    assert status.output.startswith(f"{run}: finished. accuracy ")
    files = all_files(run)
    assert {"config.json", "metrics.json", "report.html", "model/classifier.keras", "shards/dataset.json"} <= {*files}
    events = [file.removeprefix("tensorboard/") for file in files if file.startswith("tensorboard/")]
    assert events == [f"{name}.tfevents" for name in ("test/epoch-000000", "test/epoch-000001", "train/epoch-000001")]
    assert {f"logs/{name}" for name in ("driver.log", "events.jsonl", "progress.jsonl")} <= {*files}
    hidden = [file for file in files if file.rsplit("/", 1)[-1].startswith(".") and not file.startswith("ray/")]
    assert hidden == [".lease"]
    assert (run / ".lease").read_json()["is_released"]
    for file in files:
        assert b"secret-of-a-test" not in (run / file).read_bytes(), file
    assert "secret-of-a-test" not in said
    assert begun(client, "runs/") == set()


def test_what_is_done_is_found_again_and_damage_is_not_taken_for_it(stored_run: tuple[Location, str]) -> None:
    run, _ = stored_run
    output = run / "predictions"
    plan = Plan.load(output)
    assert plan is not None
    assert [each.unit for each in parts.resume(output, plan)] == list(range(len(plan.units)))
    part = output / "part-00000.parquet"
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:-1])
        with pytest.raises(RetryableError, match=r"part-00000\.parquet has another sha256"):
            verify(run)
        assert [each.unit for each in parts.resume(output, plan)] == list(range(1, len(plan.units)))
    finally:
        part.write_bytes(whole)
    assert verify(run).scored == 500


def test_a_command_with_a_dead_store_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    done = mnist_ray("verify", f"{ROOT}/runs/mnist", env=environment(tmp_path), timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mnist-ray: cannot look at {ROOT}/runs/mnist/predictions: "), line
    assert "of-a-test" not in json.dumps(line)


def test_on_a_terminal_bars_move(stored_run: tuple[Location, str]) -> None:
    _, shown = stored_run
    assert "\x1b[" in shown
    assert "epoch 1/1" in shown
    assert "━" in shown
