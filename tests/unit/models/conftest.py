"""Keras, for all tests of models."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_ray.models import runtime


@pytest.fixture(scope="module")
def keras() -> Any:
    return runtime.import_keras(threads=None)
