"""The training: what the driver asks of Ray Train, and what each worker does.

A worker reads its own shards once, as uint8, and runs plain Keras `fit` over its rows of the global batches
(`order.py`), with the gradients added up over the ring (`collective.py`). `journal.py` knows where it stands.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.config import Training
from mnist_ray.errors import DivergedError, InputError, UserError
from mnist_ray.models.anatomy import pixels_of
from mnist_ray.models.build import build
from mnist_ray.models.files import save
from mnist_ray.models.runtime import import_keras
from mnist_ray.training.batches import Batches, read_own_shards
from mnist_ray.training.job import Job
from mnist_ray.training.journal import SETUP_SECONDS, Journal
from mnist_ray.training.order import order, split_off

# A worker's side.


def run_worker(config: dict[str, Any]) -> UserError | None:
    """Runs in every worker's process. A restart would not help against what is returned, from all ranks alike."""
    ring = collective.get_ring()
    try:
        fit(config["job"], ring)
    except DivergedError as error:
        return error
    except BaseException:
        ring.close()  # this process lives on until Ray Train has noticed; the others must not wait for it
        raise
    return None


def fit(job: Job, ring: collective.Ring) -> None:
    """Train this rank's share, together with the others of the ring, until rank 0 has saved the model.

    Raises DivergedError on all ranks where the loss is no longer finite, and whatever befell the ring.
    """
    config = job.config
    keras = import_keras(config.precision, threads=max(1, int(config.cpus_per_worker)))
    sizes = [shard.rows for shard in job.manifest.shards["train"]]
    held_out, kept = split_off(sizes, config.validation_fraction)
    plan = order(kept, config.batch_size, config.seed)
    mine, validation = read_own_shards(job, plan, held_out, ring.rank, ring.size)

    model = build(job.recipe)
    rows = plan.batch_rows(ring.rank, ring.size)
    block = block_steps(model, int(rows.max(initial=1)), plan.steps)
    model.compile(
        optimizer=collective.data_parallel(
            _optimizer(keras, config),
            ring,
            rows=rows,
            global_rows=np.minimum(plan.batch_size, plan.rows - plan.batch_size * np.arange(plan.steps)),
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],  # which leaves out the rows at weight 0
        steps_per_execution=block,
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    # Keras would build the metrics in the first step: too late for the tallies of an epoch that is resumed.
    model._compile_metrics.build(keras.KerasTensor((None,), "int64"), keras.KerasTensor((None, job.recipe.num_classes)))

    journal = Journal(job, plan, ring, model, validation, rows)
    epoch = journal.restore()
    batches = Batches(*mine, plan, ring, pixels_of(model), lambda: journal.epoch)
    del mine
    callbacks = [
        collective.synchronize(ring, blank_steps=journal.blank_steps),
        journal.callback(),
        *_own(config, "callbacks", list)(),
    ]
    try:
        if journal.first_step:  # the rest of an epoch that a checkpoint has begun
            rest, end = batches.from_step(journal.first_step), epoch + 1
            model.fit(rest, initial_epoch=epoch, epochs=end, verbose=0, shuffle=False, callbacks=callbacks)
            epoch = end
        if epoch < config.epochs and not model.stop_training:
            whole, end = batches.from_step(0), config.epochs
            model.fit(whole, initial_epoch=epoch, epochs=end, verbose=0, shuffle=False, callbacks=callbacks)
    except UserError:
        raise
    except Exception as error:
        raise ring.error or error from None  # TensorFlow hides what its Python function raised
    ring.timeout = SETUP_SECONDS
    journal.choose_best()
    _assert_same_weights(ring, model)
    journal.close()
    if ring.rank == 0:
        save(model, job.run / "model", job.recipe, job.manifest.classes, journal.trained())
    ring.barrier()  # nobody leaves, and so ends the run, before the model is there


def _own(config: Training, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """What the user's module gives beside the model: `optimizer(learning_rate)` or `callbacks()`."""
    module, _, function = config.architecture.partition(":")
    return getattr(importlib.import_module(module), name, default) if function else default


def _optimizer(keras: Any, config: Training) -> Any:
    made = _own(config, "optimizer", keras.optimizers.Adam)(config.learning_rate)
    if not isinstance(made, keras.optimizers.Optimizer):
        raise InputError(f"optimizer() of {config.architecture} must give a Keras optimizer, not {type(made).__name__}")
    return made


def block_steps(model: Any, rows: int, steps: int) -> int:
    """How many steps run compiled, without a look at anything else: about 0.3 s of one core, a second on a slow one.

    Estimated from the weights and the places where each is used, not timed: random state is derived at each block's
    start, so the blocks must be the same on every machine.
    """
    multiplications = 0
    for layer in model._flatten_layers(include_self=False, recursive=True):
        weights = max((int(np.prod(weight.shape)) for weight in layer.trainable_weights), default=0)
        try:
            places = int(np.prod(layer.output.shape[1:-1]))
        except (AttributeError, TypeError, ValueError):  # a layer that is called twice, or not yet, or of unknown size
            places = 1
        multiplications += weights * places
    seconds = 6 * multiplications * rows / 30e9  # forward and backward, 2 operations each, on a core of 30 GFLOP/s
    return min(64, steps, 1 << max(0, int(0.3 / max(seconds, 1e-9)).bit_length() - 1))


def _assert_same_weights(ring: collective.Ring, model: Any) -> None:
    """Every worker ends with the same bits, or the reported model is only one worker's opinion."""
    weights = np.concatenate([np.asarray(v, np.float64).ravel() for v in model.trainable_variables])
    theirs = ring.broadcast(weights.copy())
    differing = ring.all_reduce(np.array([np.count_nonzero(theirs.view(np.int64) != weights.view(np.int64))]))
    assert differing[0] == 0, f"{differing[0]} weights differ between workers after training"
