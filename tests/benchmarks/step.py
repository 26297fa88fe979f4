"""What a training step costs beside its own work: `python -m tests.benchmarks.step`.

Two plain processes of one core each over the ring, as the default job has them (global batch 64), and in the same
processes the same training without the ring, each on its own share: the floor. Round after round, since absolute times
drift, and since other work on the machine should meet both. Prints medians and ratios, and one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.collective.ring import Ring
from mnist_ray.models.anatomy import RAW
from mnist_ray.models.build import Recipe, build
from mnist_ray.models.runtime import import_keras
from tests.support.ring_processes import run_in_ring

ROUNDS = 7
BATCH_SIZE, WORLD, SHARDS = 64, 2, 48
STEPS = {"mlp": 896, "cnn": 64}
"""Of one measurement: about a second each, in whole blocks."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_in_ring("tests.benchmarks.step:measure", Path(folder), WORLD, timeout=900)
        show(json.loads((Path(folder) / "seconds.json").read_text()))


def show(seconds: dict[str, list[float]]) -> None:
    """Ratios are medians of the rounds' ratios: what disturbs a round disturbs both sides of it."""
    print(f"{WORLD} processes on {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), global batch {BATCH_SIZE}")
    for name, values in seconds.items():
        print(f"  {name:<42} {statistics.median(values) * 1e3:9.3f} ms")
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    ratios = {
        "mlp step / (floor + bare ring), at most 1.25": statistics.median(
            each["mlp step"] / (each["mlp floor"] + each["ring, the mlp's gradients"]) for each in rounds
        ),
        "cnn images/s of two independent, at least 0.95": statistics.median(
            each["cnn floor"] / each["cnn step"] for each in rounds
        ),
    }
    for name, value in ratios.items():
        print(f"  {name:<46} {value:5.2f} ×")
    print(json.dumps({"milliseconds": {k: statistics.median(v) * 1e3 for k, v in seconds.items()}, "ratios": ratios}))


def measure(ring: Ring, folder: Path) -> None:
    """In each of the processes; rank 0 writes seconds.json: {what: [seconds of a step, round by round]}."""
    import_keras(threads=1)
    dataset = share(ring)
    models = {
        (name, kind): compiled(name, ring if kind == "step" else None) for name in STEPS for kind in ("floor", "step")
    }
    gradients = np.zeros(models["mlp", "step"].count_params(), np.float32)
    seconds: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):
        taken = {f"{name} {kind}": epoch(model, dataset, STEPS[name], ring) for (name, kind), model in models.items()}
        ring.barrier()
        start = time.perf_counter()
        for _ in range(300):
            ring.all_reduce(gradients)
        taken["ring, the mlp's gradients"] = (time.perf_counter() - start) / 300
        both = np.array(list(taken.values()))
        ring.all_reduce(both)  # the two floors need not be alike
        if turn:  # the first compiles
            for name, value in zip(taken, both / ring.size, strict=True):
                seconds.setdefault(name, []).append(float(value))
    if ring.rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))


def share(ring: Ring) -> Any:
    """This rank's rows of the default job's batches, of an MNIST of noise."""
    from mnist_ray.training.batches import Batches
    from mnist_ray.training.order import Order

    order = Order((60_000 // SHARDS,) * SHARDS, BATCH_SIZE, 0)
    rows = int(order.batch_rows(ring.rank, WORLD).sum())
    random = np.random.default_rng(ring.rank)
    images, labels = random.integers(0, 256, (rows, 28, 28), np.uint8), random.integers(0, 10, rows)
    return Batches(images, labels, order, ring, RAW, lambda: 0).from_step(0)


def compiled(name: str, ring: Ring | None) -> Any:
    """The classifier as `training.fit` compiles it; without a ring, one that trains alone."""
    import keras

    from mnist_ray.collective import data_parallel
    from mnist_ray.training.worker import block_steps

    model = build(
        Recipe(architecture=name, image_shape=(28, 28), num_classes=10, dropout=0.2, seed=0, precision="float32")
    )
    optimizer = keras.optimizers.Adam(1e-3)
    rows = np.full(STEPS[name], BATCH_SIZE // WORLD)
    model.compile(
        optimizer=data_parallel(optimizer, ring, rows=rows, global_rows=rows * WORLD) if ring else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        steps_per_execution=block_steps(model, BATCH_SIZE // WORLD, STEPS[name]),
        jit_compile=False,
    )
    return model


def epoch(model: Any, dataset: Any, steps: int, ring: Ring) -> float:
    """Seconds a step of this rank."""
    ring.barrier()
    start = time.perf_counter()
    model.fit(dataset.take(steps), epochs=1, verbose=0, shuffle=False)
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
