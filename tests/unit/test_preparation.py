"""Images are prepared for scoring as the images that the model was trained on: until the user says otherwise."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError
from mnist_ray.models.build import Recipe
from mnist_ray.sources.pixels import Conversion
from mnist_ray.sources.preparation import Preparation
from mnist_ray.steps.score import ScoringInput
from mnist_ray.storage.location import Location, sha256
from tests.support import data_makers as make

IGNORED = Preparation(resize="4x4", gray=True, exif="ignore", background="#ff8000")


def trained(folder: Path, preparation: dict[str, Any] | None) -> Path:
    """A run's model as `score` sees it before any actor loads it."""
    folder.mkdir()
    (folder / "classifier.keras").write_bytes(b"weights")
    recipe = Recipe(architecture="mlp", image_shape=(4, 4), num_classes=3, dropout=0, seed=0, precision="float32")
    record = {"sha256": sha256(b"weights"), "recipe": asdict(recipe), "classes": ["0", "1", "2"], "pixels": "0-255"}
    (folder / "model.json").write_text(json.dumps(record | ({"preparation": preparation} if preparation else {})))
    return folder


def photos(folder: Path) -> Path:
    """One photo that lies on its side, in colours and transparent."""
    folder.mkdir()
    note = Image.Exif()
    note[0x0112] = 6
    pixels = np.dstack([make.images(1, (6, 8, 3))[0], np.arange(48, dtype=np.uint8).reshape(6, 8) * 5])
    Image.fromarray(pixels).save(folder / "a.png", exif=note)
    return folder


def opened(tmp_path: Path, preparation: dict[str, Any] | None, **options: Any) -> tuple[ScoringInput, str]:
    out = io.StringIO()
    model = trained(tmp_path / "model", preparation)
    output = tmp_path / "out"
    config = ScoreConfig(input=(str(photos(tmp_path / "photos")),), model=str(model), output=str(output), **options)
    return ScoringInput.open(config, Location.parse(model), Location.parse(output), Console(out)), out.getvalue()


def test_what_the_user_leaves_open_is_as_in_training(tmp_path: Path) -> None:
    scoring, said = opened(tmp_path, asdict(IGNORED))
    assert "as in training: --resize 4x4 --gray --exif ignore --background #ff8000\n" in said
    with Image.open(tmp_path / "photos" / "a.png") as image:
        over = Image.alpha_composite(Image.new("RGBA", image.size, (255, 128, 0, 255)), image)
    expected = over.convert("RGB").convert("L").resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(scoring.source.read(scoring.split, 0, 1).images[0], np.asarray(expected))
    assert (scoring.config.exif, scoring.config.background, scoring.config.resize) == ("ignore", "#ff8000", "4x4")


def test_what_the_user_asks_for_is_done_and_a_difference_is_told(tmp_path: Path) -> None:
    scoring, said = opened(tmp_path, asdict(IGNORED), exif="apply", background="#FF8000", gray=True)
    assert scoring.source.convert == Conversion((4, 4), gray=True, offered=True, background=(255, 128, 0))
    assert "as in training: --resize 4x4\n" in said
    assert (
        "the model was trained with --exif ignore: with --exif apply it is given other pixels than it has learnt from\n"
        in said
    )
    assert "--background" not in said


def test_colours_that_are_asked_for_are_not_made_gray(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the images are \(4, 4, 3\), but the model takes \(4, 4\); leave out --rgb"):
        opened(tmp_path, asdict(IGNORED), rgb=True)


@pytest.mark.parametrize("preparation", [None, asdict(Preparation())])
def test_nothing_is_said_where_nothing_is_taken_over(preparation: dict[str, Any] | None, tmp_path: Path) -> None:
    scoring, said = opened(tmp_path, preparation, resize="4x4", gray=True)
    assert scoring.source.convert == Conversion((4, 4), gray=True, offered=True)
    assert "train" not in said


@pytest.mark.parametrize(
    ("field", "value"), [("resize", "4,4"), ("exif", "x"), ("background", "red"), ("gray", 1), ("rgb", None)]
)
def test_a_forged_record_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"model.json is damaged: `preparation.{field}` must be .*; restore it"):
        opened(tmp_path, asdict(IGNORED) | {field: value})


def test_images_that_are_converted_twice() -> None:
    first = Preparation(resize="9x9", rgb=True, exif="ignore", background="#ffffff")
    assert first.then(Preparation(gray=True)) == Preparation(
        resize="9x9", gray=True, exif="ignore", background="#ffffff"
    )
    assert first.then(Preparation(resize="4x4")) == Preparation(
        resize="4x4", rgb=True, exif="ignore", background="#ffffff"
    )
    assert Preparation.of(Conversion((4, 4), gray=True, applies_exif=False, background=(255, 128, 0))) == IGNORED
