"""Damaged inputs of all formats: each is read, or refused in one line, soon, in little memory, and writes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from mnist_ray.predictions.verify import verify
from mnist_ray.storage.location import Location
from tests.fuzz.cases import FORMATS, HOSTILE, MUTATORS, damaged, keras_file, kind_of, output
from tests.support.command import BIN, ROOT, environment
from tests.support.data_makers import write_parquet
from tests.support.drilling import Drill
from tests.support.model_maker import make_model

CASES = 700

SECONDS = 5.0


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.drill)])
def test_damaged_inputs_are_read_or_refused(step: int, tmp_path: Path) -> None:
    """step: some of every format (it must not divide the number of formats), or all. In one process, which may not grow
    by more than a gigabyte."""
    command = [sys.executable, "-m", "tests.fuzz.cases", str(tmp_path), "0", str(step), str(CASES)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=230, check=False
    )
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    cases = [each for each in told if "kind" in each]
    wrong = [
        each for each in cases
        if each["kind"] == "ERROR" or each["wrote"] or each["seconds"] > SECONDS or "\n" in each["said"].strip()
    ]  # fmt: skip
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert len(cases) == -(-CASES // step)
    assert {each["format"] for each in cases} == {each.__name__ for each in FORMATS}
    kinds = Counter(each["kind"] for each in cases)
    print(
        f"\n  {dict(kinds)}, slowest {max(each['seconds'] for each in cases):.2f} s, peak {told[-1]['peak'] >> 20} MB"
    )
    assert kinds["refused"] > len(cases) / 4  # the damage is some
    assert kinds["read"] > len(cases) / 20  # and not every one is fatal


# The same by the command line.

MOST_SECONDS = 60.0

MOST_BYTES = 500 << 20  # of the driver

MOST_ACTOR_BYTES = 1000 << 20


def sample() -> list[int]:
    """Two cases of every format, with the damages in turn."""
    pairs: dict[Any, int] = {}
    for number in range(CASES):
        pairs.setdefault(kind_of(number, random.Random(number)), number)
    damages = list(dict.fromkeys(MUTATORS))
    wanted = [(make, damages[(place + more) % len(damages)]) for place, make in enumerate(FORMATS) for more in (0, 4)]
    return [pairs[pair] for pair in wanted if pair in pairs]


def test_the_sample_has_every_format_and_every_damage() -> None:
    made, mutated = zip(*(kind_of(number, random.Random(number)) for number in sample()), strict=True)
    assert 30 <= len(made) <= 2 * len(FORMATS)
    assert set(made) == set(FORMATS)
    assert set(mutated) == set(MUTATORS)


class Scored(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    peak: int
    actor_peak: int


class Cluster:
    """A Ray that one command after the other joins, and a model for images of 4 x 4."""

    def __init__(self, folder: Path) -> None:
        self.model, self.drill = make_model(4, 3, folder / "model"), Drill(folder)
        self._cluster = self.drill.cluster()

    def score(self, folder: Path, *args: str) -> Scored:
        """`mnist-ray score ARGS` in a folder, watched."""
        began, actor_peak = time.monotonic(), 0
        with (folder.parent / "out").open("w+") as out, (folder.parent / "err").open("w+") as err:
            driver = subprocess.Popen(
                [str(BIN / "mnist-ray"), "score", *args], cwd=folder, stdout=out, stderr=err,
                env=environment(folder.parent, **self._cluster.joined),
            )  # fmt: skip
            while not (ended := os.wait4(driver.pid, os.WNOHANG))[0]:
                if time.monotonic() - began > 2 * MOST_SECONDS:
                    driver.kill()
                actor_peak = max(actor_peak, *map(peak_of, self._cluster.head.processes("ray::ScoringActor")), 0)
                time.sleep(0.1)
            driver.returncode = os.waitstatus_to_exitcode(ended[1])
            said = [(file.seek(0), file.read())[1] for file in (out, err)]
        return Scored(driver.returncode, *said, time.monotonic() - began, ended[2].ru_maxrss << 10, actor_peak)


def peak_of(pid: int) -> int:
    """Bytes that a process has held at the most."""
    with suppress(OSError):
        if told := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(told[1]) << 10
    return 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.drill.remove()


@pytest.mark.drill
@pytest.mark.parametrize("which", [*sample(), *(each.__name__ for each in HOSTILE)])
def test_the_command_line_given_damaged_inputs(which: int | str, cluster: Cluster, tmp_path: Path) -> None:
    """An output that is whole, or one line and nothing that looks whole."""
    folder = tmp_path / "case"
    if isinstance(which, int):
        make, mutate, spec, victim = damaged(which, folder)
        of = f"{make.__name__}, {mutate.__name__} of {victim.name}"
    else:
        make, of = next(each for each in HOSTILE if each.__name__ == which), which
        folder.mkdir()
        spec = make(folder)
    data, model, into = spec, str(cluster.model), folder / "scored"
    if make in (keras_file, output):
        data = str(write_parquet(folder / "good.parquet"))
        model, into = (spec, into) if make is keras_file else (model, Path(spec))
    before = files(folder)
    # Where any number of images may be bad, it mostly ends in an output.
    most = "0.01" if isinstance(which, int) and which % 3 == 0 else "1"
    done = cluster.score(folder, data, "--model", model, "--output", str(into), "--max-bad", most)
    print(f"\n  {of}: {done.code} in {done.seconds:.1f} s, {done.peak >> 20} MB, actor {done.actor_peak >> 20} MB"
          f" {done.err.strip()}")  # fmt: skip
    assert done.code in (0, 2, 3), done
    assert "Traceback" not in done.out + done.err
    assert done.seconds < MOST_SECONDS
    assert done.peak < MOST_BYTES
    assert done.actor_peak < MOST_ACTOR_BYTES
    after = files(folder)
    if into.samefile(spec) if into.exists() else False:  # somebody else's
        assert (done.code, {name: after[name] for name in before}) == (2, before)
        return
    assert {name: data for name, data in after.items() if not name.is_relative_to(into)} == before
    assert not [name for name in after if name.name.startswith(".") and name.name != ".lock"]
    if done.code == 0:
        assert done.err == ""
        verified = verify(Location.parse(into))
        assert verified.images == verified.scored + verified.quarantined
        return
    (line,) = done.err.splitlines()
    assert line.startswith("mnist-ray: ")
    assert str(folder) in line
    assert not (into / "_manifest.json").exists()
    for part in into.rglob("*.parquet"):
        pq.read_table(part)


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()}
