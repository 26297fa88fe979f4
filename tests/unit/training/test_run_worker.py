"""What Ray Train calls in a worker's process: what surrounds a training, without Ray and TensorFlow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError, LeaseLostError
from mnist_ray.storage import fence
from mnist_ray.storage.lease import Guard, Holder
from mnist_ray.storage.location import Location
from mnist_ray.training import worker


class Ring:
    """A rank of two; `other` is what rank 0 has where this one has its own."""

    def __init__(self, rank: int, other: np.ndarray | None = None) -> None:
        self.rank, self.size, self.other, self.is_closed = rank, 2, other, False

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        return array if self.other is None else self.other

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return array

    def close(self) -> None:
        self.is_closed = True


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ring: Ring, fit: Any, guard: Guard | None = None) -> Any:
    monkeypatch.setattr(worker.collective, "get_ring", lambda: ring)
    (tmp_path / "session").mkdir()
    monkeypatch.setattr(worker, "session_folder", lambda: tmp_path / "session")
    monkeypatch.setattr(worker, "fit", fit)
    return worker.run_worker({"job": SimpleNamespace(guard=guard, run=Location.parse(tmp_path / "run"))})


@pytest.mark.parametrize("error", [None, InputError("x"), RuntimeError("x"), KeyboardInterrupt()])
def test_the_temporary_folder_is_given_back_whatever_happens(
    error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/before")
    ring, inside = Ring(0), []

    def fit(job: Any, ring: Ring) -> None:
        inside.append(tempfile.gettempdir())
        if error is not None:
            raise error

    if error is None or isinstance(error, InputError):
        assert run(monkeypatch, tmp_path, ring, fit) is error
    else:
        with pytest.raises(type(error)):
            run(monkeypatch, tmp_path, ring, fit)
    assert tempfile.tempdir == "/before"
    assert Path(inside[0]).parent == tmp_path / "session"
    assert not list((tmp_path / "session").iterdir())
    assert ring.is_closed is (error is not None)
    log = tmp_path / "run" / "logs" / "workers" / "train-0.log"
    assert log.exists() is isinstance(error, RuntimeError)
    if log.exists():
        assert log.read_text().splitlines()[-1] == "RuntimeError: x"


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_writes_once_another_driver_holds_the_run(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own driver stands still, and cannot end it."""
    folder = Location.parse(tmp_path / "run")
    mine = Holder.new()
    (folder / ".lease").write_bytes(mine.to_bytes())
    guard = Guard(folder, mine.token)

    def fit(job: Any, ring: Ring) -> None:
        (folder / "checkpoint").write_bytes(b"of this driver")
        with fence.exempt():
            (folder / ".lease").write_bytes(Holder.new().to_bytes())
            (folder / "checkpoint").write_bytes(b"of the next")
        (folder / "checkpoint").write_bytes(b"late")

    with pytest.raises(LeaseLostError, match="another mnist-ray has taken over"):
        run(monkeypatch, tmp_path, Ring(rank), fit, guard)
    assert (folder / "checkpoint").read_bytes() == b"of the next"
    assert not (folder / "logs").exists()
    assert not fence._checks


def test_workers_that_end_with_other_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.array([1.0, np.nan, -0.0, 2.0])
    model = SimpleNamespace(trainable_variables=[weights[:2], weights[2:]])
    worker._require_same_weights(Ring(1, weights.copy()), model)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="2 weights differ between the workers after training"):
        worker._require_same_weights(Ring(1, np.array([1.0, np.nan, 0.0, 2.5])), model)  # type: ignore[arg-type]
