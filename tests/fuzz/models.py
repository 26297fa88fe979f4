"""Damaged and hostile `.keras` files, loaded and asked in this process as in an actor: `python -m tests.fuzz.models`.

It prints a line of JSON for each: what came of it, how long it took, what it left behind. `test_vetting.py` judges.
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import random
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.errors import UserError
from mnist_ray.models import child, files, runtime
from mnist_ray.models.inference import Inference
from mnist_ray.storage.location import Location
from tests.fuzz import cases as fuzz_cases
from tests.support.data_makers import images

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {"metadata.json": b"{}", CONFIG: b"{}", WEIGHTS: b""}
BOMB = 128 << 20
RAW = (fuzz_cases.flip, fuzz_cases.flip_near_an_end, fuzz_cases.truncate, fuzz_cases.claim_much, fuzz_cases.cut_out,
       fuzz_cases.repeat, fuzz_cases.another, fuzz_cases.bomb, fuzz_cases.path_tricks)  # fmt: skip


def zipped(members: dict[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]], **options: Any) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **options) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return sink.getvalue()


def entry(module: str, name: str, config: Any = None, registered: str | None = None) -> dict[str, Any]:
    """A serialized object."""
    return {"module": module, "class_name": name, "config": config or {}, "registered_name": registered}


def code_of(source: str) -> str:
    """As Keras keeps a Lambda's function."""
    return base64.b64encode(marshal.dumps(compile(source, "x", "eval"))).decode()


def evil(planted: str) -> list[dict[str, Any]]:
    """Objects that would make the file `planted`, or read others, were they made or called."""
    function = entry("builtins", "__lambda__", {"value": [code_of(f"open({planted!r}, 'w')"), None, None]})
    script = f"open({planted!r}, 'w')"
    return [
        entry("os", "system", {"command": f"touch {planted}"}),
        entry("os", "function", "system", "function"),
        entry("subprocess", "Popen", {"args": ["touch", planted]}),
        entry("builtins", "function", "eval", "function"),
        entry("builtins", "exec", {"source": script}),
        entry("planted_module", "Planted"),
        entry("planted_module", "function", "planted", "planted"),
        entry("keras.layers", "Planted", {}, "planted_module>Planted"),
        entry("keras.layers", "planted_module.Planted"),
        entry("keras.src.layers.planted_module", "Planted"),
        entry("keras.src.layers..planted_module", "Planted"),
        entry("keras.utils", "get_file", {"fname": planted, "origin": "file:///etc/passwd"}),
        entry("keras.layers", "Lambda", {"function": function}),
        entry("keras.src.layers.core.lambda_layer", "Lambda", {"function": function}),
        function,
        function | {"module": "keras"},
        entry("keras.layers", "TFSMLayer", {"filepath": planted}),
        entry("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
        entry("keras.models", "load_model", {"filepath": planted}),
        entry("keras.models", "function", "save_model", "function"),
        entry("keras.src.models.model", "model_from_json", {"json_string": "{}"}),
        entry("keras.src.saving.serialization_lib", "enable_unsafe_deserialization"),
        entry("keras", "function", "config.enable_unsafe_deserialization", "function"),
        entry("keras", "__typespec__", [script]) | {"spec_name": "Model"},
        entry("keras.layers", "function", "deserialize", "function"),
        entry("keras.callbacks", "CSVLogger", {"filename": planted}),
    ]


@dataclass
class Good:
    """A file that Keras has saved, and changes of it."""

    data: bytes
    planted: Path

    def __post_init__(self) -> None:
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            self.members = {name: archive.read(name) for name in MEMBERS}

    def configured(self, change: Callable[[Any], Any]) -> bytes:
        """With another config.json; `change` may alter it in place."""
        config = json.loads(self.members[CONFIG])
        return self.with_member(CONFIG, json.dumps(change(config) or config).encode())

    def with_member(self, name: str, data: bytes) -> bytes:
        return zipped({**self.members, name: data})

    def weighted(self, change: Callable[[Any], Any]) -> bytes:
        """With other weights."""
        import h5py

        held = io.BytesIO(self.members[WEIGHTS])
        with h5py.File(held, "r+") as file:
            change(file)
        return self.with_member(WEIGHTS, held.getvalue())


def raw_damage(good: Good) -> Iterator[tuple[str, bytes]]:
    for number in range(2 * len(RAW)):
        mutate = RAW[number % len(RAW)]
        yield f"{mutate.__name__} {number}", mutate(bytearray(good.data), random.Random(number))


def bad_weights(good: Good) -> Iterator[tuple[str, bytes]]:
    """Of right checksums: no accident, but a file made so."""
    mutators = (*(fuzz_cases.flip,) * 4, *(fuzz_cases.claim_much,) * 2, fuzz_cases.truncate, fuzz_cases.cut_out)
    for number in range(24):
        mutate = mutators[number % len(mutators)]
        damaged = mutate(bytearray(good.members[WEIGHTS]), random.Random(number))
        yield f"weights: {mutate.__name__} {number}", good.with_member(WEIGHTS, damaged)
    kernel = "layers/dense/vars/0"
    shape = (16, 3)

    def replaced(make: Callable[[Any], Any]) -> bytes:
        def change(file: Any) -> None:
            del file[kernel]
            make(file)

        return good.weighted(change)

    outside = good.planted.parent / "outside.h5"
    values: dict[str, Any] = {
        "transposed": np.zeros(shape[::-1], np.float32),
        "scalar": np.float32(0),
        "of text": np.full(shape, b"evil"),
        "complex": np.zeros(shape, np.complex128),
        "not a number": np.full(shape, np.nan, np.float32),
        "infinite": np.full(shape, np.inf, np.float32),
        "of 64 bits": np.zeros(shape),
    }
    for name, value in values.items():
        yield f"weights {name}", replaced(lambda file, value=value: file.create_dataset(kernel, data=value))
    import h5py

    makers: dict[str, Callable[[Any], Any]] = {
        "missing": lambda file: None,
        "a group": lambda file: file.create_group(kernel),
        "of no space": lambda file: file.create_dataset(kernel, data=h5py.Empty("f")),
        "of 2^51": lambda file: file.create_dataset(kernel, (1 << 31, 1 << 20), "f", chunks=(1024, 1024)),
        "a bomb": lambda file: file.create_dataset(
            kernel, (1 << 14, 1 << 14), "f", chunks=(1 << 10, 1 << 10), compression="gzip"
        ),
        "a soft link": lambda file: file.__setitem__(kernel, h5py.SoftLink("/layers/dense/vars/1")),
        "a link to itself": lambda file: file.__setitem__(kernel, h5py.SoftLink(f"/{kernel}")),
        "an outer link": lambda file: file.__setitem__(kernel, h5py.ExternalLink(str(outside), "x")),
        "outside": lambda file: file.create_dataset(kernel, shape, "f", external=[("/etc/passwd", 0, 192)]),
        "virtual": lambda file: file.create_virtual_dataset(kernel, virtual(str(outside), shape)),
        "of objects": lambda file: file.create_dataset(kernel, (2,), h5py.string_dtype()),
    }
    with h5py.File(outside, "w") as file:
        file["x"] = np.zeros(shape, np.float32)
    for name, make in makers.items():
        yield f"weights {name}", replaced(make)

    def deep(file: Any) -> None:
        group = file
        for _ in range(2000):
            group = group.create_group("g")

    yield "weights in a circle", good.weighted(lambda file: file["layers"].__setitem__("again", file["/"]))
    yield "weights far down", good.weighted(deep)
    yield "weights and 20,000 groups", good.weighted(lambda file: [file.create_group(f"g{n}") for n in range(20_000)])


def virtual(outside: str, shape: tuple[int, ...]) -> Any:
    import h5py

    layout = h5py.VirtualLayout(shape, "f")
    layout[:] = h5py.VirtualSource(outside, "x", shape)
    return layout


def bad_configs(good: Good) -> Iterator[tuple[str, bytes]]:
    def layers(config: Any) -> list[Any]:
        found: list[Any] = config["config"]["layers"]
        return found

    def setting(number: int, key: str, value: Any) -> bytes:
        return good.configured(lambda config: layers(config)[number]["config"].__setitem__(key, value))

    def inserted(made: Any, before: int = 1) -> bytes:
        return good.configured(lambda config: layers(config).insert(before, made))

    for number, made in enumerate(evil(str(good.planted))):
        name = f"{made['module']}.{made['class_name']} {number}"
        yield (
            (f"layer {name}", inserted(made)) if number % 2 else (f"activation {name}", setting(-1, "activation", made))
        )
    for key, part in (("build_config", "input_shape"), ("compile_config", "optimizer")):
        made = {key: {part: evil(str(good.planted))[0]}}
        yield f"{key} of a layer", good.configured(lambda config, made=made: layers(config)[-1].update(made))
        yield f"{key} of the model", good.configured(lambda config, made=made: config.update(made))
    for value in (0, -1, 1 << 31, 1 << 70, "many", None, [3]):
        yield f"units {value!r}", setting(-1, "units", value)
    for key, value in (("kernel_size", [1 << 20, 1 << 20]), ("filters", 1 << 31), ("strides", [0, 0]), ("groups", 0),
                       ("data_format", "evil"), ("kernel_initializer", "evil"), ("dtype", "evil")):  # fmt: skip
        yield f"{key} {value!r}", setting(1, key, value)
    for shape in ([None, 1 << 31, 1 << 31, 1], [None, None, None, 1], [None, 4], [None, 5, 6, 1], "evil", None, []):
        yield f"batch_shape {shape!r}", setting(0, "batch_shape", shape)
    for name, config in (
        ("Embedding", {"input_dim": 10**10, "output_dim": 1}),
        ("UpSampling2D", {"size": [1 << 15, 1 << 15]}),
        ("ZeroPadding2D", {"padding": 1 << 16}),
        ("Resizing", {"height": 1 << 16, "width": 1 << 16}),
        ("Reshape", {"target_shape": [1 << 31]}),
        ("Rescaling", {"scale": "evil"}),
        ("NoSuchLayer", {}),
        ("Layer", {}),
    ):
        yield f"with {name}", inserted(entry("keras.layers", name, config))
    size = [1 << 13] * 2
    grows = entry("keras.layers", "UpSampling2D", {"size": size})
    shrinks = entry("keras.layers", "AveragePooling2D", {"pool_size": size})

    def swollen(config: Any) -> None:
        layers(config)[1:1] = [grows, shrinks]

    yield "4 GB between two layers", good.configured(swollen)
    nest: dict[str, Any] = entry("keras.layers", "Flatten")
    for _ in range(150):
        nest = entry("keras", "Sequential", {"layers": [nest]}, "Sequential")
    yield "150 models in each other", inserted(nest)
    yield "deep lists", good.with_member(CONFIG, b"[" * 200_000)
    yield "deep layers", good.with_member(CONFIG, b'{"config":' * 100_000)
    whole: dict[str, Any] = {
        "null": None, "a list": [], "text": "x", "a number": 1, "nothing": {}, "no class": {"config": {}},
        "no layers": entry("keras", "Sequential", {"layers": []}, "Sequential"),
        "a layer": entry("keras.layers", "Dense", {"units": 3}),
        "unbuilt": entry("keras", "Sequential", {"layers": [entry("keras.layers", "Dense", {"units": 3})]}),
        "an initializer": entry("keras.initializers", "Zeros"),
        "a bare model": entry("keras", "Model"),
        "a nameless function": entry("keras", "function", "Sequential"),
    }  # fmt: skip
    for name, value in whole.items():
        yield f"config is {name}", good.with_member(CONFIG, json.dumps(value).encode())
    for name, data in (("empty", b""), ("not UTF-8", b"\xff\xfe{"), ("cut", good.members[CONFIG][:-9]), ("NaN", b"NaN"),
                       ("zeros", bytes(1000))):  # fmt: skip
        yield f"config is {name}", good.with_member(CONFIG, data)
    for name, found in (("layers are a dictionary", {}), ("layers are null", None), ("a layer is null", [None]),
                        ("a layer is text", ["Dense"])):  # fmt: skip
        yield name, good.configured(lambda config, found=found: config["config"].update(layers=found))
    yield "the same layer twice", good.configured(lambda config: layers(config).append(layers(config)[-1]))
    yield "no Flatten", good.configured(lambda config: layers(config).pop(-2))


def bad_graphs(good: Good) -> Iterator[tuple[str, bytes]]:
    """Functional models."""

    def changed(change: Callable[[Any], Any]) -> bytes:
        return good.configured(lambda config: change(config["config"]))

    def history(config: Any, layer: int) -> list[Any]:
        found: list[Any] = config["layers"][layer]["inbound_nodes"][0]["args"][0]["config"]["keras_history"]
        return found

    def circle(config: Any) -> None:
        history(config, 1)[0] = config["layers"][-1]["name"]

    yield "layers in a circle", changed(circle)
    yield "a layer of itself", changed(lambda config: history(config, -1).__setitem__(0, config["layers"][-1]["name"]))
    yield "a layer of nobody", changed(lambda config: history(config, -1).__setitem__(0, "nobody"))
    yield "a node of nobody", changed(lambda config: history(config, -1).__setitem__(1, 99))
    yield "an output of nobody", changed(lambda config: config["output_layers"].__setitem__(0, "nobody"))
    yield "an output of nothing", changed(lambda config: config.__setitem__("output_layers", []))
    yield "an input of nothing", changed(lambda config: config.__setitem__("input_layers", []))
    yield "nodes are null", changed(lambda config: config["layers"][-1].__setitem__("inbound_nodes", None))
    yield (
        "two outputs",
        changed(
            lambda config: config.__setitem__(
                "output_layers", [[layer["name"], 0, 0] for layer in config["layers"][-2:]]
            )
        ),
    )


def bad_archives(good: Good) -> Iterator[tuple[str, bytes]]:
    members = list(good.members.items())
    hostile = json.loads(good.members[CONFIG])
    hostile["config"]["layers"][-1] = evil(str(good.planted))[0]
    other = (CONFIG, json.dumps(hostile).encode())
    escaping = [("../../escaped", b"x"), (f"{good.planted}", b"x"), ("assets/../../escaped", b"x"), ("assets/", b"")]
    yield "members that escape", zipped([*members, *escaping])
    yield "another config behind", zipped([*members, other])
    yield "another config before", zipped([other, *members])
    yield "other weights behind", zipped([*members, (WEIGHTS, b"x")])
    for name in MEMBERS:
        yield f"no {name}", zipped({kept: data for kept, data in members if kept != name})
    yield "folders alone", zipped([(f"{name}/", b"") for name in MEMBERS])
    yield "nothing", zipped([])
    link = zipfile.ZipInfo(WEIGHTS)
    link.external_attr = 0o120777 << 16
    yield "a link to a file", zipped([*members[:2], (link, b"/etc/passwd")])
    yield "something before", b"#!/bin/sh\n" * 100 + good.data
    yield "20,000 members more", zipped([*members, *((str(number), b"") for number in range(20_000))])
    yield "unpacked twice", zipped({"model.keras": good.data})
    yield "shrunk", zipped(good.members, compression=zipfile.ZIP_DEFLATED)
    yield "shrunk otherwise", zipped(good.members, compression=zipfile.ZIP_LZMA)
    yield "encrypted", declared(good.data, CONFIG, flags=1)
    yield "strongly encrypted", declared(good.data, CONFIG, flags=0x41)
    yield "of an unknown method", declared(good.data, CONFIG, method=99)
    yield "not deflated", declared(good.data, CONFIG, method=zipfile.ZIP_DEFLATED)
    yield "of another size", declared(good.data, WEIGHTS, size=1 << 31)
    yield "of no size", declared(good.data, WEIGHTS, size=0)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        for name in (CONFIG, WEIGHTS):
            yield f"a bomb of method {method} as {name}", bomb(good, name, method)
            small = declared(bomb(good, name, method), name, size=100, crc=zipfile.crc32(b" " * 100))
            yield f"a bomb of method {method} that lies, as {name}", small


def bomb(good: Good, name: str, method: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method, compresslevel=1) as archive:
        for other, data in good.members.items():
            with archive.open(other, "w") as member:
                for _ in range(BOMB >> 20) if other == name else ():
                    member.write(b" " * (1 << 20))
                member.write(data)
    return sink.getvalue()


def declared(archive: bytes, name: str, **fields: int) -> bytes:
    """What the directory and the member's own header say of it, replaced."""
    places = {"flags": (8, 6, "H"), "method": (10, 8, "H"), "crc": (16, 14, "L"), "size": (24, 22, "L")}
    data = bytearray(archive)
    central = data.rindex(name.encode(), 0, len(data)) - 46
    local = struct.unpack_from("<L", data, central + 42)[0]
    for field, value in fields.items():
        in_central, in_local, kind = places[field]
        struct.pack_into(f"<{kind}", data, central + in_central, value)
        struct.pack_into(f"<{kind}", data, local + in_local, value)
    return bytes(data)


def saved(folder: Path) -> tuple[bytes, bytes]:
    """A Sequential and a functional model, as Keras saves them."""
    keras = runtime.import_keras(threads=1)
    layers = keras.layers
    made = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3, name="dense")]
    sequential = keras.Sequential([keras.Input((4, 4, 1)), *made])
    sequential.save(folder / "sequential.keras")
    inputs = keras.Input((4, 4, 1))
    functional = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(inputs))))
    functional.save(folder / "functional.keras")
    return tuple((folder / f"{name}.keras").read_bytes() for name in ("sequential", "functional"))  # type: ignore[return-value]


def cases(folder: Path) -> Iterator[tuple[str, bytes]]:
    sequential, functional = saved(folder)
    good = Good(sequential, folder / "planted")
    yield "undamaged", sequential
    yield from raw_damage(good)
    yield from bad_archives(good)
    yield from bad_configs(good)
    yield from bad_weights(good)
    yield from bad_graphs(Good(functional, folder / "planted"))


def asked(path: Path) -> str:
    loaded = files.load(Location.parse(path))
    outputs, probabilities = Inference(loaded, (4, 4), most_rows=9)(images(9))
    assert outputs.shape == probabilities.shape == (9, loaded.num_classes)
    if not np.isfinite(probabilities).all():
        raise AssertionError("it gives no numbers")
    return f"{loaded.num_classes} classes"


def main(folder: Path, part: str = "") -> None:
    """part: of the names of the cases to try."""
    child.SECONDS = 40
    watched = [folder, Path.cwd()]

    def held() -> list[Path]:
        return sorted(path for each in watched for path in each.rglob("*"))

    for number, (name, data) in enumerate(case for case in cases(folder) if part in case[0]):
        path = folder / f"{number}.keras"
        path.write_bytes(data)
        print(json.dumps({"begun": name}), flush=True)
        before, peak, began = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            said, kind = asked(path), "works"
        except UserError as error:
            said, kind = str(error), "refused"
        except BaseException as error:
            said, kind = f"{type(error).__name__}: {error}", "ERROR"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        told = {
            "name": name, "kind": kind, "said": said, "seconds": round(time.perf_counter() - began, 2),
            "grown": grown << 10, "left": [str(each) for each in held() if each not in before],
            "names_it": str(path) in said,
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        path.unlink()
    print(json.dumps({"child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
