"""A user's `.keras` file, before it is loaded: looked through without Keras, then tried where it can do no harm."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnist_ray.backend import import_keras
from mnist_ray.errors import InputError, RetryableError, one_line
from mnist_ray.storage import Location

WEIGHTS = "model.weights.h5"
"""The member that holds them."""

_ALLOWED_MODULES = {
    "keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints",
    "keras.activations", "keras.dtype_policies", "keras.quantizers",
}  # fmt: skip
_ALLOWED_INTERNALS = ("keras.src.models.", "keras.src.ops.", "keras.src.layers.", "keras.src.dtype_policies.")
_ALLOWED_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__ellipsis__", "__slice__"}
# What runs code or opens files of its own.
_REFUSED = {
    "Lambda": "code", "TFSMLayer": "code", "TorchModuleWrapper": "code", "JaxLayer": "code", "FlaxLayer": "code",
    "StringLookup": "a vocabulary", "IntegerLookup": "a vocabulary", "TextVectorization": "a vocabulary",
}  # fmt: skip

_MOST_INFLATION = 50  # weights hardly shrink
_CHILD_SECONDS = 180
_CHILD_BYTES = 2 << 30  # over what TensorFlow takes and four times the archive


def unzipped(archive: Location, data: bytes) -> zipfile.ZipFile:
    try:
        opened = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{archive} is no .keras file, or is damaged; --model takes what `model.save` wrote"
        ) from error
    if sum(member.file_size for member in opened.infolist()) > _MOST_INFLATION * len(data):
        raise InputError(f"{archive} is no model: its {len(data):,} bytes unpack to more than {_MOST_INFLATION} times")
    return opened


def member(archive: Location, opened: zipfile.ZipFile, name: str) -> bytes:
    try:
        return opened.read(name)
    except KeyError as error:
        raise InputError(f"{archive} is no .keras file: it has no {name}") from error
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{archive} is damaged at {name} ({one_line(error)}); copy it again") from error


def look_through(archive: Location, data: bytes) -> None:
    """Refuse what a file must not ask for, before anything is made of it."""
    opened = unzipped(archive, data)
    try:
        config = json.loads(member(archive, opened, "config.json"))
        entries = [entry for key, value in config.items() if key != "compile_config" for entry in _entries(value)]
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{archive} is damaged: its config.json is not a model's") from error
    for entry in [config, *entries]:
        name, module = str(entry.get("class_name")), str(entry.get("module"))
        if name in _REFUSED:
            raise InputError(f"{archive} has a {name} layer, which brings {_REFUSED[name]} along; build it of others")
        known = module in _ALLOWED_MODULES or module.startswith(_ALLOWED_INTERNALS) or name in _ALLOWED_VALUES
        if not known or entry.get("registered_name") not in (None, name):
            raise InputError(
                f"{archive} has a custom object, {entry.get('registered_name') or name} of {module}; a model from a"
                " file must be of Keras' own layers (one built from code may have others: --architecture)"
            )
    held = _held_weights(archive, member(archive, opened, WEIGHTS))
    try:
        asked = max((_asked_weights(entry) for entry in entries), default=0)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{archive} is damaged: a layer's config is none ({one_line(error)})") from error
    if asked > held:
        raise InputError(f"{archive} is damaged: a layer needs {asked:,} weights, but it holds {held:,} for all")


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object within a config."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for inner in value.values():
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


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


def _held_weights(archive: Location, weights: bytes) -> int:
    """Numbers in an HDF5 file, as its headers tell. Links to other files are not followed."""
    import h5py  # type: ignore[import-untyped]

    total = 0
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            pending: list[Any] = [file]
            while pending:
                group = pending.pop()
                for name in group:
                    if isinstance(group.get(name, getlink=True), h5py.HardLink):
                        item = group[name]
                        if isinstance(item, h5py.Dataset):
                            if item.external or item.is_virtual:
                                raise InputError(f"{archive} has weights outside of itself ({item.name})")
                            total += item.size
                        else:
                            pending.append(item)
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{archive} is damaged at {WEIGHTS} ({one_line(error)}); copy it again") from error
    return total


def try_in_child(archive: Location, path: Path) -> None:
    """Load a file where it can do no harm. Raises InputError where that fails."""
    command = [sys.executable, "-c", "from mnist_ray.vetting import _child; _child()", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{archive} could not be loaded within {_CHILD_SECONDS} s") from error
    except OSError as error:
        raise RetryableError(f"cannot start a process to try {archive} in: {one_line(error)}") from error
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
        reason = said[-1].removeprefix("refused: ") if said else f"loading it crashed with status {done.returncode}"
        raise InputError(f"{archive} cannot be loaded ({reason})")


def _child() -> None:
    """Load the file that the command line names, within the memory that its size justifies."""
    import resource

    path = Path(sys.argv[1])
    keras = import_keras(threads=1)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + 4 * path.stat().st_size + _CHILD_BYTES
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        print(f"refused: {one_line(error) or 'out of memory'}", flush=True)  # noqa: T201 - what the parent reads
        raise SystemExit(1) from None
