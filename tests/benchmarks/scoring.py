"""Scoring at the speed of the machine, on two cores: `python -m tests.benchmarks.scoring [FILES]`.

The same Parquet files of real MNIST rows (32 of 131,072 rows), in turn, several rounds: our actors; two plain processes
that each loop read → XLA-compiled model → write, with pyarrow's defaults; the same with OpenVINO in its place; Ray
Data's `read_parquet → map_batches → write_parquet`, as its guide to batch inference has it and as an expert would tune
it; Daft on its local runner and on Ray, where it is installed; and the parts alone (read, infer, write), each by two
processes at its best known setting: their sum is the floor.
Steady state: of ours from when each actor has had the time for a part, of Ray Data and Daft from the first batch, of
plain processes from when both are ready; to the last file written. Imports and compiling are not counted.
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

from tests.benchmarks import daft_peer

ROWS, ROUNDS, CORES = 131_072, 3, 2


def main(files: int = 32) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_input(folder / "images", files)
        make_model(folder / "run")
        rates: dict[str, list[float]] = {}
        if not daft_peer.is_there():
            print("without Daft, which is not installed (pip install daft)", flush=True)
        for turn in range(ROUNDS):
            found = {
                "ours": ours(folder, turn),
                "two plain processes": in_two(plain, folder, files * ROWS),
                "two with OpenVINO": in_two(plain_openvino, folder, files * ROWS),
                "Ray Data, tuned": ray_data(folder, f"tuned-{turn}", files),
                "Ray Data, its guide": ray_data(folder, f"guide-{turn}", files),
                **daft(folder, turn, files * ROWS),
                "read alone": in_two(read_alone, folder, files * ROWS),
                "infer alone": in_two(infer_alone, folder, files * ROWS),
                "write alone": in_two(write_alone, folder, files * ROWS),
            }
            found["sum of the parts"] = 1 / sum(1 / found[f"{part} alone"] for part in ("read", "infer", "write"))
            print("  ".join(f"{name} {rate:,.0f}" for name, rate in found.items()), flush=True)
            for name, rate in found.items():
                rates.setdefault(name, []).append(rate)
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(rates["ours"], rates[name], strict=True))
        for name in rates
        if name != "ours" and not name.endswith("alone")
    }
    print(f"{files * ROWS:,} images, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}); images/s, medians:")
    for name, values in rates.items():
        print(f"  {name:<22} {statistics.median(values):12,.0f}")
    for name, ratio in ratios.items():
        print(f"  ours / {name:<22} {ratio:5.2f} ×")
    print(json.dumps({"images_per_second": {k: statistics.median(v) for k, v in rates.items()}, "ratios": ratios}))


def daft(folder: Path, turn: int, images: int) -> dict[str, float]:
    runners = {"Daft, local": "native", "Daft on Ray": "ray"} if daft_peer.is_there() else {}
    return {name: daft_peer.daft_rate(folder, runner, turn, images) for name, runner in runners.items()}


def make_input(folder: Path, files: int, rows: int = ROWS) -> None:
    """One file of real rows, under many names."""
    from mnist_ray.sources.base import Batch
    from mnist_ray.sources.formats.shards import encode_shard
    from tests.benchmarks.tutorial_data import read

    images, labels = read("train")
    images, labels = np.resize(images, (rows, 28, 28)), np.resize(labels, rows).astype(np.int64)
    folder.mkdir(parents=True)
    first = folder / "part-00000.parquet"
    first.write_bytes(encode_shard(Batch(np.arange(rows), images, labels), (28, 28)))
    for index in range(1, files):
        (folder / f"part-{index:05d}.parquet").hardlink_to(first)


def make_model(folder: Path, architecture: str = "mlp") -> None:
    """In a process of its own: TensorFlow must not be loaded where others are started from."""
    process = multiprocessing.get_context("spawn").Process(target=_make_model, args=(folder, architecture))
    process.start()
    process.join()


def _make_model(folder: Path, architecture: str) -> None:
    from mnist_ray.models.build import Recipe, build
    from mnist_ray.models.files import save
    from mnist_ray.storage.location import Location

    recipe = Recipe(
        architecture=architecture, image_shape=(28, 28), num_classes=10, dropout=0.2, seed=0, precision="float32"
    )
    save(build(recipe), Location.parse(folder / "model"), recipe, tuple("0123456789"), {})


def ours(folder: Path, turn: int | str, *options: str) -> float:
    """Images/s of the real command."""
    import subprocess

    output = folder / f"ours-{turn}"
    command = [Path(sys.executable).with_name("mnist-ray"), "score", folder / "images", "--model", folder / "run",
               "--output", output, *options]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = json.loads((output / "metrics.json").read_text())["score"]
    assert told["num_actors"] == CORES
    print(
        f"    ours: jit {told['jit']}, {told['batch_size']} at once; with its beginning"
        f" {told['images_per_second']:,.0f}/s",
        flush=True,
    )
    return steady(output)


def steady(output: Path) -> float:
    """Images/s from when each actor has had the time for a part."""
    parts = json.loads((output / "_manifest.json").read_text())["parts"]
    ends = sorted(((output / part["path"]).stat().st_mtime, part["rows"]) for part in parts)
    return float(sum(rows for _, rows in ends[CORES:]) / (ends[-1][0] - ends[CORES - 1][0]))


def in_two(work: Callable[[Path, list[Path]], Any], folder: Path, images: int) -> float:
    """Images/s of two processes of one core each, half of the files each, from when both are ready."""
    context = multiprocessing.get_context("spawn")
    ready, spans = context.Barrier(CORES), context.Queue()
    names = sorted(path for path in (folder / "images").rglob("*") if path.is_file())
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
    return images / (max(ended) - min(begun))


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


def plain_openvino(folder: Path, names: list[Path]) -> Callable[[], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    forward = _openvino(folder)

    def loop() -> None:
        for name in names:
            reader = pq.ParquetFile(name)
            with pq.ParquetWriter(folder / "plain" / name.name, _SCHEMA()) as writer:
                for records in reader.iter_batches(4096, columns=["id", "image", "label"]):
                    images = np.frombuffer(records["image"].buffers()[1], np.uint8).reshape(-1, 28, 28)
                    chances = forward(images[-len(records) :])
                    columns = [records["id"], records["label"], pa.array(chances.argmax(1)), _lists(chances)]
                    writer.write_batch(pa.record_batch(columns, schema=_SCHEMA()))

    return loop


def _openvino(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 images → probabilities, of the same model, by one thread."""
    from mnist_ray.models.engines.openvino import import_openvino

    openvino = import_openvino()
    core = openvino.Core()
    prepared = openvino.preprocess.PrePostProcessor(core.read_model(folder / "run" / "model" / "classifier.xml"))
    prepared.input().tensor().set_element_type(openvino.Type.u8)
    prepared.input().preprocess().convert_element_type(openvino.Type.f32)
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    request = core.compile_model(prepared.build(), "CPU", settings).create_infer_request()

    def forward(images: np.ndarray) -> np.ndarray:
        return request.infer({0: images}, share_inputs=True, share_outputs=True)[0]  # type: ignore[no-any-return]

    forward(np.zeros((4096, 28, 28), np.uint8))
    return forward


def _forward(folder: Path, *, jit: bool) -> Any:
    """uint8 images → probabilities, of the same model, compiled."""
    model = _model(folder)
    import tensorflow as tf

    return tf.function(model, jit_compile=jit)


def _model(folder: Path) -> Any:
    from mnist_ray.models.files import load
    from mnist_ray.models.runtime import import_keras
    from mnist_ray.storage.location import Location

    import_keras(threads=1)
    import tensorflow as tf

    classifier = load(Location.parse(folder / "run")).model
    return lambda images: tf.nn.softmax(classifier(images, training=False))


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
    """The fastest of both engines, both compilers and three sizes, on images that lie in memory."""
    from tests.benchmarks.tutorial_data import read

    images = read("train")[0]
    tried: dict[float, tuple[Any, int]] = {}
    ours = _openvino(folder)
    for forward in (ours, *(_numpy(_forward(folder, jit=jit)) for jit in (False, True))):
        for size in (1024, 2048, 4096):
            forward(images[:size])
            began = time.perf_counter()
            for start in range(0, 3 * 8192, size):
                forward(images[start : start + size])
            tried[time.perf_counter() - began] = forward, size
    forward, size = tried[min(tried)]

    def loop() -> None:
        for _ in names:
            for start in range(0, ROWS, size):
                begin = start % (60_000 // size * size)
                forward(images[begin : begin + size])

    return loop


def _numpy(forward: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: forward(images).numpy()  # type: ignore[no-any-return]


def write_alone(folder: Path, names: list[Path]) -> Callable[[], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    logits = random.normal(size=(ROWS, 10)).astype(np.float32) * 4
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    columns = [np.arange(ROWS), random.integers(0, 10, ROWS), chances.argmax(1)]
    table = pa.table([*map(pa.array, columns), _lists(chances)], schema=_SCHEMA())
    encodings = {"id": "DELTA_BINARY_PACKED", "probabilities.list.element": "BYTE_STREAM_SPLIT"}

    def loop() -> None:
        for name in names:
            pq.write_table(table, folder / "plain" / name.name, compression="zstd",
                           use_dictionary=["label", "prediction"], column_encoding=encodings)  # fmt: skip

    return loop


def ray_data(folder: Path, name: str, files: int) -> float:
    """From the first batch of the first actor to the end."""
    target = importlib.import_module("tests.benchmarks.scoring")._ray_data  # not of __main__, which workers have not
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder, name))
    process.start()
    process.join()
    begun = min(float(file.read_text()) for file in (folder / f"begun-{name}").iterdir())
    ended = float((folder / f"ended-{name}").read_text())
    return files * ROWS / (ended - begun)


def _ray_data(folder: Path, name: str) -> None:
    import ray

    (folder / f"begun-{name}").mkdir()
    tuned = name.startswith("tuned")

    class Predict:
        def __init__(self) -> None:
            self.forward = _forward(folder, jit=False) if tuned else _model(folder)
            self.forward(np.zeros((4096, 28, 28), np.uint8))
            self.file = folder / f"begun-{name}" / str(os.getpid())

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if not self.file.exists():
                self.file.write_text(str(time.time()))
            if tuned:
                images = np.frombuffer(b"".join(batch["image"]), np.uint8).reshape(-1, 28, 28)
            else:
                images = np.stack([np.frombuffer(image, np.uint8).reshape(28, 28) for image in batch["image"]])
            chances = self.forward(images).numpy()
            return {"id": batch["id"], "label": batch["label"], "prediction": chances.argmax(1),
                    "probabilities": chances}  # fmt: skip

    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    data = ray.data.read_parquet(str(folder / "images"))
    if tuned:  # half a CPU each, so that reading and writing have one, too
        pool = ray.data.ActorPoolStrategy(size=CORES)
        scored = data.map_batches(Predict, batch_size=4096, compute=pool, num_cpus=0.5)
    else:  # a CPU each is the default; of two, one must stay free to read and write
        scored = data.map_batches(Predict, compute=ray.data.ActorPoolStrategy(size=CORES - 1))
    scored.write_parquet(str(folder / f"ray-{name}"))
    (folder / f"ended-{name}").write_text(str(time.time()))
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
