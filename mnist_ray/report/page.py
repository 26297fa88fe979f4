"""The HTML report and its pictures, from a finished run's files alone.

One file that opens from disk: no script, no network, and a content policy that forbids both. The curves are SVG drawn
by the template, so they follow the reader's light or dark theme. Sections without data are left out or say so.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from mnist_ray.report.context import report_context
from mnist_ray.report.formatting import class_name, format_count, format_number, format_percent, format_seconds
from mnist_ray.storage.location import Location


def write_report(run: Location) -> Location:
    """Write `report.html` of a run (or of what `score --output` wrote) and return where it lies.

    Args:
        run: the folder with metrics.json; config.json, shards and predictions are used where they are there.

    Raises:
        InputError: there is no metrics.json, or a file is not what mnist-ray writes.
    """
    page = _render(report_context(run)).encode()
    target = run / "report.html"
    target.write_bytes(page)
    return target


def _render(context: dict[str, Any]) -> str:
    import jinja2

    # Chainable: a key that metrics.json lacks is empty, and the filters show it as a dash.
    env = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    classes = context["classes"]
    env.filters |= {
        "count": format_count,
        "percent": format_percent,
        "number": format_number,
        "seconds": format_seconds,
    }
    env.filters["class_name"] = lambda label: class_name(classes, label)
    source = resources.files("mnist_ray.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return env.from_string(source).render(context)
