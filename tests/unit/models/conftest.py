"""Keras, for all tests of models."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_ray import model


@pytest.fixture(scope="module")
def keras() -> Any:
    return model.import_keras(threads=None)
