"""What the processes of test_data_parallel.py do: every case, on this rank's share of the rows, and plain on all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.collective import data_parallel, synchronize
from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring
from mnist_ray.models.runtime import import_keras
from tests.support.ring_processes import SECRET

FEATURES, CLASSES = 6, 3

BATCHES = (64, 64, 64, 5)

CLIP = 0.05


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and an optimizer of Keras, and how the rows of its global batches lie."""

    optimizer: Callable[[Any], Any] = lambda keras: keras.optimizers.Adam(0.01)
    model: Callable[[Any], Any] = lambda keras: dense(keras)
    batches: tuple[int, ...] = BATCHES
    is_even: bool = False
    """Whether all ranks always have the same number of rows, so that no tables are needed."""
    epochs: int = 2
    precision: str = "float64"
    compiled: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Any], list[Any]] = lambda keras: []
    validation_rows: int = 0
    wrap: Callable[[Any], Any] = lambda optimizer: optimizer


def dense(keras: Any, **options: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(8, activation="tanh", **options), layers.Dense(CLASSES)]
    )


def still(keras: Any) -> Any:
    """The first weight is never used, so it has no gradient; the second and third are frozen."""

    class Idle(keras.layers.Layer):  # type: ignore[misc]
        def build(self, _: Any) -> None:
            self.idle = self.add_weight(shape=(2, 3), name="idle")

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((FEATURES,)), Idle(), *dense(keras).layers])
    model.layers[1].trainable = False
    return model


def embedding(keras: Any) -> Any:
    layers = keras.layers
    table = layers.Embedding(11, 4)  # its gradient is tf.IndexedSlices, with indices that repeat
    to_index = layers.Lambda(lambda x: keras.ops.cast(keras.ops.floor(keras.ops.abs(x) * 3) % 11, "int32"))
    return keras.Sequential([keras.Input((FEATURES,)), to_index, table, layers.Flatten(), layers.Dense(CLASSES)])


def two_of_each(keras: Any) -> Any:
    layers = keras.layers
    one, two = keras.Input((FEATURES,), name="one"), keras.Input((FEATURES,), name="two")
    hidden = layers.Dense(5, activation="tanh")(layers.Concatenate()([one, two]))
    outputs = {
        "kind": layers.Dense(CLASSES, "softmax", name="kind")(hidden),
        "size": layers.Dense(1, name="size")(hidden),
    }
    return keras.Model({"one": one, "two": two}, outputs)


def normalized(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential([keras.Input((FEATURES,)), layers.BatchNormalization(momentum=0.9), *dense(keras).layers])


def own_schedule(keras: Any) -> Any:
    """A schedule that Keras could not make again from its config."""

    class Falling(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return 0.1 / (1 + keras.ops.cast(step, "float64"))

    return Falling()


def clip_before(optimizer: Any) -> Any:
    """The mistake: every worker clips its own gradient."""
    import tensorflow as tf

    apply = optimizer.apply
    optimizer.apply = lambda grads, variables=None: apply(tf.clip_by_global_norm(grads, CLIP)[0], variables)
    return optimizer


def watching(keras: Any) -> list[Any]:
    """Callbacks whose decisions must be the same everywhere."""
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=0.05, verbose=0),
        keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.02, restore_best_weights=True),
    ]


CASES = {
    "adam": Case(),
    "adamw": Case(
        optimizer=lambda keras: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        model=lambda keras: dense(keras, kernel_regularizer=keras.regularizers.L2(0.1)),
    ),
    "momentum": Case(optimizer=lambda keras: keras.optimizers.SGD(own_schedule(keras), momentum=0.9)),
    "schedule": Case(
        optimizer=lambda keras: keras.optimizers.RMSprop(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5))
    ),
    "global_clipnorm": Case(optimizer=lambda keras: keras.optimizers.SGD(1.0, global_clipnorm=CLIP)),
    "clip_before": Case(optimizer=lambda keras: keras.optimizers.SGD(1.0), wrap=clip_before),
    "clipnorm": Case(
        optimizer=lambda keras: keras.optimizers.SGD(1.0, clipnorm=CLIP), batches=(60, 60, 60), is_even=True
    ),
    "accumulation": Case(optimizer=lambda keras: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)),
    "blank": Case(batches=(64, 1, 64, 1), compiled={"steps_per_execution": 3}),
    "still": Case(model=still),
    # Not Adam: Keras squares the rows of a sparse gradient one by one, even where an index repeats.
    "embedding": Case(optimizer=lambda keras: keras.optimizers.SGD(0.1, momentum=0.9), model=embedding),
    "two_of_each": Case(
        model=two_of_each,
        compiled={
            "loss": {"kind": "sparse_categorical_crossentropy", "size": "mse"},
            "loss_weights": {"kind": 1.0, "size": 0.3},
        },
    ),
    "normalized": Case(model=normalized, batches=(60, 60), is_even=True),
    "float32": Case(precision="float32"),
    "loss_scale": Case(optimizer=lambda keras: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))),
    # Scaled so that some steps overflow, and one rank's gradient may where the other's does not.
    "overflow": Case(
        optimizer=lambda keras: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=3e38),
        precision="float32",
        epochs=5,
    ),
    "watching": Case(
        optimizer=lambda keras: keras.optimizers.SGD(0.7), epochs=20, callbacks=watching, validation_rows=37
    ),
}


WITH_THREE = ("global_clipnorm", "blank")


def table(case: Case, world: int) -> np.ndarray:
    """(steps, world): each rank's rows. 64 rows are 24 + 40, or 24 + 20 + 20, the shorter share going round."""
    shares = np.zeros((len(case.batches), world), int)
    for step, rows in enumerate(case.batches):
        first = rows // world if world == 1 or case.is_even else rows * 3 // 8
        others = [(rows - first + place) // (world - 1) for place in range(world - 1)]
        shares[step] = np.roll([first, *others], step)
    return shares


def data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that grow along the epoch, so that no two shares are alike."""
    x = np.random.default_rng(seed).normal(size=(rows, FEATURES)) * np.linspace(0.5, 2, rows)[:, None]
    return x, (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int) + (x[:, 2] > 1)


def batches(keras: Any, case: Case, model: Any, rank: int, shares: np.ndarray) -> Any:
    """One rank's part of each global batch; where it has no rows, one at weight 0."""
    x, y = data(sum(case.batches), 1)
    starts = np.cumsum([0, *case.batches[:-1]]) + shares[:, :rank].sum(1)

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(starts)

        def __getitem__(self, step: int) -> tuple[Any, ...]:
            rows = slice(min(starts[step], len(x) - 1), starts[step] + max(1, shares[step, rank]))
            if len(model.inputs) == 2:
                return {"one": x[rows], "two": np.sin(x[rows])}, {"kind": y[rows], "size": x[rows, :1]}
            if shares.all():
                return x[rows], y[rows]
            return x[rows], y[rows], np.full(len(y[rows]), float(shares[step, rank] > 0))

    return Batches()


def run(case: Case, rank: int, world: int, ring: Ring | None) -> dict[str, Any]:
    """Train; all that is to be compared. Without a ring it is Keras alone."""
    keras = import_keras(case.precision)
    keras.utils.set_random_seed(rank)  # the ranks begin with different weights
    model = case.model(keras)
    start = [np.array(weight) for weight in model.get_weights()]
    shares = table(case, world)
    assert shares.sum(1).tolist() == list(case.batches)
    optimizer, callbacks = case.optimizer(keras), case.callbacks(keras)
    if ring is not None:
        tables = {} if case.is_even else {"rows": shares[:, rank], "global_rows": shares.sum(1)}
        optimizer = case.wrap(data_parallel(optimizer, ring, **tables))
        callbacks = [synchronize(ring, blank_steps=lambda: int((shares[:, rank] == 0).sum())), *callbacks]
    own = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: last.update(logs))
    last: dict[str, float] = {}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = {"loss": loss, "weighted_metrics": None if "loss" in case.compiled else ["accuracy"], **case.compiled}
    model.compile(optimizer=optimizer, jit_compile=False, **compiled)
    validation = None
    if case.validation_rows:
        x, y = data(case.validation_rows, 2)
        mine = slice(rank * 9, case.validation_rows if rank == world - 1 else rank * 9 + 9)
        validation = (x[mine], y[mine])
    history = model.fit(
        batches(keras, case, model, rank, shares),
        epochs=case.epochs, verbose=0, shuffle=False, validation_data=validation, callbacks=[*callbacks, own],
    ).history  # fmt: skip
    result = {f"history/{name}": np.array(values) for name, values in history.items()}
    result["local_loss"] = np.array(last["loss"])
    for kind, arrays in (("start", start), ("weights", model.get_weights())):
        result |= {f"{kind}/{index}": array for index, array in enumerate(arrays)}
    return result


def all_cases(ring: Ring, folder: Path) -> None:
    """Some cases on three ranks; then all of them on two, while the third does them plain."""
    warnings.simplefilter("ignore")  # Keras warns of the weight without gradient, which we want
    ring.timeout = 150  # another test may have the cores
    for name in WITH_THREE:
        np.savez(folder / f"{name}-3-{ring.rank}.npz", **run(CASES[name], ring.rank, 3, ring))
    pair = two_of(ring)
    for name, case in CASES.items():
        if pair is None:
            np.savez(folder / f"{name}-plain.npz", **run(case, 0, 1, None))
        else:
            np.savez(folder / f"{name}-2-{pair.rank}.npz", **run(case, pair.rank, 2, pair))
    if pair is not None:
        np.savez(folder / f"masks-{pair.rank}.npz", **masks(pair))
        np.savez(folder / f"refusals-{pair.rank}.npz", **refusals(pair))
        np.savez(folder / f"death-{pair.rank}.npz", **death(pair))


def masks(ring: Ring) -> dict[str, Any]:
    """What Dropout keeps of ones, on ranks that have drawn the same seed."""
    keras = import_keras()
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile(data_parallel(keras.optimizers.SGD(), ring), loss="mse", jit_compile=False)
    callback = synchronize(ring)
    callback.set_model(model)
    alone = np.array(model.layers[0](np.ones((50, FEATURES)), training=True))
    keras.utils.set_random_seed(3)
    model.layers[0].seed_generator.state.assign(keras.random.SeedGenerator(3).state)
    callback.set_params({})
    callback.on_train_begin()
    return {"alone": alone, "kept": np.array(model.layers[0](np.ones((50, FEATURES)), training=True))}


def refusals(ring: Ring) -> dict[str, Any]:
    """What `fit` raises where a training cannot be data-parallel."""
    keras = import_keras()
    loss_scale, sgd = keras.optimizers.LossScaleOptimizer, keras.optimizers.SGD
    unlike = 3 + ring.rank
    raised = {}
    for name, optimizer, jit_compile, steps in (
        ("apart", sgd(), False, 3),
        ("inner", loss_scale(data_parallel(sgd(), ring)), False, 3),
        ("xla", data_parallel(sgd(), ring), True, 3),
        ("steps", data_parallel(sgd(), ring), False, unlike),
    ):
        model = dense(keras)
        model.compile(optimizer, loss="sparse_categorical_crossentropy", jit_compile=jit_compile)
        x, y = data(8 * steps, 1)
        try:
            model.fit(x, y, batch_size=8, verbose=0, callbacks=[synchronize(ring)])
        except ValueError as error:
            raised[name] = str(error)
    ring.barrier()  # it is still whole
    return raised


def two_of(ring: Ring) -> Ring | None:
    """A second ring, of the ranks 0 and 1; None on the others."""
    listener = Listener("127.0.0.1")
    ports = np.zeros(ring.size, np.int64)
    ports[ring.rank] = listener.address[1]
    ring.all_reduce(ports)
    if ring.rank > 1:
        listener.close()
        return None
    addresses = [("127.0.0.1", port) for port in ports[:2].tolist()]
    return connect(listener, rank=ring.rank, addresses=addresses, secret=SECRET, timeout=ring.timeout)


def death(ring: Ring) -> dict[str, Any]:
    """What rank 0's `fit` raises and `ring.error` keeps when the other rank dies in the middle of an epoch."""

    def die(step: int, logs: Any) -> None:
        if ring.rank == 1 and step == 1:
            os._exit(0)

    raised = ""
    try:
        run(Case(callbacks=lambda keras: [keras.callbacks.LambdaCallback(on_train_batch_end=die)]), ring.rank, 2, ring)
    except Exception as error:
        raised = str(error)
    return {"raised": raised, "kept": str(ring.error), "at_fault": str(ring.error and ring.error.rank)}
