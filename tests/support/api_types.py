"""What a type checker knows of `import mnist_ray`. `make check` looks at this file; nothing runs it.

An argument that is refused here carries an `ignore`, and mypy complains of one that is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import mnist_ray
from mnist_ray.predictions.verify import Verified
from mnist_ray.results import Evaluation, RunResult, ScoreResult, ShardResult, TrainResult


def what_is_known() -> None:
    result = mnist_ray.run(data=Path("photos"), num_workers=2, learning_rate=0.01, fresh=True, checkpoint_every=None)
    assert_type(result, RunResult)
    assert_type(result.accuracy, float | None)
    assert_type(result.after.num_correct, int)
    assert_type(mnist_ray.shard("photos", Path("shards"), resize="28x28"), ShardResult)
    assert_type(mnist_ray.train("shards", name="a"), TrainResult)
    assert_type(mnist_ray.score(["a", Path("b")], model="m", output="o", threshold=0.5), ScoreResult)
    assert_type(mnist_ray.verify(Path("o")), Verified)
    assert_type(mnist_ray.verify("o").after, Evaluation | None)
    raise mnist_ray.errors.InputError("no")


def what_is_refused() -> None:
    mnist_ray.run(epoch=3)  # type: ignore[call-arg]
    mnist_ray.run(epochs="3")  # type: ignore[arg-type]
    mnist_ray.run("photos")  # type: ignore[call-arg]
    mnist_ray.score("a", model="m")  # type: ignore[call-arg]
    mnist_ray.shard("photos")  # type: ignore[call-arg]
    mnist_ray.train()  # type: ignore[call-arg]
    mnist_ray.run().folder = "b"  # type: ignore[misc]
