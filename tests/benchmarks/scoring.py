"""Scoring at the speed of the machine, on two cores: `python -m tests.benchmarks.scoring [FILES]`.

The same Parquet files of real MNIST rows (31 of 131,072 rows), in turn, several rounds: our actors; two plain processes
that each loop read → XLA-compiled model → write, with pyarrow's defaults; Ray Data's `read_parquet → map_batches →
write_parquet`; and the parts alone (read, infer, write), each by two processes at its best known setting: their sum is
the floor. Steady state: from the first rows read to the last file written, imports and compiling not counted.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, ROUNDS, CORES = 131_072, 3, 2


def main(files: int = 31) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_input(folder / "images", files)
        make_model(folder / "run")
        rates: dict[str, list[float]] = {}
        for turn in range(ROUNDS):
            found = {
                "ours": ours(folder, turn),
                "two plain processes": in_two(plain, folder, files),
                "Ray Data": ray_data(folder, turn, files),
                "read alone": in_two(read_alone, folder, files),
                "infer alone": in_two(infer_alone, folder, files),
                "write alone": in_two(write_alone, folder, files),
            }
            found["sum of the parts"] = 1 / sum(1 / found[f"{part} alone"] for part in ("read", "infer", "write"))
            print("  ".join(f"{name} {rate:,.0f}" for name, rate in found.items()), flush=True)
            for name, rate in found.items():
                rates.setdefault(name, []).append(rate)
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(rates["ours"], rates[name], strict=True))
        for name in ("two plain processes", "Ray Data", "sum of the parts")
    }
    print(f"{files * ROWS:,} images, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}); images/s, medians:")
    for name, values in rates.items():
        print(f"  {name:<22} {statistics.median(values):12,.0f}")
    for name, ratio in ratios.items():
        print(f"  ours / {name:<22} {ratio:5.2f} ×")
    print(json.dumps({"images_per_second": {k: statistics.median(v) for k, v in rates.items()}, "ratios": ratios}))


def make_input(folder: Path, files: int) -> None:
    """One file of real rows, under many names."""
    from mnist_ray.sharding import encode
    from mnist_ray.sources import Batch
    from tests.benchmarks.tutorial_data import read

    images, labels = read("train")
    images, labels = np.resize(images, (ROWS, 28, 28)), np.resize(labels, ROWS).astype(np.int64)
    folder.mkdir()
    first = folder / "part-00000.parquet"
    first.write_bytes(encode(Batch(np.arange(ROWS), images, labels), (28, 28)))
    for index in range(1, files):
        (folder / f"part-{index:05d}.parquet").hardlink_to(first)


def make_model(folder: Path) -> None:
    """In a process of its own: TensorFlow must not be loaded where others are started from."""
    process = multiprocessing.get_context("spawn").Process(target=_make_model, args=(folder,))
    process.start()
    process.join()


def _make_model(folder: Path) -> None:
    from mnist_ray.model import Recipe, build, save
    from mnist_ray.storage import Location

    recipe = Recipe(architecture="mlp", image_shape=(28, 28), num_classes=10, dropout=0.2, seed=0, precision="float32")
    save(build(recipe), Location.parse(folder / "model"), recipe, tuple("0123456789"), {})


def ours(folder: Path, turn: int) -> float:
    """Images/s, as metrics.json of the real command tells."""
    import subprocess

    output = folder / f"ours-{turn}"
    command = [Path(sys.executable).with_name("mnist-ray"), "score", folder / "images", "--model", folder / "run",
               "--output", output]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = json.loads((output / "metrics.json").read_text())["score"]
    assert told["num_actors"] == CORES
    print(f"    ours: jit {told['jit']}, {told['batch_size']} at once", flush=True)
    return float(told["images_per_second"])


def in_two(work: Callable[[Path, list[Path]], Any], folder: Path, files: int) -> float:
    """Images/s of two processes of one core each, half of the files each, from when both are ready."""
    context = multiprocessing.get_context("spawn")
    ready, spans = context.Barrier(CORES), context.Queue()
    names = sorted((folder / "images").iterdir())
    (folder / "plain").mkdir(exist_ok=True)
    started = [
        context.Process(target=_in_one, args=(work, folder, names[index::CORES], ready, spans))
        for index in range(CORES)
    ]
    for process in started:
        process.start()
    begun, ended = zip(*(spans.get() for _ in started), strict=True)
    for process in started:
        process.join()
    return files * ROWS / (max(ended) - min(begun))


def _in_one(work: Callable[[Path, list[Path]], Any], folder: Path, names: list[Path], ready: Any, spans: Any) -> None:
    loop = work(folder, names)  # all that is made beforehand
    ready.wait()
    began = time.time()
    loop()
    spans.put((began, time.time()))


def plain(folder: Path, names: list[Path]) -> Callable[[], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    forward = _forward(folder, jit=True)
    forward(np.zeros((65_536, 28, 28), np.uint8))

    def loop() -> None:
        for name in names:
            reader = pq.ParquetFile(name)
            with pq.ParquetWriter(folder / "plain" / name.name, _SCHEMA()) as writer:
                for records in reader.iter_batches(columns=["id", "image", "label"]):
                    images = np.frombuffer(records["image"].buffers()[1], np.uint8).reshape(-1, 28, 28)
                    chances = forward(images).numpy()
                    columns = [records["id"], records["label"], pa.array(chances.argmax(1)), _lists(chances)]
                    writer.write_batch(pa.record_batch(columns, schema=_SCHEMA()))

    return loop


def _forward(folder: Path, *, jit: bool) -> Any:
    """uint8 images → probabilities, of the same model."""
    from mnist_ray.model import import_keras, load
    from mnist_ray.storage import Location

    import_keras(threads=1)
    import tensorflow as tf

    classifier = load(Location.parse(folder / "run")).classifier
    return tf.function(lambda images: tf.nn.softmax(classifier(images, training=False)), jit_compile=jit)


def _lists(chances: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(chances.reshape(-1)), 10)


def _SCHEMA() -> Any:  # noqa: N802
    import pyarrow as pa

    kinds = {"id": pa.int64(), "label": pa.int64(), "prediction": pa.int64(),
             "probabilities": pa.list_(pa.float32(), 10)}  # fmt: skip
    return pa.schema(kinds)


def read_alone(folder: Path, names: list[Path]) -> Callable[[], None]:
    import pyarrow.parquet as pq

    def loop() -> None:
        for name in names:
            for _ in pq.ParquetFile(name).iter_batches(16_384, columns=["id", "image", "label"], use_threads=False):
                pass

    return loop


def infer_alone(folder: Path, names: list[Path]) -> Callable[[], None]:
    """The fastest of both compilers and three sizes, on images that lie in memory."""
    from tests.benchmarks.tutorial_data import read

    images = read("train")[0]
    tried: dict[float, tuple[Any, int]] = {}
    for jit in (False, True):
        forward = _forward(folder, jit=jit)
        for size in (1024, 2048, 4096):
            forward(images[:size])
            began = time.perf_counter()
            for start in range(0, 3 * 8192, size):
                forward(images[start : start + size]).numpy()
            tried[time.perf_counter() - began] = forward, size
    forward, size = tried[min(tried)]

    def loop() -> None:
        for _ in names:
            for start in range(0, ROWS, size):
                begin = start % (60_000 // size * size)
                forward(images[begin : begin + size]).numpy()

    return loop


def write_alone(folder: Path, names: list[Path]) -> Callable[[], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    logits = random.normal(size=(ROWS, 10)).astype(np.float32) * 4
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    columns = [np.arange(ROWS), random.integers(0, 10, ROWS), chances.argmax(1)]
    table = pa.table([*map(pa.array, columns), _lists(chances)], schema=_SCHEMA())

    def loop() -> None:
        for name in names:
            pq.write_table(table, folder / "plain" / name.name, compression="zstd", use_dictionary=False,
                           use_byte_stream_split=["probabilities.list.element"])  # fmt: skip

    return loop


def ray_data(folder: Path, turn: int, files: int) -> float:
    """From the first batch of the first actor to the end."""
    target = importlib.import_module("tests.benchmarks.scoring")._ray_data  # not of __main__, which workers have not
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder, turn))
    process.start()
    process.join()
    begun = min(float(file.read_text()) for file in (folder / f"begun-{turn}").iterdir())
    ended = float((folder / f"ended-{turn}").read_text())
    return files * ROWS / (ended - begun)


def _ray_data(folder: Path, turn: int) -> None:
    import ray

    (folder / f"begun-{turn}").mkdir()

    class Predict:
        def __init__(self) -> None:
            self.forward = _forward(folder, jit=False)
            self.forward(np.zeros((4096, 28, 28), np.uint8))
            self.file = folder / f"begun-{turn}" / str(os.getpid())

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if not self.file.exists():
                self.file.write_text(str(time.time()))
            images = np.frombuffer(b"".join(batch["image"]), np.uint8).reshape(-1, 28, 28)
            chances = self.forward(images).numpy()
            return {"id": batch["id"], "label": batch["label"], "prediction": chances.argmax(1),
                    "probabilities": chances}  # fmt: skip

    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    data = ray.data.read_parquet(str(folder / "images"))
    # Half a CPU each, so that reading and writing have one, too.
    pool = ray.data.ActorPoolStrategy(size=CORES)
    scored = data.map_batches(Predict, batch_size=4096, compute=pool, num_cpus=0.5)
    scored.write_parquet(str(folder / f"ray-{turn}"))
    (folder / f"ended-{turn}").write_text(str(time.time()))
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
