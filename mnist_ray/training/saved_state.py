"""The model's and the optimizer's variables in checkpoints: rank 0 reads and writes, every rank follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location
from mnist_ray.training import checkpoints
from mnist_ray.training.checkpoints import Checkpoint
from mnist_ray.training.random_state import is_seed


class SavedState:
    """What a training saves and goes on from. Every rank calls the same methods in the same order."""

    def __init__(self, folder: Location, keep: int, ring: collective.Ring, model: Any) -> None:
        """keep: the number of newest checkpoints that stay in the folder."""
        self._folder, self._ring, self._model = folder, ring, model
        self._is_writer = ring.rank == 0
        self._writer = checkpoints.Writer(folder, keep)

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
        return step, checkpoint.meta if checkpoint else {}

    def go_back_to(self, step: int | None) -> None:
        """Take the variables of an earlier checkpoint. step: on rank 0. Raises RetryableError where it is damaged."""
        checkpoint = None
        if self._is_writer:
            assert step is not None
            self.wait()
            checkpoint = checkpoints.load(self._folder, step)
        self._follow(checkpoint)

    def save(self, step: int, meta: dict[str, Any], *, also_keep: int | None) -> None:
        """Begin to write a checkpoint. The one of step `also_keep` is kept, too."""
        if self._is_writer:
            arrays = [np.array(variable) for variable in self._variables()]
            self._writer.write(Checkpoint(step, arrays, meta), also_keep=also_keep)

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
