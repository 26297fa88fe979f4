"""A worker that is lost while the group of workers starts is a failure like any other: counted, and soon over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cluster.ray_train_private import data_parallel_trainer
from mnist_ray.collective import RingBackend, RingConfig, get_ring

pytestmark = [pytest.mark.ray, pytest.mark.drill]  # a training that never starts keeps CPUs of the shared Ray


class LosingConfig(RingConfig):
    """Loses rank 1 at some stage of each of the first starts."""

    def __init__(self, marks: Path, stage: str, times: int) -> None:
        super().__init__(timeout=60)
        self.marks, self.stage, self.times = marks, stage, times

    @property
    def backend_cls(self) -> type[RingBackend]:
        return LosingBackend


class LosingBackend(RingBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        start = len(list(backend_config.marks.iterdir()))
        (backend_config.marks / str(start)).touch()
        if start >= backend_config.times:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute_single_async(1, lose, 0.0 if backend_config.stage == "before" else 0.3)
        if backend_config.stage == "before":
            time.sleep(1)
        super().on_start(worker_group, backend_config)


def lose(seconds: float) -> None:
    """This process ends after so many seconds; the ring is being formed, or has just been."""
    from threading import Timer

    Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


def add_up(config: dict[str, Any]) -> float:
    import numpy as np

    ring = get_ring()
    time.sleep(1)
    return float(ring.all_reduce(np.ones(3))[0])


def fit(tmp_path: Path, stage: str, times: int, max_failures: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    (tmp_path / "marks").mkdir()
    scaling_config: Any = ScalingConfig
    trainer = data_parallel_trainer()(
        add_up,
        train_loop_config={},
        backend_config=LosingConfig(tmp_path / "marks", stage, times),
        scaling_config=scaling_config(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="starts", storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )
    return trainer.fit()


@pytest.mark.parametrize("stage", ["before", pytest.param("while", marks=pytest.mark.drill)])
def test_the_next_start_goes_on(ray_local: None, tmp_path: Path, stage: str) -> None:
    began = time.monotonic()
    assert fit(tmp_path, stage, times=1, max_failures=1).return_value == 2
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert time.monotonic() - began < 60


def test_it_counts(ray_local: None, tmp_path: Path) -> None:
    from ray.train import TrainingFailedError

    with pytest.raises(TrainingFailedError, match="rank 1"):
        fit(tmp_path, "before", times=9, max_failures=1)
    assert len(list((tmp_path / "marks").iterdir())) == 2
