"""What each train worker does.

A worker reads its own shards once, as uint8, and runs plain Keras `fit` over its rows of the global batches
(`order.py`), with the gradients summed over the ring (`collective/`). `journal.py` keeps track of where it stands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.cluster.gauges import BytesRead
from mnist_ray.cluster.ray_private import session_folder
from mnist_ray.config import Training
from mnist_ray.errors import DivergedError, InputError, SetupError, UserError, require
from mnist_ray.models.build import build
from mnist_ray.models.conversion import MOST_IMAGES
from mnist_ray.models.files import is_saved, load_untrained, save, save_untrained
from mnist_ray.models.keras_private import all_layers
from mnist_ray.models.pixels import pixels_of
from mnist_ray.models.runtime import import_keras
from mnist_ray.runs.process_log import logging_to
from mnist_ray.training.batches import Batches, read_own_shards
from mnist_ray.training.callbacks import CallbackState, of_rank
from mnist_ray.training.job import Job
from mnist_ray.training.journal import SETUP_SECONDS, Journal
from mnist_ray.training.metrics import build_metrics
from mnist_ray.training.order import Order, split_off
from mnist_ray.training.users import callbacks_of, optimizer_of


def run_worker(config: dict[str, Any]) -> UserError | None:
    """Ray Train calls it in every worker's process. A returned error, the same on all ranks, is not retried."""
    job, ring = config["job"], collective.get_ring()
    with _fenced(job), logging_to(job.run, f"train-{ring.rank}", number=ring.rank):
        try:
            with _own_temporary_folder():
                fit(job, ring)
        except (DivergedError, InputError, SetupError) as error:
            ring.close()
            return error
        except BaseException:
            ring.close()  # this process lives on until Ray Train has noticed; the others must not wait for it
            raise
    return None


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Keep the code that TensorFlow generates within Ray's session folder, and remove it.

    TensorFlow removes it from the temporary folder when the process exits, but Ray ends its workers by force.
    """
    before = tempfile.tempdir
    with TemporaryDirectory(dir=session_folder()) as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = before


def _fenced(job: Job) -> AbstractContextManager[None]:
    """Let this process write no longer than the driver holds the run. A driver that stands still cannot tell it."""
    return job.guard.fenced() if job.guard else nullcontext()


def fit(job: Job, ring: collective.Ring) -> None:
    """Train this rank's share, together with the others of the ring, until rank 0 has saved the model.

    Raises DivergedError on all ranks where the loss is no longer finite, and RingError where another rank has failed.
    """
    config = job.config
    keras = import_keras(config.precision, threads=max(1, int(config.cpus_per_worker)))
    held_out, kept = split_off([shard.rows for shard in job.manifest.shards["train"]], config.validation_fraction)
    order = Order(tuple(kept), config.batch_size, config.seed)
    counter = BytesRead(str(job.run))
    mine, validation = read_own_shards(job, order, held_out, ring.rank, ring.size)
    counter.show()

    model = build(job.recipe)
    images = mine[0][:MOST_IMAGES].copy()
    if job.keeps_untrained and ring.rank == 0 and load_untrained(job.recipe, job.run / "model") is None:
        save_untrained(job.recipe, model, job.run / "model", images)
    callbacks = callbacks_of(keras, config)
    _compile(keras, model, config, order, ring)
    build_metrics(model, job.recipe.num_classes)
    journal = Journal(job, order, ring, model, validation, CallbackState(keras, callbacks))
    journal.restore()
    batches = Batches(*mine, order, ring, pixels_of(model), lambda: journal.epoch)
    del mine
    try:
        _fit_epochs(keras, batches, journal, of_rank(keras, callbacks, ring.rank))
    except UserError:
        raise
    except Exception as error:
        raise ring.error or error from None  # TensorFlow hides what its Python function raised

    ring.timeout = SETUP_SECONDS
    journal.restore_best()
    journal.require_finite()
    _require_same_weights(ring, model)
    journal.close()
    # It is there where workers were lost, or joined, after it was saved and before Ray Train had noticed the end.
    if ring.rank == 0 and not is_saved(job.run / "model"):
        save(
            model, job.run / "model", job.recipe, job.manifest.classes, journal.summary(), images,
            preparation=job.manifest.preparation, measures=config.cpus_per_worker <= 1 and not config.use_gpu,
        )  # fmt: skip
    ring.barrier()  # no rank leaves, which would end the run, before the model is saved


def _compile(keras: Any, model: Any, config: Training, order: Order, ring: collective.Ring) -> None:
    rows = order.batch_rows(ring.rank, ring.size)
    optimizer = collective.data_parallel(
        optimizer_of(keras, config),
        ring,
        rows=rows,
        global_rows=np.minimum(order.batch_size, order.rows - order.batch_size * np.arange(order.steps)),
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],  # which leaves out the rows at weight 0
        steps_per_execution=block_steps(model, order.most_rows(ring.size), order.steps),
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)


def _fit_epochs(keras: Any, batches: Batches, journal: Journal, users: list[Any]) -> None:
    """Train from where the journal stands to the last epoch. users: the user's callbacks of this rank."""
    model, epochs, epoch = journal.model, journal.job.config.epochs, journal.epoch

    class OneTraining(keras.callbacks.CallbackList):  # type: ignore[misc]
        """Begins once and ends once, however many calls of `fit` there are."""

        has_begun = is_ending = False

        def on_train_begin(self, logs: Any = None) -> None:
            if not self.has_begun:
                super().on_train_begin(logs)
            self.has_begun = True

        def on_train_end(self, logs: Any = None) -> None:
            if self.is_ending:
                super().on_train_end(logs)

    synchronize = collective.synchronize(journal.ring, blank_steps=journal.blank_steps)
    callbacks = OneTraining(
        [synchronize, *journal.callbacks(users)], add_history=True, model=model, epochs=epochs,
        steps=journal.order.steps, verbose=0,
    )  # fmt: skip
    settings = {"verbose": 0, "shuffle": False, "callbacks": callbacks}
    if journal.first_step and not journal.is_stopped:  # the rest of an epoch that a checkpoint has begun
        with _unfinished(model.optimizer):
            model.fit(batches.from_step(journal.first_step), initial_epoch=epoch, epochs=epoch + 1, **settings)
        epoch += 1
    callbacks.is_ending = True
    last = epoch if journal.is_stopped else max(epoch, epochs)  # without an epoch left, `fit` only ends the training
    model.fit(batches.from_step(0), initial_epoch=epoch, epochs=last, **settings)


@contextmanager
def _unfinished(optimizer: Any) -> Iterator[None]:
    """Keep `fit` from putting averaged weights (`use_ema`) into the model at its end."""
    optimizer.finalize_variable_values = lambda variables: None
    yield
    del optimizer.finalize_variable_values


def block_steps(model: Any, rows: int, steps: int) -> int:
    """The number of steps in a block, which runs compiled and without callbacks: about 0.3 s of one core, a second of a
    slow one.

    rows: the most that any rank has in a batch. steps: of an epoch. The time is estimated from the weights and the
    number of places where each is used, not measured: the ranks agree at each block's end, and random state is derived
    at each block's start, so the blocks must be the same on every rank and machine.
    """
    multiplications = 0
    for layer in all_layers(model):
        weights = max((int(np.prod(weight.shape)) for weight in layer.trainable_weights), default=0)
        try:
            places = int(np.prod(layer.output.shape[1:-1]))
        except (AttributeError, TypeError, ValueError):  # a layer without one output, or of unknown size
            places = 1
        multiplications += weights * places
    seconds = 6 * multiplications * rows / 30e9  # forward and backward, 2 operations each, on a core of 30 GFLOP/s
    return min(64, steps, 1 << max(0, int(0.3 / max(seconds, 1e-9)).bit_length() - 1))


def _require_same_weights(ring: collective.Ring, model: Any) -> None:
    """Every worker must end with the same bits, else the saved model would be that of one worker alone.

    Raises AssertionError on all ranks.
    """
    weights = np.concatenate([np.asarray(v, np.float64).ravel() for v in model.trainable_variables])
    theirs = ring.broadcast(weights.copy())
    differing = ring.all_reduce(np.array([np.count_nonzero(theirs.view(np.int64) != weights.view(np.int64))]))
    require(differing[0] == 0, f"{differing[0]} weights differ between the workers after training")
