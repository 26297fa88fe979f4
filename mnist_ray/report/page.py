"""The pages: each is one HTML file that opens from disk.

It needs no network, and its content policy forbids that and any script but the one that copies a command. Pictures are
embedded, charts are SVG drawn by the template, so they follow the reader's light or dark theme. Sections without data
are left out or say why.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_ray.report.comparison import comparison_context
from mnist_ray.report.context import report_context
from mnist_ray.report.formatting import (
    class_name,
    format_change,
    format_count,
    format_number,
    format_percent,
    format_probability,
    format_seconds,
)
from mnist_ray.report.result import Fetch
from mnist_ray.storage.location import Location

if TYPE_CHECKING:
    import jinja2


def write_report(
    folder: Location, *, target: Location | None = None, name: str | None = None, reference: Location | None = None,
    fetch: Fetch | None = None,
) -> Location:  # fmt: skip
    """Write `report.html` into the folder of a run or of an output, or to `target`, and return its location.

    metrics.json is required; config.json, shards and predictions are used if they are there. name: what the page calls
    it, if not by its folder. reference: an output to compare the predictions with. fetch: where the images of an output
    come from, if not from those that were kept. Raises InputError if there is no metrics.json, or if a file is not as
    mnist-ray writes it.
    """
    target = target or folder / "report.html"
    context = report_context(folder, name=name, fetch=fetch, reference=reference)
    target.write_bytes(_render(context).encode())
    return target


def write_comparison(folders: Sequence[Location], *, target: Location | None = None) -> Location:
    """Write a page that compares finished runs or outputs with the first of them, and return its location.

    By default it lies beside the first one's folder, named after them. Raises InputError as `write_report` does.
    """
    target = target or folders[0].parent / _comparison_name([each.name for each in folders])
    target.write_bytes(_render(comparison_context(folders), "comparison.html.j2").encode())
    return target


def _comparison_name(names: Sequence[str]) -> str:
    name = f"{'-vs-'.join(names)}.html"
    return name if len(name.encode()) <= 120 else f"{names[0][:60]}-vs-{len(names) - 1}-others.html"


def _render(context: dict[str, Any], template: str = "report.html.j2") -> str:
    return str(_environment().get_template(template).render(context))


def compile_templates() -> None:
    """Do beforehand what the first page would otherwise take a third of a second longer for."""
    for name in _environment().list_templates(extensions=["j2"]):
        _environment().get_template(name)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    # Chainable: a key that metrics.json lacks is empty, and the filters show it as a dash.
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_ray.report"), autoescape=True, undefined=jinja2.ChainableUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {
        "count": format_count,
        "change": format_change,
        "percent": format_percent,
        "number": format_number,
        "probability": format_probability,
        "seconds": format_seconds,
        "class_name": jinja2.pass_context(lambda context, label: class_name(context["classes"], label)),
    }
    script = env.get_template("copy.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    env.globals |= {"script": script, "script_digest": digest}
    return env
