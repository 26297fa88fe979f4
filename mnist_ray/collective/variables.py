"""Keras variables that are summed over a ring, or set to what rank 0 has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .ring import Ring


def all_reduce_variables(ring: Ring, variables: Sequence[Any], *, divide_by: int = 1) -> None:
    """Replace Keras variables by their sum over the ring, divided: one all-reduce for all of them, in float64."""
    _exchange(ring, variables, lambda flat: ring.all_reduce(flat) / divide_by)


def broadcast_variables(ring: Ring, variables: Sequence[Any]) -> None:
    """Give every worker rank 0's values. float64 holds each of the dtypes that Keras weights have exactly."""
    _exchange(ring, variables, ring.broadcast)


def _exchange(ring: Ring, variables: Sequence[Any], call: Callable[[np.ndarray], np.ndarray]) -> None:
    if ring.size == 1 or not variables:
        return
    values = [np.asarray(variable, np.float64) for variable in variables]
    flat = call(np.concatenate([value.ravel() for value in values]))
    start = 0
    for variable, value in zip(variables, values, strict=True):
        variable.assign(flat[start : start + value.size].reshape(value.shape))
        start += value.size
