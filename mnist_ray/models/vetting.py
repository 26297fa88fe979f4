"""A user's `.keras` file, before it is loaded: looked through without Keras, then tried where it can do no harm."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError, RetryableError, one_line
from mnist_ray.models.runtime import import_keras
from mnist_ray.storage.location import Location

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""The members that a model is made of."""

_ALLOWED_MODULES = {
    "keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints",
    "keras.activations", "keras.dtype_policies", "keras.quantizers",
}  # fmt: skip
_ALLOWED_INTERNALS = ("keras.src.models.", "keras.src.ops.", "keras.src.layers.", "keras.src.dtype_policies.")
_ALLOWED_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__ellipsis__", "__slice__"}
# What runs code or opens files of its own.
_REFUSED = {
    "Lambda": "code", "TFSMLayer": "code", "TorchModuleWrapper": "code", "JaxLayer": "code", "FlaxLayer": "code",
    "__lambda__": "code", "StringLookup": "a vocabulary", "IntegerLookup": "a vocabulary",
    "TextVectorization": "a vocabulary",
}  # fmt: skip

_MOST_INFLATION = 50  # weights hardly shrink
_MOST_CONFIG = 16 << 20  # bytes: of ten thousand layers
_CHILD_SECONDS = 180
_CHILD_BYTES = 2 << 30  # over what TensorFlow takes and four times the archive


def unzipped(archive: Location, data: bytes) -> zipfile.ZipFile:
    try:
        opened = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # zipfile raises almost anything on a damaged archive
        raise InputError(
            f"{archive} is no .keras file, or is damaged; --model takes what `model.save` wrote"
        ) from error
    if sum(member.file_size for member in opened.infolist()) > _MOST_INFLATION * len(data):
        raise InputError(f"{archive} is no model: its {len(data):,} bytes unpack to more than {_MOST_INFLATION} times")
    return opened


def member(archive: Location, opened: zipfile.ZipFile, name: str) -> bytes:
    """No more bytes than the archive says: what is compressed may unpack to any number."""
    try:
        info = opened.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack all at once
            raise zipfile.BadZipFile(f"compressed by method {info.compress_type}")
        with opened.open(name) as stream:
            return stream.read(info.file_size)
    except KeyError as error:
        raise InputError(f"{archive} is no .keras file: it has no {name}") from error
    except Exception as error:  # as above
        raise InputError(f"{archive} is damaged at {name} ({one_line(error)}); copy it again") from error


def look_through(archive: Location, data: bytes) -> dict[str, bytes]:
    """Refuse what a file must not ask for, before anything is made of it. What was looked at comes back."""
    opened = unzipped(archive, data)
    config = member(archive, opened, CONFIG)
    try:
        if len(config) > _MOST_CONFIG:
            raise ValueError
        model = _uncompiled(json.loads(config))
        entries = _entries(model)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{archive} is damaged: its {CONFIG} is not a model's") from error
    for entry in entries:
        name, module = str(entry.get("class_name")), str(entry.get("module"))
        if name in _REFUSED:
            raise InputError(f"{archive} has a {name} layer, which brings {_REFUSED[name]} along; build it of others")
        known = module in _ALLOWED_MODULES or module.startswith(_ALLOWED_INTERNALS) or name in _ALLOWED_VALUES
        if not known or entry.get("registered_name") not in (None, name):
            raise InputError(
                f"{archive} has a custom object, {entry.get('registered_name') or name} of {module}; a model from a"
                " file must be of Keras' own layers (one built from code may have others: --architecture)"
            )
    return {CONFIG: json.dumps(model).encode(), WEIGHTS: member(archive, opened, WEIGHTS)}


def _uncompiled(value: Any) -> Any:
    """A config without the losses and optimizers of it and of models within: they may be anybody's, and go unused."""
    if isinstance(value, dict):
        return {key: _uncompiled(inner) for key, inner in value.items() if key != "compile_config"}
    return [_uncompiled(inner) for inner in value] if isinstance(value, list) else value


def _entries(model: Any) -> list[dict[str, Any]]:
    """The model itself and every serialized object within it. Raises ValueError where there is no model."""
    if not isinstance(model, dict):
        raise ValueError(type(model).__name__)
    return [model, *_within(list(model.values()))]


def _within(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for inner in value.values():
            yield from _within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _within(inner)


def pack(members: Mapping[str, bytes], path: Path) -> None:
    """A file of what was looked at and nothing else: Keras might see another of the same name, or what is hidden."""
    with zipfile.ZipFile(path, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)


def try_in_child(archive: Location, path: Path) -> None:
    """Load a packed file where it can do no harm. Raises InputError where that fails."""
    command = [sys.executable, "-c", "from mnist_ray.models.vetting import _child; _child()", str(path)]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=_CHILD_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{archive} could not be loaded within {_CHILD_SECONDS} s") from error
    except OSError as error:
        raise RetryableError(f"cannot start a process to try {archive} in: {one_line(error)}") from error
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
        reason = said[-1].removeprefix("refused: ") if said else f"loading it crashed with status {done.returncode}"
        raise InputError(f"{archive} cannot be loaded ({reason})")


# In the child process: damaged HDF5 can end it, a hostile model fill its memory or never come to an end.


def _child() -> None:
    """Load the file that the command line names and ask it once."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(sys.argv[1])
    try:
        with _little_memory(path):
            _check_weights(path)
        keras = import_keras(threads=1)
        with _little_memory(path):
            _ask(keras, keras.saving.load_model(path, compile=False, safe_mode=True))
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else one_line(error)
        print(f"refused: {reason}", flush=True)  # noqa: T201 - what the parent reads
        raise SystemExit(1) from None


@contextmanager
def _little_memory(path: Path) -> Iterator[None]:
    """What the size of the file justifies, over what is taken already."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if (taken := Path("/proc/self/statm")).exists():
        limit = int(taken.read_text().split()[0]) * resource.getpagesize() + 4 * path.stat().st_size + _CHILD_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_weights(path: Path) -> None:
    """Raises InputError where the layers need more weights than there are."""
    with zipfile.ZipFile(path) as opened:
        entries, weights = _entries(json.loads(opened.read(CONFIG))), opened.read(WEIGHTS)
    held = _held_weights(weights)
    try:
        asked = max(map(_asked_weights, entries))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"a layer's config is none: {one_line(error)}") from error
    if asked > held:
        raise InputError(f"a layer needs {asked:,} weights, but it holds {held:,} for all")


def _asked_weights(entry: Mapping[str, Any]) -> int:
    """Weights of a layer whose number is plain from its config: those of Dense and convolutions. Others count 0."""
    config, shape = entry.get("config"), (entry.get("build_config") or {}).get("input_shape")
    if not isinstance(config, dict) or not isinstance(shape, list) or not all(isinstance(n, int) for n in shape[-1:]):
        return 0
    if entry["class_name"] == "Dense":
        return int(config["units"]) * int(shape[-1])
    if entry["class_name"] == "Conv2D" and config.get("data_format") == "channels_last":
        kernel = math.prod(int(side) for side in config["kernel_size"])
        return kernel * int(shape[-1]) // int(config["groups"]) * int(config["filters"])
    return 0


def _held_weights(weights: bytes) -> int:
    """Numbers in an HDF5 file, as its headers tell. Raises InputError where some are in other files."""
    import h5py  # type: ignore[import-untyped]

    total = 0
    links: list[tuple[str, Any]] = []
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            file.visititems_links(lambda *link: links.append(link))  # each once, also where they go in a circle
            for name, link in links:
                item = file[name] if isinstance(link, h5py.HardLink) else None
                if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                    raise InputError(f"its weights lie elsewhere: {name}")
                if isinstance(item, h5py.Dataset):
                    total += item.size or 0
    except InputError:
        raise
    except Exception as error:  # h5py raises almost anything, too
        raise InputError(f"its {WEIGHTS} is damaged: {one_line(error)}") from error
    return total


def _ask(keras: Any, model: Any) -> None:
    """Raises InputError where an image gives no numbers. A model that takes no images is refused elsewhere.

    The image has every value: on one of a single gray a sound model that divides by the spread would fail.
    """
    shapes = [tensor.shape[1:] for tensor in getattr(model, "inputs", None) or ()]
    if len(shapes) == 1 and None not in shapes[0]:
        ramp = keras.ops.reshape(keras.ops.arange(math.prod(shapes[0]), dtype="float32") % 256, (1, *shapes[0]))
        given = keras.tree.flatten(model(ramp, training=False))
        if not all(keras.ops.all(keras.ops.isfinite(each)) for each in given):
            raise InputError("for an image it gives what is no number: its weights are damaged")
