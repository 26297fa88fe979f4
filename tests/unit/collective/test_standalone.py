"""collective/ stands alone: copied into another project it trains on Ray, as docs/data-parallel.md shows."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment

FOLDER = ROOT / "mnist_ray" / "collective"
ALLOWED = {*sys.stdlib_module_names, "numpy", "ray", "keras", "tensorflow"}

# Imported by every Python process that has the project's folder on its path, also by Ray's workers.
SITECUSTOMIZE = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mnist_ray":
            raise AssertionError("collective/ imports mnist_ray")

sys.meta_path.insert(0, Guard())
"""

TRAIN = """
import json, os, sys
import numpy as np
from ray.train import ScalingConfig
from ray.train.v2.api.config import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from collective import RingConfig, data_parallel, get_ring, synchronize


def loop(config):
    import keras

    try:
        import mnist_ray
    except AssertionError:
        guarded = True
    workers = get_ring()
    rows = np.random.default_rng(0).random((256, 8), "float32")
    labels = (rows.sum(1) > 4).astype("int32")
    mine = slice(workers.rank, None, workers.size)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)])
    model.compile(
        data_parallel(keras.optimizers.Adam(0.02), workers),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    fitted = model.fit(
        rows[mine], labels[mine], batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=[synchronize(workers)]
    )
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    result = {"guarded": guarded, "size": workers.size, "loss": fitted.history["loss"],
              "weights": weights.tobytes().hex()}
    with open(os.path.join(config["folder"], f"{workers.rank}.json"), "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    import ray

    folder, scratch = sys.argv[1:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=scratch)
    try:
        DataParallelTrainer(
            loop,
            train_loop_config={"folder": folder},
            backend_config=RingConfig(),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=folder),
        ).fit()
    finally:
        ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.tensorflow
@pytest.mark.slow
def test_the_copied_folder_trains_on_ray(tmp_path: Path) -> None:
    project, results = tmp_path / "project", tmp_path / "results"
    results.mkdir()
    shutil.copytree(FOLDER, project / "collective", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (project / "train.py").write_text(TRAIN)
    env = environment(tmp_path, PYTHONPATH=str(project), KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    # Under /tmp, whatever TMPDIR is: the names of Ray's sockets must not be longer than 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        done = subprocess.run(
            [sys.executable, "train.py", str(results), scratch], cwd=project, env=env,
            capture_output=True, text=True, timeout=220, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((results / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["guarded"]
    assert first["size"] == 2
    assert first["loss"][-1] < first["loss"][0] - 0.02


def imports_of(file: Path) -> set[str]:
    """The top-level packages that a module imports, other than relatively."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_it_imports_nothing_of_ours(file: Path) -> None:
    assert imports_of(file) <= ALLOWED
