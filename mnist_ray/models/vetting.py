"""A user's `.keras` file before it is loaded, vetted without Keras; and what a child process checks of it."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError, one_line
from mnist_ray.storage.location import Location

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""The members of a `.keras` file that a model needs."""

_ALLOWED_MODULES = {
    "keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints",
    "keras.activations", "keras.dtype_policies", "keras.quantizers",
}  # fmt: skip
_ALLOWED_INTERNALS = ("keras.src.models.", "keras.src.ops.", "keras.src.layers.", "keras.src.dtype_policies.")
_ALLOWED_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__ellipsis__", "__slice__"}
# Objects that run code or open other files, and what each of them contains.
_REFUSED = {
    "Lambda": "code", "TFSMLayer": "code", "TorchModuleWrapper": "code", "JaxLayer": "code", "FlaxLayer": "code",
    "__lambda__": "code", "StringLookup": "a vocabulary", "IntegerLookup": "a vocabulary",
    "TextVectorization": "a vocabulary",
}  # fmt: skip

_MAX_INFLATION = 50  # times; weights hardly shrink
_MAX_CONFIG_BYTES = 16 << 20  # ten thousand layers


def open_archive(archive: Location, data: bytes) -> zipfile.ZipFile:
    """The zip file in `data`. Raises InputError where it is not one, or unpacks to far more than a model would."""
    try:
        opened = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # zipfile raises almost anything on a damaged archive
        raise InputError(
            f"{archive} is not a .keras file, or is damaged; --model takes what `model.save` wrote"
        ) from error
    if sum(member.file_size for member in opened.infolist()) > _MAX_INFLATION * len(data):
        raise InputError(
            f"{archive} is not a model: its {len(data):,} bytes unpack to more than {_MAX_INFLATION} times as many"
        )
    return opened


def read_member(archive: Location, opened: zipfile.ZipFile, name: str) -> bytes:
    """A member's content, no more bytes of it than the archive declares: it may unpack to any number.

    Raises InputError where it is missing or damaged.
    """
    try:
        info = opened.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other methods unpack all at once
            raise zipfile.BadZipFile(f"compressed by method {info.compress_type}")
        with opened.open(name) as stream:
            return stream.read(info.file_size)
    except KeyError as error:
        raise InputError(f"{archive} is not a .keras file: it has no {name}") from error
    except Exception as error:  # as above
        raise InputError(f"{archive} is damaged at {name} ({one_line(error)}); copy it again") from error


def vet(archive: Location, data: bytes) -> dict[str, bytes]:
    """The members of a file that does not ask for code or other files. Raises InputError for any other file."""
    config = json.dumps(vetted_config(archive, data)[0]).encode()
    return {CONFIG: config, WEIGHTS: read_member(archive, open_archive(archive, data), WEIGHTS)}


def vetted_config(archive: Location, data: bytes) -> tuple[dict[str, Any], Any]:
    """The config of the model in a file, without its losses and optimizers, and the loss that it was compiled with: any
    JSON, None where there is none. Raises InputError as `vet` does."""
    return check_config(archive, read_member(archive, open_archive(archive, data), CONFIG))


def check_config(archive: Location, config: bytes, module: str | None = None) -> tuple[dict[str, Any], Any]:
    """The same of its JSON. module: that of objects which name none."""
    try:
        if len(config) > _MAX_CONFIG_BYTES:
            raise ValueError
        whole = json.loads(config)
        model: dict[str, Any] = _uncompiled(whole)
        objects = serialized_objects(model)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{archive} is damaged: its {CONFIG} is not a model's") from error
    for each in objects:
        check_object(archive, each if each.get("module") else {**each, "module": module})
    compiled = whole.get("compile_config")
    return model, compiled.get("loss") if isinstance(compiled, dict) else None


def check_object(archive: Location | str, serialized: Mapping[str, Any]) -> None:
    """Raise InputError where an object of a config is not one of Keras' harmless own."""
    name, module = str(serialized.get("class_name")), str(serialized.get("module"))
    registered = serialized.get("registered_name")
    if name in _REFUSED:
        raise InputError(
            f"{archive} has a {name} layer, which brings {_REFUSED[name]} along; build the model without it"
        )
    known = module in _ALLOWED_MODULES or module.startswith(_ALLOWED_INTERNALS) or name in _ALLOWED_VALUES
    if not known or registered not in (None, name):
        raise InputError(
            f"{archive} has a custom object, {registered or name} of {module}; a model from a file must be made of"
            " Keras' own layers"
        )


def _uncompiled(value: Any) -> Any:
    """A config without losses and optimizers, its own or those of models within: they may be custom, and are unused."""
    if isinstance(value, dict):
        return {key: _uncompiled(inner) for key, inner in value.items() if key != "compile_config"}
    return [_uncompiled(inner) for inner in value] if isinstance(value, list) else value


def serialized_objects(model: Any) -> list[dict[str, Any]]:
    """A model's config and that of every object within it. Raises ValueError where it is not a model's."""
    if not isinstance(model, dict):
        raise ValueError(type(model).__name__)
    return [model, *_within(list(model.values()))]


def _within(value: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object in a JSON value."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for inner in value.values():
            yield from _within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _within(inner)


def write_archive(members: Mapping[str, bytes], path: Path) -> None:
    """Write a file of the vetted members alone: in the original, Keras might find others, also of the same name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


# In the child process.


def check_weights(path: Path) -> None:
    """Raise InputError where a layer needs more weights than the file has."""
    with zipfile.ZipFile(path) as opened:
        objects, weights = serialized_objects(json.loads(opened.read(CONFIG))), opened.read(WEIGHTS)
    stored = count_stored(weights)
    try:
        needed = max(map(_count_needed, objects))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"the config of a layer is invalid: {one_line(error)}") from error
    if needed > stored:
        raise InputError(f"a layer needs {needed:,} weights, but the file has {stored:,} in all")


def _count_needed(serialized: Mapping[str, Any]) -> int:
    """The number of weights that a config implies: those of Dense and Conv2D. Other layers count 0."""
    config, shape = serialized.get("config"), (serialized.get("build_config") or {}).get("input_shape")
    if not isinstance(config, dict) or not isinstance(shape, list) or not all(isinstance(n, int) for n in shape[-1:]):
        return 0
    if serialized["class_name"] == "Dense":
        return int(config["units"]) * int(shape[-1])
    if serialized["class_name"] == "Conv2D" and config.get("data_format") == "channels_last":
        kernel = math.prod(int(side) for side in config["kernel_size"])
        return kernel * int(shape[-1]) // int(config["groups"]) * int(config["filters"])
    return 0


def count_stored(weights: bytes) -> int:
    """The number of weights in an HDF5 file, by its headers. Raises InputError where some are in other files."""
    import h5py  # type: ignore[import-untyped]

    total = 0
    links: list[tuple[str, Any]] = []
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            file.visititems_links(lambda *link: links.append(link))  # each once, also where groups contain each other
            for name, link in links:
                item = file[name] if isinstance(link, h5py.HardLink) else None
                if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                    raise InputError(f"its weights are stored elsewhere: {name}")
                if isinstance(item, h5py.Dataset):
                    total += item.size or 0
    except InputError:
        raise
    except Exception as error:  # h5py raises almost anything, too
        raise InputError(f"its {WEIGHTS} is damaged: {one_line(error)}") from error
    return total


def check_output(keras: Any, model: Any) -> None:
    """Raise InputError where the output for an image is not finite. A model of other inputs is refused later.

    The image has every pixel value: a sound model that divides by the spread would fail on an image of one gray.
    """
    shapes = [tensor.shape[1:] for tensor in getattr(model, "inputs", None) or ()]
    if len(shapes) == 1 and None not in shapes[0]:
        ramp = keras.ops.reshape(keras.ops.arange(math.prod(shapes[0]), dtype="float32") % 256, (1, *shapes[0]))
        outputs = keras.tree.flatten(model(ramp, training=False))
        if not all(keras.ops.all(keras.ops.isfinite(output)) for output in outputs):
            raise InputError("its output for an image is not finite: the weights are damaged")
