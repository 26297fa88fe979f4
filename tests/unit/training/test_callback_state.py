"""What a checkpoint keeps of callbacks, when somebody else has written it."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.training.callbacks import CallbackState

KERAS = SimpleNamespace(callbacks=SimpleNamespace())


class Patient:
    """A callback as Keras' are: attributes, methods, and a property."""

    def __init__(self) -> None:
        self.best, self.seen, self.history = np.inf, np.zeros(2), {"loss": [(1, 0.5)]}
        self._model = object()

    def on_epoch_end(self) -> None:
        self.best, self.seen, self.history = np.float32(0.25), np.ones(3), {"loss": [(1, 0.5), (2, None)]}


def npz(meta: Any, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    np.savez(buffer, meta=np.frombuffer(text, np.uint8), **arrays)
    return buffer.getvalue()


def test_what_was_kept_comes_back() -> None:
    before, after = Patient(), Patient()
    state = CallbackState(KERAS, [before])
    state.remember_start()
    before.on_epoch_end()
    CallbackState(KERAS, [after]).restore(state.to_bytes(), "the checkpoint of step 3 in x")
    assert (after.best, type(after.best), after.history) == (0.25, np.float32, before.history)
    assert after.seen.tolist() == [1, 1, 1]


HOSTILE = {
    "not JSON": (b"{", "is damaged: "),
    "another kind": ({"best": 1}, "must be a valid array"),
    "no pair": ([["Patient"]], "is missing|at least 2 items"),
    "a method": ([["Patient", {"on_epoch_end": 1}]], "it replaces Patient.on_epoch_end"),
    "the class": ([["Patient", {"__class__": 1}]], "must be an attribute"),
    "the model": ([["Patient", {"_model": 1}]], "must be an attribute"),
    "no name": ([["Patient", {"a b": 1}]], "must be an attribute"),
    "no packed value": ([["Patient", {"best": {"code": "x"}}]], "must be a packed value"),
    "two kinds": ([["Patient", {"best": {"list": [], "tuple": []}}]], "must be a packed value"),
    "a list of anything": ([["Patient", {"best": [1]}]], "must be a packed value"),
    "no such array": ([["Patient", {"best": {"array": 7}}]], "is damaged: KeyError"),
    "an array by name": ([["Patient", {"best": {"array": "../x"}}]], "must be a packed value"),
    "very deep": ([["Patient", {"best": "DEEP"}]], "is damaged: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_have_been_kept_is_refused_in_one_line_and_changes_nothing(name: str) -> None:
    meta, words = HOSTILE[name]
    if name == "very deep":
        meta = json.dumps(meta).replace('"DEEP"', '{"list":[' * 5000 + "1" + "]}" * 5000).encode()
    callback = Patient()
    before = dict(vars(callback))
    with pytest.raises(InputError, match=words) as refused:
        CallbackState(KERAS, [callback]).restore(npz(meta), "the checkpoint of step 3 in x")
    assert str(refused.value).startswith("what the checkpoint of step 3 in x holds of callbacks is damaged: ")
    assert str(refused.value).endswith("; train again with --fresh")
    assert "\n" not in str(refused.value)
    assert vars(callback) == before


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", npz([])[:-40]])
def test_and_so_is_what_is_no_archive(data: bytes) -> None:
    with pytest.raises(InputError, match=r"holds of callbacks is damaged: .*; train again with --fresh"):
        CallbackState(KERAS, [Patient()]).restore(data, "the checkpoint of step 3 in x")
