"""A model whose optimizer puts averaged weights into it when the training ends, and not before."""

from __future__ import annotations

from tests.support.stateful import classifier, optimizer

__all__ = ["classifier", "optimizer"]
