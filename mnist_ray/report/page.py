"""The page: one HTML file that opens from disk.

It has no script and needs no network, and its content policy forbids both. Pictures are embedded, charts are SVG drawn
by the template, so they follow the reader's light or dark theme. Sections without data are left out or say why.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from mnist_ray.report.context import report_context
from mnist_ray.report.formatting import class_name, format_count, format_number, format_percent, format_seconds
from mnist_ray.storage.location import Location


def write_report(folder: Location) -> Location:
    """Write `report.html` into the folder of a run or of an output, and return its location.

    metrics.json is required; config.json, shards and predictions are used if they are there. Raises InputError if
    there is no metrics.json, or if a file is not as mnist-ray writes it.
    """
    page = _render(report_context(folder)).encode()
    target = folder / "report.html"
    target.write_bytes(page)
    return target


def _render(context: dict[str, Any]) -> str:
    import jinja2

    # Chainable: a key that metrics.json lacks is empty, and the filters show it as a dash.
    env = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {
        "count": format_count,
        "percent": format_percent,
        "number": format_number,
        "seconds": format_seconds,
        "class_name": lambda label: class_name(context["classes"], label),
    }
    source = resources.files("mnist_ray.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return env.from_string(source).render(context)
