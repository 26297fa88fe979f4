"""Hostile and damaged `.keras` files: refused in one line, soon, in little memory; nothing of them is run or written.

Most of it needs no Keras. The drill loads each of many in a process, as an actor does.
"""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import vetting
from mnist_ray.storage.location import Location
from tests.fuzz.cases import keras_file
from tests.fuzz.models import CONFIG, WEIGHTS, Good, declared, evil, zipped

WHERE = Location.parse("/somewhere/a.keras")


@pytest.fixture
def good(tmp_path: Path) -> Good:
    return Good(Path(keras_file(tmp_path)).read_bytes(), tmp_path / "planted")


def refused(data: bytes) -> str:
    """What is said of it."""
    with pytest.raises(InputError) as refusal:
        vetting.vet(WHERE, data)
    assert "\n" not in str(refusal.value)
    assert str(WHERE) in str(refusal.value)
    return str(refusal.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_looked_at_is_all_that_keras_sees(good: Good, tmp_path: Path) -> None:
    data = zipped([*good.members.items(), ("../escaped", b"x"), ("assets/../../escaped", b"x"), (CONFIG, b"{}")])
    with pytest.raises(InputError):  # the last of a name counts
        vetting.vet(WHERE, data)
    data = zipped([(CONFIG, b"{}"), *good.members.items(), ("../escaped", b"x")])
    vetting.write_archive(vetting.vet(WHERE, data), tmp_path / "packed.keras")
    with zipfile.ZipFile(tmp_path / "packed.keras") as packed:
        assert packed.namelist() == [CONFIG, WEIGHTS]
        assert {name: packed.read(name) for name in packed.namelist()} == {
            name: good.members[name] for name in (CONFIG, WEIGHTS)
        }


def test_every_byte_of_the_zip_structure(good: Good) -> None:
    """Two turns of each byte that is no member's content: it is refused, or the same members are read."""
    data, tried, read = good.data, 0, 0
    contents = [data.index(content) for content in good.members.values()]
    inside = {at + n for at, content in zip(contents, good.members.values(), strict=True) for n in range(len(content))}
    for at in sorted(set(range(len(data))) - inside):
        for turn in (0x01, 0xFF):
            turned = bytearray(data)
            turned[at] ^= turn
            tried += 1
            try:
                members = vetting.vet(WHERE, bytes(turned))
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
                continue
            assert members == {name: good.members[name] for name in (CONFIG, WEIGHTS)}
            read += 1
    assert tried > 600
    assert 0 < read < tried


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flags": 1}, "RuntimeError: File 'config.json' is encrypted"),
        ({"flags": 0x41}, "NotImplementedError: strong encryption"),
        ({"method": 99}, "BadZipFile: compressed by method 99"),
        ({"method": zipfile.ZIP_BZIP2}, "BadZipFile: compressed by method 12"),
        ({"method": zipfile.ZIP_DEFLATED}, "error: Error -3 while decompressing data"),
    ],
)
def test_members_that_cannot_be_unpacked(good: Good, change: dict[str, int], said: str) -> None:
    assert f"is damaged at {CONFIG} ({said}" in refused(declared(good.data, CONFIG, **change))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_bomb_that_lies_about_its_size(good: Good, name: str) -> None:
    """Its checksum is that of what it admits to."""
    sink, admitted = io.BytesIO(), good.members[name]
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, content in good.members.items():
            with archive.open(member, "w") as file:
                file.write(content)
                for _ in range(128 if member == name else 0):
                    file.write(bytes(1 << 20))
    data = declared(sink.getvalue(), name, size=len(admitted), crc=zipfile.crc32(admitted))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert vetting.vet(WHERE, data)[name] == admitted
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize(
    "config", [b"[" * 200_000, b'{"config":' * 100_000, b"", b"null", b"NaN", b"\xff\xfe{", b"9" * 5000, b"[1]"]
)
def test_a_config_that_is_none(good: Good, config: bytes) -> None:
    assert f"is damaged: its {CONFIG} is not a model's" in refused(good.with_member(CONFIG, config))


def test_a_config_that_is_too_long(good: Good, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_MAX_CONFIG_BYTES", len(good.members[CONFIG]) - 1)
    assert f"its {CONFIG} is not a model's" in refused(good.data)
    monkeypatch.setattr(vetting, "_MAX_CONFIG_BYTES", len(good.members[CONFIG]))
    vetting.vet(WHERE, good.data)


def test_objects_that_would_run_code(good: Good) -> None:
    """Keras is asked only for what could be its own, of which it makes no more than models and layers."""
    asked = set()
    for made in evil(str(good.planted)):

        def as_layer(config: Any, made: Any = made) -> None:
            config["config"]["layers"].append(made)

        def as_setting(config: Any, made: Any = made) -> None:
            config["config"]["layers"][0]["config"]["activation"] = made

        for change in (as_layer, as_setting):
            try:
                vetting.vet(WHERE, good.configured(change))
                asked.add((made["module"], made["class_name"]))
            except InputError as error:
                said = str(error)
                assert "has a custom object, " in said or "layer, which brings " in said
    assert asked == {
        ("keras", "function"), ("keras", "__typespec__"),
        ("keras.layers", "function"), ("keras.layers", "planted_module.Planted"),
        ("keras.models", "function"), ("keras.models", "load_model"),
        ("keras.src.layers.planted_module", "Planted"), ("keras.src.layers..planted_module", "Planted"),
        ("keras.src.models.model", "model_from_json"),
    }  # fmt: skip


# HDF5.


def held(change: Callable[[h5py.File], Any]) -> int:
    """Weights of a file that has 6 to begin with."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file["a/b"] = np.zeros((2, 3), np.float32)
        change(file)
    return vetting.count_stored(sink.getvalue())


def test_weights_are_counted_once_and_also_in_circles() -> None:
    assert held(lambda file: None) == 6
    assert held(lambda file: file["a"].__setitem__("again", file["/"])) == 6
    assert held(lambda file: file.create_dataset("nothing", data=h5py.Empty("f"))) == 6
    assert held(lambda file: file.create_dataset("c", (1 << 31, 1 << 20), "f", chunks=(64, 64))) == 6 + (1 << 51)


def layout_of(shape: tuple[int, ...]) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape, "f")
    layout[:] = h5py.VirtualSource("outside.h5", "x", shape)
    return layout


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.__setitem__("c", h5py.SoftLink("/a/b")),
        lambda file: file.__setitem__("c", h5py.ExternalLink("/etc/passwd", "x")),
        lambda file: file.create_dataset("c", (2, 3), "f", external=[("/etc/passwd", 0, 24)]),
        lambda file: file.create_virtual_dataset("c", layout_of((2, 3))),
    ],
)
def test_weights_that_lie_elsewhere(change: Callable[[h5py.File], Any]) -> None:
    with pytest.raises(InputError, match="its weights are stored elsewhere: c"):
        held(change)
