"""The pictures of docs/tutorial.md, small and in the colours of flow.svg, light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_ray.results import Epoch, Evaluation

_GAP = 8  # pixels between two images
_TIMES = 4  # as large as they are

_STYLE = """
  <style>
    text { font: 400 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #59636e }
    .strong { fill: #1f2328; font-weight: 700 }
    .blue { fill: #0a5ea8 } .pale { fill: #0a5ea8; opacity: .35 }
    .grid { stroke: #d1d9e0 }
    .line { fill: none; stroke: #0a5ea8; stroke-width: 2.5; stroke-linejoin: round }
    .dots { fill: #0a5ea8 } .after { fill: none; stroke: #c44e16; stroke-width: 2.5 } .orange { fill: #c44e16 }
    @media (prefers-color-scheme: dark) {
      text { fill: #9198a1 } .strong { fill: #f0f6fc }
      .blue, .pale, .dots { fill: #6cb6ff } .line { stroke: #6cb6ff } .grid { stroke: #3d444d }
      .after { stroke: #eb783c } .orange { fill: #eb783c }
    }
  </style>"""


def nine(images: NDArray[np.uint8]) -> bytes:
    """Nine gray images (9, h, w) in a square, dark on light, as PNG."""
    height, width = images.shape[1:]
    page = np.full((3 * (height * _TIMES + _GAP) + _GAP, 3 * (width * _TIMES + _GAP) + _GAP), 255, np.uint8)
    for number, image in enumerate(255 - images):
        top, left = (
            _GAP + n * (size * _TIMES + _GAP) for n, size in zip(divmod(number, 3), (height, width), strict=True)
        )
        page[top : top + height * _TIMES, left : left + width * _TIMES] = image.repeat(_TIMES, 0).repeat(_TIMES, 1)
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def bars(probabilities: Sequence[float], *, right: int, of: str) -> bytes:
    """A bar for each digit's probability, of 140 units for 1; that of the right one is filled."""
    words = f"Probabilities of the ten digits, by {of}: {probabilities[right]:.2f} for the right one, {right}"
    heights = [max(round(140 * float(share)), 1) for share in probabilities]
    parts, foot = [], 26 + max(heights)
    for digit, (share, height) in enumerate(zip(probabilities, heights, strict=True)):
        x = 20 + 44 * digit
        bar, text = ("blue", "strong") if digit == right else ("pale", "")
        parts += [
            f'<rect class="{bar}" x="{x}" y="{foot - height}" width="32" height="{height}" rx="3"/>',
            f'<text class="{text}" x="{x + 16}" y="{foot - 8 - height}" text-anchor="middle">{share:.2f}</text>',
            f'<text class="{text}" x="{x + 16}" y="{foot + 20}" text-anchor="middle">{digit}</text>',
        ]
    return _svg(460, foot + 30, words, parts)


def curves(epochs: Sequence[Epoch], after: Evaluation) -> bytes:
    """Loss and accuracy of each epoch, and those of the test images in the end."""
    parts = []
    series: tuple[tuple[str, list[Any], Any, float, float], ...] = (
        ("Loss", [epoch.loss for epoch in epochs], after.loss, 0.0, 0.4),
        ("Accuracy", [epoch.accuracy for epoch in epochs], after.accuracy, 0.9, 1.0),
    )
    for panel, (title, values, end, low, high) in enumerate(series):
        left = 44 + panel * 250

        def x(epoch: int, left: int = left) -> int:
            return left + round((epoch - 1) * 180 / max(len(epochs) - 1, 1))

        def y(value: float, low: float = low, high: float = high) -> int:
            return 160 - round(120 * (value - low) / (high - low))

        parts.append(f'<text class="strong" x="{left}" y="20">{title}</text>')
        for tick in (low, (low + high) / 2, high):
            parts.append(f'<path class="grid" d="M{left} {y(tick)}h190"/>')
            parts.append(f'<text x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.2f}</text>')
        points = [(x(number), y(value)) for number, value in enumerate(values, 1)]
        parts.append(f'<polyline class="line" points="{" ".join(f"{a},{b}" for a, b in points)}"/>')
        parts += [f'<circle class="dots" cx="{a}" cy="{b}" r="4"/>' for a, b in points]
        parts.append(f'<circle class="after" cx="{points[-1][0]}" cy="{y(end)}" r="6"/>')
        parts += [
            f'<text x="{a}" y="182" text-anchor="middle">{number}</text>' for number, (a, _) in enumerate(points, 1)
        ]
    parts.append('<circle class="dots" cx="48" cy="206" r="4"/><text x="60" y="210">training images, each epoch</text>')
    parts.append(
        '<circle class="after" cx="298" cy="206" r="6"/><text x="312" y="210">test images, after training</text>'
    )
    return _svg(500, 222, f"Loss and accuracy of {len(epochs)} epochs, and of the test images after them", parts)


def _svg(width: int, height: int, words: str, parts: Sequence[str]) -> bytes:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-labelledby="title">\n  <title id="title">{words}</title>{_STYLE}\n'
    )
    return (head + "".join(f"  {part}\n" for part in parts) + "</svg>\n").encode()
