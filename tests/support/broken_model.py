"""A user's model whose callback raises what nobody foresaw, once the first epoch has begun."""

from __future__ import annotations

from typing import Any

from tests.support.own_model import classifier

__all__ = ["callbacks", "classifier"]


def callbacks() -> list[Any]:
    import keras

    class Broken(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            print("on the way to fail")
            raise KeyError("no such\nkey")

    return [Broken()]
