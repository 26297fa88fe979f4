"""What an option is: its help, unit, bounds and group, and the check of its value. `config.py` lists the options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from math import isinf
from operator import ge, gt, le, lt
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from mnist_ray.errors import InputError


class Group(StrEnum):
    """The headings of --help, in their order."""

    REQUIRED = "Required options"
    DATA = "Data"
    RUN = "Run"
    MODEL = "Model"
    TRAINING = "Training"
    RECOVERY = "Checkpoints and failures"
    OUTPUT = "Output"
    RESOURCES = "Resources"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What users must know about an option, and what its values must fulfil.

    `low` and `high` include the bound, `above` and `below` exclude it. `unset` describes what happens without a value.
    """

    help: str
    group: Group | None = None
    """None: a positional argument."""
    unset: str | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    is_path: bool = False
    """Whether a shell completes file names."""
    changes_result: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise InputError unless the value is within the bounds, finite and one of the choices. None is allowed."""
        if value is None:
            return
        bounds = (
            (self.low, "at least", ge),
            (self.high, "at most", le),
            (self.above, "more than", gt),
            (self.below, "less than", lt),
        )
        for bound, words, holds in bounds:
            if bound is not None and not holds(value, bound):
                raise InputError(f"{flag(name)} must be {words} {bound}, not {value}")
        if isinstance(value, float) and isinf(value):
            raise InputError(f"{flag(name)} must be finite, not {value}")
        if self.choices and value not in self.choices:
            raise InputError(f"{flag(name)} must be one of {', '.join(self.choices)}, not {value!r}")


def option(default: Any, help: str, *, group: Group, **rules: Any) -> Any:  # noqa: A002 - click's word for it
    """A field that is an option of the command line. `rules` are further fields of Rules."""
    return field(default=default, metadata={"rules": Rules(help=help, group=group, **rules)})


def required(help: str, **rules: Any) -> Any:  # noqa: A002
    """A field that is an option without a default."""
    return field(metadata={"rules": Rules(help=help, group=Group.REQUIRED, **rules)})


def argument(help: str, *, metavar: str, **rules: Any) -> Any:  # noqa: A002
    """A field that is a positional argument."""
    return field(metadata={"rules": Rules(help=help, metavar=metavar, **rules)})


class Option(NamedTuple):
    """A field of a configuration, as the command line needs it."""

    name: str
    type: type
    """bool, int, float or str: of the value, or of each value where there are many."""
    is_optional: bool
    """Whether None is a value: no default is shown, only `rules.unset`."""
    is_many: bool
    default: Any
    """MISSING where a value is required."""
    rules: Rules

    @property
    def is_required(self) -> bool:
        return self.default is MISSING


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of all configurations. Checks the values against the rules of their fields."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            spec.metadata["rules"].check(spec.name, getattr(self, spec.name))

    @classmethod
    def options(cls) -> Iterator[Option]:
        """The fields in the order of --help: positional arguments, then by group, the class's own first."""
        hints, order = get_type_hints(cls), [None, *Group]

        def place(spec: Field[Any]) -> tuple[int, bool]:
            return order.index(spec.metadata["rules"].group), spec.name not in cls.__annotations__

        for spec in sorted(fields(cls), key=place):
            hint = hints[spec.name]
            inner = get_args(hint) or (hint,)  # of `int | None` and `tuple[str, ...]`
            yield Option(
                name=spec.name,
                type=inner[0],
                is_optional=NoneType in inner,
                is_many=get_origin(hint) is tuple,
                default=spec.default,
                rules=spec.metadata["rules"],
            )

    def written_to(self) -> tuple[str, str] | None:
        """The option that says where the command writes, and the folder; None where there is no such option."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """The values that change the result. Workers, addresses and failure budgets are not among them."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["rules"].changes_result}


def flag(name: str) -> str:
    """The option as the user types it: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")
