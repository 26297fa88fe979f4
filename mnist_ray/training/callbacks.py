"""The callbacks that a user brings: checked before training, run where they belong, and kept in every checkpoint."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import string
import zipfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Annotated, Any

import numpy as np

from mnist_ray.config import Training
from mnist_ray.errors import InputError, SetupError, one_line
from mnist_ray.storage.records import Line, Rule, parse_record

_WRITERS = ("CSVLogger", "ModelCheckpoint", "RemoteMonitor", "TensorBoard")
"""Keras' callbacks that change nothing in a training: rank 0 alone runs them, or all would write the same files."""

_REFUSED = {
    "BackupAndRestore": "a run continues from its own checkpoints",
    "OrbaxCheckpoint": "a run continues from its own checkpoints",
    "SwapEMAWeights": "it acts in Keras' own validation, which a run does not use",
}

_PACKAGES = {"TensorBoard": "tensorboard", "RemoteMonitor": "requests"}

_NOT_STATE = {"params", "_model", "min_delta"}  # Keras turns the sign of min_delta round in each training


def load(keras: Any, config: Training, function: Callable[[], Any]) -> list[Any]:
    """The callbacks that the user's `callbacks()` gives. Raises InputError where one cannot work in this training."""
    name = f"callbacks() of {config.architecture.partition(':')[0]}"
    try:
        callbacks = function()
    except ModuleNotFoundError as error:
        raise SetupError(f"{name} needs the package {error.name}, which is not installed") from error
    except Exception as error:
        raise InputError(f"{name} failed ({one_line(error)})") from error
    if not isinstance(callbacks, list | tuple) or not all(isinstance(c, keras.callbacks.Callback) for c in callbacks):
        raise InputError(f"{name} must return a list of Keras callbacks", see="runs.md#your-own-callbacks")
    known = {"loss", "accuracy"} | ({"val_loss", "val_accuracy"} if config.validation_fraction else set())
    for callback in callbacks:
        _require_package(keras, callback, name)
        if problem := _problem(keras, callback, known):
            raise InputError(f"{name}: {type(callback).__name__} {problem}", see="runs.md#your-own-callbacks")
        if _is_kind(keras, callback, ("ReduceLROnPlateau", "LearningRateScheduler")):
            known.add("learning_rate")
        if not _is_of_keras(callback):
            known = _Anything(known)  # it may add values to the logs
    return list(callbacks)


class _Anything(set[str]):
    def __contains__(self, name: object) -> bool:
        return True


def _is_kind(keras: Any, callback: Any, names: Sequence[str]) -> bool:
    return isinstance(
        callback, tuple(getattr(keras.callbacks, name) for name in names if hasattr(keras.callbacks, name))
    )


def _is_of_keras(callback: Any) -> bool:
    return type(callback).__module__.startswith("keras.")


def _require_package(keras: Any, callback: Any, name: str) -> None:
    for kind, package in _PACKAGES.items():
        if _is_kind(keras, callback, (kind,)) and importlib.util.find_spec(package) is None:
            raise SetupError(f"{name}: {kind} needs the package {package}, which is not installed")


def _problem(keras: Any, callback: Any, known: set[str]) -> str | None:
    """Why a callback cannot do in this training what it is for. known: what the logs of an epoch hold."""
    for kind, reason in _REFUSED.items():
        if _is_kind(keras, callback, (kind,)):
            return f"cannot be used: {reason}; leave it out"
    if not _is_of_keras(callback):
        for hook in ("on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end"):
            if getattr(type(callback), hook) is not getattr(keras.callbacks.Callback, hook):
                return f"has {hook}, which is never called: use on_epoch_end, whose logs hold val_loss and val_accuracy"
    return _unknown_metric(keras, callback, known)


def _unknown_metric(keras: Any, callback: Any, known: set[str]) -> str | None:
    wanted = []
    is_saver = _is_kind(keras, callback, ("ModelCheckpoint",))
    if _is_kind(keras, callback, ("EarlyStopping", "ReduceLROnPlateau")) or (is_saver and callback.save_best_only):
        wanted.append(callback.monitor)
    if is_saver:
        fields = [field for _, field, _, _ in string.Formatter().parse(str(callback.filepath)) if field]
        wanted += [field for field in fields if field not in ("epoch", "batch")]
    for name in wanted:
        if name not in known:
            remedy = "; use --validation-fraction" if name in ("val_loss", "val_accuracy") else ""
            return f"uses {name!r}, but this training has only {', '.join(sorted(known))}{remedy}"
    return None


def of_rank(keras: Any, callbacks: Sequence[Any], rank: int) -> list[Any]:
    """Those that run on a rank: all on rank 0; elsewhere not those that only write."""
    return [callback for callback in callbacks if rank == 0 or not _is_kind(keras, callback, _WRITERS)]


class CallbackState:
    """What callbacks remember: their attributes that are numbers, text, arrays, or lists and dictionaries of these.

    Only what has changed since the training began is kept, so a callback's settings remain those of the user's code.
    """

    def __init__(self, keras: Any, callbacks: Sequence[Any]) -> None:
        # A CSVLogger continues its file by itself.
        self._callbacks = [
            (c, not _is_kind(keras, c, ("CSVLogger", "RemoteMonitor", "TensorBoard"))) for c in callbacks
        ]
        self._loggers = [c for c in callbacks if _is_kind(keras, c, ("CSVLogger",))]
        self._at_start: list[dict[str, bytes]] = []

    def append_to_logs(self) -> None:
        """Let log files be continued. To be called before a resumed training begins."""
        for logger in self._loggers:
            logger.append = True

    def remember_start(self) -> None:
        """To be called once the callbacks' on_train_begin has run."""
        self._at_start = [{name: _digest(value) for name, value in vars(c).items()} for c, _ in self._callbacks]

    def to_bytes(self) -> bytes:
        """An .npz (no pickle), which `restore` takes."""
        arrays: list[np.ndarray] = []
        kept = []
        for (callback, has_state), start in zip(self._callbacks, self._at_start, strict=True):
            changed = {}
            for name, value in vars(callback).items() if has_state else ():
                if name not in _NOT_STATE and _is_plain(value) and _digest(value) != start.get(name):
                    changed[name] = _pack(value, arrays)
            kept.append([type(callback).__name__, changed])
        buffer = io.BytesIO()
        meta = np.frombuffer(json.dumps(kept).encode(), np.uint8)
        np.savez(buffer, allow_pickle=False, meta=meta, **{f"a{index}": array for index, array in enumerate(arrays)})
        return buffer.getvalue()

    def restore(self, data: bytes, checkpoint: str) -> None:
        """Set the attributes that `to_bytes` kept, wherever the callback is still of the same class.

        checkpoint: as messages name it. Raises InputError where the bytes are not what `to_bytes` wrote.
        """
        what = f"what {checkpoint} holds of callbacks"
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                kept = parse_record(file["meta"].tobytes(), _Kept, what, _REMEDY)
                unpacked = [(name, {key: _unpack(each, file) for key, each in of.items()}) for name, of in kept]
        except InputError:
            raise
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{what} is damaged: {one_line(error)}; {_REMEDY}") from error
        for (callback, _), (name, changed) in zip(self._callbacks, unpacked, strict=False):
            if type(callback).__name__ == name:
                for attribute, value in changed.items():
                    if callable(getattr(type(callback), attribute, None)):
                        raise InputError(f"{what} is damaged: it replaces {name}.{attribute}; {_REMEDY}")
                    setattr(callback, attribute, value)


_REMEDY = "train again with --fresh"


def _is_packed(value: Any) -> bool:
    """Whether `_pack` may have made this."""
    if not isinstance(value, dict):
        return value is None or isinstance(value, bool | int | float | str)
    if len(value) != 1:
        return False
    ((kind, content),) = value.items()
    if kind in ("array", "scalar"):
        return type(content) is int and content >= 0
    if kind == "dict":
        return isinstance(content, dict) and all(map(_is_packed, content.values()))
    return kind in ("list", "tuple") and isinstance(content, list) and all(map(_is_packed, content))


_Attribute = Annotated[
    str, Rule("must be an attribute", lambda name: name.isidentifier() and name[:2] != "__" and name not in _NOT_STATE)
]
_Kept = list[tuple[Line, dict[_Attribute, Annotated[Any, Rule("must be a packed value", _is_packed)]]]]


def _digest(value: Any) -> bytes:
    """Of a plain value; for a comparison alone, nothing is unpickled."""
    return sha256(pickle.dumps(value)).digest() if _is_plain(value) else b""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str)


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """JSON for a plain value, its arrays apart."""
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
    if isinstance(value, list | tuple):
        return {type(value).__name__ if type(value) in (list, tuple) else "list": [_pack(v, arrays) for v in value]}
    if isinstance(value, dict):
        return {"dict": {key: _pack(each, arrays) for key, each in value.items()}}
    return value


def _unpack(value: Any, arrays: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("array", "scalar"):
        array = arrays[f"a{content}"]
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {key: _unpack(each, arrays) for key, each in content.items()}
    items = [_unpack(each, arrays) for each in content]
    return tuple(items) if kind == "tuple" else items
