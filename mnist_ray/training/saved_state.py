"""The state of a training in checkpoints: rank 0 reads and writes, every rank follows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.collective.variables import is_seed
from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location
from mnist_ray.training import checkpoints
from mnist_ray.training.callbacks import CallbackState
from mnist_ray.training.checkpoints import Checkpoint


class SavedState:
    """What a training saves and goes on from. Every rank calls the same methods in the same order.

    This is the model's and the optimizer's variables, what the user's callbacks remember, and within an epoch each
    rank's moving statistics (BatchNormalization), which the ranks average at its end.
    """

    def __init__(
        self, folder: Location, keep: int, ring: collective.Ring, model: Any, callbacks: CallbackState
    ) -> None:
        """keep: the number of newest checkpoints that stay in the folder."""
        self._folder, self._ring, self._model, self._callbacks = folder, ring, model, callbacks
        self._is_writer = ring.rank == 0
        self._writer = checkpoints.Writer(folder, keep)
        self._restored: list[np.ndarray] = []
        self._remembered: bytes | None = None
        self._source = ""

    def restore(self, warn: Callable[[str], None]) -> tuple[int | None, dict[str, Any]]:
        """Go on from the newest undamaged checkpoint: (its step, or None where there is none; its meta on rank 0)."""
        checkpoint = None
        if self._is_writer:
            self._folder.sweep()  # of an earlier attempt's rank 0; should that still write, its file is not needed
            checkpoint = checkpoints.load_newest(self._folder, warn)
        step = int(self._ring.broadcast(np.array([checkpoint.step if checkpoint else -1], np.int64))[0])
        if step < 0:
            return None, {}
        self._follow(checkpoint)
        extra = _broadcast_arrays(self._ring, checkpoint.extra if checkpoint else {})
        self._source = f"the checkpoint of step {step} in {self._folder}"
        if "moving" in extra:
            self._set_moving(extra["moving"])
        self._remembered = extra["callbacks"].tobytes() if "callbacks" in extra else None
        self._restored = [np.array(variable) for variable in self._variables()]
        self._callbacks.append_to_logs()
        return step, checkpoint.meta if checkpoint else {}

    def begin(self, *, is_in_epoch: bool) -> None:
        """After the callbacks' on_train_begin, which has set them back: restore what they and the model were.

        is_in_epoch: whether the training goes on within an epoch; then `begin_epoch` does it again.
        """
        self._callbacks.remember_start()
        self._restore_again(is_last=not is_in_epoch)

    def begin_epoch(self) -> None:
        """After the callbacks' on_epoch_begin, which has run before in an epoch that goes on, and acts only once."""
        self._restore_again(is_last=True)

    def _restore_again(self, *, is_last: bool) -> None:
        for variable, array in zip(self._variables(), self._restored, strict=False):
            variable.assign(array)
        if self._remembered is not None:
            self._callbacks.restore(self._remembered, self._source)
        if is_last:
            self._restored, self._remembered = [], None

    def go_back_to(self, step: int | None) -> None:
        """Take the variables of an earlier checkpoint. step: on rank 0. Raises RetryableError where it is damaged."""
        checkpoint = None
        if self._is_writer:
            assert step is not None
            self.wait()
            checkpoint = checkpoints.load(self._folder, step)
        self._follow(checkpoint)

    def save(self, step: int, meta: dict[str, Any], *, also_keep: int | None, is_in_epoch: bool) -> None:
        """Begin to write a checkpoint. The one of step `also_keep` is kept, too."""
        extra = {"moving": self._gather_moving()} if is_in_epoch else {}
        if self._is_writer:
            arrays = [np.array(variable) for variable in self._variables()]
            extra["callbacks"] = np.frombuffer(self._callbacks.to_bytes(), np.uint8)
            self._writer.write(Checkpoint(step, arrays, meta, extra), also_keep=also_keep)

    def first_not_finite(self) -> str | None:
        """The path of a variable of this rank that holds an infinity or NaN; None where all are finite."""
        for variable in self._variables():
            array = np.asarray(variable)
            if array.dtype.kind not in "biu" and not np.isfinite(array).all():
                return str(variable.path)
        return None

    def wait(self) -> None:
        """Wait until the last checkpoint is in storage. Raises the error of writing it."""
        self._writer.wait()

    def _follow(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            variables = self._variables()
            shapes = [tuple(variable.shape) for variable in variables]
            if [array.shape for array in checkpoint.arrays] != shapes:
                raise InputError(
                    f"the checkpoint of step {checkpoint.step} in {self._folder} has arrays of other shapes than this"
                    " model; train again with --fresh"
                )
            for variable, array in zip(variables, checkpoint.arrays, strict=True):
                variable.assign(array)
        collective.broadcast_variables(self._ring, self._variables())

    def _variables(self) -> list[Any]:
        kept = [variable for variable in self._model.variables if not is_seed(variable)]
        return [*kept, *self._model.optimizer.variables]

    def _moving(self) -> list[Any]:
        return [v for v in self._model.non_trainable_variables if "float" in str(v.dtype) and not is_seed(v)]

    def _gather_moving(self) -> np.ndarray:
        """(ranks, n) float64: every rank's moving statistics."""
        mine = np.concatenate([np.zeros(0), *(np.asarray(v, np.float64).ravel() for v in self._moving())])
        rows = np.zeros((self._ring.size, len(mine)))
        rows[self._ring.rank] = mine
        return self._ring.all_reduce(rows.ravel()).reshape(rows.shape)

    def _set_moving(self, rows: np.ndarray) -> None:
        """rows: as `_gather_moving` gives them; their mean where there were more or fewer ranks."""
        total = sum(int(np.prod(variable.shape)) for variable in self._moving())
        if rows.ndim != 2 or rows.shape[1] != total:
            raise InputError(
                f"{self._source} has moving statistics of other shapes than this model; train again with --fresh"
            )
        mine = rows[self._ring.rank] if len(rows) == self._ring.size else rows.mean(0)
        start = 0
        for variable in self._moving():
            size = int(np.prod(variable.shape))
            variable.assign(mine[start : start + size].reshape(variable.shape))
            start += size


def _broadcast_arrays(ring: collective.Ring, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rank 0's arrays on every rank."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    size = int(ring.broadcast(np.array([len(data)], np.int64))[0])
    words = np.zeros(-(-size // 8), np.int64)
    if ring.rank == 0:
        words.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
    with np.load(io.BytesIO(ring.broadcast(words).tobytes()[:size]), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
