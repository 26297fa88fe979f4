"""Keras variables, summed over a ring or set to the values of rank 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .ring import Ring


def all_reduce_variables(ring: Ring, variables: Sequence[Any], *, divide_by: int = 1) -> None:
    """Replace Keras variables by their sum over the ring, divided by a number: one all-reduce for all, in float64."""
    _exchange(ring, variables, lambda flat: ring.all_reduce(flat) / divide_by)


def broadcast_variables(ring: Ring, variables: Sequence[Any]) -> None:
    """Set variables on every worker to the values of rank 0. They travel as float64, which holds any dtype of weights
    exactly."""
    _exchange(ring, variables, ring.broadcast)


def is_seed(variable: Any) -> bool:
    """Whether a variable of a model is the state of a random generator, such as that of Dropout."""
    return "seed_generator" in variable.path


def part_seeds(ring: Ring, variables: Sequence[Any]) -> None:
    """Give every rank but the first other random generators: with the same masks everywhere, Dropout would drop the
    same units for each worker's rows."""
    if ring.rank:
        for variable in variables:
            if is_seed(variable):
                drawn = np.random.SeedSequence([*np.asarray(variable).ravel().tolist(), ring.rank]).generate_state(2)
                variable.assign(drawn.astype(variable.dtype))


def _exchange(ring: Ring, variables: Sequence[Any], call: Callable[[np.ndarray], np.ndarray]) -> None:
    if ring.size == 1 or not variables:
        return
    values = [np.asarray(variable, np.float64) for variable in variables]
    flat = call(np.concatenate([value.ravel() for value in values]))
    start = 0
    for variable, value in zip(variables, values, strict=True):
        variable.assign(flat[start : start + value.size].reshape(value.shape))
        start += value.size
