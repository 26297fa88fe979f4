"""Converting a classifier: it gives what Keras gives, or TensorFlow computes it, and why; a user's, in a child."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import build, conversion, files
from mnist_ray.models.conversion import NotConverted, convert
from mnist_ray.models.engines.base import Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.inference import Inference
from mnist_ray.storage.location import Location, sha256
from tests.support.command import ROOT
from tests.support.data_makers import images
from tests.support.models import CLASSES, IMAGES, RECIPE

pytestmark = pytest.mark.tensorflow

RAW = images(9, RECIPE.image_shape)


def trained(seed: int = 3) -> Any:
    """A model whose outputs vary."""
    model = build.build(RECIPE)
    generator = np.random.default_rng(seed)
    model.set_weights([weight + generator.normal(0, 0.2, weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    files.save(trained(), Location.parse(folder) / "model", RECIPE, CLASSES, {}, RAW)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Location:
    """A run with a model whose outputs vary."""
    return Location.parse(shutil.copytree(saved, tmp_path / "run"))


def test_a_runs_model_is_kept_converted(run: Location) -> None:
    told = (run / "model" / "model.json").read_json()["converted"]
    for suffix, digest in (("xml", "graph_sha256"), ("bin", "weights_sha256")):
        assert sha256((run / "model" / f"classifier.{suffix}").read_bytes()) == told[digest]
    for place in (run, run / "model", run / "model" / "classifier.keras"):
        found = files.load_converted(place)
        assert isinstance(found, ConvertedClassifier)
        assert (found.sha256, found.classes, found.pixels) == (files.digest(run), CLASSES, "0-255")
        given, chances = Inference(found, RECIPE.image_shape, most_rows=4)(RAW)
        expected = np.asarray(trained()(RAW))
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
        assert (given.argmax(1) == expected.argmax(1)).all()
    with pytest.raises(InputError, match="was not trained with --architecture cnn"):
        files.load_converted(run, architecture="cnn")


def test_a_run_of_an_earlier_version_is_converted_when_it_is_scored(run: Location) -> None:
    meta = run / "model" / "model.json"
    told = meta.read_json()
    del told["converted"]
    meta.write_json(told)
    assert files.load_converted(run) is None
    found = files.convert(run, RAW)
    assert isinstance(found, ConvertedClassifier)
    assert (found.sha256, found.classes, found.pixels, found.pixels_reason) == (told["sha256"], CLASSES, "0-255", None)
    given, _ = Inference(found, RECIPE.image_shape, most_rows=4)(RAW)
    np.testing.assert_allclose(given, np.asarray(trained()(RAW)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", ["xml", "bin"])
def test_a_damaged_file_is_named(run: Location, suffix: str) -> None:
    file = run / "model" / f"classifier.{suffix}"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"classifier\.{suffix} is damaged: .*--engine tensorflow"):
        files.load_converted(run)
    file.delete()
    with pytest.raises(InputError, match=rf"classifier\.{suffix} is missing; .*--engine tensorflow"):
        files.load_converted(run)


def test_what_cannot_be_converted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    double = replace(RECIPE, precision="float64")
    assert convert(files.untrained(double), RAW) == NotConverted(
        sha256=files.untrained(double).sha256, reason="it computes in float64"
    )
    build.build(RECIPE)  # sets the precision back
    mine = files.untrained(RECIPE)
    whole = conversion._converted

    def broken(classifier: Any) -> Any:
        raise RuntimeError("no rule for the operation Foo\nat 3")

    monkeypatch.setattr(conversion, "_converted", broken)
    found = convert(mine, RAW)
    assert isinstance(found, NotConverted)
    assert found.reason == "it cannot be converted (RuntimeError: no rule for the operation Foo)"

    def wrong(classifier: Any) -> Any:
        return whole(files.untrained(replace(RECIPE, seed=9)))

    monkeypatch.setattr(conversion, "_converted", wrong)
    found = convert(mine, RAW)
    assert isinstance(found, NotConverted)
    assert found.reason.startswith("once converted, its outputs differ by ")


def test_no_activation_is_an_output(keras: Any) -> None:
    """What swish keeps for its gradient was one, and took EfficientNet half of its time."""
    layers = [keras.layers.Conv2D(4, 3, activation="swish") for _ in range(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)])
    mine = replace(files.untrained(RECIPE), model=model, input_shape=(8, 8, 3), num_classes=3)
    found = convert(mine, images(4, (8, 8, 3)))
    assert isinstance(found, ConvertedClassifier)
    assert [list(output.partial_shape)[1] for output in found.read().outputs] == [3, 3]
    # Of the image, and back again before it is made flat; none between the layers.
    assert [each.get_type_name() for each in found.read().get_ops()].count("Transpose") == 2


@pytest.mark.parametrize(("times", "reason"), [(1.3, "it takes OpenVINO 1.3 times as long"), (1.2, None)])
def test_what_tensorflow_computes_clearly_faster_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, times: float, reason: str | None
) -> None:
    asked = []
    monkeypatch.setattr(conversion, "seconds_of_an_image", lambda *told: asked.append(told) or (times / 1000, 0.001))
    assert isinstance(convert(files.untrained(RECIPE), RAW), ConvertedClassifier)
    assert asked == []
    found = convert(files.untrained(RECIPE), RAW, total_rows=70_000)
    assert getattr(found, "reason", None) == reason
    ((mine, other, sample, rows),) = asked
    assert (mine.classifier.engine, other.classifier.engine, rows) == ("openvino", "tensorflow", 70_000)
    assert {mine.pixels, other.pixels} == {"0-255"}
    np.testing.assert_array_equal(sample, RAW)
    assert isinstance(convert(files.untrained(RECIPE), RAW, total_rows=15_000), ConvertedClassifier)  # 19.5 seconds


def slow_to_convert(image_shape: tuple[int, ...], num_classes: int) -> Any:
    """OpenVINO takes twice as long or more to resize."""
    import keras

    layers = [keras.layers.Resizing(96, 96), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input((*image_shape, 1)), *layers])


def test_a_users_function_is_measured_where_it_is_saved(tmp_path: Path) -> None:
    """It cannot be later: its code is not at hand where its model is scored."""
    recipe = replace(RECIPE, architecture=f"{__name__}:slow_to_convert", image_shape=(24, 24))
    raw, classes = images(9, (24, 24)), ("a", "b", "c")
    for measures in (True, False):
        run = Location.parse(tmp_path / str(measures))
        files.save(build.build(recipe), run / "model", recipe, classes, {}, raw, measures=measures)
    found = files.load_converted(Location.parse(tmp_path / "True"), total_rows=10**8)
    assert isinstance(found, NotConverted)
    assert re.fullmatch(r"it takes OpenVINO \d+\.\d times as long", found.reason)
    assert found.sha256 == files.digest(Location.parse(tmp_path / "True"))
    for measures, rows in ((True, 1), (True, 0), (False, 10**8)):
        found = files.load_converted(Location.parse(tmp_path / str(measures)), total_rows=rows)
        assert isinstance(found, ConvertedClassifier)


def of_a_layer_of_its_own(image_shape: tuple[int, ...], num_classes: int) -> Any:
    import keras

    class Mine(keras.layers.Flatten):  # type: ignore[misc]
        pass

    return keras.Sequential([keras.Input((*image_shape, 1)), Mine(), keras.layers.Dense(num_classes)])


def test_a_model_whose_code_is_not_at_hand_is_not_left_to_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "seconds_of_an_image", lambda *_: (2.0, 1.0))
    architecture = f"{__name__}:of_a_layer_of_its_own"
    recipe, run = replace(RECIPE, architecture=architecture), Location.parse(tmp_path)
    files.save(build.build(recipe), run / "model", recipe, ("a", "b", "c"), {}, measures=True)
    assert isinstance(files.load_converted(run, total_rows=100), ConvertedClassifier)
    assert isinstance(files.load_converted(run, total_rows=100, architecture=architecture), NotConverted)


def test_both_engines_are_measured_in_the_child(tmp_path: Path) -> None:
    path = tmp_path / "mine.keras"
    slow_to_convert((24, 24), 3).save(path)
    raw = images(9, (24, 24))
    found = files.convert(Location.parse(path), raw, total_rows=10**7)
    assert isinstance(found, NotConverted)
    assert re.fullmatch(r"it takes OpenVINO \d+\.\d times as long", found.reason)


def test_images_of_another_shape_are_left_out() -> None:
    assert isinstance(convert(files.untrained(RECIPE), images(3, (7, 7))), ConvertedClassifier)
    assert isinstance(convert(files.untrained(RECIPE), images(0, RECIPE.image_shape)), ConvertedClassifier)


def test_an_untrained_model_is_kept_by_its_recipe(tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    assert files.load_untrained(RECIPE, folder) is None
    files.save_untrained(RECIPE, build.build(RECIPE), folder, IMAGES)
    found = files.load_untrained(RECIPE, folder)
    assert isinstance(found, ConvertedClassifier)
    assert files.load_untrained(replace(RECIPE, seed=9), folder) is None
    given, _ = Inference(found, RECIPE.image_shape, most_rows=16)(RAW)
    np.testing.assert_allclose(given, np.asarray(build.build(RECIPE)(RAW)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ending", "scaling"), [("logits", True), ("softmax", False)])
def test_a_users_file_is_converted_in_a_child(tmp_path: Path, keras: Any, ending: str, scaling: bool) -> None:
    layers = [keras.layers.Rescaling(1 / 255)] if scaling else []
    last = keras.layers.Dense(3, activation="softmax" if ending == "softmax" else None)
    model = keras.Sequential([keras.Input((5, 4, 1)), *layers, keras.layers.Flatten(), last])
    path = tmp_path / "mine.keras"
    model.save(path)
    found = files.convert(Location.parse(path), RAW)
    assert isinstance(found, ConvertedClassifier)
    assert (found.sha256, found.pixels) == (sha256(path.read_bytes()), "0-255" if scaling else "0-1")
    assert found.gives_logits == (ending == "logits")
    given, _ = Inference(found, (5, 4), most_rows=16)(RAW)
    expected = model(RAW[..., None] / (1.0 if scaling else 255.0))
    np.testing.assert_allclose(given, np.asarray(expected), rtol=1e-5, atol=1e-5)
    assert files.load_converted(Location.parse(path)) is None


def test_a_users_file_that_is_no_classifier_is_refused(tmp_path: Path, keras: Any) -> None:
    path = tmp_path / "mine.keras"
    keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), keras.layers.Dense(3, "tanh")]).save(path)
    with pytest.raises(InputError, match=r"the model in .*mine\.keras ends in tanh; it must give logits"):
        files.convert(Location.parse(path), RAW)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"mine\.keras is not a .keras file, or is damaged"):
        files.convert(Location.parse(path), RAW)


@pytest.mark.parametrize(
    "record",
    [
        b"{", b"[]", b"3", b'{"reason": 3}', b'{"sha256": "%s"}' % (b"0" * 64),
        b'{"sha256": "%s", "reason": "two\\nlines"}' % (b"0" * 64),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line(tmp_path: Path, record: bytes) -> None:
    folder = Location.parse(tmp_path)
    (folder / "name.json").write_bytes(record)
    with pytest.raises(InputError, match=r"name\.json is damaged") as raised:
        conversion.read_beside(folder, "name", "0" * 64)
    assert "\n" not in str(raised.value)


def test_a_process_that_scores_imports_no_tensorflow_opens_no_connection_and_leaves_nothing(
    run: Location, tmp_path: Path
) -> None:
    code = """
import sys
asked = []
sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)
from mnist_ray.scoring.process import ScoringActor
from mnist_ray.models import files
from mnist_ray.models.inference import compute_one
from mnist_ray.storage.location import Location
import numpy as np
ScoringActor(1, "auto").ping()
compute_one(files.load_converted(Location.parse(sys.argv[1])), np.zeros((5, 4), np.uint8))
print(sorted(name for name in ("keras", "tensorflow", "openvino_telemetry") if sys.modules.get(name)))
print(asked)
"""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, run.path], cwd=ROOT, env={"HOME": str(home), "PATH": ""}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "[]\n[]\n"
    assert list(home.iterdir()) == []


def test_one_thread_computes(run: Location) -> None:
    """Several actors share a node: none of them takes more than its core, or pins itself to the first one."""
    found = files.load_converted(run)
    assert isinstance(found, ConvertedClassifier)
    settings = found._settings()
    assert settings["INFERENCE_NUM_THREADS"] == 1
    assert settings["ENABLE_CPU_PINNING"] is False
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"
    found.compile("0-255", Execution(jit=False, batch_size=2))
