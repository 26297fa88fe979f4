"""Where a training stands: its epochs, its checkpoints, its progress record, and when it must stop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.cluster.gauges import Gauges
from mnist_ray.cluster.ray_private import publish
from mnist_ray.errors import DivergedError
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.storage.records import read_record
from mnist_ray.training.callbacks import CallbackState
from mnist_ray.training.checkpoints import StartsRecord
from mnist_ray.training.job import Job
from mnist_ray.training.metrics import continue_sums, finite_or_none, sums_over_workers, validate
from mnist_ray.training.order import Order
from mnist_ray.training.random_state import derive_random_state
from mnist_ray.training.saved_state import SavedState

SETUP_SECONDS = 600.0
"""How long a worker may leave the others without an answer while it imports and compiles …"""

HANG_SECONDS = 30.0
"""… and afterwards. One that is busy in Python or in a long step answers."""

LOOK_SECONDS = 2.0
"""Between two looks at whether a node is about to be taken away; in Ray Train each is a barrier of 25 ms."""


class Journal:
    """Kept alike by every rank; rank 0 alone writes. What all must agree on goes over the ring at a block's end.

    A block is the steps that Keras runs without a callback (`steps_per_execution`).

    Attributes:
        epoch, first_step: where training goes on; both count from 0.
        is_stopped: whether a callback has ended the training.
        restarts: how often this training had been started before.
    """

    def __init__(
        self,
        job: Job,
        order: Order,
        ring: collective.Ring,
        model: Any,
        validation: tuple[np.ndarray, np.ndarray],
        remembered: CallbackState,
    ) -> None:
        """validation: this rank's held-out (images, labels). remembered: by the user's callbacks."""
        self.job, self.order, self.ring, self.model = job, order, ring, model
        self.epoch = self.first_step = self.restarts = 0
        self.is_stopped = False
        self._epochs: list[dict[str, Any]] = []
        self._resumed_from_epoch: int | None = None
        self._validation = validation
        self._batch_rows = order.batch_rows(ring.rank, ring.size)
        self._sums_before: np.ndarray | None = None  # the metrics of the part of an epoch that a checkpoint holds
        self._seconds_before = self._seconds_of_epoch = 0.0  # that this part, and the finished epoch, took
        self._is_writer = ring.rank == 0
        self._state = SavedState(job.run / "checkpoints", job.config.keep, ring, model, remembered)
        self._record: ProgressRecord | None = None
        if self._is_writer:
            self._record = ProgressRecord(job.run / "progress.json", job.owner)
            self._record.also(Gauges(str(job.run)).show)
        self._looked_at = time.monotonic()
        self._is_leaving = False

    def restore(self) -> None:
        """Go on from the newest undamaged checkpoint, if there is one."""
        if self._is_writer:
            self.restarts = self._count_start()
        warnings: list[str] = []
        step, meta = self._state.restore(warnings.append)
        if step is not None:
            self.epoch, self.first_step = divmod(step, self.order.steps)
            self._resumed_from_epoch = self.epoch
        if meta:
            self._epochs = meta["epochs"]
            self._sums_before = np.array(meta["tallies"])
            self._seconds_before = meta["seconds"]
            self.is_stopped = meta.get("stopped", False)
        self.is_stopped = self._any(self.is_stopped)
        done = self.first_step * self.order.batch_size
        self._show(
            phase="train", done=done, total=self.order.rows, work=self._work(done), epoch=self.epoch,
            epochs=self._epochs, restarts=self.restarts, resumed_from_epoch=self._resumed_from_epoch,
            num_workers=self.ring.size, warnings=warnings,
        )  # fmt: skip

    def _show(self, **fields: Any) -> None:
        """Rank 0: replace fields of the progress record, in storage before long and for the driver now."""
        if self._record is not None:
            progress = self._record.update(**fields)
            if self.job.channel:
                publish(self.job.channel, progress)

    def _work(self, done: int) -> tuple[int, int]:
        """Images of all epochs: those that are done, where `done` are of this one, and how many there are."""
        return self.epoch * self.order.rows + done, self.job.config.epochs * self.order.rows

    def _count_start(self) -> int:
        """How often this training has been started before."""
        file = self.job.run / "checkpoints" / "starts.json"
        remedy = "remove it and start the same command again"
        starts = read_record(file, StartsRecord, remedy).starts + 1 if file.exists() else 0
        file.write_json({"starts": starts})
        return starts

    # During `fit`.

    def callbacks(self, users: Sequence[Any]) -> list[Any]:
        """For `fit`, behind `collective.synchronize`, which makes the logs those of all workers.

        The first sees to the logs before the user's callbacks, the last commits what those have done.
        """
        import keras

        journal = self

        class Follow(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                journal._begin_epoch(epoch)

            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                journal._begin_block(journal.first_step + batch)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                journal._check_block(journal.first_step + batch + 1, logs or {})

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                assert logs is not None
                logs.update(journal._validate())
                journal._seconds_of_epoch = journal._seconds()

        class Commit(keras.callbacks.Callback):  # type: ignore[misc]
            def on_train_begin(self, logs: Any = None) -> None:
                journal._state.begin(is_in_epoch=journal.first_step > 0)

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                journal._state.begin_epoch()

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                journal._end_block(journal.first_step + batch + 1, logs or {})

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                journal._end_epoch(epoch, logs or {})

        return [Follow(), *users, Commit()]

    def blank_steps(self, end: int | None = None) -> int:
        """The number of this epoch's steps before `end` that this process made without a row of its own."""
        return int((self._batch_rows[self.first_step : end] == 0).sum())

    def _begin_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.first_step, self._seconds_before = epoch, 0, 0.0
        elif self.first_step and self._sums_before is not None:  # `fit` has just set the metrics to zero
            continue_sums(self.model, self._sums_before)
        self._sums_before = None
        self._began = time.perf_counter()

    def _begin_block(self, step: int) -> None:
        step += self.epoch * self.order.steps
        derive_random_state(self.model, seed=self.job.config.seed, rank=self.ring.rank, step=step)

    def _check_block(self, step: int, logs: dict[str, Any]) -> None:
        """Raise DivergedError, on all ranks, where the loss of one is no longer finite."""
        is_diverged = self._any(not math.isfinite(logs["loss"]))
        self.ring.timeout = HANG_SECONDS
        if is_diverged:
            raise self._diverged(f"the loss is no longer finite in epoch {self.epoch + 1} by step {step}")

    def _diverged(self, problem: str) -> DivergedError:
        return DivergedError(
            f"{problem}, at learning rate {self._learning_rate():g}; the checkpoint before is kept; start with a"
            " smaller --learning-rate",
            see="runs.md#failures",
        )

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.ring.all_reduce(np.array([flag], np.int64))[0])

    def _end_block(self, step: int, logs: dict[str, Any]) -> None:
        every = self.job.config.checkpoint_every
        is_due = every is not None and step // every > (step - self.model.steps_per_execution) // every
        if self._is_look_due():
            self._looked_at = time.monotonic()
            is_due |= self._is_going_away()
        if is_due and step < self.order.steps:
            sums = sums_over_workers(self.ring, self.model, self.blank_steps(step))
            self._save(self.epoch * self.order.steps + step, sums, self._seconds())
        self._record_block(step, logs)

    def _is_look_due(self) -> bool:
        """Whether rank 0 wants to look at the nodes. A callback that has stopped one rank stops all."""
        wants = self._is_writer and not self.job.is_local and time.monotonic() - self._looked_at > LOOK_SECONDS
        flags = self.ring.all_reduce(np.array([wants, bool(self.model.stop_training)], np.int64))
        self.model.stop_training = bool(flags[1])
        return bool(flags[0])

    def _learning_rate(self) -> float:
        return float(np.asarray(self.model.optimizer.learning_rate))

    def _is_going_away(self) -> bool:
        """Whether a node of ours is being drained: from then on each block ends in a checkpoint until it is gone."""
        from ray.train import get_preemption_info

        self._is_leaving = get_preemption_info() is not None
        return self._is_leaving

    def _validate(self) -> dict[str, float]:
        if not self.job.config.validation_fraction:
            return {}
        return validate(self.ring, self.model, *self._validation)

    def _end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        self.model.stop_training = self.is_stopped = self._any(bool(self.model.stop_training))
        seconds = self._seconds_of_epoch
        numbers = {name: value for name, value in logs.items() if isinstance(value, int | float | np.number)}
        record = {"epoch": epoch + 1, **{name: finite_or_none(value) for name, value in numbers.items()}}
        record |= {"seconds": round(seconds, 4), "images_per_second": round(self.order.rows / seconds, 1)}
        record["unix_time"] = round(time.time(), 3)
        self._epochs = [*self._epochs, record]
        self._save((epoch + 1) * self.order.steps, np.zeros(0), 0.0)
        self._show(epoch=epoch + 1, epochs=self._epochs, done=self.order.rows, total=self.order.rows)

    def _seconds(self) -> float:
        """Seconds of this epoch so far, including those in earlier processes."""
        return self._seconds_before + time.perf_counter() - self._began

    def _save(self, step: int, sums: np.ndarray, seconds: float) -> None:
        self.require_finite()
        meta = {"epochs": self._epochs, "tallies": sums.tolist(), "seconds": seconds, "stopped": self.is_stopped}
        self._state.save(step, meta, also_keep=self._best_step(), is_in_epoch=step % self.order.steps > 0)
        self._show(checkpoint=divmod(step, self.order.steps))
        if self._is_leaving:
            self._state.wait()

    def require_finite(self) -> None:
        """Raise DivergedError, on all ranks, where the model or the optimizer of one holds an infinity or NaN."""
        found = self._state.first_not_finite()
        if self._any(found is not None):
            where = f" ({found})" if found else ""
            raise self._diverged(f"weights{where} are no longer finite in epoch {self.epoch + 1}")

    def _record_block(self, step: int, logs: dict[str, Any]) -> None:
        done = min(step * self.order.batch_size, self.order.rows)
        self._show(
            phase="train", done=done, total=self.order.rows, per_second=round(done / self._seconds()), epoch=self.epoch,
            loss=finite_or_none(logs["loss"]), accuracy=finite_or_none(logs["accuracy"]), epochs=self._epochs,
            work=self._work(done), step_milliseconds=round(1000 * self._seconds() / step, 3),
        )  # fmt: skip

    # At the end.

    def restore_best(self) -> None:
        """With --keep-best, go back to the weights of the epoch with the best validation accuracy."""
        if self.job.config.keep_best:
            self._state.go_back_to(self._best_step())

    def _best_step(self) -> int | None:
        """The global step at the end of the best epoch; None without --keep-best, or without an epoch."""
        if not self.job.config.keep_best or not self._epochs:
            return None
        worst = {"val_accuracy": -1.0, "val_loss": math.inf}
        known = [{**record, **{k: v for k, v in worst.items() if record[k] is None}} for record in self._epochs]
        best = max(known, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
        return int(best["epoch"]) * self.order.steps

    def summary(self) -> dict[str, Any]:
        """`train` of metrics.json. On rank 0 alone it covers the epochs of earlier processes."""
        seconds = [record["seconds"] for record in self._epochs]
        best = min(seconds[1:] or seconds)  # the first epoch traces and warms up
        step = self._best_step()
        return {
            "num_workers": self.ring.size,
            "batch_size": self.order.batch_size,
            "epochs": self._epochs,
            "seconds": round(sum(seconds), 4),
            "milliseconds_per_step": round(1000 * best / self.order.steps, 4),
            "restarts": self.restarts,
            "resumed_from_epoch": self._resumed_from_epoch,
            **({"best_epoch": step // self.order.steps} if step else {}),
        }

    def close(self) -> None:
        """Wait until the last checkpoint and the progress record are in storage."""
        self._state.wait()
        if self._record is not None:
            self._record.close()
