"""Daft as a peer of `tests.benchmarks.scoring`, where it is installed (`pip install daft`): it is large, and nothing
else here needs it.

As its guide to batch inference has it: a class holds the model, a method is given batches; read, predict, write.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

CORES, ROWS_AT_ONCE = 2, 4096


def is_there() -> bool:
    return importlib.util.find_spec("daft") is not None


def daft_rate(folder: Path, runner: str, turn: int, images: int) -> float:
    """Images/s from the first batch to the end. runner: native or ray."""
    name = f"daft-{runner}-{turn}"
    target = importlib.import_module("tests.benchmarks.daft_peer")._score
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder, runner, name))
    process.start()
    process.join()
    begun = min(float(file.read_text()) for file in (folder / f"begun-{name}").iterdir())
    return images / (float((folder / f"ended-{name}").read_text()) - begun)


def _score(folder: Path, runner: str, name: str) -> None:
    import daft

    (folder / f"begun-{name}").mkdir()
    if runner == "ray":
        import ray

        ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
        daft.set_runner_ray(noop_if_initialized=True)
    else:
        daft.set_runner_native()
    answer = daft.DataType.struct(
        {"prediction": daft.DataType.int64(), "probabilities": daft.DataType.list(daft.DataType.float32())}
    )

    @daft.cls(max_concurrency=CORES)
    class Predict:
        def __init__(self) -> None:
            from tests.benchmarks.scoring import _model

            self.forward = _model(folder)
            self.forward(np.zeros((ROWS_AT_ONCE, 28, 28), np.uint8))
            self.file = folder / f"begun-{name}" / str(os.getpid())

        @daft.method.batch(return_dtype=answer, batch_size=ROWS_AT_ONCE)
        def predict(self, images: Any) -> Any:
            import pyarrow as pa

            if not self.file.exists():
                self.file.write_text(str(time.time()))
            pixels = np.frombuffer(b"".join(images.to_pylist()), np.uint8).reshape(-1, 28, 28)
            chances = self.forward(pixels).numpy()
            ends = np.arange(0, chances.size + 1, chances.shape[1], dtype=np.int32)
            lists = pa.ListArray.from_arrays(ends, chances.reshape(-1))
            return pa.StructArray.from_arrays([pa.array(chances.argmax(1)), lists], ["prediction", "probabilities"])

    data = daft.read_parquet(str(folder / "images" / "*.parquet"))
    data = data.with_column("answer", Predict().predict(data["image"]))
    data.select("id", "label", "answer").write_parquet(str(folder / name))
    (folder / f"ended-{name}").write_text(str(time.time()))
