"""Values as the report shows them. What is missing is shown as a dash."""

from __future__ import annotations

import math
import re
from typing import Any

from mnist_ray.runs.pace import duration

ABSENT = "—"
THIN_SPACE = "\u202f"
"""Between a number and its unit; no line breaks there."""


def class_name(classes: list[str], label: int | None) -> str:
    """The name of a class, or its number if it has no name."""
    return "unknown" if label is None else classes[label] if 0 <= label < len(classes) else str(label)


def format_pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what is not None, as text."""
    return [(key.replace("_", " "), without_secrets(value)) for key, value in values.items() if value is not None]


def without_secrets(value: Any) -> str:
    """As text, without the user name, password and query of a URI."""
    if isinstance(value, list | tuple):
        return ", ".join(map(without_secrets, value))
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return re.sub(r"://[^/@\s]*@", "://…@", re.sub(r"(://[^?\s]*)\?\S*", r"\1?…", text))


def format_count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ABSENT


def format_change(value: int) -> str:
    """With its sign, a real minus."""
    return f"{value:+,}".replace("-", "\u2212")


def format_percent(value: Any, digits: int = 2) -> str:
    """A share of 1 as a percentage. A share below 1 is never rounded to 100."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ABSENT
    text = f"{value * 100:.{digits}f}"
    return f"{text if value >= 1 or float(text) < 100 else f'{100 - 10**-digits:.{digits}f}'}{THIN_SPACE}%"


def format_probability(p: float) -> str:
    """A p-value. Below a thousandth, only its size matters."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001" if p >= 1e-6 else "< 0.000001"


def format_number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ABSENT


def format_seconds(value: Any) -> str:
    return duration(value, 1).replace(" s", f"{THIN_SPACE}s") if isinstance(value, int | float) else ABSENT
